/**
 * Counts how often each host cluster is referred to, by every owner that the format knows.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import type { BitmapEntry } from "../format/bitmap_directory.ts";
import { alignDown, alignUp } from "../format/geometry.ts";
import { decodeBitmapsPointer, decodeEncryptionPointer, EXTENSION } from "../format/header_extensions.ts";
import { hasDataFile, hasExtendedL2 } from "../format/header.ts";
import {
  COMPRESSED_FLAG,
  contiguousEntryCount,
  COPIED_FLAG,
  decodeCompressedDescriptor,
  entryOffset,
  hasReservedL1Bits,
  hasReservedL2Bits,
  hasReservedRefcountTableBits,
  refcountTableEntryOffset,
  ZERO_FLAG,
} from "../format/table_entries.ts";
import { viewOf } from "../format/uint64.ts";
import { bitmapsAreConsistent, readBitmaps } from "./bitmaps.ts";
import { type ByteRange, coverageOf } from "./coverage.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import type { MetadataKind } from "./metadata_regions.ts";
import { PointerTable } from "./pointer_table.ts";
import { ReferenceCounts } from "./reference_counts.ts";
import { readSnapshotTable } from "./snapshots.ts";

/** The length of a file is counted in these, in bytes. */
const SECTOR_SIZE = 512;

/** Called with each contradiction that is found on the way, and how many ways lead to it. */
export type ReportCorruption = (message: string, hostOffset: number, times: number) => void;

/** What a stretch of the host file is used for. What only snapshots use is `inactive`. */
export type HostUse =
  | MetadataKind
  | "encryption header"
  | "inactive L2 table"
  | "bitmap table"
  | "bitmap data"
  | "data"
  | "compressed data"
  | "inactive data"
  | "inactive compressed data";

/**
 * Called with what something refers to, in bytes of the host file, at least once for each use. What it throws ends the walk.
 *
 * A table is told of before what it refers to.
 */
export type OnReference = (use: HostUse, offset: number, length: number) => void;

/** How many clusters are allocated, and how. */
export interface AllocationStatistics {
  /** Guest clusters with a place on the host. */
  allocatedClusters: number;
  /** Those that do not stand right behind the one before. */
  fragmentedClusters: number;
  /** Those that are compressed. */
  compressedClusters: number;
}

/** What {@linkcode countReferences} found. */
export interface CountedReferences {
  /** How often each host cluster is referred to. */
  readonly references: ReferenceCounts;
  /** The clusters of the refcount structures, one for each reference that was counted for them. */
  readonly refcountStructureClusters: readonly number[];
  /** How many contradictions lie in the refcount structures themselves; with any, they have to be rebuilt. */
  readonly refcountStructureFaults: number;
  /**
   * Whether every owner could be asked. Where a snapshot table or bitmap directory cannot be read, clusters that look unused
   * may belong to it, and must not be given away.
   */
  readonly complete: boolean;
  /** What the active map says. */
  readonly statistics: AllocationStatistics;
}

/**
 * Walks every owner of host clusters: header, refcount structures, active and inactive L1 and L2 tables, data and compressed
 * clusters, snapshot table, bitmaps, LUKS header.
 *
 * @param metadata The image; nothing in it may be dirty.
 * @param report Called with each contradiction.
 * @param onReference Called with what is referred to.
 * @returns The references, and what was seen on the way.
 */
export function countReferences(
  metadata: ImageMetadata,
  report: ReportCorruption,
  onReference?: OnReference,
): CountedReferences {
  const walk = new OwnerWalk(metadata, report, onReference);
  walk.countHeader();
  walk.countActiveTables();
  walk.countSnapshots();
  walk.countBitmaps();
  const refcountStructureFaults = walk.countRefcountStructures();
  return {
    references: walk.references,
    refcountStructureClusters: walk.refcountStructureClusters,
    refcountStructureFaults,
    complete: walk.complete,
    statistics: walk.statistics,
  };
}

