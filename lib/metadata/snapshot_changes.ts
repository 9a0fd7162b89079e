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
import { findSnapshot, nextSnapshotId, readSnapshotTable, type SnapshotTable } from "./snapshots.ts";
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
  const { old, bytes } = begin(metadata);
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
  const entry = encodeSnapshot(snapshot);
  if (old.snapshots.length >= MAX_SNAPSHOT_COUNT || bytes.length + entry.length > MAX_SNAPSHOT_TABLE_LENGTH) {
    throw new Qcow2Error("limit-exceeded", `Image has ${old.snapshots.length} snapshots and takes no more`, {
      found: old.snapshots.length,
      expected: `at most ${MAX_SNAPSHOT_COUNT} in ${MAX_SNAPSHOT_TABLE_LENGTH} bytes`,
    });
  }
  const table = new Uint8Array(bytes.length + entry.length);
  table.set(bytes);
  table.set(entry, bytes.length);
  const changes = new RefcountChanges();
  new TableTree(metadata).count(l1, 1, changes);
  replaceSnapshotTable(metadata, old, {
    givesL1Away: true,
    snapshotCount: old.snapshots.length + 1,
    snapshotTable: table,
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
  const { old, bytes } = begin(metadata);
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
  replaceSnapshotTable(metadata, old, { l1, size, snapshotTable: bytes, changes: refcountChanges, header: changes });
}

/**
 * Deletes a snapshot. Other snapshots and the disk keep their content.
 *
 * @param metadata The image, ready for writing.
 * @param idOrName The snapshot.
 * @throws {Qcow2Error} As {@linkcode applySnapshot} does.
 */
export function deleteSnapshot(metadata: ImageMetadata, idOrName: string): void {
  const { old, bytes } = begin(metadata);
  const index = findSnapshot(old.snapshots, idOrName);
  const snapshot = snapshotAt(old, index);
  const start = old.positions[index] ?? 0;
  const end = old.positions[index + 1] ?? bytes.length;
  const table = new Uint8Array(bytes.length - (end - start));
  table.set(bytes.subarray(0, start));
  table.set(bytes.subarray(end), start);
  const changes = new RefcountChanges();
  new TableTree(metadata).count(readL1(metadata, snapshot), -1, changes);
  replaceSnapshotTable(metadata, old, {
    snapshotCount: old.snapshots.length - 1,
    snapshotTable: table,
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
  const { old, bytes } = begin(metadata);
  replaceSnapshotTable(metadata, old, { snapshotTable: bytes, changes });
}

/**
 * Gives the entries of the snapshot table what version 3 demands of them and version 2 does not: the size of the disk.
 *
 * @param metadata The image, ready for writing.
 * @throws {Qcow2Error} As {@linkcode createSnapshot} does, with code `limit-exceeded` where the table would be too long.
 */
export function completeSnapshotTable(metadata: ImageMetadata): void {
  if (metadata.header.snapshotCount === 0) return;
  const { old, bytes } = begin(metadata);
  if (old.snapshots.every(({ diskSize }) => diskSize !== undefined)) return;
  const entries = old.snapshots.map(({ diskSize }, index) => {
    const entry = bytes.subarray(old.positions[index], old.positions[index + 1]);
    return diskSize === undefined ? completeSnapshot(entry, metadata.diskSize) : entry;
  });
  const length = entries.reduce((sum, entry) => sum + entry.length, 0);
  if (length > MAX_SNAPSHOT_TABLE_LENGTH) {
    throw new Qcow2Error("limit-exceeded", `Snapshot table would be ${length} bytes long`, {
      found: length,
      expected: `at most ${MAX_SNAPSHOT_TABLE_LENGTH}`,
    });
  }
  const snapshotTable = new Uint8Array(length);
  let position = 0;
  for (const entry of entries) {
    snapshotTable.set(entry, position);
    position += entry.length;
  }
  replaceSnapshotTable(metadata, old, { snapshotTable, changes: new RefcountChanges() });
}

/**
 * Reads a snapshot's L1 table.
 *
 * @param metadata The image.
 * @param snapshot The snapshot.
 * @returns The table.
 */
export function readL1(metadata: ImageMetadata, snapshot: Snapshot): PointerTable {
  return PointerTable.read(metadata.file, snapshot.l1TableOffset, snapshot.l1EntryCount);
}

/** Brings everything to the file, and reads the snapshot table, whose entries are kept byte for byte. */
function begin(metadata: ImageMetadata): { readonly old: SnapshotTable; readonly bytes: Uint8Array } {
  if (hasDataFile(metadata.header)) {
    throw new Qcow2Error("unsupported", "Snapshots and an external data file do not go together", {
      offset: 72,
      found: "an external data file",
    });
  }
  metadata.flush();
  const old = readSnapshotTable(metadata.file.file, metadata.header);
  const bytes = new Uint8Array(old.length);
  if (bytes.length > 0) metadata.file.file.readAt(metadata.header.snapshotTableOffset, bytes);
  return { old, bytes };
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
