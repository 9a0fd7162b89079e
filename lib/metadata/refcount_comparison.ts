/**
 * Compares refcounts with the references that were counted, and corrects them.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import type { Findings, NotedFinding } from "./findings.ts";
import type { CountedReferences } from "./host_references.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import type { Steps } from "./steps.ts";

/** How many clusters are told of one by one whose refcounts cannot be read. */
const MAX_UNREADABLE_TOLD = 10_000;

/** Stands before the stretches of each refcount block. */
const NEXT_BLOCK = "next block";

interface Difference {
  readonly cluster: number;
  readonly refcount: number;
  readonly reference: number;
}

/**
 * How many entries of the refcount table are for the clusters of the file.
 *
 * @param metadata The image.
 * @param clusterCount How many clusters the file has.
 * @returns Their number.
 */
export function refcountBlockCount({ refcounts, geometry }: ImageMetadata, clusterCount: number): number {
  return Math.min(refcounts.table.entryCount, Math.ceil(clusterCount / geometry.refcountBlockEntryCount));
}

/** Clusters in a row whose refcounts stand in one slice of a block. */
interface ClusterStretch {
  readonly first: number;
  readonly count: number;
  /** Whether only those clusters matter that have a reference. */
  readonly referencedOnly: boolean;
}

/** So many stretches are compared in a step. */
const STEP_STRETCH_COUNT = 16;

/** The refcounts of an image beside what was counted. */
export class RefcountComparison {
  /** The last cluster with a refcount or a reference, as it was before the refcounts were corrected. */
  highestCluster = 0;
  /** Whether a cluster in use has refcount 0, so that nothing may be allocated before all refcounts are right. */
  usedClusterIsFree = false;
  readonly #metadata: ImageMetadata;
  readonly #counted: CountedReferences;
  #isEqual = true;

  /**
   * @param metadata The image.
   * @param counted What was counted.
   */
  constructor(metadata: ImageMetadata, counted: CountedReferences) {
    this.#metadata = metadata;
    this.#counted = counted;
  }

  /** Whether refcounts and references are the same, as far as it was looked. */
  get isEqual(): boolean {
    return this.#isEqual;
  }

  /**
   * Notes every difference.
   *
   * @param findings Where.
   * @returns Steps, each of which tells how many entries of the refcount table it has done.
   */
  *report(findings: Findings): Steps<number, void> {
    yield* this.#compare(findings, (difference) => findings.note(this.#finding(difference, false)));
  }

