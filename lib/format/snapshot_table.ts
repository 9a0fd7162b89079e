/**
 * The snapshot table: one entry for each internal snapshot.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import { alignUp } from "./geometry.ts";
import { MAX_L1_TABLE_LENGTH, MAX_SNAPSHOT_EXTRA_LENGTH } from "./limits.ts";
import { readUint64, viewOf, writeUint64 } from "./uint64.ts";

/** An internal snapshot, as its entry in the snapshot table tells. */
export interface Snapshot {
  /** Host offset of the snapshot's L1 table in bytes. */
  readonly l1TableOffset: number;
  /** Number of entries in the snapshot's L1 table. */
  readonly l1EntryCount: number;
  /** The identifier, unique, usually a decimal number. */
  readonly id: string;
  /** The name. */
  readonly name: string;
  /** When it was taken: seconds since 1970. */
  readonly seconds: number;
  /** When it was taken: further nanoseconds. */
  readonly nanoseconds: number;
  /** How long the guest had run, in nanoseconds. */
  readonly vmClockNanoseconds: bigint;
  /** Length of the virtual machine's saved state in bytes; 0 without one. */
  readonly vmStateSize: number;
  /** The virtual size when it was taken, in bytes; `undefined` where the entry does not say. */
  readonly diskSize: number | undefined;
  /** The guest's instruction count; `undefined` where the entry does not say, -1 where it was not counted. */
  readonly instructionCount: bigint | undefined;
  /** All extra data, known fields included, byte for byte. */
  readonly extraData: Uint8Array;
}

const ENTRY_HEAD_LENGTH = 40;
/** Length of the extra data that is written: state size, disk size, instruction count. */
const EXTRA_LENGTH = 24;
/** The longest identifier or name in bytes. */
const MAX_TEXT_LENGTH = 65535;
const MAX_UINT32 = 0xffffffff;

/** One entry of the table and how long it is there. */
export interface DecodedSnapshot {
  /** The entry. */
  readonly snapshot: Snapshot;
  /** Its length in bytes, padding included. */
  readonly length: number;
}

/**
 * Decodes one entry.
 *
 * @param bytes The rest of the table from the entry on, at least as far as the entry goes.
 * @param entryOffset Host offset of the entry in bytes, for error messages.
 * @returns The entry and its length.
 * @throws {Qcow2Error} With code `corrupt` where it runs past the bytes, `limit-exceeded` where its L1 table or extra data
 * is too large.
 */
export function decodeSnapshot(bytes: Uint8Array, entryOffset: number): DecodedSnapshot {
  const view = viewOf(bytes);
  if (bytes.length < ENTRY_HEAD_LENGTH) throw truncated(entryOffset);
  const idLength = view.getUint16(12);
  const nameLength = view.getUint16(14);
  const extraLength = view.getUint32(36);
  const l1EntryCount = view.getUint32(8);
  if (extraLength > MAX_SNAPSHOT_EXTRA_LENGTH) {
    throw new Qcow2Error(
      "limit-exceeded",
      `Snapshot at ${
        hex(entryOffset)
      } has ${extraLength} bytes of extra data, expected at most ${MAX_SNAPSHOT_EXTRA_LENGTH}`,
      { offset: entryOffset + 36, found: extraLength, expected: `at most ${MAX_SNAPSHOT_EXTRA_LENGTH}` },
    );
  }
  if (l1EntryCount * 8 > MAX_L1_TABLE_LENGTH) {
    throw new Qcow2Error("limit-exceeded", `Snapshot L1 table too large: ${l1EntryCount} entries`, {
      offset: entryOffset + 8,
      found: l1EntryCount,
      expected: `at most ${MAX_L1_TABLE_LENGTH / 8}`,
    });
  }
  const idStart = ENTRY_HEAD_LENGTH + extraLength;
  const nameStart = idStart + idLength;
  const end = nameStart + nameLength;
  if (end > bytes.length) throw truncated(entryOffset);
  const decoder = new TextDecoder();
  const snapshot: Snapshot = {
    l1TableOffset: readUint64(view, 0, "Snapshot L1 table offset"),
    l1EntryCount,
    id: decoder.decode(bytes.subarray(idStart, nameStart)),
    name: decoder.decode(bytes.subarray(nameStart, end)),
    seconds: view.getUint32(16),
    nanoseconds: view.getUint32(20),
    vmClockNanoseconds: view.getBigUint64(24),
    vmStateSize: extraLength >= 8
      ? readUint64(view, ENTRY_HEAD_LENGTH, "Virtual machine state size")
      : view.getUint32(32),
    diskSize: extraLength >= 16 ? readUint64(view, ENTRY_HEAD_LENGTH + 8, "Snapshot disk size") : undefined,
    instructionCount: extraLength >= 24 ? view.getBigInt64(ENTRY_HEAD_LENGTH + 16) : undefined,
    extraData: bytes.slice(ENTRY_HEAD_LENGTH, idStart),
  };
  return { snapshot, length: alignUp(end, 8) };
}

