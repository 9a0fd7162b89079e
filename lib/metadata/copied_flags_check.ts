/**
 * Checks the COPIED flags of the active tables, and mends them.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { hasDataFile, hasExtendedL2 } from "../format/header.ts";
import { COMPRESSED_FLAG, contiguousEntryCount, COPIED_FLAG, entryOffset } from "../format/table_entries.ts";
import { viewOf } from "../format/uint64.ts";
import type { Findings, NotedFinding, Report } from "./findings.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import type { MendedTable, OtherUses } from "./other_uses.ts";
import type { PointerTable } from "./pointer_table.ts";
import type { ReferenceCounts } from "./reference_counts.ts";
import { SharedTables } from "./shared_tables.ts";
import type { Steps } from "./steps.ts";
import { hexEntry, stepsOverTables } from "./table_walk.ts";

/** How flags are checked. */
export interface CopiedFlagsCheckOptions {
  /** What to mend. */
  readonly repair: "leaks" | "all" | undefined;
  /** All refcounts, as they were counted, where they are known to be right. */
  readonly known: ReferenceCounts | undefined;
  /** What else is kept in the clusters of tables. */
  readonly otherUses: OtherUses;
}

/** The COPIED flag of an active entry must say whether the refcount is exactly one. */
export class CopiedFlagsCheck {
  readonly #metadata: ImageMetadata;
  readonly #findings: Findings;
  readonly #repairs: boolean;
  /** What is known of the refcounts, where entries can be compared in a row. */
  readonly #known: ReferenceCounts | undefined;
  readonly #otherUses: OtherUses;
  readonly #bytes: Uint8Array<ArrayBuffer>;

  /**
   * @param metadata The image, with refcounts as right as they can be.
   * @param findings What was found until now, and where to note more.
   * @param options How to check.
   */
  constructor(metadata: ImageMetadata, findings: Findings, { repair, known, otherUses }: CopiedFlagsCheckOptions) {
    this.#metadata = metadata;
    this.#findings = findings;
    this.#known = hasDataFile(metadata.header) || hasExtendedL2(metadata.header) ? undefined : known;
    this.#otherUses = otherUses;
    this.#bytes = new Uint8Array(metadata.geometry.clusterSize);
    const { corruption, leak, error } = findings.left;
    // After leaks were mended, flags may be wrong that were right before. Where refcounts are all right now, they can be trusted.
    this.#repairs = repair === "all" || (repair === "leaks" && corruption + leak + error === 0);
  }