class OwnerWalk {
  readonly references = new ReferenceCounts();
  readonly refcountStructureClusters: number[] = [];
  complete = true;
  readonly statistics: AllocationStatistics = { allocatedClusters: 0, fragmentedClusters: 0, compressedClusters: 0 };
  readonly #metadata: ImageMetadata;
  readonly #report: ReportCorruption;
  readonly #onReference: OnReference | undefined;
  readonly #fileEnd: number;
  readonly #table: Uint8Array<ArrayBuffer>;
  readonly #tableView: DataView;
  /** Where the next cluster of the table would stand, were it not fragmented; 0 at the first one. */
  #expectedOffset = 0;

  constructor(metadata: ImageMetadata, report: ReportCorruption, onReference: OnReference | undefined) {
    this.#metadata = metadata;
    this.#report = report;
    this.#onReference = onReference;
    this.#fileEnd = alignUp(metadata.file.file.size, SECTOR_SIZE);
    this.#table = new Uint8Array(metadata.geometry.clusterSize);
    this.#tableView = viewOf(this.#table);
  }

  countHeader(): void {
    this.#count("header", 0, this.#metadata.geometry.clusterSize, 0);
    const { extensions } = this.#metadata.header;
    const encryption = extensions.find(({ type }) => type === EXTENSION.fullDiskEncryption);
    if (encryption === undefined) return;
    const { offset, length } = decodeEncryptionPointer(encryption.data);
    this.#count("encryption header", offset, length, 0);
  }

  countActiveTables(): void {
    const { l1 } = this.#metadata.mapping;
    this.#count("active L1 table", l1.offset, l1.entryCount * 8, 40);
    this.#countTables([{ table: l1, times: 1 }], true);
  }

  countSnapshots(): void {
    const { file, header } = this.#metadata;
    if (header.snapshotCount === 0) return;
    if (hasDataFile(header)) this.#report(`ERROR ${header.snapshotCount} snapshots in image with data file`, 60, 1);
    const table = this.#attempt(() => readSnapshotTable(file.file, header));
    if (table === undefined) return;
    const { snapshots, length } = table;
    this.#count("snapshot table", header.snapshotTableOffset, length, 64);
    const l1Tables = snapshots.map(({ l1TableOffset, l1EntryCount }) => ({
      offset: l1TableOffset,
      length: l1EntryCount * 8,
    }));
    this.#countRanges("inactive L1 table", l1Tables, header.snapshotTableOffset);
    this.#countTables(this.#readPointers(l1Tables), false);
  }

  countBitmaps(): void {
    const { header, geometry } = this.#metadata;
    const extension = header.extensions.find(({ type }) => type === EXTENSION.bitmaps);
    if (extension === undefined) return;
    const { directorySize, directoryOffset } = decodeBitmapsPointer(extension.data);
    const bitmaps = this.#bitmaps();
    if (bitmaps === undefined) return;
    this.#count("bitmap directory", directoryOffset, directorySize, 0);
    const tables = bitmaps.map(({ tableOffset, tableEntryCount }) => ({
      offset: tableOffset,
      length: tableEntryCount * 8,
    }));
    const inside = this.#countRanges("bitmap table", tables, directoryOffset);
    for (const { table, times } of this.#readPointers(inside)) {
      for (let index = 0; index < table.entryCount; index++) {
        const offset = entryOffset(table.upper(index), table.lower(index));
        if (offset !== 0) this.#count("bitmap data", offset, geometry.clusterSize, table.offset + index * 8, times);
      }
    }
  }

