/**
 * The bitmap directory: one entry for each persistent bitmap.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import { alignUp } from "./geometry.ts";
import { MAX_BITMAP_TABLE_ENTRY_COUNT } from "./limits.ts";
import { readUint64, viewOf } from "./uint64.ts";

/** A persistent bitmap, as its entry in the bitmap directory tells. */
export interface BitmapEntry {
  /** Host offset of the bitmap table in bytes. */
  readonly tableOffset: number;
  /** Number of entries in the bitmap table. */
  readonly tableEntryCount: number;
  /** Somebody opened the image for writing and has not brought the bitmap up to date. */
  readonly inUse: boolean;
  /** Writes to the disk must be recorded in it. */
  readonly auto: boolean;
  /** Base-2 logarithm of the bytes that one bit stands for. */
  readonly granularityBits: number;
  /** The name, unique. */
  readonly name: string;
}

const ENTRY_HEAD_LENGTH = 24;
const FLAG_IN_USE = 1;
const FLAG_AUTO = 2;

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
  const view = viewOf(bytes);
  const entries: BitmapEntry[] = [];
  let position = 0;
  while (position < bytes.length) {
    const offset = directoryOffset + position;
    if (bytes.length - position < ENTRY_HEAD_LENGTH) throw broken(offset, "an entry is cut short");
    const nameLength = view.getUint16(position + 18);
    const nameStart = position + ENTRY_HEAD_LENGTH + view.getUint32(position + 20);
    const end = nameStart + nameLength;
    if (end > bytes.length) throw broken(offset, "an entry runs past its end");
    const tableEntryCount = view.getUint32(position + 8);
    if (tableEntryCount > MAX_BITMAP_TABLE_ENTRY_COUNT) {
      throw new Qcow2Error("limit-exceeded", `Bitmap table too large: ${tableEntryCount} entries`, {
        offset: offset + 8,
        found: tableEntryCount,
        expected: `at most ${MAX_BITMAP_TABLE_ENTRY_COUNT}`,
      });
    }
    const flags = view.getUint32(position + 12);
    entries.push({
      tableOffset: readUint64(view, position, "Bitmap table offset"),
      tableEntryCount,
      inUse: (flags & FLAG_IN_USE) !== 0,
      auto: (flags & FLAG_AUTO) !== 0,
      granularityBits: view.getUint8(position + 17),
      name: new TextDecoder().decode(bytes.subarray(nameStart, end)),
    });
    position = alignUp(end, 8);
  }
  if (entries.length !== count) throw broken(directoryOffset, `it holds ${entries.length} bitmaps, expected ${count}`);
  return entries;
}

function broken(offset: number, what: string): Qcow2Error {
  return new Qcow2Error("corrupt", `Bitmap directory at ${hex(offset)} is broken: ${what}`, { offset });
}