  /**
   * Checks all entries.
   *
   * @returns Steps, each of which tells how many entries of the L1 table it has done.
   */
  *run(): Steps<number, void> {
    const { mapping, geometry, file } = this.#metadata;
    const { l1 } = mapping;
    const tables = new SharedTables({
      visit: (offset, times, report) => this.#checkTable(offset, times, report),
      report: (finding, times) => this.#findings.note(finding, times),
      clusterSize: geometry.clusterSize,
      countsAgain: false,
    });
    yield* stepsOverTables(l1.entryCount, geometry.clusterSize, (index) => {
      const offset = this.#checkL1Entry(l1, index);
      // Behind the end of the file there are no entries.
      if (offset === 0 || offset >= file.file.size) return false;
      tables.visit(offset, 1);
      return true;
    });
    // What was mended is right when another entry leads there again.
    yield* tables.finish();
    if (this.#repairs) this.#metadata.flush();
  }

  /** Checks an entry of the L1 table. Gives the offset of the L2 table, or 0 where nothing can be said of it. */
  #checkL1Entry(l1: PointerTable, index: number): number {
    const upper = l1.upper(index);
    const lower = l1.lower(index);
    const offset = entryOffset(upper, lower);
    if (offset === 0) return 0;
    const cluster = Math.floor(offset / this.#metadata.geometry.clusterSize);
    const refcount = this.#refcountOf(cluster);
    if (refcount === undefined) return 0;
    if ((refcount === 1) !== ((upper & COPIED_FLAG) !== 0)) {
      const place = `L2 cluster: l1_index=${index} l1_entry=${hexEntry(upper, lower)}`;
      const hostOffset = l1.offset + index * 8;
      const fixed = this.#isMended("L1 table", hostOffset);
      this.#findings.note(this.#finding(place, cluster, hostOffset, fixed));
      if (fixed) l1.set(index, withCopied(upper, refcount === 1), lower);
    }
    return offset;
  }

  #checkTable(tableOffset: number, times: number, report: Report): void {
    const { geometry, header, file } = this.#metadata;
    const view = viewOf(this.#bytes);
    this.#bytes.fill(0, file.file.readAt(tableOffset, this.#bytes));
    const dataFile = hasDataFile(header);
    for (let index = 0; index < geometry.l2EntryCount; index++) {
      const position = index * geometry.l2EntrySize;
      const upper = view.getUint32(position);
      const lower = view.getUint32(position + 4);
      const offset = entryOffset(upper, lower);
      if (this.#known !== undefined && (upper & (COMPRESSED_FLAG | COPIED_FLAG)) >>> 0 === COPIED_FLAG) {
        // Most clusters stand in a row and belong to the disk alone.
        const count = contiguousEntryCount(view, index, geometry.l2EntryCount, geometry.clusterSize);
        if (offset % geometry.clusterSize === 0 && this.#known.areAllOne(offset / geometry.clusterSize, count)) {
          index += count - 1;
          continue;
        }
      }
      if ((upper & COMPRESSED_FLAG) !== 0 || offset === 0) continue;
      // Clusters of a data file have no refcounts, and belong to this disk alone.
      const cluster = dataFile ? undefined : Math.floor(offset / geometry.clusterSize);
      const refcount = cluster === undefined ? 1 : this.#refcountOf(cluster);
      if (refcount === undefined || (refcount === 1) === ((upper & COPIED_FLAG) !== 0)) continue;
      const hostOffset = tableOffset + position;
      const fixed = this.#isMended("L2 table", hostOffset);
      const place = `data cluster: l2_entry=${hexEntry(upper, lower)}`;
      report(this.#finding(place, cluster, hostOffset, fixed), fixed ? 1 : times);
      if (fixed) this.#setEntry(tableOffset, position, withCopied(upper, refcount === 1));
    }
  }

  #setEntry(tableOffset: number, position: number, upper: number): void {
    const { l2Cache, file, geometry } = this.#metadata;
    const inSlice = position % l2Cache.sliceSize;
    if (tableOffset % geometry.clusterSize === 0) {
      const slice = l2Cache.get(tableOffset + position - inSlice);
      slice.view.setUint32(inSlice, upper);
      l2Cache.markDirty(slice);
    } else {
      // Nothing else ever uses such a table.
      const half = new Uint8Array(4);
      viewOf(half).setUint32(0, upper);
      file.writeAt(tableOffset + position, half);
    }
  }

  /** What stands there besides a table must not suffer. */
  #isMended(table: MendedTable, hostOffset: number): boolean {
    if (!this.#repairs) return false;
    const { clusterSize, maxRefcount } = this.#metadata.geometry;
    // A table that has its cluster to itself needs no closer look, where a refcount can say that.
    const isAlone = maxRefcount > 1 && this.#refcountOf(Math.floor(hostOffset / clusterSize)) === 1;
    return isAlone || !this.#otherUses.has(table, hostOffset);
  }

  #finding(place: string, cluster: number | undefined, hostOffset: number, fixed: boolean): NotedFinding {
    const what = fixed ? "Repairing" : "ERROR";
    const refcount = cluster === undefined ? "1" : this.#metadata.refcounts.textOf(cluster);
    return { message: `${what} OFLAG_COPIED ${place} refcount=${refcount}`, hostOffset, fixed };
  }

  /** The refcount, where it can be read. */
  #refcountOf(cluster: number): number | undefined {
    try {
      return this.#metadata.refcounts.get(cluster);
    } catch (error) {
      if (error instanceof Qcow2Error && error.code === "corrupt") return undefined;
      throw error;
    }
  }
}

function withCopied(upper: number, copied: boolean): number {
  return (copied ? upper | COPIED_FLAG : upper & ~COPIED_FLAG) >>> 0;
}