  /** Without the bit that says that they can be trusted, bitmaps that cannot be read are none; a crash may have left them. */
  #bitmaps(): BitmapEntry[] | undefined {
    const { file, header } = this.#metadata;
    if (bitmapsAreConsistent(header)) return this.#attempt(() => readBitmaps(file.file, header)) ?? [];
    try {
      return readBitmaps(file.file, header);
    } catch (error) {
      if (error instanceof Qcow2Error) return undefined;
      throw error;
    }
  }

  countRefcountStructures(): number {
    const { refcounts, geometry } = this.#metadata;
    const { table } = refcounts;
    const { clusterSize } = geometry;
    let faults = this.#countStructure("refcount table", table.offset, table.bytes.length, 48) ? 0 : 1;
    const fault = (message: string, entryAt: number): void => {
      faults++;
      this.#report(message, entryAt, 1);
    };
    for (let index = 0; index < table.entryCount; index++) {
      const lower = table.lower(index);
      const offset = refcountTableEntryOffset(table.upper(index), lower);
      const entryAt = table.offset + index * 8;
      if (hasReservedRefcountTableBits(lower)) {
        fault(`ERROR refcount table entry ${index} has reserved bits set`, entryAt);
      } else if (offset % clusterSize !== 0) {
        fault(`ERROR refcount block ${index} is not cluster aligned; refcount table entry corrupted`, entryAt);
      } else if (offset >= alignUp(this.#fileEnd, clusterSize)) {
        fault(`ERROR refcount block ${index} is outside image`, entryAt);
      } else if (offset !== 0) {
        this.#countStructure("refcount block", offset, clusterSize, entryAt);
        const references = this.references.get(offset / clusterSize);
        if (references !== 1) fault(`ERROR refcount block ${index} refcount=${references}`, entryAt);
      }
    }
    return faults;
  }

  #countStructure(use: HostUse, offset: number, length: number, referrer: number): boolean {
    if (!this.#count(use, offset, length, referrer)) return false;
    const { clusterSize } = this.#metadata.geometry;
    for (let position = offset; position < offset + length; position += clusterSize) {
      this.refcountStructureClusters.push(position / clusterSize);
    }
    return true;
  }

  /** Counts references to ranges, what they share at once; gives those that lie inside the file. */
  #countRanges(use: HostUse, ranges: readonly ByteRange[], referrer: number): readonly ByteRange[] {
    const { clusterSize } = this.#metadata.geometry;
    const inside = ranges.filter(({ offset, length }) => this.#isInside(offset, length, referrer, 1));
    for (const { offset, length } of coverageOf(inside)) this.#onReference?.(use, offset, length);
    const wholeClusters = inside.map(({ offset, length }) => {
      const first = alignDown(offset, clusterSize);
      return { offset: first, length: alignUp(offset + length, clusterSize) - first };
    });
    for (const { offset, length, times } of coverageOf(wholeClusters)) this.#addClusters(offset, length, times);
    return inside;
  }

  /** Reads tables of pointers, what they share only once. Behind the end of the file there are none. */
  *#readPointers(tables: readonly ByteRange[]): Generator<Pointers> {
    const { file } = this.#metadata;
    for (const { offset, length, times } of coverageOf(tables)) {
      const entryCount = Math.ceil(Math.min(length, file.file.size - offset) / 8);
      if (entryCount > 0) yield { table: PointerTable.read(file, offset, entryCount), times };
    }
  }

  /** Walks L1 tables. However many of their entries name an L2 table, it is read once, or twice where there are several. */
  #countTables(l1Tables: Iterable<Pointers>, active: boolean): void {
    const { clusterSize } = this.#metadata.geometry;
    const seen = new ReferenceCounts();
    const again = new ReferenceCounts();
    for (const { table: l1, times } of l1Tables) {
      for (let index = 0; index < l1.entryCount; index++) {
        const upper = l1.upper(index);
        const lower = l1.lower(index);
        const offset = entryOffset(upper, lower);
        const entryAt = l1.offset + index * 8;
        if (offset === 0) continue;
        if (hasReservedL1Bits(upper, lower)) {
          this.#report(`ERROR found L1 entry with reserved bits set: ${hexEntry(upper, lower)}`, entryAt, times);
        }
        this.#count(active ? "active L2 table" : "inactive L2 table", offset, clusterSize, entryAt, times);
        if (offset % clusterSize !== 0) {
          this.#report(
            `ERROR l2_offset=${offset.toString(16)}: Table is not cluster aligned; L1 entry corrupted`,
            entryAt,
            times,
          );
          continue;
        }
        if (offset >= this.#fileEnd) continue;
        const cluster = offset / clusterSize;
        if (seen.get(cluster) > 0) {
          again.add(cluster, times);
        } else {
          seen.add(cluster);
          this.#countL2(offset, active, times);
        }
      }
    }
    for (const cluster of again.clusters()) this.#countL2(cluster * clusterSize, active, again.get(cluster));
  }

  /** Counts what an L2 table points to, for so many ways to the table. */
  #countL2(tableOffset: number, active: boolean, times: number): void {
    const { file, geometry, header } = this.#metadata;
    const isPlain = !hasExtendedL2(header) && !hasDataFile(header);
    this.#table.fill(0, file.file.readAt(tableOffset, this.#table));
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
    const upper = this.#tableView.getUint32(index * 8);
    const lower = this.#tableView.getUint32(index * 8 + 4);
    if (upper === 0 && lower === 0) return 1;
    if ((upper & COMPRESSED_FLAG) !== 0 || hasReservedL2Bits(upper, lower)) return 0;
    const offset = entryOffset(upper, lower);
    if (offset === 0 || (lower & (clusterSize - 1)) !== 0) return 0;
    const count = contiguousEntryCount(this.#tableView, index, l2EntryCount, clusterSize);
    const end = offset + count * clusterSize;
    if (end > this.#fileEnd) return 0;
    if (active) {
      this.statistics.allocatedClusters += count * times;
      if (this.#expectedOffset !== 0 && offset !== this.#expectedOffset) this.statistics.fragmentedClusters += times;
      this.#expectedOffset = end;
    }
    this.#onReference?.(active ? "data" : "inactive data", offset, end - offset);
    this.references.addRun(offset / clusterSize, count, times);
    return count;
  }

  /** Counts what an entry points to, whatever it is. */
  #countEntry(index: number, tableOffset: number, active: boolean, times: number): void {
    const { geometry, header } = this.#metadata;
    const { clusterSize, clusterBits, l2EntrySize } = geometry;
    const upper = this.#tableView.getUint32(index * l2EntrySize);
    const lower = this.#tableView.getUint32(index * l2EntrySize + 4);
    const entryAt = tableOffset + index * l2EntrySize;
    if (hasExtendedL2(header) && !this.#hasSoundBitmaps(index, upper, lower, entryAt, times)) return;
    if (upper === 0 && lower === 0) return;
    if ((upper & COMPRESSED_FLAG) !== 0 && hasDataFile(header)) {
      this.#report(
        `ERROR compressed cluster ${index} with data file, entry=0x${hexEntry(upper, lower)}`,
        entryAt,
        times,
      );
      return;
    }
    if ((upper & COMPRESSED_FLAG) !== 0) {
      const { hostOffset, length } = decodeCompressedDescriptor(upper, lower, clusterBits);
      if ((upper & COPIED_FLAG) !== 0) {
        this.#report(
          `ERROR: coffset=0x${hostOffset.toString(16)}: copied flag must never be set for compressed clusters`,
          entryAt,
          times,
        );
      }
      this.#count(active ? "compressed data" : "inactive compressed data", hostOffset, length, entryAt, times);
      if (active) {
        this.statistics.allocatedClusters += times;
        this.statistics.compressedClusters += times;
        // Compressed clusters are fragmented by nature: sectors are read again for neighbours.
        this.statistics.fragmentedClusters += times;
      }
      return;
    }
    if (hasReservedL2Bits(upper, lower) || (header.version === 2 && (lower & ZERO_FLAG) !== 0)) {
      this.#report(`ERROR found l2 entry with reserved bits set: ${hexEntry(upper, lower)}`, entryAt, times);
    }
    const offset = entryOffset(upper, lower);
    // In a data file, offset 0 with the COPIED flag is the first cluster.
    if (offset === 0 && !(hasDataFile(header) && (upper & COPIED_FLAG) !== 0 && (lower & ZERO_FLAG) === 0)) return;
    if (active) {
      this.statistics.allocatedClusters += times;
      if (this.#expectedOffset !== 0 && offset !== this.#expectedOffset) this.statistics.fragmentedClusters += times;
      this.#expectedOffset = offset + clusterSize;
    }
    if (!hasDataFile(header)) this.#count(active ? "data" : "inactive data", offset, clusterSize, entryAt, times);
    if (offset % clusterSize !== 0) {
      this.#report(
        `ERROR offset=${offset.toString(16)}: Data cluster is not properly aligned; L2 entry corrupted.`,
        entryAt,
        times,
      );
    }
  }

  /** Reports subclusters in states that contradict each other; tells whether the entry counts nevertheless. */
  #hasSoundBitmaps(index: number, upper: number, lower: number, entryAt: number, times: number): boolean {
    const { header, geometry } = this.#metadata;
    const zero = this.#tableView.getUint32(index * geometry.l2EntrySize + 8);
    const allocated = this.#tableView.getUint32(index * geometry.l2EntrySize + 12);
    const offset = entryOffset(upper, lower);
    if ((upper & COMPRESSED_FLAG) !== 0) {
      if ((zero | allocated) === 0) return true;
      const entry = hexEntry(upper, lower);
      this.#report(
        `ERROR compressed cluster ${index} with non-zero subcluster allocation bitmap, entry=0x${entry}`,
        entryAt,
        times,
      );
      return false;
    }
    if (offset === 0 && !(hasDataFile(header) && (upper & COPIED_FLAG) !== 0)) {
      if (allocated !== 0) {
        this.#report("ERROR: Unallocated cluster has non-zero subcluster allocation map", entryAt, times);
      }
    } else if ((zero & allocated) !== 0) {
      this.#report(
        `ERROR offset=${offset.toString(16)}: Allocated cluster has corrupted subcluster allocation bitmap`,
        entryAt,
        times,
      );
    }
    return true;
  }

  /** Reports what is wrong with a table instead of giving up on the rest of the image. */
  #attempt<T>(read: () => T): T | undefined {
    try {
      return read();
    } catch (error) {
      if (!(error instanceof Qcow2Error) || (error.code !== "corrupt" && error.code !== "limit-exceeded")) throw error;
      this.complete = false;
      this.#report(`ERROR ${error.message}`, error.offset ?? 0, 1);
      return undefined;
    }
  }

  /** Counts references to each cluster of a range; false where the range does not lie inside the file. */
  #count(use: HostUse, offset: number, length: number, referrer: number, times = 1): boolean {
    if (length <= 0) return true;
    if (!this.#isInside(offset, length, referrer, times)) return false;
    this.#onReference?.(use, offset, length);
    this.#addClusters(offset, length, times);
    return true;
  }

  #addClusters(offset: number, length: number, times: number): void {
    const { clusterSize } = this.#metadata.geometry;
    const end = offset + length;
    for (let position = alignDown(offset, clusterSize); position < end; position += clusterSize) {
      this.references.add(position / clusterSize, times);
    }
  }

  #isInside(offset: number, length: number, referrer: number, times: number): boolean {
    // The last cluster may be cut short by the end of the file.
    const { clusterSize } = this.#metadata.geometry;
    if (length <= 0 || offset + length - this.#fileEnd < clusterSize) return true;
    this.#report(
      `ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset ${
        hex(offset)
      } size ${hex(length)}`,
      referrer,
      times,
    );
    return false;
  }
}

/** A table of pointers, or a part of one. */
interface Pointers {
  readonly table: PointerTable;
  /** How many owners it has. */
  readonly times: number;
}

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
