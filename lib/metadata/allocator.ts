/**
 * Hands out host clusters and takes them back.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import type { Geometry } from "../format/geometry.ts";
import type { ClusterRun, Refcounts } from "./refcounts.ts";

/**
 * The cluster allocator: first fit from the lowest cluster that may be free. It looks for free clusters when it needs one, so
 * opening an image costs nothing here.
 *
 * A cluster that loses a reference keeps its refcount until the flush order has made the removal durable, so that it cannot be
 * handed out while the file still says that it is in use (design of the flush order, rule 5).
 */
export class ClusterAllocator {
  readonly #geometry: Geometry;
  readonly #refcounts: Refcounts;
  readonly #assertUnused: (offset: number, length: number) => void;
  /** No cluster before this one is free. */
  #firstCandidate = 0;
  readonly #pendingFrees: number[] = [];
  /** Where the next compressed bytes may go, in a cluster that holds some already; a multiple of the cluster size if none. */
  #bytesOffset = 0;

  /**
   * @param geometry The image's geometry.
   * @param refcounts The refcounts.
   * @param assertUnused Throws where metadata stands in a range that the refcounts call free.
   */
  constructor(geometry: Geometry, refcounts: Refcounts, assertUnused: (offset: number, length: number) => void) {
    this.#geometry = geometry;
    this.#refcounts = refcounts;
    this.#assertUnused = assertUnused;
  }

  /** How many clusters lost a reference and still wait to be freed. */
  get pendingFreeCount(): number {
    return this.#pendingFrees.length;
  }

  /**
   * Allocates a run of clusters, as long as it can be had in one place.
   *
   * @param maxCount The most clusters of use, at least 1.
   * @returns The run, at least one cluster, with refcount 1.
   * @throws {Qcow2Error} With code `no-space` where the format's tables are full, `corrupt` where a cluster with refcount 0
   * holds metadata.
   */
  allocateRun(maxCount: number): ClusterRun {
    const { clusterSize, refcountBlockEntryCount } = this.#geometry;
    for (let from = this.#firstCandidate;;) {
      const run = this.#refcounts.findFreeInBlock(from, maxCount);
      if (run === undefined) {
        from = (Math.floor(from / refcountBlockEntryCount) + 1) * refcountBlockEntryCount;
        this.#firstCandidate = from;
        continue;
      }
      this.#assertUnused(run.offset, run.count * clusterSize);
      const first = run.offset / clusterSize;
      this.#refcounts.setRunToOne(first, run.count);
      this.#firstCandidate = first + run.count;
      return run;
    }
  }

  /**
   * Allocates one cluster for a table.
   *
   * @returns Its host offset in bytes.
   */
  allocateCluster(): number {
    return this.allocateRun(1).offset;
  }

