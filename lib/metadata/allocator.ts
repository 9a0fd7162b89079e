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
