/**
 * Counts how often each host cluster is referred to, by every owner that the format knows.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import type { BitmapEntry } from "../format/bitmap_directory.ts";
import { alignDown } from "../format/geometry.ts";
import { decodeBitmapsPointer, decodeEncryptionPointer, EXTENSION } from "../format/header_extensions.ts";
import { hasDataFile, hasExtendedL2 } from "../format/header.ts";
import {
  COMPRESSED_FLAG,
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
import type { ImageMetadata } from "./image_metadata.ts";
import { PointerTable } from "./pointer_table.ts";
import { readSnapshotTable } from "./snapshots.ts";

/** Called with each contradiction that is found on the way. */
export type ReportCorruption = (message: string, hostOffset: number) => void;

/** How many clusters are allocated, and how. */
export interface AllocationStatistics {
  /** Guest clusters with a place on the host. */
  allocatedClusters: number;
  /** Those that do not stand right behind the one before. */
  fragmentedClusters: number;
  /** Those that are compressed. */
  compressedClusters: number;
}

const CHUNK_BITS = 16;
const CHUNK_SIZE = 2 ** CHUNK_BITS;

/** A counter for each host cluster, in chunks that are made where something is counted. */
export class HostReferences {
  readonly #chunks = new Map<number, Uint32Array>();
  #lastIndex = -1;
  #lastChunk: Uint32Array = new Uint32Array();

  /**
   * Counts one reference.
   *
   * @param cluster Index of the host cluster.
   */
  add(cluster: number): void {
    const index = Math.floor(cluster / CHUNK_SIZE);
    if (index !== this.#lastIndex) {
      this.#lastChunk = this.#chunks.get(index) ?? new Uint32Array(CHUNK_SIZE);
      this.#chunks.set(index, this.#lastChunk);
      this.#lastIndex = index;
    }
    const position = cluster % CHUNK_SIZE;
    this.#lastChunk[position] = (this.#lastChunk[position] ?? 0) + 1;
  }

  /**
   * Takes one reference back.
   *
   * @param cluster Index of the host cluster, counted before.
   */
  remove(cluster: number): void {
    const chunk = this.#chunks.get(Math.floor(cluster / CHUNK_SIZE));
    if (chunk !== undefined) chunk[cluster % CHUNK_SIZE] = (chunk[cluster % CHUNK_SIZE] ?? 1) - 1;
  }

  /**
   * How often a cluster was counted.
   *
   * @param cluster Index of the host cluster.
   * @returns The number of references.
   */
  get(cluster: number): number {
    return this.#chunks.get(Math.floor(cluster / CHUNK_SIZE))?.[cluster % CHUNK_SIZE] ?? 0;
  }

