/**
 * Walks L1 and L2 tables, counts what they refer to, and checks their entries.
 *
 * @module
 */

import { hasDataFile, hasExtendedL2 } from "../format/header.ts";
import {
  COMPRESSED_FLAG,
  contiguousEntryCount,
  COPIED_FLAG,
  decodeCompressedDescriptor,
  entryOffset,
  hasReservedL1Bits,
  hasReservedL2Bits,
  ZERO_FLAG,
} from "../format/table_entries.ts";
import { viewOf } from "../format/uint64.ts";
import type { Report } from "./findings.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import type { PointerTable } from "./pointer_table.ts";
import { type OnReference, ReferenceCounter } from "./reference_counter.ts";
import { SharedTables } from "./shared_tables.ts";
import type { Steps } from "./steps.ts";

/** How many clusters are allocated, and how. */
export interface AllocationStatistics {
  /** Guest clusters with a place on the host. */
  allocatedClusters: number;
  /** Those that do not stand right behind the one before. */
  fragmentedClusters: number;
  /** Those that are compressed. */
  compressedClusters: number;
}

/** A table of pointers, or a part of one. */
export interface Pointers {
  /** The table. */
  readonly table: PointerTable;
  /** How many owners it has. */
  readonly times: number;
}

/** How a {@linkcode TableWalk} walks. */
export interface TableWalkOptions {
  /** Called with each contradiction. */
  readonly report: Report;
  /** Called with what is referred to. */
  readonly onReference: OnReference | undefined;
  /**
   * Called where an L2 entry can only be mended by making it read as zeroes; tells whether it was. Nothing is mended without it.
   */
  readonly clearEntry: ((entryAt: number) => boolean) | undefined;
}

/** Walks L1 tables. However many of their entries name an L2 table, it is read once, or twice where there are several. */
export class TableWalk {
  /** What the active tables say. */
  readonly statistics: AllocationStatistics = { allocatedClusters: 0, fragmentedClusters: 0, compressedClusters: 0 };
  /** Where references are counted. */
  readonly counter: ReferenceCounter;
  readonly #metadata: ImageMetadata;
  readonly #report: Report;
  readonly #clearEntry: ((entryAt: number) => boolean) | undefined;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  /** Where the next cluster of the table would stand, were it not fragmented; 0 at the first one. */
  #expectedOffset = 0;
  /** Whom to tell what is found in the table at hand. */
  #note: Report;

  /**
   * @param metadata The image.
   * @param options How to walk.
   */
  constructor(metadata: ImageMetadata, { report, onReference, clearEntry }: TableWalkOptions) {
    this.#metadata = metadata;
    this.#report = report;
    this.#note = report;
    this.#clearEntry = clearEntry;
    this.#bytes = new Uint8Array(metadata.geometry.clusterSize);
    this.#view = viewOf(this.#bytes);
    this.counter = new ReferenceCounter(metadata, {
      onOutside: (finding, times) => this.#note(finding, times),
      onOverflow: report,
      onReference,
    });
  }

  /**
   * Counts what L1 tables refer to. The tables themselves are not counted.
   *
   * @param l1Tables The tables.
   * @param active Whether they are the disk's, rather than those of snapshots.
   * @returns Steps, each of which tells how many entries of L1 tables it has done.
   */
  *count(l1Tables: Iterable<Pointers>, active: boolean): Steps<number, void> {
    const { clusterSize } = this.#metadata.geometry;
    const tables = new SharedTables({
      visit: (offset, times, report) => {
        this.#note = report;
        this.#countTable(offset, active, times);
        this.#note = this.#report;
      },
      report: this.#report,
      clusterSize,
      countsAgain: true,
    });
    for (const { table: l1, times } of l1Tables) {
      yield* stepsOverTables(l1.entryCount, clusterSize, (index) => {
        const offset = this.#countL1Entry(l1, index, active, times);
        if (offset === 0 || offset >= this.counter.fileEnd) return false;
        tables.visit(offset, times);
        return true;
      });
    }
    yield* tables.finish();
  }

