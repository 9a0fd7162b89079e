/**
 * Replaces an image's active L1 table, snapshot table and refcounts, all in one.
 *
 * Refcounts and COPIED flags stand in different sectors and contradict each other while one is changed before the other. So
 * neither is changed in place: what differs is written to fresh clusters, and the header goes over to all of it with a single
 * write of one sector.
 *
 * ```
 *                 before                          after
 *   header ----> refcount table ---> blocks      refcount table' ---> blocks that differ', the others as they are
 *          ----> L1 table ---------> L2 tables   L1 table' ---------> L2 tables that differ', the others as they are
 *          ----> snapshot table                  snapshot table'
 * ```
 *
 * 1. Clusters are allocated; they are durably in use before anything points to them.
 * 2. The new structures are written, and synced.
 * 3. The header is written, and synced.
 * 4. What only the old structures used is freed.
 *
 * A crash before step 3 is through leaves the image as it was, one after it the image as it shall be; all it costs is leaks.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import type { Header } from "../format/header.ts";
import { setRefcount } from "../format/refcount_entries.ts";
import { COPIED_FLAG, entryLower, entryUpper, refcountTableEntryOffset } from "../format/table_entries.ts";
import { viewOf } from "../format/uint64.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import { PointerTable } from "./pointer_table.ts";
import type { RefcountChanges } from "./refcount_changes.ts";
import type { ClusterRun } from "./refcounts.ts";
import { TableTree } from "./table_tree.ts";

/** What an image shall be like. */
export interface SwitchTarget {
  /** The entries of the active L1 table; where they are those that it has, it stays where it is if nothing in it changes. */
  readonly l1: PointerTable;
  /** Whether a snapshot takes over the active L1 table as it stands in the file. */
  readonly givesL1Away: boolean;
  /** The virtual size in bytes. */
  readonly size: number;
  /** How many snapshots there are. */
  readonly snapshotCount: number;
  /** The snapshot table. */
  readonly snapshotTable: Uint8Array;
  /** What changes in the refcounts of everything that L1 tables lead to. */
  readonly changes: RefcountChanges;
  /** Clusters of tables that go away: their refcounts fall afterwards. */
  readonly retired: readonly ClusterRun[];
  /** What else changes in the header, together with the rest. */
  readonly header?: Partial<Header>;
}

/**
 * Brings an image to what it shall be like.
 *
 * @param metadata The image, with nothing dirty in memory.
 * @param target What it shall be like.
 * @throws {Qcow2Error} With code `refcount-overflow`, `corrupt`, `no-space`, `io` or `failed`; the image is as before then.
 */
export function switchStructures(metadata: ImageMetadata, target: SwitchTarget): void {
  new StructureSwitch(metadata, target).run();
}

/** The clusters that the new structures have got. */
interface Places {
  readonly l2Tables: readonly number[];
  readonly l1Offset: number;
  readonly snapshotTableOffset: number;
  readonly blocks: readonly number[];
  readonly refcountTableOffset: number;
}

class StructureSwitch {
  readonly #metadata: ImageMetadata;
  readonly #target: SwitchTarget;
  readonly #tree: TableTree;
  readonly #clusterSize: number;
  /** Indexes of the L1 entries whose L2 tables get a copy with other flags. */
  readonly #replacedTables: number[] = [];
  readonly #retired: ClusterRun[];
  readonly #allocated: ClusterRun[] = [];

  constructor(metadata: ImageMetadata, target: SwitchTarget) {
    this.#metadata = metadata;
    this.#target = target;
    this.#tree = new TableTree(metadata);
    this.#clusterSize = metadata.geometry.clusterSize;
    this.#retired = [...target.retired];
  }

  run(): void {
    const metadata = this.#metadata;
    this.#findReplacedTables();
    const changedBlocks = this.#checkRefcounts();
    const { l1: target, givesL1Away } = this.#target;
    const { l1: active } = metadata.mapping;
    const movesL1 = givesL1Away || target !== active || this.#replacedTables.length > 0 || this.#flagsOfL1Change();
    if (movesL1 && !givesL1Away) {
      const count = Math.ceil(active.bytes.length / this.#clusterSize);
      this.#retired.push({ offset: active.offset, count });
    }
    try {
      const places = this.#allocate(movesL1, changedBlocks.length);
      metadata.flush();
      const l1 = movesL1 ? this.#writeL1(places) : undefined;
      if (this.#target.snapshotTable.length > 0) {
        this.#writeWhole(places.snapshotTableOffset, this.#target.snapshotTable);
      }
      const refcountTable = this.#writeRefcounts(changedBlocks, places);
      metadata.file.sync();
      this.#point(places, l1, refcountTable);
    } catch (error) {
      if (metadata.file.failure === undefined) this.#allocated.forEach((run) => metadata.allocator.release(run));
      throw error;
    }
    this.#freeOld();
  }

  /** The refcount that a cluster shall have. */
  #refcountOf(cluster: number): number {
    return this.#metadata.refcounts.get(cluster) + this.#target.changes.get(cluster);
  }

