/**
 * Makes, applies and deletes internal snapshots.
 *
 * Each of them is a change of the active L1 table, the snapshot table and many refcounts, which `switchStructures` does at
 * once. A snapshot that is made takes over the L1 table and the L2 tables as they are; the active disk gets new ones.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { l1EntryCountFor } from "../format/geometry.ts";
import { hasDataFile, type Header } from "../format/header.ts";
import { MAX_L1_TABLE_LENGTH, MAX_SNAPSHOT_COUNT, MAX_SNAPSHOT_TABLE_LENGTH } from "../format/limits.ts";
import { completeSnapshot, encodeSnapshot, encodeSnapshotExtra, type Snapshot } from "../format/snapshot_table.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import { PointerTable } from "./pointer_table.ts";
import { RefcountChanges } from "./refcount_changes.ts";
import type { ClusterRun } from "./refcounts.ts";
import { assertSnapshotL1, findSnapshot, nextSnapshotId, readSnapshotTable, type SnapshotTable } from "./snapshots.ts";
import { switchStructures, type SwitchTarget } from "./structure_switch.ts";
import { TableTree } from "./table_tree.ts";

const MILLISECONDS_PER_SECOND = 1000;
const NANOSECONDS_PER_MILLISECOND = 1_000_000;
const MAX_SECONDS = 0xffffffff;

/**
 * Makes a snapshot of the disk as it is.
 *
 * @param metadata The image, ready for writing.
 * @param name The snapshot's name.
 * @param date When it was taken.
 * @returns The snapshot.
 * @throws {Qcow2Error} With code `unsupported` with an external data file, `invalid-argument` where name or date cannot be
 * written down, `limit-exceeded` where there are too many, `refcount-overflow` where a cluster has as many references as its
 * refcount can say; otherwise as `switchStructures` does. The image is as before then.
 */
export function createSnapshot(metadata: ImageMetadata, name: string, date: Date): Snapshot {
  const old = begin(metadata);
  const { header } = metadata;
  const { l1 } = metadata.mapping;
  const seconds = Math.floor(date.getTime() / MILLISECONDS_PER_SECOND);
  if (!(seconds >= 0 && seconds <= MAX_SECONDS)) {
    throw new Qcow2Error("invalid-argument", `Snapshot date is ${date}, expected 1970 to 2106`, { found: `${date}` });
  }
  const snapshot: Snapshot = {
    l1TableOffset: header.l1TableOffset,
    l1EntryCount: header.l1EntryCount,
    id: nextSnapshotId(old.snapshots),
    name,
    seconds,
    nanoseconds: (date.getTime() - seconds * MILLISECONDS_PER_SECOND) * NANOSECONDS_PER_MILLISECOND,
    vmClockNanoseconds: 0n,
    vmStateSize: 0,
    diskSize: metadata.diskSize,
    instructionCount: 0n,
    extraData: encodeSnapshotExtra(metadata.diskSize),
  };
  const snapshotTable = joined([...old.entries, encodeSnapshot(snapshot)]);
  if (old.snapshots.length >= MAX_SNAPSHOT_COUNT || snapshotTable.length > MAX_SNAPSHOT_TABLE_LENGTH) {
    throw new Qcow2Error("limit-exceeded", `Image has ${old.snapshots.length} snapshots and takes no more`, {
      found: old.snapshots.length,
      expected: `at most ${MAX_SNAPSHOT_COUNT} in ${MAX_SNAPSHOT_TABLE_LENGTH} bytes`,
    });
  }
  const changes = new RefcountChanges();
  new TableTree(metadata).count(l1, 1, changes);
  replaceSnapshotTable(metadata, old, {
    givesL1Away: true,
    snapshotCount: old.snapshots.length + 1,
    snapshotTable,
    changes,
  });
  return snapshot;
}

/**
 * Makes the disk what it was when a snapshot was taken, its size included. What it is now is lost; the snapshot stays.
 *
 * @param metadata The image, ready for writing.
 * @param idOrName The snapshot.
 * @param changes What else changes in the header, together with the rest.
 * @throws {Qcow2Error} With code `invalid-argument` where there is no such snapshot, `unsupported` with an external data file;
 * otherwise as {@linkcode createSnapshot} does. The image is as before then.
 */
export function applySnapshot(metadata: ImageMetadata, idOrName: string, changes: Partial<Header> = {}): void {
  const old = begin(metadata);
  const { header, geometry, mapping } = metadata;
  const snapshot = snapshotAt(old, findSnapshot(old.snapshots, idOrName));
  // The entry counts in sectors, the header need not.
  const size = snapshot.diskSize === metadata.diskSize ? header.size : snapshot.diskSize ?? header.size;
  const entryCount = Math.max(snapshot.l1EntryCount, l1EntryCountFor(geometry, size));
  if (entryCount * 8 > MAX_L1_TABLE_LENGTH) {
    throw new Qcow2Error("limit-exceeded", `Snapshot "${idOrName}" needs an L1 table of ${entryCount} entries`, {
      found: entryCount,
      expected: `at most ${MAX_L1_TABLE_LENGTH / 8}`,
    });
  }
  const l1 = new PointerTable(snapshot.l1TableOffset, new Uint8Array(entryCount * 8));
  l1.bytes.set(readL1(metadata, snapshot).bytes);
  const refcountChanges = new RefcountChanges();
  const tree = new TableTree(metadata);
  tree.count(l1, 1, refcountChanges);
  tree.count(mapping.l1, -1, refcountChanges);
  const snapshotTable = joined(old.entries);
  replaceSnapshotTable(metadata, old, { l1, size, snapshotTable, changes: refcountChanges, header: changes });
}