  /** Counts an entry of an L1 table. Gives the offset of the L2 table, or 0 where it names none. */
  #countL1Entry(l1: PointerTable, index: number, active: boolean, times: number): number {
    const { clusterSize } = this.#metadata.geometry;
    const upper = l1.upper(index);
    const lower = l1.lower(index);
    if (upper === 0 && lower === 0) return 0;
    const offset = entryOffset(upper, lower);
    const hostOffset = l1.offset + index * 8;
    if (hasReservedL1Bits(upper, lower)) {
      const message = `ERROR found L1 entry with reserved bits set: ${hexEntry(upper, lower)}`;
      this.#note({ message, hostOffset }, times);
    }
    if (offset === 0) return 0;
    this.counter.count(active ? "active L2 table" : "inactive L2 table", offset, clusterSize, hostOffset, times);
    if (offset % clusterSize !== 0) {
      const message = `ERROR l2_offset=${offset.toString(16)}: Table is not cluster aligned; L1 entry corrupted`;
      this.#note({ message, hostOffset }, times);
    }
    return offset;
  }

  /** Counts what an L2 table points to, for so many ways to the table. */
  #countTable(tableOffset: number, active: boolean, times: number): void {
    const { file, geometry, header } = this.#metadata;
    const isPlain = !hasExtendedL2(header) && this.#isCounted;
    this.#bytes.fill(0, file.file.readAt(tableOffset, this.#bytes));
    this.#expectedOffset = 0;
    for (let index = 0; index < geometry.l2EntryCount;) {
      const count = isPlain ? this.#countRun(index, active, times) : 0;
      if (count === 0) this.#countEntry(index, tableOffset, active, times);
      index += Math.max(1, count);
    }
  }

  /**
   * Counts the data that an entry and those after it point to, as far as it stands in a row on the host. Tells how many entries that
   * were, or 0 where the first of them needs a closer look.
   */
  #countRun(index: number, active: boolean, times: number): number {
    const { clusterSize, l2EntryCount } = this.#metadata.geometry;
    const upper = this.#view.getUint32(index * 8);
    const lower = this.#view.getUint32(index * 8 + 4);
    if (upper === 0 && lower === 0) return 1;
    if ((upper & COMPRESSED_FLAG) !== 0 || hasReservedL2Bits(upper, lower)) return 0;
    const offset = entryOffset(upper, lower);
    if (offset === 0 || (lower & (clusterSize - 1)) !== 0) return 0;
    const count = contiguousEntryCount(this.#view, index, l2EntryCount, clusterSize);
    if (!this.counter.countRun(active ? "data" : "inactive data", offset, count, times)) return 0;
    if (active) this.#noteAllocated(offset, count, times);
    return count;
  }

  /** Counts what an entry points to, whatever it is. */
  #countEntry(index: number, tableOffset: number, active: boolean, times: number): void {
    const { clusterSize, l2EntrySize } = this.#metadata.geometry;
    const position = index * l2EntrySize;
    const upper = this.#view.getUint32(position);
    const lower = this.#view.getUint32(position + 4);
    const entry = { index, upper, lower, hostOffset: tableOffset + position, active, times };
    if ((upper & COMPRESSED_FLAG) !== 0) {
      this.#countCompressed(entry);
      return;
    }
    if (upper !== 0 || lower !== 0) this.#checkReserved(entry);
    const offset = entryOffset(upper, lower);
    if (!this.#hasPlace(upper, lower)) {
      this.#checkUnallocated(entry);
      return;
    }
    if (!this.#checkPlace(entry, offset)) return;
    if (active) this.#noteAllocated(offset, 1, times);
    if (!this.#isCounted) return;
    this.counter.count(active ? "data" : "inactive data", offset, clusterSize, entry.hostOffset, times);
  }

  #noteAllocated(offset: number, count: number, times: number): void {
    this.statistics.allocatedClusters += count * times;
    if (this.#expectedOffset !== 0 && offset !== this.#expectedOffset) this.statistics.fragmentedClusters += times;
    this.#expectedOffset = offset + count * this.#metadata.geometry.clusterSize;
  }

  /** Clusters of a data file have no refcounts. */
  get #isCounted(): boolean {
    return !hasDataFile(this.#metadata.header);
  }

  /** Whether an entry that is not compressed has a place on the host. In a data file, 0 with the COPIED flag is the first. */
  #hasPlace(upper: number, lower: number): boolean {
    if (entryOffset(upper, lower) !== 0) return true;
    if (this.#isCounted || (upper & COPIED_FLAG) === 0) return false;
    return (lower & ZERO_FLAG) === 0 || hasExtendedL2(this.#metadata.header);
  }

  #countCompressed({ index, upper, lower, hostOffset, active, times }: Entry): void {
    const { geometry } = this.#metadata;
    const { hostOffset: dataOffset, length } = decodeCompressedDescriptor(upper, lower, geometry.clusterBits);
    if ((upper & COPIED_FLAG) !== 0) {
      const message = `ERROR: coffset=0x${
        dataOffset.toString(16)
      }: copied flag must never be set for compressed clusters`;
      this.#note({ message, hostOffset }, times);
    }
    const shown = `entry=0x${hexEntry((upper & ~COPIED_FLAG) >>> 0, lower)}`;
    if (!this.#isCounted) {
      this.#note({ message: `ERROR compressed cluster ${index} with data file, ${shown}`, hostOffset }, times);
      return;
    }
    const { zero, allocated } = this.#subclusters(index);
    if ((zero | allocated) !== 0) {
      const message = `ERROR compressed cluster ${index} with non-zero subcluster allocation bitmap, ${shown}`;
      this.#note({ message, hostOffset }, times);
      return;
    }
    this.counter.count(active ? "compressed data" : "inactive compressed data", dataOffset, length, hostOffset, times);
    if (!active) return;
    this.statistics.allocatedClusters += times;
    this.statistics.compressedClusters += times;
    // Compressed clusters are fragmented by nature: sectors are read again for neighbours.
    this.statistics.fragmentedClusters += times;
  }

  #checkReserved({ upper, lower, hostOffset, times }: Entry): void {
    const isZeroInVersion2 = this.#metadata.header.version === 2 && (lower & ZERO_FLAG) !== 0;
    if (!hasReservedL2Bits(upper, lower) && !isZeroInVersion2) return;
    const message = `ERROR found l2 entry with reserved bits set: ${hexEntry(upper, lower)}`;
    this.#note({ message, hostOffset }, times);
  }

  #checkUnallocated({ index, hostOffset, times }: Entry): void {
    if (this.#subclusters(index).allocated === 0) return;
    const message = "ERROR: Unallocated cluster has non-zero subcluster allocation map";
    this.#note({ message, hostOffset }, times);
  }

  /** Checks an entry that has a place on the host; tells whether it has one still. */
  #checkPlace({ index, lower, hostOffset, times }: Entry, offset: number): boolean {
    const { header, geometry } = this.#metadata;
    const { zero, allocated } = this.#subclusters(index);
    if ((zero & allocated) !== 0) {
      const message = `ERROR offset=${
        offset.toString(16)
      }: Allocated cluster has corrupted subcluster allocation bitmap`;
      this.#note({ message, hostOffset }, times);
    }
    if (offset % geometry.clusterSize === 0) return true;
    const holdsData = hasExtendedL2(header) ? allocated !== 0 : (lower & ZERO_FLAG) === 0;
    const fault =
      `offset=${offset.toString(16)}: ${holdsData ? "Data" : "Preallocated"} cluster is not properly aligned; ` +
      "L2 entry corrupted.";
    if (holdsData || this.#clearEntry === undefined) {
      this.#note({ message: `ERROR ${fault}`, hostOffset }, times);
      return true;
    }
    const fixed = this.#clearEntry(hostOffset);
    this.#note({ message: `Repairing ${fault}`, hostOffset, fixed }, fixed ? 1 : times);
    if (!fixed) this.#note({ kind: "error", message: "ERROR: Overlap check failed", hostOffset }, times);
    return !fixed;
  }

  /** The bitmaps of an extended entry in the table that is being read; without them none of their bits are set. */
  #subclusters(index: number): { readonly zero: number; readonly allocated: number } {
    if (!hasExtendedL2(this.#metadata.header)) return NO_SUBCLUSTERS;
    const position = index * this.#metadata.geometry.l2EntrySize;
    return { zero: this.#view.getUint32(position + 8), allocated: this.#view.getUint32(position + 12) };
  }
}

/** How many bytes of tables are read in a step, at least, where there are as many. */
const STEP_LENGTH = 65536;

/**
 * Goes over a table of pointers to tables.
 *
 * @param entryCount How many pointers there are.
 * @param tableLength Bytes in each of the other tables.
 * @param visit Looks at an entry; tells whether it has looked at the table that it names.
 * @returns Steps, each of which tells how many entries it has done.
 */
export function* stepsOverTables(
  entryCount: number,
  tableLength: number,
  visit: (index: number) => boolean,
): Steps<number, void> {
  for (let first = 0; first < entryCount;) {
    let index = first;
    for (let length = 0; index < entryCount && length < STEP_LENGTH; index++) length += visit(index) ? tableLength : 8;
    yield index - first;
    first = index;
  }
}

/** An L2 entry on the way. */
interface Entry {
  readonly index: number;
  readonly upper: number;
  readonly lower: number;
  /** Where it stands, in bytes. */
  readonly hostOffset: number;
  readonly active: boolean;
  readonly times: number;
}

const NO_SUBCLUSTERS = { zero: 0, allocated: 0 };

/**
 * Writes an entry the way `check` shows it.
 *
 * @param upper Upper half of the entry.
 * @param lower Lower half of the entry.
 * @returns 64 bits in hexadecimal, without leading zeroes.
 */
export function hexEntry(upper: number, lower: number): string {
  return ((BigInt(upper) << 32n) | BigInt(lower)).toString(16);
}