  readonly #isOwn = (cluster: number): boolean => this.#refcountOf(cluster) === 1;

  /** An L2 table is not changed in place: one with other flags gets a copy that belongs to the active L1 table alone. */
  #findReplacedTables(): void {
    const { l1, changes } = this.#target;
    for (let index = 0; index < l1.entryCount; index++) {
      const offset = this.#tree.tableOffset(l1, index);
      if (offset === 0) continue;
      this.#tree.read(offset);
      if (!this.#tree.setFlags(this.#isOwn)) continue;
      this.#replacedTables.push(index);
      changes.add(offset / this.#clusterSize, -1);
    }
  }

  /**
   * Makes sure that all refcounts are possible, before anything is written.
   *
   * @returns The indexes of the refcount blocks that change, in ascending order.
   */
  #checkRefcounts(): number[] {
    const { geometry, refcounts } = this.#metadata;
    const blocks = new Set<number>();
    for (const [cluster, change] of this.#target.changes.entries()) {
      const refcount = refcounts.get(cluster);
      if (refcount === 0 || refcount + change < 0) {
        const offset = cluster * this.#clusterSize;
        throw this.#metadata.corruption(`Cluster ${cluster} is in use but its refcount is ${refcount}`, offset);
      }
      if (refcount + change > geometry.maxRefcount) {
        throw new Qcow2Error(
          "refcount-overflow",
          `Refcount ${refcount + change} of cluster ${cluster} does not fit into ${geometry.refcountBits} bits`,
          { found: refcount + change, expected: `at most ${geometry.maxRefcount}` },
        );
      }
      blocks.add(Math.floor(cluster / geometry.refcountBlockEntryCount));
    }
    return [...blocks];
  }

  #flagsOfL1Change(): boolean {
    const { l1 } = this.#target;
    for (let index = 0; index < l1.entryCount; index++) {
      const offset = this.#tree.tableOffset(l1, index);
      if (offset === 0) continue;
      if (this.#isOwn(offset / this.#clusterSize) !== ((l1.upper(index) & COPIED_FLAG) !== 0)) return true;
    }
    return false;
  }

