/**
 * The snapshot table of an image.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import { alignUp } from "../format/geometry.ts";
import type { Header } from "../format/header.ts";
import {
  MAX_L1_TABLE_LENGTH,
  MAX_SNAPSHOT_COUNT,
  MAX_SNAPSHOT_EXTRA_LENGTH,
  MAX_SNAPSHOT_TABLE_LENGTH,
} from "../format/limits.ts";
import {
  decodeSnapshot,
  type Snapshot,
  SNAPSHOT_EXTRA_LENGTH_AT,
  SNAPSHOT_HEAD_LENGTH,
  snapshotLengths,
} from "../format/snapshot_table.ts";
import { viewOf } from "../format/uint64.ts";
import type { BlockFile } from "../storage/block_file.ts";

/** The longest table that QEMU goes through. */
const MAX_INT32 = 0x7fffffff;

/** The snapshots of an image, and what their table is made of. */
export interface SnapshotTable {
  /** The snapshots in the order of the table. */
  readonly snapshots: readonly Snapshot[];
  /** The bytes of their entries, padding included. */
  readonly entries: readonly Uint8Array[];
  /** Length of the table in the file, in bytes. */
  readonly length: number;
}

/**
 * What is wrong with a snapshot table: an entry has too much extra data, the entries together are too long, the header counts
 * too many, or points to no cluster.
 */
export type SnapshotTableProblem = "extra-data" | "length" | "count" | "offset";

/** Where a {@linkcode SnapshotTableError} lies. */
export interface SnapshotTableErrorDetails {
  /** Where in the host file, in bytes. */
  readonly offset: number;
  /** Index of the entry from which on it is wrong. */
  readonly index?: number;
  /** How many snapshots are too many. */
  readonly overhanging?: number;
  /** How many bytes of extra data the entry has. */
  readonly extraLength?: number;
}

/** The error for a snapshot table that cannot be read. What is too much of it, a repair can take away. */
export class SnapshotTableError extends Qcow2Error {
  /** What is wrong. */
  readonly problem: SnapshotTableProblem;
  /** Index of the entry from which on it is wrong. */
  readonly index: number;
  /** How many snapshots are too many. */
  readonly overhanging: number;
  /** How many bytes of extra data the entry has. */
  readonly extraLength: number;

  /**
   * @param problem What is wrong.
   * @param message The same for people.
   * @param details Where.
   */
  constructor(problem: SnapshotTableProblem, message: string, details: SnapshotTableErrorDetails) {
    super(problem === "offset" ? "invalid-header" : "limit-exceeded", message, { offset: details.offset });
    this.problem = problem;
    this.index = details.index ?? 0;
    this.overhanging = details.overhanging ?? 0;
    this.extraLength = details.extraLength ?? 0;
  }
}

/**
 * Refuses a snapshot table that the header cannot mean.
 *
 * @param header The image's header.
 * @throws {SnapshotTableError} With code `limit-exceeded` or `invalid-header`.
 */
export function assertSnapshotTable({ snapshotCount, snapshotTableOffset, clusterBits }: Header): void {
  if (snapshotCount > MAX_SNAPSHOT_COUNT) {
    const overhanging = snapshotCount - MAX_SNAPSHOT_COUNT;
    throw new SnapshotTableError("count", "Snapshot table too large", { offset: 60, overhanging });
  }
  if (snapshotTableOffset % 2 ** clusterBits !== 0) {
    throw new SnapshotTableError("offset", "Snapshot table offset invalid", { offset: 64 });
  }
}

/**
 * Reads the snapshot table. How long it is follows from its entries alone; behind the end of the file there are zeroes.
 *
 * @param file The host file.
 * @param header The image's header.
 * @param onExcess Called with what would be thrown otherwise; the table is without what is too much then.
 * @returns The snapshots.
 * @throws {SnapshotTableError} With code `limit-exceeded` where the table or an entry is too large.
 */
