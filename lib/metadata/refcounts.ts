/**
 * The refcount table and its blocks: how often each host cluster is used.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import type { Geometry } from "../format/geometry.ts";
import { MAX_REFCOUNT_TABLE_LENGTH } from "../format/limits.ts";
import { findRefcount, getRefcount, refcountText, setRefcount } from "../format/refcount_entries.ts";
import { entryLower, entryUpper, refcountTableEntryOffset } from "../format/table_entries.ts";
import { viewOf } from "../format/uint64.ts";
import type { OrderedFile } from "./ordered_file.ts";
import { PointerTable } from "./pointer_table.ts";
import type { TableCache, TableSlice } from "./table_cache.ts";

/** A contiguous run of host clusters. */
export interface ClusterRun {
  /** Host offset of the first cluster in bytes. */
  readonly offset: number;
  /** How many clusters. */
  readonly count: number;
}

/** What {@linkcode Refcounts} needs of the image around it. */
export interface RefcountsOptions {
  /** Called with the place of new blocks and tables before anything changes; throws where metadata stands there. */
  readonly assertUnused: (offset: number, length: number) => void;
  /** Called with the host offset of each cluster that becomes a refcount block. */
  readonly onNewBlock: (offset: number) => void;
  /** Called with the host offset of each cluster that is no refcount block any more. */
  readonly onDroppedBlock: (offset: number) => void;
}

/** How much longer than needed a grown refcount table is made, so that growing stays rare. */
const TABLE_GROWTH = 1.5;

/**
 * The refcounts of an image. Clusters without a refcount block have refcount 0, as the format says.
 *
 * Every change is made in memory; {@linkcode FlushOrder} decides when it reaches the file.
 */
export class Refcounts {
  readonly #file: OrderedFile;
  readonly #geometry: Geometry;
  readonly #cache: TableCache;
  readonly #entriesPerSlice: number;
  readonly #options: RefcountsOptions;
  #table: PointerTable;
  /** The table in the file, and others that never got there, while a grown one waits for the header to point to it. */
  #replacedTables: ClusterRun[] = [];

  /**
   * @param file The host file.
   * @param geometry The image's geometry.
   * @param cache A cache of slices of refcount blocks.
   * @param table The refcount table.
   * @param options Callbacks.
   */
  constructor(
    file: OrderedFile,
    geometry: Geometry,
    cache: TableCache,
    table: PointerTable,
    options: RefcountsOptions,
  ) {
    this.#file = file;
    this.#geometry = geometry;
    this.#cache = cache;
    this.#entriesPerSlice = cache.sliceSize * 8 / geometry.refcountBits;
    this.#table = table;
    this.#options = options;
  }

  /** The refcount table as it is in memory. */
  get table(): PointerTable {
    return this.#table;
  }

  /** Whether the table has grown and the header in the file does not point to it yet. */
  get tableMoved(): boolean {
    return this.#replacedTables.length > 0;
  }

  /**
   * Says that the header in the file points to the grown table now.
   *
   * @returns The clusters of the tables before it, which can be freed.
   */
  takeReplacedTables(): ClusterRun[] {
    const replaced = this.#replacedTables;
    this.#replacedTables = [];
    return replaced;
  }

  /**
   * Goes over to a table that was built anew and that the header in the file points to already.
   *
   * @param table The new table.
   */
  adopt(table: PointerTable): void {
    this.#table = table;
    this.#replacedTables = [];
    this.#cache.clear();
  }