  /**
   * Notes every difference, and corrects those that it may. Refcounts rise first, and fall once that is durable.
   *
   * @param kind Whether refcounts that are too low are corrected as well. None of them is 0 then.
   * @param findings Where to note them.
   * @returns Steps, each of which tells how many entries of the refcount table it has done; they come twice.
   */
  *repair(kind: "leaks" | "all", findings: Findings): Steps<number, void> {
    const { refcounts } = this.#metadata;
    yield* this.#compare(findings, (difference) => {
      const { cluster, refcount, reference } = difference;
      const rises = refcount < reference;
      const isFixed = !rises || (kind === "all" && refcount > 0);
      findings.note(this.#finding(difference, isFixed));
      if (rises && isFixed) refcounts.set(cluster, reference);
    });
    this.#metadata.flush();
    yield* this.#compare(undefined, ({ cluster, refcount, reference }) => {
      if (refcount > reference) refcounts.set(cluster, reference);
    });
    this.#metadata.flush();
    this.#metadata.reset();
  }

  #finding({ cluster, refcount, reference }: Difference, isFixed: boolean): NotedFinding {
    const isLeak = refcount > reference;
    const what = isFixed ? "Repairing" : isLeak ? "Leaked" : "ERROR";
    const shown = refcount === 0 ? "0" : this.#metadata.refcounts.textOf(cluster);
    return {
      kind: isLeak ? "leak" : "corruption",
      message: `${what} cluster ${cluster} refcount=${shown} reference=${reference}`,
      hostOffset: cluster * this.#metadata.geometry.clusterSize,
      fixed: isFixed,
    };
  }

  /** Finds differences in ascending order, and notes on the way what cannot be read. */
  *#compare(
    findings: Findings | undefined,
    onDifference: (difference: Difference) => void,
  ): Steps<number, void> {
    const { refcounts } = this.#metadata;
    const { references } = this.#counted;
    const referenceBuffer = new Float64Array(refcounts.clustersPerSlice);
    const refcountBuffer = new Float64Array(refcounts.clustersPerSlice);
    if (findings !== undefined) this.highestCluster = 0;
    const compareStretch = ({ first, count, referencedOnly }: ClusterStretch): void => {
      const referenced = referenceBuffer.subarray(0, count);
      const stored = refcountBuffer.subarray(0, count);
      references.read(first, referenced);
      refcounts.read(first, stored);
      for (let index = 0; index < count; index++) {
        const refcount = stored[index] ?? 0;
        const reference = referenced[index] ?? 0;
        if (reference === 0 && (refcount === 0 || referencedOnly)) continue;
        const cluster = first + index;
        if (findings !== undefined) this.highestCluster = cluster;
        if (refcount === reference) continue;
        this.#isEqual = false;
        if (refcount === 0) this.usedClusterIsFree = true;
        onDifference({ cluster, refcount, reference });
      }
    };
    let done = 0;
    let stretchCount = 0;
    for (const stretch of this.#stretches(findings)) {
      if (stretch === NEXT_BLOCK) done++;
      else compareStretch(stretch);
      if (++stretchCount < STEP_STRETCH_COUNT) continue;
      yield done;
      done = 0;
      stretchCount = 0;
    }
    yield done;
  }

  /**
   * The clusters of the file that may have a refcount, and all that have a reference, in ascending order. Not simply all of
   * the file: a sparse file can claim to be larger than any loop could count. A refcount behind the end of the file stands for
   * nothing yet, and QEMU does not look at it either.
   */
  *#stretches(findings: Findings | undefined): Generator<ClusterStretch | typeof NEXT_BLOCK> {
    const { refcounts, geometry } = this.#metadata;
    const { references, clusterCount } = this.#counted;
    const { clustersPerSlice: length } = refcounts;
    const perBlock = geometry.refcountBlockEntryCount;
    const blocks = new Set<number>();
    const referenced = references.stretches(length);
    let next = referenced.next();
    let toldLeft = MAX_UNREADABLE_TOLD;
    const blockCount = refcountBlockCount(this.#metadata, clusterCount);
    for (let block = 0; block < blockCount; block++) {
      yield NEXT_BLOCK;
      const offset = this.#blockOffset(block);
      if (offset instanceof Qcow2Error) {
        const first = block * perBlock;
        const end = Math.min(first + perBlock, clusterCount);
        for (; next.done !== true && next.value < first; next = referenced.next()) {
          yield { first: next.value, count: length, referencedOnly: true };
        }
        while (next.done !== true && next.value < end) next = referenced.next();
        this.#isEqual = false;
        toldLeft = this.#noteUnreadable(findings, first, end, toldLeft, offset);
        continue;
      }
      if (offset === 0 || blocks.has(offset)) continue;
      blocks.add(offset);
      for (const [first, end] of refcounts.usedStretches(block, clusterCount)) {
        for (; next.done !== true && next.value < first; next = referenced.next()) {
          yield { first: next.value, count: length, referencedOnly: true };
        }
        yield { first, count: end - first, referencedOnly: false };
        if (next.done === true || next.value !== first) continue;
        if (end < first + length) yield { first: end, count: first + length - end, referencedOnly: true };
        next = referenced.next();
      }
    }
    for (; next.done !== true; next = referenced.next()) {
      yield { first: next.value, count: length, referencedOnly: true };
    }
  }

  /** Tells of clusters whose refcounts cannot be read, of so many one by one; gives how many more can be told of. */
  #noteUnreadable(
    findings: Findings | undefined,
    first: number,
    end: number,
    toldLeft: number,
    cause: Qcow2Error,
  ): number {
    const told = Math.min(end - first, toldLeft);
    for (let cluster = first; cluster < first + told; cluster++) {
      const message = `Can't get refcount for cluster ${cluster}`;
      findings?.tell({ kind: "error", message, hostOffset: cluster * this.#metadata.geometry.clusterSize, cause });
    }
    findings?.count("error", false, end - first);
    return toldLeft - told;
  }

  /** The offset of a refcount block, or why nothing can be read there. */
  #blockOffset(block: number): number | Qcow2Error {
    try {
      return this.#metadata.refcounts.blockOffset(block);
    } catch (error) {
      if (error instanceof Qcow2Error && error.code === "corrupt") return error;
      throw error;
    }
  }
}