export function readSnapshotTable(
  file: BlockFile,
  header: Header,
  onExcess: (error: SnapshotTableError) => void = raise,
): SnapshotTable {
  const snapshots: Snapshot[] = [];
  const entries: Uint8Array[] = [];
  let length = 0;
  let keptLength = 0;
  for (let index = 0; index < header.snapshotCount; index++) {
    const offset = header.snapshotTableOffset + length;
    const head = readBytes(file, offset, SNAPSHOT_HEAD_LENGTH);
    const { extraLength, textLength } = snapshotLengths(head);
    if (extraLength > MAX_SNAPSHOT_EXTRA_LENGTH) {
      const message = `Too much extra metadata in snapshot table entry ${index}`;
      onExcess(new SnapshotTableError("extra-data", message, { index, offset, extraLength }));
    }
    const keptExtra = Math.min(extraLength, MAX_SNAPSHOT_EXTRA_LENGTH);
    const entryEnd = SNAPSHOT_HEAD_LENGTH + extraLength + textLength;
    keptLength = alignUp(keptLength, 8) + entryEnd - (extraLength - keptExtra);
    if (keptLength > MAX_SNAPSHOT_TABLE_LENGTH || length + entryEnd > MAX_INT32) {
      const overhanging = header.snapshotCount - index;
      onExcess(new SnapshotTableError("length", "Snapshot table is too big", { index, offset, overhanging }));
      break;
    }
    const entry = readBytes(file, offset, alignUp(entryEnd - (extraLength - keptExtra), 8));
    if (extraLength > keptExtra) {
      viewOf(entry).setUint32(SNAPSHOT_EXTRA_LENGTH_AT, keptExtra);
      const textAt = SNAPSHOT_HEAD_LENGTH + extraLength;
      entry.set(readBytes(file, offset + textAt, textLength), SNAPSHOT_HEAD_LENGTH + keptExtra);
    }
    snapshots.push(decodeSnapshot(entry, offset).snapshot);
    entries.push(entry);
    length += alignUp(entryEnd, 8);
  }
  // What is too much of a table need not be in the file.
  const isInFile = header.snapshotTableOffset + length < file.size + 2 ** header.clusterBits;
  const inFile = Math.max(0, file.size - header.snapshotTableOffset);
  return { snapshots, entries, length: onExcess === raise || isInFile ? length : Math.min(length, inFile) };
}

/** Behind the end of the file there are zeroes. */
function readBytes(file: BlockFile, offset: number, length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  bytes.fill(0, file.readAt(offset, bytes));
  return bytes;
}

function raise(error: SnapshotTableError): never {
  throw error;
}

/**
 * Refuses an L1 table of a snapshot that cannot be one.
 *
 * @param snapshot The snapshot.
 * @param clusterSize Bytes in a cluster.
 * @throws {Qcow2Error} With code `limit-exceeded` where it is too long, `invalid-header` where it stands at no cluster.
 */
export function assertSnapshotL1({ l1EntryCount, l1TableOffset }: Snapshot, clusterSize: number): void {
  if (l1EntryCount * 8 > MAX_L1_TABLE_LENGTH) {
    throw new Qcow2Error("limit-exceeded", "Snapshot L1 table too large", {
      found: l1EntryCount,
      expected: `at most ${MAX_L1_TABLE_LENGTH / 8} entries`,
    });
  }
  if (l1TableOffset % clusterSize === 0 && l1TableOffset <= Number.MAX_SAFE_INTEGER) return;
  throw new Qcow2Error("invalid-header", "Snapshot L1 table offset invalid", {
    found: hex(l1TableOffset),
    expected: `a multiple of the cluster size ${clusterSize}`,
  });
}

/**
 * Finds a snapshot: first by its identifier, then by its name, as QEMU does.
 *
 * @param snapshots The snapshots.
 * @param idOrName What to look for.
 * @returns Its place in the table.
 * @throws {Qcow2Error} With code `invalid-argument` where there is none.
 */
export function findSnapshot(snapshots: readonly Snapshot[], idOrName: string): number {
  const byId = snapshots.findIndex(({ id }) => id === idOrName);
  const index = byId >= 0 ? byId : snapshots.findIndex(({ name }) => name === idOrName);
  if (index >= 0) return index;
  throw new Qcow2Error("invalid-argument", `Image has no snapshot "${idOrName}"`, { found: idOrName });
}

/**
 * The identifier of the next snapshot: the first number above all that there are.
 *
 * @param snapshots The snapshots.
 * @returns The identifier.
 */
export function nextSnapshotId(snapshots: readonly Snapshot[]): string {
  let highest = 0n;
  for (const { id } of snapshots) {
    const number = BigInt(/^\d+/.exec(id)?.[0] ?? "0");
    if (number > highest) highest = number;
  }
  return String(highest + 1n);
}
