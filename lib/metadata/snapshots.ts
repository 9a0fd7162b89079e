/**
 * The snapshot table of an image.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import type { Header } from "../format/header.ts";
import { MAX_SNAPSHOT_TABLE_LENGTH } from "../format/limits.ts";
import { decodeSnapshot, MAX_SNAPSHOT_ENTRY_LENGTH, type Snapshot } from "../format/snapshot_table.ts";
import type { BlockFile } from "../storage/block_file.ts";

/** The snapshots of an image and how long their table is. */
export interface SnapshotTable {
  /** The snapshots in the order of the table. */
  readonly snapshots: readonly Snapshot[];
  /** Where in the table each of them begins, in bytes. */
  readonly positions: readonly number[];
  /** Length of the table in bytes. */
  readonly length: number;
}

/** How much of the table is read at once: several of even the longest entries. */
const WINDOW_LENGTH = 4 * MAX_SNAPSHOT_ENTRY_LENGTH;

/**
 * Reads the snapshot table. How long it is follows from its entries alone.
 *
 * @param file The host file.
 * @param header The image's header.
 * @returns The snapshots.
 * @throws {Qcow2Error} With code `limit-exceeded` where the table or an entry is too large, `corrupt` where an entry is
 * broken.
 */
export function readSnapshotTable(file: BlockFile, header: Header): SnapshotTable {
  const snapshots: Snapshot[] = [];
  const positions: number[] = [];
  const clusterSize = 2 ** header.clusterBits;
  const buffer = new Uint8Array(header.snapshotCount === 0 ? 0 : WINDOW_LENGTH);
  let window = buffer.subarray(0, 0);
  let windowPosition = 0;
  let position = 0;
  while (snapshots.length < header.snapshotCount) {
    const offset = header.snapshotTableOffset + position;
    if (position + MAX_SNAPSHOT_ENTRY_LENGTH > windowPosition + window.length) {
      window = buffer.subarray(0, file.readAt(offset, buffer));
      windowPosition = position;
    }
    const decoded = decodeSnapshot(window.subarray(position - windowPosition), offset);
    if (decoded.snapshot.l1TableOffset % clusterSize !== 0) {
      throw new Qcow2Error(
        "corrupt",
        `Snapshot L1 table offset ${hex(decoded.snapshot.l1TableOffset)} is not aligned`,
        {
          offset,
          found: hex(decoded.snapshot.l1TableOffset),
          expected: `a multiple of the cluster size ${clusterSize}`,
        },
      );
    }
    snapshots.push(decoded.snapshot);
    positions.push(position);
    position += decoded.length;
    if (position > MAX_SNAPSHOT_TABLE_LENGTH) {
      throw new Qcow2Error("limit-exceeded", `Snapshot table is longer than ${MAX_SNAPSHOT_TABLE_LENGTH} bytes`, {
        offset,
        expected: `at most ${MAX_SNAPSHOT_TABLE_LENGTH}`,
      });
    }
  }
  return { snapshots, positions, length: position };
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
