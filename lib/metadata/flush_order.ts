/**
 * The one place that knows in which order metadata reaches the file.
 *
 * A crash may keep any subset of the writes since the last sync, in any order. So that the image is sound whatever is kept:
 *
 * 1. A refcount that rises is durable before any entry that uses the cluster.
 * 2. A refcount block is durable before the refcount table's entry for it; a grown refcount table before the header.
 * 3. An L2 table is durable before the L1 entry for it.
 * 4. Bytes in a fresh cluster are durable before the L2 entry that makes them the guest's.
 * 5. A reference is removed durably before the refcount falls, and the cluster is not handed out again before that.
 *
 * @module
 */

import type { ClusterAllocator } from "./allocator.ts";
import type { Mapping } from "./mapping.ts";
import type { OrderedFile } from "./ordered_file.ts";
import type { ClusterRun, Refcounts } from "./refcounts.ts";
import type { TableCache, TableSlice } from "./table_cache.ts";

/**
 * A rule that can be left out, so that a test of crashes can show that it would notice. Rule 4 needs no code of its own: guest
 * data is written at once, and the sync before step 3 covers it.
 */
export type BreakableRule = 1 | 2 | 3 | 5;

/** Everything that a flush brings to the file. */
export interface FlushOrderParts {
  /** The host file. */
  readonly file: OrderedFile;
  /** The file that the guest's clusters stand in: the host file, or a data file. */
  readonly guestFile: OrderedFile;
  /** Slices of refcount blocks. */
  readonly refcountCache: TableCache;
  /** Slices of L2 tables. */
  readonly l2Cache: TableCache;
  /** The refcount table. */
  readonly refcounts: Refcounts;
  /** The L1 table, and which L2 tables it does not point to yet in the file. */
  readonly mapping: Mapping;
  /** Clusters that wait to be freed. */
  readonly allocator: ClusterAllocator;
  /** Bytes in a cluster. */
  readonly clusterSize: number;
  /** Writes the header's fields, after the refcount table has moved. */
  readonly writeHeader: () => void;
  /** Called with clusters that nobody uses any more. */
  readonly onFreed: (run: ClusterRun) => void;
  /** Rules to leave out: for tests alone. */
  readonly brokenRules: ReadonlySet<BreakableRule>;
}

/** Brings dirty metadata to the file in the order that a crash cannot hurt. */
export class FlushOrder {
  readonly #parts: FlushOrderParts;

  /** @param parts Everything that a flush brings to the file. */
  constructor(parts: FlushOrderParts) {
    this.#parts = parts;
  }

  /**
   * Makes everything durable that was written: no sync where nothing was, one after rewrites in place, two after
   * allocations, three where a refcount block is new as well.
   *
   * @throws {Qcow2Error} With code `no-space` or `io` where the host fails; what did not reach the file stays dirty, and
   * the next call tries again.
   */
  flush(): void {
    if (this.#parts.brokenRules.has(5)) this.#applyFrees();
    this.writeBack();
    this.#sync();
    this.#applyFrees();
  }

  /**
   * Brings all dirty metadata to the file in order, without making the last step durable. Evicting one dirty slice does this
   * for all of them, so that they share the syncs.
   */
  writeBack(): void {
    const { file, refcountCache, l2Cache, refcounts, mapping, clusterSize, brokenRules } = this.#parts;
    const { unlinkedTables, l1 } = mapping;
    const isUnlinked = (slice: TableSlice): boolean =>
      unlinkedTables.has(slice.hostOffset - slice.hostOffset % clusterSize);

    // Step 1: raised refcounts, new refcount blocks and new L2 tables, none of which anything in the file points to. Guest
    // data and copied bytes are in the file already.
    if (!brokenRules.has(1)) refcountCache.writeDirty();
    if (unlinkedTables.size > 0) l2Cache.writeDirty({ chosen: isUnlinked });
    if (brokenRules.has(3)) l1.writeDirty(file);

    // Step 2: the refcount table makes new blocks count; a table that moved does so when the header points to it.
    if (refcounts.table.dirty || refcounts.tableMoved) {
      if (refcounts.tableMoved) refcounts.table.writeDirty(file);
      if (!brokenRules.has(2)) file.sync();
      if (refcounts.tableMoved) {
        this.#parts.writeHeader();
        file.sync();
        this.#freeReplacedTables();
      } else {
        refcounts.table.writeDirty(file);
      }
    }

    // Step 3: entries in tables that the file knows, and L1 entries for the new tables of step 1.
    if (l2Cache.hasDirty || l1.dirty) {
      this.#sync();
      l2Cache.writeDirty();
      // From here on the file may point to them, whether the write below succeeds or not.
      unlinkedTables.clear();
      l1.writeDirty(file);
      if (brokenRules.has(1)) refcountCache.writeDirty();
    }
  }

  /** The guest's bytes first: no entry may become durable before what it makes the guest's. */
  #sync(): void {
    const { file, guestFile } = this.#parts;
    if (guestFile !== file) guestFile.sync();
    file.sync();
  }

  /** Step 4, after a sync: references are durably gone, so refcounts may fall and clusters be used again. */
  #applyFrees(): void {
    const { allocator, refcountCache, onFreed } = this.#parts;
    if (allocator.pendingFreeCount === 0) return;
    for (const run of allocator.applyFrees()) onFreed(run);
    refcountCache.writeDirty({ lazily: true });
  }

  #freeReplacedTables(): void {
    const { refcounts, allocator, clusterSize } = this.#parts;
    for (const { offset, count } of refcounts.takeReplacedTables()) {
      for (let index = 0; index < count; index++) allocator.freeLater(offset + index * clusterSize);
    }
  }
}