/**
 * Deletes a snapshot. Other snapshots and the disk keep their content.
 *
 * @param metadata The image, ready for writing.
 * @param idOrName The snapshot.
 * @throws {Qcow2Error} As {@linkcode applySnapshot} does.
 */
export function deleteSnapshot(metadata: ImageMetadata, idOrName: string): void {
  const old = begin(metadata);
  const index = findSnapshot(old.snapshots, idOrName);
  const snapshot = snapshotAt(old, index);
  const changes = new RefcountChanges();
  new TableTree(metadata).count(readL1(metadata, snapshot), -1, changes);
  replaceSnapshotTable(metadata, old, {
    snapshotCount: old.snapshots.length - 1,
    snapshotTable: joined(old.entries.toSpliced(index, 1)),
    changes,
    retired: clustersOf(metadata, snapshot.l1TableOffset, snapshot.l1EntryCount * 8),
  });
}

/**
 * Lowers refcounts of what tables of snapshots have ceased to point to, with the flags of the disk that depend on them.
 *
 * @param metadata The image, ready for writing; that the references are gone is durable.
 * @param changes By how much they fall.
 * @throws {Qcow2Error} As {@linkcode createSnapshot} does.
 */
export function dropReferences(metadata: ImageMetadata, changes: RefcountChanges): void {
  if (changes.entries().next().done === true) return;
  const old = begin(metadata);
  replaceSnapshotTable(metadata, old, { snapshotTable: joined(old.entries), changes });
}

/**
 * Gives the entries of the snapshot table what version 3 demands of them and version 2 does not: the size of the disk.
 *
 * @param metadata The image, ready for writing.
 * @throws {Qcow2Error} As {@linkcode createSnapshot} does, with code `limit-exceeded` where the table would be too long.
 */
export function completeSnapshotTable(metadata: ImageMetadata): void {
  if (metadata.header.snapshotCount === 0) return;
  const old = begin(metadata);
  if (old.snapshots.every(({ diskSize }) => diskSize !== undefined)) return;
  rewriteSnapshotTable(metadata, old);
}

/**
 * Writes the snapshot table anew, with entries that say all that version 3 demands.
 *
 * @param metadata The image, with nothing dirty in memory.
 * @param table What it holds, and how long it is in the file.
 * @throws {Qcow2Error} As {@linkcode completeSnapshotTable} does.
 */
export function rewriteSnapshotTable(metadata: ImageMetadata, table: SnapshotTable): void {
  const snapshotTable = joined(
    table.entries.map((entry, index) =>
      table.snapshots[index]?.diskSize === undefined ? completeSnapshot(entry, metadata.diskSize) : entry
    ),
  );
  if (snapshotTable.length > MAX_SNAPSHOT_TABLE_LENGTH) {
    throw new Qcow2Error("limit-exceeded", `Snapshot table would be ${snapshotTable.length} bytes long`, {
      found: snapshotTable.length,
      expected: `at most ${MAX_SNAPSHOT_TABLE_LENGTH}`,
    });
  }
  replaceSnapshotTable(metadata, table, { snapshotTable, changes: new RefcountChanges() });
}

/**
 * Reads a snapshot's L1 table.
 *
 * @param metadata The image.
 * @param snapshot The snapshot.
 * @returns The table.
 * @throws {Qcow2Error} With code `limit-exceeded` where it is too long, `invalid-header` where it stands at no cluster.
 */
export function readL1(metadata: ImageMetadata, snapshot: Snapshot): PointerTable {
  assertSnapshotL1(snapshot, metadata.geometry.clusterSize);
  return PointerTable.read(metadata.file, snapshot.l1TableOffset, snapshot.l1EntryCount);
}

/** Brings everything to the file, and reads the snapshot table, whose entries are kept byte for byte. */
function begin(metadata: ImageMetadata): SnapshotTable {
  if (hasDataFile(metadata.header)) {
    throw new Qcow2Error("unsupported", "Snapshots and an external data file do not go together", {
      offset: 72,
      found: "an external data file",
    });
  }
  metadata.flush();
  return readSnapshotTable(metadata.file.file, metadata.header);
}

function joined(entries: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const table = new Uint8Array(entries.reduce((sum, entry) => sum + entry.length, 0));
  let position = 0;
  for (const entry of entries) {
    table.set(entry, position);
    position += entry.length;
  }
  return table;
}

/** Goes over to another snapshot table and to whatever changes with it; what is not given stays as it is. */
function replaceSnapshotTable(
  metadata: ImageMetadata,
  old: SnapshotTable,
  target: Partial<SwitchTarget> & Pick<SwitchTarget, "snapshotTable" | "changes">,
): void {
  switchStructures(metadata, {
    l1: metadata.mapping.l1,
    givesL1Away: false,
    size: metadata.header.size,
    snapshotCount: old.snapshots.length,
    ...target,
    retired: [...clustersOf(metadata, metadata.header.snapshotTableOffset, old.length), ...target.retired ?? []],
  });
}

function snapshotAt({ snapshots }: SnapshotTable, index: number): Snapshot {
  const snapshot = snapshots[index];
  if (snapshot === undefined) throw new Qcow2Error("invalid-argument", `Image has no snapshot at index ${index}`);
  return snapshot;
}

function clustersOf(metadata: ImageMetadata, offset: number, length: number): ClusterRun[] {
  return length === 0 ? [] : [{ offset, count: Math.ceil(length / metadata.geometry.clusterSize) }];
}
