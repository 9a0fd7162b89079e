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

/**
 * The clusters that hold metadata: a few long ranges, and many single clusters (L2 tables and refcount blocks). What it costs
 * to ask does not depend on how many there are.
 */
export class MetadataRegions {
  readonly #clusterSize: number;
  /** In ascending order, with the furthest end of all ranges up to each. */
  #ranges: readonly { readonly range: MetadataRange; readonly furthest: MetadataRange }[] = [];
  readonly #tables = new Map<number, "active L2 table" | "refcount block">();

  /** @param clusterSize Bytes in a cluster. */
  constructor(clusterSize: number) {
    this.#clusterSize = clusterSize;
  }

  /**
   * Replaces the long ranges.
   *
   * @param ranges Header, L1 tables, refcount table and whatever else the header points to.
   */
  setRanges(ranges: readonly MetadataRange[]): void {
    let furthest: MetadataRange | undefined;
    this.#ranges = ranges.filter((range) => range.length > 0).sort((a, b) => a.offset - b.offset).map((range) => {
      if (furthest === undefined || endOf(range) > endOf(furthest)) furthest = range;
      return { range, furthest };
    });
  }

  /**
   * Notes that a cluster holds an L2 table or a refcount block.
   *
   * @param kind What it holds.
   * @param clusterOffset Host offset of the cluster in bytes.
   */
  addTable(kind: "active L2 table" | "refcount block", clusterOffset: number): void {
    this.#tables.set(clusterOffset / this.#clusterSize, kind);
  }

  /**
   * Notes that a cluster holds no active table any more.
   *
   * @param clusterOffset Host offset of the cluster in bytes.
   */
  removeTable(clusterOffset: number): void {
    this.#tables.delete(clusterOffset / this.#clusterSize);
  }

  /** Forgets all tables. */
  clearTables(): void {
    this.#tables.clear();
  }

  /**
   * What metadata a stretch of the host file would hit.
   *
   * @param offset Host offset in bytes.
   * @param length Length in bytes.
   * @returns The kind of a hit, or `undefined` where there is none.
   */
  find(offset: number, length: number): MetadataKind | undefined {
    const end = offset + length;
    const furthest = this.#furthestRangeBefore(end);
    if (furthest !== undefined && endOf(furthest) > offset) return furthest.kind;
    const last = Math.ceil(end / this.#clusterSize);
    for (let cluster = Math.floor(offset / this.#clusterSize); cluster < last; cluster++) {
      const kind = this.#tables.get(cluster);
      if (kind !== undefined) return kind;
    }
    return undefined;
  }

  /** Of the ranges that begin before an offset, the one that ends last. */
  #furthestRangeBefore(offset: number): MetadataRange | undefined {
    let low = 0;
    let high = this.#ranges.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#ranges[middle]?.range.offset ?? 0) < offset) low = middle + 1;
      else high = middle;
    }
    return this.#ranges[low - 1]?.furthest;
  }
}

function endOf(range: MetadataRange): number {
  return range.offset + range.length;
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