  /**
   * The clusters that were counted at least once.
   *
   * @returns Their indexes in ascending order.
   */
  *clusters(): Generator<number> {
    for (const index of [...this.#chunks.keys()].sort((a, b) => a - b)) {
      const chunk = this.#chunks.get(index);
      if (chunk === undefined) continue;
      for (let position = 0; position < CHUNK_SIZE; position++) {
        if (chunk[position] !== 0) yield index * CHUNK_SIZE + position;
      }
    }
  }
}

/** What {@linkcode countReferences} found. */
export interface CountedReferences {
  /** How often each host cluster is referred to. */
  readonly references: HostReferences;
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
 * @returns The references, and what was seen on the way.
 */
export function countReferences(metadata: ImageMetadata, report: ReportCorruption): CountedReferences {
  const walk = new OwnerWalk(metadata, report);
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
  readonly references = new HostReferences();
  readonly refcountStructureClusters: number[] = [];
  complete = true;
  readonly statistics: AllocationStatistics = { allocatedClusters: 0, fragmentedClusters: 0, compressedClusters: 0 };
  readonly #metadata: ImageMetadata;
  readonly #report: ReportCorruption;
  readonly #fileEnd: number;
  readonly #table: Uint8Array<ArrayBuffer>;
  readonly #tableView: DataView;

  constructor(metadata: ImageMetadata, report: ReportCorruption) {
    this.#metadata = metadata;
    this.#report = report;
    // QEMU allows the last cluster to be cut short by the end of the file.
    this.#fileEnd = metadata.file.file.size + metadata.geometry.clusterSize;
    this.#table = new Uint8Array(metadata.geometry.clusterSize);
    this.#tableView = viewOf(this.#table);
  }

  countHeader(): void {
    this.#count(0, this.#metadata.geometry.clusterSize, 0);
    const { extensions } = this.#metadata.header;
    const encryption = extensions.find(({ type }) => type === EXTENSION.fullDiskEncryption);
    if (encryption === undefined) return;
    const { offset, length } = decodeEncryptionPointer(encryption.data);
    this.#count(offset, length, 0);
  }

  countActiveTables(): void {
    const { l1 } = this.#metadata.mapping;
    this.#count(l1.offset, l1.entryCount * 8, 40);
    this.#countL1(l1, true);
  }

  countSnapshots(): void {
    const { file, header } = this.#metadata;
    if (header.snapshotCount === 0) return;
    if (hasDataFile(header)) this.#report(`ERROR ${header.snapshotCount} snapshots in image with data file`, 60);
    const table = this.#attempt(() => readSnapshotTable(file.file, header));
    if (table === undefined) return;
    const { snapshots, length } = table;
    this.#count(header.snapshotTableOffset, length, 64);
    for (const snapshot of snapshots) {
      this.#count(snapshot.l1TableOffset, snapshot.l1EntryCount * 8, header.snapshotTableOffset);
      this.#countL1(PointerTable.read(file, snapshot.l1TableOffset, snapshot.l1EntryCount), false);
    }
  }

  countBitmaps(): void {
    const { file, header, geometry } = this.#metadata;
    const extension = header.extensions.find(({ type }) => type === EXTENSION.bitmaps);
    if (extension === undefined) return;
    const { directorySize, directoryOffset } = decodeBitmapsPointer(extension.data);
    const bitmaps = this.#bitmaps();
    if (bitmaps === undefined) return;
    this.#count(directoryOffset, directorySize, 0);
    for (const bitmap of bitmaps) {
      if (!this.#count(bitmap.tableOffset, bitmap.tableEntryCount * 8, directoryOffset)) continue;
      const table = PointerTable.read(file, bitmap.tableOffset, bitmap.tableEntryCount);
      for (let index = 0; index < table.entryCount; index++) {
        const offset = entryOffset(table.upper(index), table.lower(index));
        if (offset !== 0) this.#count(offset, geometry.clusterSize, bitmap.tableOffset + index * 8);
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
    let faults = this.#countStructure(table.offset, table.bytes.length, 48) ? 0 : 1;
    const fault = (message: string, entryAt: number): void => {
      faults++;
      this.#report(message, entryAt);
    };
    for (let index = 0; index < table.entryCount; index++) {
      const lower = table.lower(index);
      const offset = refcountTableEntryOffset(table.upper(index), lower);
      const entryAt = table.offset + index * 8;
      if (hasReservedRefcountTableBits(lower)) {
        fault(`ERROR refcount table entry ${index} has reserved bits set`, entryAt);
      } else if (offset % clusterSize !== 0) {
        fault(`ERROR refcount block ${index} is not cluster aligned; refcount table entry corrupted`, entryAt);
      } else if (offset >= this.#fileEnd) {
        fault(`ERROR refcount block ${index} is outside image`, entryAt);
      } else if (offset !== 0) {
        this.#countStructure(offset, clusterSize, entryAt);
        const references = this.references.get(offset / clusterSize);
        if (references !== 1) fault(`ERROR refcount block ${index} refcount=${references}`, entryAt);
      }
    }
    return faults;
  }

  #countStructure(offset: number, length: number, referrer: number): boolean {
    if (!this.#count(offset, length, referrer)) return false;
    const { clusterSize } = this.#metadata.geometry;
    for (let position = offset; position < offset + length; position += clusterSize) {
      this.refcountStructureClusters.push(position / clusterSize);
    }
    return true;
  }

  #countL1(l1: PointerTable, active: boolean): void {
    const { clusterSize } = this.#metadata.geometry;
    for (let index = 0; index < l1.entryCount; index++) {
      const upper = l1.upper(index);
      const lower = l1.lower(index);
      const offset = entryOffset(upper, lower);
      const entryAt = l1.offset + index * 8;
      if (offset === 0) continue;
      if (hasReservedL1Bits(upper, lower)) {
        this.#report(`ERROR found L1 entry with reserved bits set: ${hexEntry(upper, lower)}`, entryAt);
      }
      this.#count(offset, clusterSize, entryAt);
      if (offset % clusterSize !== 0) {
        this.#report(
          `ERROR l2_offset=${offset.toString(16)}: Table is not cluster aligned; L1 entry corrupted`,
          entryAt,
        );
        continue;
      }
      if (offset < this.#fileEnd) this.#countL2(offset, active);
    }
  }

  #countL2(tableOffset: number, active: boolean): void {
    const { file, geometry, header } = this.#metadata;
    const { clusterSize, clusterBits, l2EntryCount, l2EntrySize } = geometry;
    const read = file.file.readAt(tableOffset, this.#table);
    this.#table.fill(0, read);
    const extendedL2 = hasExtendedL2(header);
    let expected = 0;
    for (let index = 0; index < l2EntryCount; index++) {
      const upper = this.#tableView.getUint32(index * l2EntrySize);
      const lower = this.#tableView.getUint32(index * l2EntrySize + 4);
      const entryAt = tableOffset + index * l2EntrySize;
      if (extendedL2 && !this.#hasSoundBitmaps(index, upper, lower, entryAt)) continue;
      if (upper === 0 && lower === 0) continue;
      if ((upper & COMPRESSED_FLAG) !== 0 && hasDataFile(header)) {
        this.#report(`ERROR compressed cluster ${index} with data file, entry=0x${hexEntry(upper, lower)}`, entryAt);
        continue;
      }
      if ((upper & COMPRESSED_FLAG) !== 0) {
        if ((upper & COPIED_FLAG) !== 0) {
          this.#report(
            `ERROR: coffset=${hexEntry(upper, lower)}: copied flag must never be set for compressed clusters`,
            entryAt,
          );
        }
        const { hostOffset, length } = decodeCompressedDescriptor(upper, lower, clusterBits);
        this.#count(hostOffset, length, entryAt);
        if (active) {
          this.statistics.allocatedClusters++;
          this.statistics.compressedClusters++;
          // Compressed clusters are fragmented by nature: sectors are read again for neighbours.
          this.statistics.fragmentedClusters++;
        }
        continue;
      }
      if (hasReservedL2Bits(upper, lower) || (header.version === 2 && (lower & ZERO_FLAG) !== 0)) {
        this.#report(`ERROR found l2 entry with reserved bits set: ${hexEntry(upper, lower)}`, entryAt);
      }
      const offset = entryOffset(upper, lower);
      // In a data file, offset 0 with the COPIED flag is the first cluster.
      if (offset === 0 && !(hasDataFile(header) && (upper & COPIED_FLAG) !== 0 && (lower & ZERO_FLAG) === 0)) continue;
      if (active) {
        this.statistics.allocatedClusters++;
        if (expected !== 0 && offset !== expected) this.statistics.fragmentedClusters++;
        expected = offset + clusterSize;
      }
      if (!hasDataFile(header)) this.#count(offset, clusterSize, entryAt);
      if (offset % clusterSize !== 0) {
        this.#report(
          `ERROR offset=${offset.toString(16)}: Data cluster is not properly aligned; L2 entry corrupted.`,
          entryAt,
        );
      }
    }
  }

  /** Reports subclusters in states that contradict each other; tells whether the entry counts nevertheless. */
  #hasSoundBitmaps(index: number, upper: number, lower: number, entryAt: number): boolean {
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
      );
      return false;
    }
    if (offset === 0 && !(hasDataFile(header) && (upper & COPIED_FLAG) !== 0)) {
      if (allocated !== 0) this.#report("ERROR: Unallocated cluster has non-zero subcluster allocation map", entryAt);
    } else if ((zero & allocated) !== 0) {
      this.#report(
        `ERROR offset=${offset.toString(16)}: Allocated cluster has corrupted subcluster allocation bitmap`,
        entryAt,
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
      this.#report(`ERROR ${error.message}`, error.offset ?? 0);
      return undefined;
    }
  }

  /** Counts one reference to each cluster of a range; false where the range does not lie inside the file. */
  #count(offset: number, length: number, referrer: number): boolean {
    if (length <= 0) return true;
    if (offset + length > this.#fileEnd) {
      this.#report(
        `ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset ${
          hex(offset)
        } size ${hex(length)}`,
        referrer,
      );
      return false;
    }
    const { clusterSize } = this.#metadata.geometry;
    const end = offset + length;
    for (let position = alignDown(offset, clusterSize); position < end; position += clusterSize) {
      this.references.add(position / clusterSize);
    }
    return true;
  }
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