  /**
   * The host offset of a refcount block.
   *
   * @param blockIndex Index in the refcount table.
   * @returns The offset in bytes; 0 where the block is absent.
   * @throws {Qcow2Error} With code `corrupt` where the table's entry is no offset of a cluster.
   */
  blockOffset(blockIndex: number): number {
    if (blockIndex >= this.#table.entryCount) return 0;
    const offset = refcountTableEntryOffset(this.#table.upper(blockIndex), this.#table.lower(blockIndex));
    if (offset > Number.MAX_SAFE_INTEGER) {
      throw new Qcow2Error(
        "corrupt",
        `Refblock offset ${hex(offset)} lies in no file (reftable index: ${hex(blockIndex)})`,
        {
          offset: this.#table.offset + blockIndex * 8,
          found: hex(offset),
        },
      );
    }
    if (offset % this.#geometry.clusterSize !== 0) {
      throw new Qcow2Error(
        "corrupt",
        `Refblock offset ${hex(offset)} unaligned (reftable index: ${hex(blockIndex)})`,
        {
          offset: this.#table.offset + blockIndex * 8,
          found: hex(offset),
          expected: "a multiple of the cluster size",
          inMetadata: true,
        },
      );
    }
    return offset;
  }

  /**
   * The refcount of a cluster.
   *
   * @param clusterIndex Index of the cluster in the host file.
   * @returns The refcount; 0 where no block describes it.
   */
  get(clusterIndex: number): number {
    const slice = this.#sliceOf(clusterIndex);
    return slice === undefined
      ? 0
      : getRefcount(slice.view, clusterIndex % this.#entriesPerSlice, this.#geometry.refcountOrder);
  }

  /**
   * The refcount of a cluster, to be shown.
   *
   * @param clusterIndex Index of the cluster in the host file.
   * @returns All digits of it.
   */
  textOf(clusterIndex: number): string {
    const slice = this.#sliceOf(clusterIndex);
    return slice === undefined
      ? "0"
      : refcountText(slice.view, clusterIndex % this.#entriesPerSlice, this.#geometry.refcountOrder);
  }

  /**
   * Sets the refcount of a cluster that has a block.
   *
   * @param clusterIndex Index of the cluster in the host file.
   * @param refcount The new value.
   * @throws {Qcow2Error} With code `refcount-overflow` where it does not fit into the width, `corrupt` where no block
   * describes the cluster.
   */
  set(clusterIndex: number, refcount: number): void {
    if (refcount > this.#geometry.maxRefcount) {
      throw new Qcow2Error(
        "refcount-overflow",
        `Refcount ${refcount} of cluster ${clusterIndex} does not fit into ${this.#geometry.refcountBits} bits`,
        { found: refcount, expected: `at most ${this.#geometry.maxRefcount}` },
      );
    }
    const slice = this.#sliceOf(clusterIndex);
    if (slice === undefined) {
      throw new Qcow2Error("corrupt", `No refcount block describes cluster ${clusterIndex}`, { found: "no block" });
    }
    setRefcount(slice.view, clusterIndex % this.#entriesPerSlice, this.#geometry.refcountOrder, refcount);
    this.#cache.markDirty(slice);
  }

  /**
   * Gives a run of free clusters refcount one.
   *
   * @param firstCluster Index of the first cluster.
   * @param count How many; all of them have blocks.
   */
  setRunToOne(firstCluster: number, count: number): void {
    const order = this.#geometry.refcountOrder;
    for (let cluster = firstCluster; cluster < firstCluster + count;) {
      const slice = this.#sliceOf(cluster);
      if (slice === undefined) {
        throw new Qcow2Error("corrupt", `No refcount block describes cluster ${cluster}`, { found: "no block" });
      }
      const first = cluster % this.#entriesPerSlice;
      const end = Math.min(this.#entriesPerSlice, first + firstCluster + count - cluster);
      for (let index = first; index < end; index++) setRefcount(slice.view, index, order, 1);
      this.#cache.markDirty(slice);
      cluster += end - first;
    }
  }

  /**
   * Finds free clusters in the range of one refcount block. A block that is absent is made, at the first cluster that it
   * describes itself.
   *
   * @param from Index of the cluster to begin at.
   * @param maxCount The longest run of use.
   * @returns The first run of free clusters, or `undefined` where the block has none at or behind `from`.
   */
  findFreeInBlock(from: number, maxCount: number): ClusterRun | undefined {
    const { refcountBlockEntryCount, refcountOrder, clusterSize } = this.#geometry;
    const blockIndex = Math.floor(from / refcountBlockEntryCount);
    if (this.blockOffset(blockIndex) === 0) this.#makeBlock(blockIndex);
    const blockEnd = (blockIndex + 1) * refcountBlockEntryCount;
    let start = -1;
    for (let cluster = from; cluster < blockEnd;) {
      const slice = this.#sliceOf(cluster);
      if (slice === undefined) return undefined;
      const sliceStart = cluster - cluster % this.#entriesPerSlice;
      const sliceEnd = Math.min(this.#entriesPerSlice, blockEnd - sliceStart);
      let index = cluster - sliceStart;
      if (start < 0) {
        index = findRefcount(slice.view, index, sliceEnd, refcountOrder, true);
        if (index < sliceEnd) start = sliceStart + index;
      }
      if (start >= 0) {
        const last = Math.min(sliceEnd, start + maxCount - sliceStart);
        const used = findRefcount(slice.view, index, last, refcountOrder, false);
        if (used < sliceEnd || sliceStart + sliceEnd >= blockEnd) {
          return { offset: start * clusterSize, count: sliceStart + used - start };
        }
      }
      cluster = sliceStart + sliceEnd;
    }
    return undefined;
  }

  /**
   * Finds free clusters in a row, across blocks that are there. None is made.
   *
   * @param from Index of the cluster to begin at.
   * @param count How many are needed.
   * @returns Index of the first cluster, or `undefined` where there is no such row.
   */
  findFreeArea(from: number, count: number): number | undefined {
    const perBlock = this.#geometry.refcountBlockEntryCount;
    let start = from;
    for (let cluster = from; cluster < this.#table.entryCount * perBlock;) {
      const blockIndex = Math.floor(cluster / perBlock);
      const blockEnd = (blockIndex + 1) * perBlock;
      if (this.blockOffset(blockIndex) === 0) {
        cluster = start = blockEnd;
        continue;
      }
      const run = this.findFreeInBlock(cluster, start + count - cluster);
      const first = run === undefined ? blockEnd : run.offset / this.#geometry.clusterSize;
      if (run === undefined || first !== cluster) {
        cluster = start = first;
        continue;
      }
      cluster += run.count;
      if (cluster - start >= count) return start;
      // A row that ends inside of its block is too short.
      if (cluster < blockEnd) start = ++cluster;
    }
    return undefined;
  }

  /**
   * Makes blocks for a range that has none, with clusters in a row behind them:
   *
   * ```
   *   | block b | block b+1 | ... | the area | free ...
   *   ^ first cluster that block b describes
   * ```
   *
   * @param count How many clusters.
   * @returns Host offset of the area in bytes; its clusters have refcount one.
   * @throws {Qcow2Error} With code `no-space` where the format's tables are full.
   */
  appendArea(count: number): number {
    const perBlock = this.#geometry.refcountBlockEntryCount;
    let blocks = 1;
    while (blocks * perBlock < blocks + count) blocks++;
    let first = 0;
    for (let block = 0; block < this.#table.entryCount && block < first + blocks; block++) {
      if (this.blockOffset(block) !== 0) first = block + 1;
    }
    if (first + blocks > this.#table.entryCount) return this.#growTable(first, count);
    const { clusterSize } = this.#geometry;
    this.#options.assertUnused(first * perBlock * clusterSize, (blocks + count) * clusterSize);
    this.#writeBlocks(first, blocks, blocks + count);
    this.#linkBlocks(first, blocks);
    return (first * perBlock + blocks) * clusterSize;
  }

  /**
   * The last cluster with a refcount.
   *
   * @returns Its index; -1 where there is none.
   */
  lastUsedCluster(): number {
    const { refcountBlockEntryCount, refcountOrder } = this.#geometry;
    for (let blockIndex = this.#table.entryCount - 1; blockIndex >= 0; blockIndex--) {
      if (this.blockOffset(blockIndex) === 0) continue;
      const blockStart = blockIndex * refcountBlockEntryCount;
      const blockEnd = blockStart + refcountBlockEntryCount;
      const step = Math.min(this.#entriesPerSlice, refcountBlockEntryCount);
      for (let start = blockEnd - step; start >= blockStart; start -= step) {
        const slice = this.#sliceOf(start);
        if (slice === undefined) continue;
        for (let index = step - 1; index >= 0; index--) {
          if (getRefcount(slice.view, index, refcountOrder) !== 0) return start + index;
        }
      }
    }
    return -1;
  }

  /**
   * Drops blocks that say of no cluster that it is in use, or of none but the block itself. The first block stays.
   *
   * @returns Host offsets of the blocks that have refcounts in other blocks, and so are in use still.
   */
  dropEmptyBlocks(): number[] {
    const { clusterSize } = this.#geometry;
    const counted: number[] = [];
    for (let blockIndex = 1; blockIndex < this.#table.entryCount; blockIndex++) {
      const offset = this.blockOffset(blockIndex);
      if (offset === 0 || this.#describesOthers(blockIndex, offset / clusterSize)) continue;
      this.#options.onDroppedBlock(offset);
      this.#cache.drop(offset, clusterSize);
      this.#table.set(blockIndex, 0, 0);
      if (this.get(offset / clusterSize) !== 0) counted.push(offset);
    }
    return counted;
  }

  #describesOthers(blockIndex: number, self: number): boolean {
    for (const [first, end] of this.usedStretches(blockIndex, Infinity)) {
      for (let cluster = first; cluster < end; cluster++) {
        if (cluster !== self && this.get(cluster) !== 0) return true;
      }
    }
    return this.get(self) > 1;
  }

  /** How many clusters one slice of a refcount block describes. */
  get clustersPerSlice(): number {
    return this.#entriesPerSlice;
  }

  /**
   * The refcounts of clusters in a row.
   *
   * @param firstCluster Index of the first cluster in the host file.
   * @param into Receives the refcounts; all of the clusters are described by one slice.
   */
  read(firstCluster: number, into: Float64Array): void {
    const slice = this.#sliceOf(firstCluster);
    if (slice === undefined) {
      into.fill(0);
      return;
    }
    const { view } = slice;
    const { refcountOrder } = this.#geometry;
    const first = firstCluster % this.#entriesPerSlice;
    for (let index = 0; index < into.length; index++) into[index] = getRefcount(view, first + index, refcountOrder);
  }

  /**
   * The stretches of a block's clusters in which any refcount is not zero.
   *
   * @param blockIndex Index of a block that is there.
   * @param clusterCount Where to stop at the latest: the number of clusters of interest from the start of the file.
   * @returns Pairs of the first cluster and the one behind the last, in ascending order.
   */
  *usedStretches(blockIndex: number, clusterCount: number): Generator<[first: number, end: number]> {
    const { refcountBlockEntryCount } = this.#geometry;
    const blockEnd = Math.min((blockIndex + 1) * refcountBlockEntryCount, clusterCount);
    for (let first = blockIndex * refcountBlockEntryCount; first < blockEnd; first += this.#entriesPerSlice) {
      const slice = this.#sliceOf(first);
      if (slice === undefined || slice.bytes.every((byte) => byte === 0)) continue;
      yield [first, Math.min(first + this.#entriesPerSlice, blockEnd)];
    }
  }

  #sliceOf(clusterIndex: number): TableSlice | undefined {
    const { refcountBlockEntryCount, refcountBits } = this.#geometry;
    const blockIndex = Math.floor(clusterIndex / refcountBlockEntryCount);
    const blockOffset = this.blockOffset(blockIndex);
    if (blockOffset === 0) return undefined;
    const positionInBlock = (clusterIndex - blockIndex * refcountBlockEntryCount) * refcountBits / 8;
    return this.#cache.get(blockOffset + positionInBlock - positionInBlock % this.#cache.sliceSize);
  }

  /**
   * Makes an absent block. It stands at the first cluster that it describes: without a block all of them are free.
   *
   * ```
   *   cluster  b*n   b*n+1  ...              n refcounts in a block
   *            block  free  free ...         refcount of b*n is 1: the block describes itself
   * ```
   */
  #makeBlock(blockIndex: number): void {
    if (blockIndex >= this.#table.entryCount) {
      this.#growTable(blockIndex);
      return;
    }
    const { clusterSize, refcountBlockEntryCount } = this.#geometry;
    const offset = blockIndex * refcountBlockEntryCount * clusterSize;
    this.#options.assertUnused(offset, clusterSize);
    this.#writeBlock(offset, 1);
    this.#linkBlock(blockIndex, offset);
  }

  /** Writes a block whose first refcounts are one. Nothing points to it yet, so it may be written at once. */
  #writeBlock(offset: number, usedCount: number): void {
    const block = new Uint8Array(this.#geometry.clusterSize);
    const view = viewOf(block);
    for (let index = 0; index < usedCount; index++) setRefcount(view, index, this.#geometry.refcountOrder, 1);
    this.#file.writeAt(offset, block);
  }

  /** Writes blocks in a row, at the first clusters that they describe; the first clusters of all that they describe are used. */
  #writeBlocks(firstBlock: number, blocks: number, usedCount: number): void {
    const { refcountBlockSpan, clusterSize, refcountBlockEntryCount } = this.#geometry;
    for (let index = 0; index < blocks; index++) {
      const used = Math.min(refcountBlockEntryCount, usedCount - index * refcountBlockEntryCount);
      this.#writeBlock(firstBlock * refcountBlockSpan + index * clusterSize, used);
    }
  }

  #linkBlocks(firstBlock: number, blocks: number): void {
    const { refcountBlockSpan, clusterSize } = this.#geometry;
    for (let index = 0; index < blocks; index++) {
      this.#linkBlock(firstBlock + index, firstBlock * refcountBlockSpan + index * clusterSize);
    }
  }

  #linkBlock(blockIndex: number, offset: number): void {
    this.#cache.drop(offset, this.#geometry.clusterSize);
    this.#options.onNewBlock(offset);
    this.#table.set(blockIndex, entryUpper(offset, 0), entryLower(offset));
  }

  /**
   * Replaces the refcount table by a longer one that reaches a block. The new blocks and the new table stand in a row behind
   * everything that has refcounts, with further clusters that are asked for, and the blocks describe all of it:
   *
   * ```
   *   | block b | block b+1 | ... | new refcount table | area | free ...
   *   ^ first cluster that block b describes
   * ```
   *
   * The header still points to the old table; the flush order changes that once all of this is durable.
   *
   * @returns Host offset of the area in bytes.
   */
  #growTable(blockIndex: number, areaClusters = 0): number {
    const { clusterSize, refcountBlockEntryCount } = this.#geometry;
    const entriesPerCluster = clusterSize / 8;
    let tableClusters = 0;
    let blocks = 1;
    for (;;) {
      const neededBlocks = Math.ceil((blocks + tableClusters + areaClusters) / refcountBlockEntryCount);
      const entries = Math.max(blockIndex + neededBlocks, Math.ceil(this.#table.entryCount * TABLE_GROWTH));
      const limited = Math.min(entries, MAX_REFCOUNT_TABLE_LENGTH / 8);
      const neededTable = Math.ceil(limited / entriesPerCluster);
      if (neededBlocks <= blocks && neededTable <= tableClusters) break;
      blocks = Math.max(blocks, neededBlocks);
      tableClusters = Math.max(tableClusters, neededTable);
    }
    const entryCount = tableClusters * entriesPerCluster;
    if (entryCount * 8 > MAX_REFCOUNT_TABLE_LENGTH || blockIndex + blocks > entryCount) {
      throw new Qcow2Error(
        "no-space",
        `Refcount table would need ${(blockIndex + blocks) * 8} bytes, expected at most ${MAX_REFCOUNT_TABLE_LENGTH}`,
        { expected: `at most ${MAX_REFCOUNT_TABLE_LENGTH}` },
      );
    }
    const firstCluster = blockIndex * refcountBlockEntryCount;
    const tableOffset = (firstCluster + blocks) * clusterSize;
    const used = blocks + tableClusters + areaClusters;
    this.#options.assertUnused(firstCluster * clusterSize, used * clusterSize);
    this.#writeBlocks(blockIndex, blocks, used);
    const bytes = new Uint8Array(entryCount * 8);
    bytes.set(this.#table.bytes);
    const old = this.#table;
    this.#table = new PointerTable(tableOffset, bytes);
    this.#table.markAllDirty();
    this.#replacedTables.push({ offset: old.offset, count: old.entryCount / entriesPerCluster });
    this.#linkBlocks(blockIndex, blocks);
    return tableOffset + tableClusters * clusterSize;
  }
}
