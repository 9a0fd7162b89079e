/**
 * The snapshot table: one entry for each internal snapshot.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import { alignUp } from "./geometry.ts";
import { viewOf, writeUint64 } from "./uint64.ts";

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

/** How long the fixed part of an entry is, in bytes. */
export const SNAPSHOT_HEAD_LENGTH = 40;
/** Where in an entry the length of its extra data stands. */
export const SNAPSHOT_EXTRA_LENGTH_AT = 36;
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

/** How long the parts of an entry are. */
export interface SnapshotLengths {
  /** The extra data, in bytes. */
  readonly extraLength: number;
  /** Identifier and name together, in bytes. */
  readonly textLength: number;
}

/**
 * Tells how long an entry is.
 *
 * @param head The fixed part of the entry.
 * @returns The lengths of what follows it.
 */
export function snapshotLengths(head: Uint8Array): SnapshotLengths {
  const view = viewOf(head);
  return { extraLength: view.getUint32(SNAPSHOT_EXTRA_LENGTH_AT), textLength: view.getUint16(12) + view.getUint16(14) };
}

/**
 * Decodes one entry. Where it points to is not looked at.
 *
 * @param bytes The rest of the table from the entry on, at least as far as the entry goes.
 * @param entryOffset Host offset of the entry in bytes, for error messages.
 * @returns The entry and its length. Numbers beyond 2^53 are not exact.
 * @throws {Qcow2Error} With code `corrupt` where it runs past the bytes.
 */
export function decodeSnapshot(bytes: Uint8Array, entryOffset: number): DecodedSnapshot {
  const view = viewOf(bytes);
  if (bytes.length < SNAPSHOT_HEAD_LENGTH) throw truncated(entryOffset);
  const { extraLength, textLength } = snapshotLengths(bytes);
  const idStart = SNAPSHOT_HEAD_LENGTH + extraLength;
  const nameStart = idStart + view.getUint16(12);
  const end = idStart + textLength;
  if (end > bytes.length) throw truncated(entryOffset);
  const snapshot: Snapshot = {
    l1TableOffset: Number(view.getBigUint64(0)),
    l1EntryCount: view.getUint32(8),
    id: decodeText(bytes.subarray(idStart, nameStart)),
    name: decodeText(bytes.subarray(nameStart, end)),
    seconds: view.getUint32(16),
    nanoseconds: view.getUint32(20),
    vmClockNanoseconds: view.getBigUint64(24),
    vmStateSize: extraLength >= 8 ? Number(view.getBigUint64(SNAPSHOT_HEAD_LENGTH)) : view.getUint32(32),
    diskSize: extraLength >= 16 ? Number(view.getBigUint64(SNAPSHOT_HEAD_LENGTH + 8)) : undefined,
    instructionCount: extraLength >= 24 ? view.getBigInt64(SNAPSHOT_HEAD_LENGTH + 16) : undefined,
    extraData: bytes.slice(SNAPSHOT_HEAD_LENGTH, idStart),
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
  const idStart = SNAPSHOT_HEAD_LENGTH + extraData.length;
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
  view.setUint32(SNAPSHOT_EXTRA_LENGTH_AT, extraData.length);
  bytes.set(extraData, SNAPSHOT_HEAD_LENGTH);
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
  const oldExtraLength = old.getUint32(SNAPSHOT_EXTRA_LENGTH_AT);
  const textStart = SNAPSHOT_HEAD_LENGTH + oldExtraLength;
  const text = entry.subarray(textStart, textStart + old.getUint16(12) + old.getUint16(14));
  const bytes = new Uint8Array(alignUp(SNAPSHOT_HEAD_LENGTH + EXTRA_LENGTH + text.length, 8));
  const view = viewOf(bytes);
  bytes.set(entry.subarray(0, SNAPSHOT_HEAD_LENGTH));
  view.setUint32(SNAPSHOT_EXTRA_LENGTH_AT, EXTRA_LENGTH);
  if (oldExtraLength >= 8) {
    bytes.set(entry.subarray(SNAPSHOT_HEAD_LENGTH, SNAPSHOT_HEAD_LENGTH + 8), SNAPSHOT_HEAD_LENGTH);
  } else view.setUint32(SNAPSHOT_HEAD_LENGTH + 4, old.getUint32(32));
  writeUint64(view, SNAPSHOT_HEAD_LENGTH + 8, diskSize);
  // Nobody counted instructions.
  view.setBigInt64(SNAPSHOT_HEAD_LENGTH + 16, -1n);
  bytes.set(text, SNAPSHOT_HEAD_LENGTH + EXTRA_LENGTH);
  return bytes;
}

/** A text ends with the first zero, as in QEMU. */
function decodeText(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
}

function encodeText(what: string, text: string): Uint8Array<ArrayBuffer> {
  const bytes = new TextEncoder().encode(text);
  if (bytes.length <= MAX_TEXT_LENGTH) return bytes;
  throw new Qcow2Error("invalid-argument", `Snapshot ${what} is ${bytes.length} bytes long, expected at most 65535`, {
    found: bytes.length,
    expected: `at most ${MAX_TEXT_LENGTH}`,
  });
}

function truncated(entryOffset: number): Qcow2Error {
  return new Qcow2Error("corrupt", `Snapshot at ${hex(entryOffset)} runs past the end of the snapshot table`, {
    offset: entryOffset,
  });
}
