/**
 * The bitmap directory: one entry for each persistent bitmap.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import { alignUp } from "./geometry.ts";
import { MAX_BITMAP_NAME_LENGTH, MAX_BITMAP_TABLE_ENTRY_COUNT } from "./limits.ts";
import { readUint64, viewOf, writeUint64 } from "./uint64.ts";

/** The flags of a bitmap that the format defines. */
export const BITMAP_FLAG = {
  /** A writer has not brought the bitmap up to date. */
  inUse: 1,
  /** Writes to the disk must be recorded in it. */
  auto: 2,
  /** It may be used without knowing what its extra data means. */
  extraDataCompatible: 4,
} as const;

/** The one type of bitmap that the format defines: it tells which parts of the disk were written. */
export const BITMAP_TYPE_DIRTY_TRACKING = 1;

/** A persistent bitmap, as its entry in the bitmap directory tells. */
export interface BitmapEntry {
  /** Host offset of the bitmap table in bytes. */
  readonly tableOffset: number;
  /** Number of entries in the bitmap table. */
  readonly tableEntryCount: number;
  /** All flags, those of {@linkcode BITMAP_FLAG} and unknown ones. */
  readonly flags: number;
  /** Somebody opened the image for writing and has not brought the bitmap up to date. */
  readonly inUse: boolean;
  /** Writes to the disk must be recorded in it. */
  readonly auto: boolean;
  /** What the bits mean. */
  readonly type: number;
  /** Base-2 logarithm of the bytes that one bit stands for. */
  readonly granularityBits: number;
  /** Length in bytes of the extra data, of which none is known here. */
  readonly extraDataLength: number;
  /** Length of the name in bytes. */
  readonly nameLength: number;
  /** The name, unique. */
  readonly name: string;
  /** The entry as it stands in the directory, with extra data and padding. */
  readonly bytes: Uint8Array;
}

/** What {@linkcode encodeBitmapEntry} makes an entry of. */
export type BitmapEntryFields = Pick<
  BitmapEntry,
  "tableOffset" | "tableEntryCount" | "flags" | "granularityBits" | "name"
>;

/** Where the flags stand in an entry, in bytes; the place and length of the table stand in the twelve bytes before. */
export const BITMAP_FLAGS_POSITION = 12;

const ENTRY_HEAD_LENGTH = 24;

/**
 * Decodes the bitmap directory.
 *
 * @param bytes The whole directory.
 * @param count How many entries it must have.
 * @param directoryOffset Host offset of the directory in bytes, for error messages.
 * @returns The entries in their order.
 * @throws {Qcow2Error} With code `corrupt` where the directory does not hold exactly that many, `limit-exceeded` where a
 * table is too large.
 */
export function decodeBitmapDirectory(bytes: Uint8Array, count: number, directoryOffset: number): BitmapEntry[] {
  const entries: BitmapEntry[] = [];
  let position = 0;
  while (position < bytes.length) {
    const entry = decodeBitmapEntry(bytes.subarray(position), directoryOffset + position);
    entries.push(entry);
    position += entry.bytes.length;
  }
  if (entries.length !== count) throw broken(directoryOffset, `it holds ${entries.length} bitmaps, expected ${count}`);
  return entries;
}

function decodeBitmapEntry(bytes: Uint8Array, offset: number): BitmapEntry {
  const view = viewOf(bytes);
  if (bytes.length < ENTRY_HEAD_LENGTH) throw broken(offset, "an entry is cut short");
  const nameLength = view.getUint16(18);
  const extraDataLength = view.getUint32(20);
  const nameStart = ENTRY_HEAD_LENGTH + extraDataLength;
  const end = nameStart + nameLength;
  if (end > bytes.length) throw broken(offset, "an entry runs past its end");
  const tableEntryCount = view.getUint32(8);
  if (tableEntryCount > MAX_BITMAP_TABLE_ENTRY_COUNT) {
    throw new Qcow2Error("limit-exceeded", `Bitmap table too large: ${tableEntryCount} entries`, {
      offset: offset + 8,
      found: tableEntryCount,
      expected: `at most ${MAX_BITMAP_TABLE_ENTRY_COUNT}`,
    });
  }
  const flags = view.getUint32(BITMAP_FLAGS_POSITION);
  const copy = new Uint8Array(alignUp(end, 8));
  copy.set(bytes.subarray(0, copy.length));
  return {
    tableOffset: readUint64(view, 0, "Bitmap table offset"),
    tableEntryCount,
    flags,
    inUse: (flags & BITMAP_FLAG.inUse) !== 0,
    auto: (flags & BITMAP_FLAG.auto) !== 0,
    type: view.getUint8(16),
    granularityBits: view.getUint8(17),
    extraDataLength,
    nameLength,
    name: new TextDecoder().decode(bytes.subarray(nameStart, end)),
    bytes: copy,
  };
}

