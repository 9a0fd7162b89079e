/**
 * Zero clusters in L2 tables that only snapshots have, put into what version 2 can say.
 *
 * @module
 */

import { hex } from "../errors.ts";
import { COMPRESSED_FLAG, entryLower, entryOffset, entryUpper, ZERO_FLAG } from "../format/table_entries.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import { RefcountChanges } from "./refcount_changes.ts";
import { dropReferences, readL1 } from "./snapshot_changes.ts";
import { readSnapshotTable } from "./snapshots.ts";
import type { Steps } from "./steps.ts";
import { TableTree } from "./table_tree.ts";

/**
 * Gives the zero clusters of all snapshots zeroes of their own where a backing file would be seen instead, and makes all
 * others unallocated. Each snapshot reads as before at every moment.
 *
 * The entries change in place, each in a single sector. What they kept in reserve stays in use until they are durable; only
 * then its refcounts fall, together with the flags that depend on them. A crash in between costs space.
 *
 * @param metadata The image, with nothing dirty in memory. No table with zero clusters is the active disk's.
 * @param backingSize Size of the backing disk in bytes; 0 where there is none.
 * @returns Steps, each of which tells how many entries of L1 tables it has done.
 * @throws {Qcow2Error} With code `no-space`, `corrupt` or `io`; the snapshots read as before then.
 */
export function expandSnapshotZeroes(metadata: ImageMetadata, backingSize: number): Steps<number, void> {
  return new SnapshotZeroes(metadata, backingSize).expand();
}

class SnapshotZeroes {
  readonly #metadata: ImageMetadata;
  readonly #backingSize: number;
  readonly #given = new RefcountChanges();

  constructor(metadata: ImageMetadata, backingSize: number) {
    this.#metadata = metadata;
    this.#backingSize = backingSize;
  }

  *expand(): Steps<number, void> {
    const { file } = this.#metadata;
    try {
      yield* this.#expandTables();
    } finally {
      if (file.failure === undefined) {
        this.#metadata.flush();
        dropReferences(this.#metadata, this.#given);
      }
    }
  }

  *#expandTables(): Steps<number, void> {
    const { header, file, geometry } = this.#metadata;
    const tree = new TableTree(this.#metadata);
    const done = new Set<number>();
    for (const snapshot of readSnapshotTable(file.file, header).snapshots) {
      const l1 = readL1(this.#metadata, snapshot);
      for (let index = 0; index < l1.entryCount; index++) {
        const tableOffset = tree.tableOffset(l1, index);
        if (tableOffset !== 0 && !done.has(tableOffset)) {
          done.add(tableOffset);
          this.#expandTable(tableOffset, index * geometry.l2TableSpan);
        }
        yield 1;
      }
    }
  }

  #expandTable(tableOffset: number, guestOffset: number): void {
    const { geometry, l2Cache, refcounts } = this.#metadata;
    const { clusterSize, l2EntrySize } = geometry;
    // As often as the table is used, what it points to is used by way of it.
    const uses = refcounts.get(tableOffset / clusterSize);
    if (uses === 0) throw this.#metadata.corruption(`L2 table at ${hex(tableOffset)} has refcount 0`, tableOffset);
    for (let index = 0; index < geometry.l2EntryCount; index++) {
      const position = index * l2EntrySize;
      const inSlice = position % l2Cache.sliceSize;
      const slice = l2Cache.get(tableOffset + position - inSlice);
      const upper = slice.view.getUint32(inSlice);
      const lower = slice.view.getUint32(inSlice + 4);
      if ((upper & COMPRESSED_FLAG) !== 0 || (lower & ZERO_FLAG) === 0) continue;
      const isSeen = guestOffset + index * clusterSize < this.#backingSize;
      const zeroes = isSeen ? this.#zeroCluster(uses) : 0;
      slice.view.setUint32(inSlice, entryUpper(zeroes, 0));
      slice.view.setUint32(inSlice + 4, entryLower(zeroes));
      l2Cache.markDirty(slice);
      const reserved = entryOffset(upper, lower);
      if (reserved !== 0) this.#given.add(reserved / clusterSize, -uses);
    }
  }

  /** Allocates a cluster of zeroes with that many uses. */
  #zeroCluster(uses: number): number {
    const { allocator, refcounts, file, geometry } = this.#metadata;
    const offset = allocator.allocateCluster();
    try {
      file.clearAt(offset, geometry.clusterSize);
    } catch (error) {
      if (file.failure === undefined) allocator.release({ offset, count: 1 });
      throw error;
    }
    refcounts.set(offset / geometry.clusterSize, uses);
    return offset;
  }
}