  /**
   * Allocates clusters that lie in a row, for a table of several clusters.
   *
   * @param count How many, at least 1.
   * @returns The run, all of it, with refcount 1.
   * @throws {Qcow2Error} As {@linkcode ClusterAllocator.allocateRun} does.
   */
  allocateContiguous(count: number): ClusterRun {
    const { clusterSize } = this.#geometry;
    const free = this.#refcounts.findFreeRow(this.#firstCandidate, count);
    // Blocks that are absent are made in front of a row behind everything, so that none of them cuts it.
    if (free === undefined) return { offset: this.#refcounts.appendRow(count) * clusterSize, count };
    this.#assertUnused(free * clusterSize, count * clusterSize);
    this.#refcounts.setRunToOne(free, count);
    return { offset: free * clusterSize, count };
  }

  /**
   * Allocates room for compressed bytes: behind those that were allocated last where they fit there, in fresh clusters
   * otherwise. Each cluster that they touch gets one reference more.
   *
   * @param length How many bytes, at most one cluster.
   * @returns Host offset of the first byte.
   * @throws {Qcow2Error} As {@linkcode ClusterAllocator.allocateRun} does; with code `no-space` also where the format cannot
   * express the offset.
   */
  allocateBytes(length: number): number {
    const { clusterSize } = this.#geometry;
    const room = this.#bytesOffset % clusterSize === 0 ? 0 : clusterSize - this.#bytesOffset % clusterSize;
    let offset = this.#bytesOffset;
    if (room < length) {
      const fresh = this.allocateCluster();
      // The rest of the last cluster is used as well where the new one stands right behind it.
      if (room === 0 || fresh !== this.#bytesOffset + room) offset = fresh;
    }
    if (offset % clusterSize !== 0) {
      const shared = Math.floor(offset / clusterSize);
      try {
        this.#refcounts.set(shared, this.#refcounts.get(shared) + 1);
      } catch (error) {
        // The refcount is as high as it goes: begin a fresh cluster.
        if (!(error instanceof Qcow2Error) || error.code !== "refcount-overflow") throw error;
        this.#bytesOffset = 0;
        if (room < length) this.release({ offset: offset + room, count: 1 });
        return this.allocateBytes(length);
      }
    }
    this.#bytesOffset = offset + length;
    return offset;
  }

  /**
   * Takes back room for compressed bytes that nothing in the file has ever pointed to.
   *
   * @param offset Host offset of the first byte.
   * @param length How many bytes.
   */
  releaseBytes(offset: number, length: number): void {
    const { clusterSize } = this.#geometry;
    const last = Math.floor((offset + length - 1) / clusterSize);
    for (let cluster = Math.floor(offset / clusterSize); cluster <= last; cluster++) this.#drop(cluster);
    this.#bytesOffset = 0;
  }

  /**
   * Takes back clusters that nothing in the file has ever pointed to, such as those of a write that failed.
   *
   * @param run The clusters, as they were allocated.
   */
  release(run: ClusterRun): void {
    const first = run.offset / this.#geometry.clusterSize;
    for (let index = 0; index < run.count; index++) this.#drop(first + index);
  }

  /**
   * Notes that a cluster lost a reference. Its refcount falls when {@linkcode ClusterAllocator.applyFrees} is called.
   *
   * @param offset Host offset of the cluster in bytes.
   */
  freeLater(offset: number): void {
    this.#pendingFrees.push(offset / this.#geometry.clusterSize);
  }

  /**
   * Lowers the refcounts of everything that was freed. The removal of the references must be durable.
   *
   * @returns The clusters that nobody uses any more, as runs in ascending order.
   */
  applyFrees(): ClusterRun[] {
    const freed: number[] = [];
    for (let cluster = this.#pendingFrees.pop(); cluster !== undefined; cluster = this.#pendingFrees.pop()) {
      if (this.#drop(cluster)) freed.push(cluster);
    }
    return this.#runsOf(freed.sort((a, b) => a - b));
  }

  /** Forgets what it knew about free clusters, after refcounts were changed by a repair. */
  reset(): void {
    this.#firstCandidate = 0;
    this.#bytesOffset = 0;
  }

  #drop(cluster: number): boolean {
    const refcount = this.#refcounts.get(cluster);
    if (refcount === 0) {
      const offset = cluster * this.#geometry.clusterSize;
      throw new Qcow2Error("corrupt", `Cluster ${cluster} was in use but its refcount is 0`, {
        offset,
        found: 0,
        expected: "at least 1",
      });
    }
    this.#refcounts.set(cluster, refcount - 1);
    if (refcount > 1) return false;
    if (cluster === Math.floor(this.#bytesOffset / this.#geometry.clusterSize)) this.#bytesOffset = 0;
    this.#firstCandidate = Math.min(this.#firstCandidate, cluster);
    return true;
  }

  #runsOf(clusters: readonly number[]): ClusterRun[] {
    const { clusterSize } = this.#geometry;
    const runs: ClusterRun[] = [];
    for (let index = 0; index < clusters.length;) {
      const first = clusters[index] ?? 0;
      let count = 1;
      while (clusters[index + count] === first + count) count++;
      runs.push({ offset: first * clusterSize, count });
      index += count;
    }
    return runs;
  }
}