  #allocate(movesL1: boolean, blockCount: number): Places {
    const { l1, snapshotTable } = this.#target;
    const l2Tables = this.#allocateSingle(this.#replacedTables.length);
    const l1Offset = movesL1 ? this.#allocateArea(l1.entryCount * 8) : 0;
    const snapshotTableOffset = this.#allocateArea(snapshotTable.length);
    const blocks = this.#allocateSingle(blockCount);
    const refcountTableOffset = blockCount > 0 ? this.#allocateRefcountTable() : 0;
    return { l2Tables, l1Offset, snapshotTableOffset, blocks, refcountTableOffset };
  }

  #allocateSingle(count: number): number[] {
    const offsets: number[] = [];
    while (offsets.length < count) {
      const run = this.#metadata.allocator.allocateRun(count - offsets.length);
      this.#allocated.push(run);
      for (let index = 0; index < run.count; index++) offsets.push(run.offset + index * this.#clusterSize);
    }
    return offsets;
  }

  #allocateArea(length: number): number {
    if (length === 0) return 0;
    const run = this.#metadata.allocator.allocateContiguous(Math.ceil(length / this.#clusterSize));
    this.#allocated.push(run);
    return run.offset;
  }

  /** Finding a place for the table can make the table grow. */
  #allocateRefcountTable(): number {
    for (;;) {
      const { length } = this.#metadata.refcounts.table.bytes;
      const offset = this.#allocateArea(length);
      if (this.#metadata.refcounts.table.bytes.length === length) return offset;
      const run = this.#allocated.pop();
      if (run !== undefined) this.#metadata.allocator.release(run);
    }
  }

  #writeL1({ l1Offset, l2Tables }: Places): PointerTable {
    const { l1 } = this.#target;
    const table = new PointerTable(l1Offset, new Uint8Array(l1.entryCount * 8));
    const replaced = new Map(this.#replacedTables.map((l1Index, index) => [l1Index, l2Tables[index] ?? 0]));
    for (let index = 0; index < l1.entryCount; index++) {
      const offset = this.#tree.tableOffset(l1, index);
      if (offset === 0) continue;
      const copy = replaced.get(index);
      if (copy === undefined) {
        const flag = this.#isOwn(offset / this.#clusterSize) ? COPIED_FLAG : 0;
        table.set(index, entryUpper(offset, flag), entryLower(offset));
        continue;
      }
      this.#tree.read(offset);
      this.#tree.setFlags(this.#isOwn);
      this.#metadata.file.writeAt(copy, this.#tree.bytes);
      table.set(index, entryUpper(copy, COPIED_FLAG), entryLower(copy));
    }
    this.#writeWhole(l1Offset, table.bytes);
    return new PointerTable(l1Offset, table.bytes);
  }

  #writeRefcounts(changedBlocks: readonly number[], places: Places): PointerTable | undefined {
    if (changedBlocks.length === 0) return undefined;
    const { geometry, refcounts, file } = this.#metadata;
    const perBlock = geometry.refcountBlockEntryCount;
    const table = new PointerTable(places.refcountTableOffset, refcounts.table.bytes.slice());
    changedBlocks.forEach((block, index) => {
      const offset = places.blocks[index] ?? 0;
      this.#retired.push({ offset: refcounts.blockOffset(block), count: 1 });
      table.set(block, entryUpper(offset, 0), entryLower(offset));
    });
    const bytes = new Uint8Array(this.#clusterSize);
    const view = viewOf(bytes);
    let open = -1;
    const writeOpen = (): void => {
      if (open >= 0) file.writeAt(refcountTableEntryOffset(table.upper(open), table.lower(open)), bytes);
    };
    for (const [cluster] of this.#target.changes.entries()) {
      const block = Math.floor(cluster / perBlock);
      if (block !== open) {
        writeOpen();
        open = block;
        bytes.fill(0, file.file.readAt(refcounts.blockOffset(block), bytes));
      }
      setRefcount(view, cluster - block * perBlock, geometry.refcountOrder, this.#refcountOf(cluster));
    }
    writeOpen();
    this.#retired.push({ offset: refcounts.table.offset, count: refcounts.table.bytes.length / this.#clusterSize });
    this.#writeWhole(table.offset, table.bytes);
    return new PointerTable(table.offset, table.bytes);
  }

  /** Writes a table and zeroes up to the end of its last cluster. */
  #writeWhole(offset: number, bytes: Uint8Array): void {
    const padded = new Uint8Array(Math.ceil(bytes.length / this.#clusterSize) * this.#clusterSize);
    padded.set(bytes);
    if (padded.length > 0) this.#metadata.file.writeAt(offset, padded);
  }

  #point(places: Places, l1: PointerTable | undefined, refcountTable: PointerTable | undefined): void {
    const { size, snapshotCount, header } = this.#target;
    this.#metadata.switchTo(
      {
        ...header,
        size,
        snapshotCount,
        snapshotTableOffset: places.snapshotTableOffset,
        ...(l1 === undefined ? {} : { l1TableOffset: l1.offset, l1EntryCount: l1.entryCount }),
        ...(refcountTable === undefined ? {} : { refcountTableOffset: refcountTable.offset }),
      },
      { ...(l1 === undefined ? {} : { l1 }), ...(refcountTable === undefined ? {} : { refcountTable }) },
    );
  }

  /** From here on the image is what it shall be; a failure costs space at most. */
  #freeOld(): void {
    const { allocator, refcounts, file } = this.#metadata;
    for (const { offset, count } of this.#retired) {
      for (let index = 0; index < count; index++) allocator.freeLater(offset + index * this.#clusterSize);
    }
    let first = 0;
    let count = 0;
    const punch = (): void => {
      if (count > 0) file.file.punchHole(first * this.#clusterSize, count * this.#clusterSize);
    };
    for (const [cluster] of this.#target.changes.entries()) {
      if (refcounts.get(cluster) !== 0) continue;
      if (cluster !== first + count) {
        punch();
        first = cluster;
        count = 0;
      }
      count++;
    }
    punch();
    this.#metadata.flush();
  }
}