/**
 * How many bytes the entry of a bitmap takes.
 *
 * @param nameLength Length of its name in bytes.
 * @returns A multiple of 8.
 */
export function bitmapEntryLength(nameLength: number): number {
  return alignUp(ENTRY_HEAD_LENGTH + nameLength, 8);
}

/**
 * Encodes the entry of a new bitmap.
 *
 * @param fields What it says.
 * @returns The entry.
 * @throws {Qcow2Error} With code `invalid-argument` where the name is empty or too long.
 */
export function encodeBitmapEntry(fields: BitmapEntryFields): BitmapEntry {
  const name = new TextEncoder().encode(fields.name);
  if (name.length === 0 || name.length > MAX_BITMAP_NAME_LENGTH) {
    throw new Qcow2Error(
      "invalid-argument",
      `Bitmap name is ${name.length} bytes long, expected 1 to ${MAX_BITMAP_NAME_LENGTH}`,
      { found: name.length, expected: `1 to ${MAX_BITMAP_NAME_LENGTH}` },
    );
  }
  const bytes = new Uint8Array(bitmapEntryLength(name.length));
  const view = viewOf(bytes);
  writeUint64(view, 0, fields.tableOffset);
  view.setUint32(8, fields.tableEntryCount);
  view.setUint32(BITMAP_FLAGS_POSITION, fields.flags);
  view.setUint8(16, BITMAP_TYPE_DIRTY_TRACKING);
  view.setUint8(17, fields.granularityBits);
  view.setUint16(18, name.length);
  bytes.set(name, ENTRY_HEAD_LENGTH);
  return decodeBitmapEntry(bytes, 0);
}

/**
 * The same entry with other flags; everything else stays byte for byte.
 *
 * @param entry An entry.
 * @param flags All flags.
 * @returns The changed entry.
 */
export function withBitmapFlags(entry: BitmapEntry, flags: number): BitmapEntry {
  const bytes = entry.bytes.slice();
  viewOf(bytes).setUint32(BITMAP_FLAGS_POSITION, flags);
  return decodeBitmapEntry(bytes, 0);
}

/**
 * The same entry with another table; everything else stays byte for byte.
 *
 * @param entry An entry.
 * @param table Host offset of the table in bytes, and its number of entries.
 * @returns The changed entry.
 */
export function withBitmapTable(
  entry: BitmapEntry,
  { tableOffset, tableEntryCount }: Pick<BitmapEntry, "tableOffset" | "tableEntryCount">,
): BitmapEntry {
  const bytes = entry.bytes.slice();
  writeUint64(viewOf(bytes), 0, tableOffset);
  viewOf(bytes).setUint32(8, tableEntryCount);
  return decodeBitmapEntry(bytes, 0);
}

/**
 * Encodes the bitmap directory.
 *
 * @param entries What it holds, in this order.
 * @returns The bytes.
 */
export function encodeBitmapDirectory(entries: readonly BitmapEntry[]): Uint8Array<ArrayBuffer> {
  const directory = new Uint8Array(entries.reduce((length, { bytes }) => length + bytes.length, 0));
  let position = 0;
  for (const { bytes } of entries) {
    directory.set(bytes, position);
    position += bytes.length;
  }
  return directory;
}

function broken(offset: number, what: string): Qcow2Error {
  return new Qcow2Error("corrupt", `Bitmap directory at ${hex(offset)} is broken: ${what}`, { offset });
}
