/**
 * Which clusters of the host file hold metadata, so that nothing else is ever written over them.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";

/** What a cluster of metadata holds. */
export type MetadataKind =
  | "header"
  | "active L1 table"
  | "active L2 table"
  | "refcount table"
  | "refcount block"
  | "snapshot table"
  | "inactive L1 table"
  | "bitmap directory";

/** A stretch of the host file that holds metadata of one kind. */
export interface MetadataRange {
  /** What it holds. */
  readonly kind: MetadataKind;
  /** Host offset in bytes. */
  readonly offset: number;
  /** Length in bytes. */
  readonly length: number;
}

/** Filter bits for each table that may exist: 16 keep a false alarm, which only costs time, below one in sixteen. */
const FILTER_BITS_PER_TABLE = 16;
const MIN_FILTER_BITS = 1 << 16;
const MAX_FILTER_BITS = 1 << 26;

/**
 * The ranges that hold metadata: a few long ones, and many single clusters (L2 tables and refcount blocks).
 *
 * The single clusters stand in a filter of fixed size that answers "surely not" for nearly every question; only where it says
 * "perhaps" are the tables themselves searched.
 */
export class MetadataRegions {
  readonly #clusterSize: number;
  readonly #filter: Uint8Array;
  readonly #filterMask: number;
  readonly #search: (clusterOffset: number) => MetadataKind | undefined;
  #ranges: readonly MetadataRange[] = [];

  /**
   * @param clusterSize Bytes in a cluster.
   * @param tableCount How many L2 tables and refcount blocks the image can point to.
   * @param search Looks a cluster up among the L2 tables and refcount blocks, exactly.
   */
  constructor(
    clusterSize: number,
    tableCount: number,
    search: (clusterOffset: number) => MetadataKind | undefined,
  ) {
    this.#clusterSize = clusterSize;
    let bits = MIN_FILTER_BITS;
    while (bits < tableCount * FILTER_BITS_PER_TABLE && bits < MAX_FILTER_BITS) bits *= 2;
    this.#filter = new Uint8Array(bits / 8);
    this.#filterMask = bits - 1;
    this.#search = search;
  }

  /**
   * Replaces the long ranges.
   *
   * @param ranges Header, L1 tables, refcount table and whatever else the header points to.
   */
  setRanges(ranges: readonly MetadataRange[]): void {
    this.#ranges = ranges.filter((range) => range.length > 0);
  }

  /**
   * Notes that a cluster holds an L2 table or a refcount block.
   *
   * @param clusterOffset Host offset of the cluster in bytes.
   */
  addTable(clusterOffset: number): void {
    const bit = this.#bitOf(clusterOffset);
    const position = bit >>> 3;
    this.#filter[position] = (this.#filter[position] ?? 0) | (1 << (bit & 7));
  }

  /**
   * What metadata a stretch of the host file would hit.
   *
   * @param offset Host offset in bytes.
   * @param length Length in bytes.
   * @returns The kind of the first hit, or `undefined` where there is none.
   */
  find(offset: number, length: number): MetadataKind | undefined {
    const end = offset + length;
    for (const range of this.#ranges) {
      if (offset < range.offset + range.length && range.offset < end) return range.kind;
    }
    for (let cluster = offset - offset % this.#clusterSize; cluster < end; cluster += this.#clusterSize) {
      const bit = this.#bitOf(cluster);
      if (((this.#filter[bit >>> 3] ?? 0) & (1 << (bit & 7))) === 0) continue;
      const kind = this.#search(cluster);
      if (kind !== undefined) return kind;
    }
    return undefined;
  }

  #bitOf(clusterOffset: number): number {
    const index = clusterOffset / this.#clusterSize;
    return Math.imul(index ^ Math.floor(index / 0x100000000), 0x9e3779b1) >>> 0 & this.#filterMask;
  }
}

/**
 * The error for a write that would destroy metadata.
 *
 * @param what What was to be written.
 * @param offset Where, in bytes.
 * @param kind What stands there.
 * @returns An error with code `corrupt`.
 */
export function overlapError(what: string, offset: number, kind: MetadataKind): Qcow2Error {
  return new Qcow2Error("corrupt", `Preventing invalid write of ${what} at ${hex(offset)} (overlaps with ${kind})`, {
    offset,
    found: kind,
    expected: "a cluster without metadata",
  });
}