/**
 * Encodes one entry.
 *
 * @param snapshot The snapshot. State size, disk size and instruction count stand in its extra data, and nowhere else.
 * @returns The entry's bytes, padding included.
 * @throws {Qcow2Error} With code `invalid-argument` where identifier or name is longer than the format can say.
 *
 * @example Usage
 * ```ts
 * import { decodeSnapshot, encodeSnapshot, encodeSnapshotExtra } from "@disk/qcow2/format";
 * import { assertEquals } from "@std/assert";
 *
 * const snapshot = {
 *   l1TableOffset: 0x40000,
 *   l1EntryCount: 1,
 *   id: "1",
 *   name: "first",
 *   seconds: 1_700_000_000,
 *   nanoseconds: 0,
 *   vmClockNanoseconds: 0n,
 *   vmStateSize: 0,
 *   diskSize: 1 << 20,
 *   instructionCount: 0n,
 *   extraData: encodeSnapshotExtra(1 << 20),
 * };
 * assertEquals(decodeSnapshot(encodeSnapshot(snapshot), 0).snapshot, snapshot);
 * ```
 */
export function encodeSnapshot(snapshot: Snapshot): Uint8Array<ArrayBuffer> {
  const { extraData } = snapshot;
  const id = encodeText("identifier", snapshot.id);
  const name = encodeText("name", snapshot.name);
  const idStart = ENTRY_HEAD_LENGTH + extraData.length;
  const bytes = new Uint8Array(alignUp(idStart + id.length + name.length, 8));
  const view = viewOf(bytes);
  writeUint64(view, 0, snapshot.l1TableOffset);
  view.setUint32(8, snapshot.l1EntryCount);
  view.setUint16(12, id.length);
  view.setUint16(14, name.length);
  view.setUint32(16, snapshot.seconds);
  view.setUint32(20, snapshot.nanoseconds);
  view.setBigUint64(24, snapshot.vmClockNanoseconds);
  view.setUint32(32, Math.min(snapshot.vmStateSize, MAX_UINT32));
  view.setUint32(36, extraData.length);
  bytes.set(extraData, ENTRY_HEAD_LENGTH);
  bytes.set(id, idStart);
  bytes.set(name, idStart + id.length);
  return bytes;
}

/**
 * The extra data of a snapshot without a virtual machine's state.
 *
 * @param diskSize The virtual size in bytes.
 * @returns State size 0, the disk size and instruction count 0: 24 bytes.
 */
export function encodeSnapshotExtra(diskSize: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(EXTRA_LENGTH);
  writeUint64(viewOf(bytes), 8, diskSize);
  return bytes;
}

/**
 * Gives an entry of version 2 the extra data that version 3 demands; everything else stays byte for byte.
 *
 * @param entry The entry's bytes, without the size of the disk.
 * @param diskSize The virtual size in bytes.
 * @returns The bytes of the longer entry, padding included.
 */
export function completeSnapshot(entry: Uint8Array, diskSize: number): Uint8Array<ArrayBuffer> {
  const old = viewOf(entry);
  const oldExtraLength = old.getUint32(36);
  const textStart = ENTRY_HEAD_LENGTH + oldExtraLength;
  const text = entry.subarray(textStart, textStart + old.getUint16(12) + old.getUint16(14));
  const bytes = new Uint8Array(alignUp(ENTRY_HEAD_LENGTH + EXTRA_LENGTH + text.length, 8));
  const view = viewOf(bytes);
  bytes.set(entry.subarray(0, ENTRY_HEAD_LENGTH));
  view.setUint32(36, EXTRA_LENGTH);
  if (oldExtraLength >= 8) bytes.set(entry.subarray(ENTRY_HEAD_LENGTH, ENTRY_HEAD_LENGTH + 8), ENTRY_HEAD_LENGTH);
  else view.setUint32(ENTRY_HEAD_LENGTH + 4, old.getUint32(32));
  writeUint64(view, ENTRY_HEAD_LENGTH + 8, diskSize);
  // Nobody counted instructions.
  view.setBigInt64(ENTRY_HEAD_LENGTH + 16, -1n);
  bytes.set(text, ENTRY_HEAD_LENGTH + EXTRA_LENGTH);
  return bytes;
}

function encodeText(what: string, text: string): Uint8Array<ArrayBuffer> {
  const bytes = new TextEncoder().encode(text);
  if (bytes.length <= MAX_TEXT_LENGTH) return bytes;
  throw new Qcow2Error("invalid-argument", `Snapshot ${what} is ${bytes.length} bytes long, expected at most 65535`, {
    found: bytes.length,
    expected: `at most ${MAX_TEXT_LENGTH}`,
  });
}

/**
 * The longest that an entry can be in bytes, which bounds how much has to be read to decode one.
 */
export const MAX_SNAPSHOT_ENTRY_LENGTH: number = alignUp(ENTRY_HEAD_LENGTH + MAX_SNAPSHOT_EXTRA_LENGTH + 2 * 65535, 8);

function truncated(entryOffset: number): Qcow2Error {
  return new Qcow2Error("corrupt", `Snapshot at ${hex(entryOffset)} runs past the end of the snapshot table`, {
    offset: entryOffset,
  });
}
