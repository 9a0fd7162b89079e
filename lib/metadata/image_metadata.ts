/**
 * The metadata of an open image, all of it: header, L1 and L2 tables, refcounts, allocator and flush order.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { AUTOCLEAR, INCOMPATIBLE, KNOWN_AUTOCLEAR } from "../format/feature_bits.ts";
import type { Geometry } from "../format/geometry.ts";
import {
  type BitmapsPointer,
  decodeBitmapsPointer,
  encodeBitmapsPointer,
  EXTENSION,
} from "../format/header_extensions.ts";
import {
  decodeHeader,
  type DecodeHeaderOptions,
  encodeMutableFields,
  geometryOfHeader,
  hasDataFile,
  hasExtendedL2,
  type Header,
  headerClusterSize,
  MUTABLE_FIELDS_OFFSET,
} from "../format/header.ts";
import { MAX_L1_TABLE_LENGTH } from "../format/limits.ts";
import { entryOffset } from "../format/table_entries.ts";
import type { BlockFile } from "../storage/block_file.ts";
import { ClusterAllocator } from "./allocator.ts";
import { bitmapsAreConsistent, readBitmaps } from "./bitmaps.ts";
import { ExtensionArea, VACANT_TYPE } from "./extension_area.ts";
import { type BreakableRule, FlushOrder } from "./flush_order.ts";
import { writeWholeHeader } from "./header_rewrite.ts";
import { Mapping } from "./mapping.ts";
import { type MetadataRange, MetadataRegions, overlapError } from "./metadata_regions.ts";
import { type Durability, OrderedFile } from "./ordered_file.ts";
import { PointerTable } from "./pointer_table.ts";
import { Refcounts } from "./refcounts.ts";
import { readSnapshotTable } from "./snapshots.ts";
import { SubclusterMapping } from "./subcluster_mapping.ts";
import { TableCache, type TableSlice } from "./table_cache.ts";

/** How {@linkcode ImageMetadata.open} shall treat the image. */
export interface ImageMetadataOptions {
  /** Whether the image may be changed. */
  readonly write: boolean;
  /** How much a flush promises. */
  readonly durability: Durability;
  /** The most bytes of L2 tables to keep in memory; by default as much as the disk has, up to 32 MiB. */
  readonly cacheSize?: number | undefined;
  /** The file that the guest's clusters stand in, where the image has one for them. */
  readonly dataFile?: BlockFile | undefined;
  /** Whether a header is taken that a repair can mend; such an image is for a check alone. */
  readonly tolerant?: boolean | undefined;
  /** Rules of the flush order to leave out: for tests alone. */
  readonly brokenRules?: ReadonlySet<BreakableRule>;
}

/** Tables are cached in slices of this size, or of a cluster where that is smaller. */
const MAX_SLICE_SIZE = 4096;
/** L2 tables are cached whole up to this size in bytes: it covers a disk of 256 GiB with clusters of 64 KiB. */
const MAX_DEFAULT_CACHE_SIZE = 32 * 1024 * 1024;
const MIN_DEFAULT_CACHE_SIZE = 256 * 1024;
/** Refcounts are needed in allocation order, which jumps less: a part of the L2 cache's size does. */
const REFCOUNT_CACHE_SHARE = 1 / 8;
const MIN_REFCOUNT_CACHE_SIZE = 64 * 1024;
/** How much is read before it is known how large the first cluster is. */
const FIRST_READ_LENGTH = 65536;
/** QEMU counts virtual sizes in these. */
const SECTOR_SIZE = 512;
/** How many clusters may wait to be freed before a flush frees them, so that memory stays bounded. */
const MAX_PENDING_FREES = 4096;

/**
 * Reads and checks the header of an image.
 *
 * @param file The file.
 * @param options How to decode it.
 * @returns The header.
 * @throws {Qcow2Error} As `decodeHeader` does.
 */
export function readHeader(file: BlockFile, options: DecodeHeaderOptions = {}): Header {
  let bytes = readStart(file, FIRST_READ_LENGTH);
  const clusterSize = headerClusterSize(bytes);
  if (clusterSize > bytes.length) bytes = readStart(file, clusterSize);
  return decodeHeader(bytes, options);
}

function readStart(file: BlockFile, maxLength: number): Uint8Array {
  const bytes = new Uint8Array(Math.min(file.size, maxLength));
  return bytes.subarray(0, file.readAt(0, bytes));
}

/** A mapping without subclusters has entries of half the size, which are compared whole: it is a class of its own. */
function mappingClassOf(header: Header): typeof Mapping {
  return hasExtendedL2(header) ? SubclusterMapping : Mapping;
}

/** The metadata of one open image. */
export class ImageMetadata {
  /** The host file. */
  readonly file: OrderedFile;
  /** The file that the guest's clusters stand in: the host file, or a data file, where each stands at its own offset. */
  readonly guestFile: OrderedFile;
  /** Sizes and index splits. */
  readonly geometry: Geometry;
  /** Slices of L2 tables. */
  readonly l2Cache: TableCache;
  /** Slices of refcount blocks. */
  readonly refcountCache: TableCache;
  /** How often each host cluster is used. */
  readonly refcounts: Refcounts;
  /** Hands out host clusters. */
  readonly allocator: ClusterAllocator;
  /** From guest offsets to host clusters. */
  readonly mapping: Mapping;
  readonly #order: FlushOrder;
  readonly #regions: MetadataRegions;
  readonly #write: boolean;
  readonly #tolerant: boolean;
  #header: Header;
  #writePrepared = false;

  private constructor(file: OrderedFile, header: Header, options: ImageMetadataOptions) {
    this.file = file;
    const { dataFile } = options;
    this.guestFile = dataFile === undefined ? file : new OrderedFile(dataFile, options.durability);
    this.#header = header;
    this.#write = options.write;
    this.#tolerant = options.tolerant ?? false;
    this.geometry = geometryOfHeader(header);
    const { clusterSize, l2EntrySize } = this.geometry;

    const sliceSize = Math.min(MAX_SLICE_SIZE, clusterSize);
    const wholeSize = Math.ceil(this.diskSize / clusterSize) * l2EntrySize;
    const cacheSize = options.cacheSize ??
      Math.min(MAX_DEFAULT_CACHE_SIZE, Math.max(MIN_DEFAULT_CACHE_SIZE, wholeSize));
    const refcountCacheSize = options.cacheSize === undefined
      ? Math.max(MIN_REFCOUNT_CACHE_SIZE, cacheSize * REFCOUNT_CACHE_SHARE)
      : cacheSize * REFCOUNT_CACHE_SHARE;
    this.l2Cache = new TableCache(file, {
      sliceSize,
      maxSize: cacheSize,
      writeBack: (slice) => this.#writeBackL2(slice),
    });
    this.refcountCache = new TableCache(file, {
      sliceSize,
      maxSize: refcountCacheSize,
      // A refcount may reach the file early: it only rises before the reference is there, and falls after it is gone.
      writeBack: () => this.refcountCache.writeDirty(),
    });

    const l1 = PointerTable.read(file, header.l1TableOffset, header.l1EntryCount);
    const refcountTable = PointerTable.read(
      file,
      header.refcountTableOffset,
      header.refcountTableClusterCount * clusterSize / 8,
    );
    this.#regions = new MetadataRegions(clusterSize);
    this.refcounts = new Refcounts(file, this.geometry, this.refcountCache, refcountTable, {
      assertUnused: (offset, length) => this.assertNoMetadata("new refcount structures", offset, length),
      onNewBlock: (offset) => this.#regions.addTable("refcount block", offset),
      onDroppedBlock: (offset) => this.#regions.removeTable(offset),
    });
    this.allocator = new ClusterAllocator(
      this.geometry,
      this.refcounts,
      (offset, length) => this.assertNoMetadata("newly allocated clusters", offset, length),
    );
    const MappingClass = mappingClassOf(header);
    this.mapping = new MappingClass(file, this.geometry, l1, this.l2Cache, this.allocator, {
      version: header.version,
      dataFile: hasDataFile(header),
      onNewTable: (offset, replaced) => {
        this.#regions.addTable("active L2 table", offset);
        if (replaced !== 0) this.#regions.removeTable(replaced);
      },
      onDroppedTable: (offset) => this.#regions.removeTable(offset),
      onCorruption: (message, offset) => this.corruption(message, offset),
    });
    this.#order = new FlushOrder({
      file,
      guestFile: this.guestFile,
      refcountCache: this.refcountCache,
      l2Cache: this.l2Cache,
      refcounts: this.refcounts,
      mapping: this.mapping,
      allocator: this.allocator,
      clusterSize,
      writeHeader: () => this.#writeMovedRefcountTable(),
      onFreed: ({ offset, count }) => this.file.file.punchHole(offset, count * clusterSize),
      brokenRules: options.brokenRules ?? new Set(),
    });
  }

  /**
   * Reads header, L1 table and refcount table. The cost does not depend on how much the image holds.
   *
   * @param file The host file.
   * @param options How to treat it.
   * @returns The metadata.
   * @throws {Qcow2Error} As `decodeHeader` does, or with code `marked-corrupt` where a damaged image shall be written.
   */
  static open(file: BlockFile, options: ImageMetadataOptions): ImageMetadata {
    const header = readHeader(file, { tolerant: options.tolerant ?? false });
    return new ImageMetadata(new OrderedFile(file, options.durability), header, options);
  }

  /**
   * A map through another L1 table, to read what a snapshot holds.
   *
   * @param l1 The L1 table.
   * @returns The map, which shares the cached L2 tables.
   */
  mappingOf(l1: PointerTable): Mapping {
    const MappingClass = mappingClassOf(this.#header);
    return new MappingClass(this.file, this.geometry, l1, this.l2Cache, this.allocator, {
      version: this.#header.version,
      dataFile: hasDataFile(this.#header),
      onNewTable: () => {},
      onDroppedTable: () => {},
      onCorruption: (message, offset) => this.corruption(message, offset),
    });
  }

  /** The header as it stands in the file. */
  get header(): Header {
    return this.#header;
  }

  /** The virtual size in bytes: what the header says, in whole sectors. */
  get diskSize(): number {
    const { size } = this.#header;
    // The lower bits of any size; a remainder of what is beyond 32 bits would take several times as long.
    return size - (size & (SECTOR_SIZE - 1));
  }

  /** Says that the files were written before the image was opened: closing makes that durable too. */
  markUnsynced(): void {
    this.file.markUnsynced();
    this.guestFile.markUnsynced();
  }

  /** Whether the guest's clusters stand in a data file. */
  get hasDataFile(): boolean {
    return this.guestFile !== this.file;
  }

  /** Whether the data file is also a raw image of the disk, so that what reads as zeroes must be zeroes there. */
  get hasRawDataFile(): boolean {
    return (this.#header.autoclearFeatures & AUTOCLEAR.rawDataFile) !== 0n;
  }

  /** Whether the image carries the corrupt bit. */
  get markedCorrupt(): boolean {
    return (this.#header.incompatibleFeatures & INCOMPATIBLE.corrupt) !== 0n;
  }

  /** Whether the refcounts may be stale since the last writer did not get to the end. */
  get markedDirty(): boolean {
    return (this.#header.incompatibleFeatures & INCOMPATIBLE.dirty) !== 0n;
  }

  /**
   * Makes the image ready for its first change: indexes where metadata stands, and clears the autoclear bits that would no
   * longer be true. Later calls cost nothing.
   *
   * @throws {Qcow2Error} With code `marked-corrupt`, or `corrupt` where tables lie over each other.
   */
  prepareForWriting(): void {
    if (this.#writePrepared) return;
    if (this.markedCorrupt) {
      throw new Qcow2Error("marked-corrupt", "Image is corrupt; it must be repaired before it can be written", {
        offset: 72,
        found: "the corrupt bit",
        expected: "an image without it",
      });
    }
    this.#indexRegions();
    const autoclear = this.#truthfulAutoclearFeatures();
    if (autoclear !== this.#header.autoclearFeatures) this.updateHeader({ autoclearFeatures: autoclear });
    this.#writePrepared = true;
  }

  /**
   * Changes fields of the header and makes them durable. Where that fails, the header in memory is as before.
   *
   * @param changes The fields to change, out of those that `encodeMutableFields` writes.
   */
  updateHeader(changes: Partial<Header>): void {
    this.#writeHeader(changes);
    this.file.sync();
  }

  /**
   * Goes over to other structures, all at once: one sector of the file points to them. They are durable already, and nothing is
   * dirty in memory.
   *
   * @param changes The fields of the header that point to them.
   * @param structures The tables that are new, as they stand in the file.
   * @throws {Qcow2Error} With code `io` or `failed` where the host fails; the image is as before then.
   */
  switchTo(changes: Partial<Header>, structures: { l1?: PointerTable; refcountTable?: PointerTable }): void {
    const before = this.#header;
    try {
      this.updateHeader(changes);
    } catch (error) {
      this.#header = before;
      try {
        // Whether the write has reached the file is not known: it must not point to what may be given away again.
        if (this.file.failure === undefined) this.updateHeader({});
      } catch (second) {
        this.file.fail(second);
      }
      throw error;
    }
    if (structures.l1 !== undefined) this.mapping.adopt(structures.l1);
    if (structures.refcountTable !== undefined) this.refcounts.adopt(structures.refcountTable);
    this.reset();
  }

  /**
   * Points the header to another bitmap directory, or to none, and makes that durable. The autoclear bit of bitmaps is set
   * with the first directory and cleared before the last one goes; it is clear while the pointer could be torn by a crash.
   * Unknown extensions stay as they are.
   *
   * @param pointer The new directory, durable with everything that it points to.
   * @throws {Qcow2Error} With code `no-space` where the first cluster has no room for the extension.
   */
  setBitmapsPointer(pointer: BitmapsPointer | undefined): void {
    const area = new ExtensionArea(this.file, this.geometry.clusterSize);
    const { extensions } = this.#header;
    const isThere = extensions.some(({ type }) => type === EXTENSION.bitmaps);
    if (pointer === undefined) {
      this.#setBitmapsBit(false);
      if (isThere) this.#noteExtensions(area.remove(extensions, EXTENSION.bitmaps));
    } else if (!isThere) {
      this.#setBitmapsBit(false);
      this.#noteExtensions(area.append(extensions, encodeBitmapsPointer(pointer)));
    } else {
      if (!area.replacesAtOnce(extensions, EXTENSION.bitmaps)) this.#setBitmapsBit(false);
      this.#noteExtensions(area.replace(extensions, encodeBitmapsPointer(pointer)));
    }
    if (pointer !== undefined) this.#setBitmapsBit(true);
    if (this.#writePrepared) this.#regions.setRanges(this.#metadataRanges());
  }

  #noteExtensions(extensions: Header["extensions"]): void {
    this.#header = { ...this.#header, extensions };
    this.file.sync();
  }

  #setBitmapsBit(consistent: boolean): void {
    if (bitmapsAreConsistent(this.#header) === consistent || this.#header.version === 2) return;
    const { autoclearFeatures } = this.#header;
    this.updateHeader({
      autoclearFeatures: consistent ? autoclearFeatures | AUTOCLEAR.bitmaps : autoclearFeatures & ~AUTOCLEAR.bitmaps,
    });
  }

  /**
   * Replaces the L1 table by a longer one: written whole and durable before one write of the header points to it, and the old
   * one is freed after that. Nothing is left dirty in memory.
   *
   * @param entryCount How many entries the disk needs; no fewer than there are.
   * @throws {Qcow2Error} With code `limit-exceeded` where the table would be too long, `no-space` or `io` where the host
   * fails: the image is as before then.
   */
  growL1(entryCount: number): void {
    const { clusterSize } = this.geometry;
    const { l1 } = this.mapping;
    if (entryCount <= l1.entryCount) return;
    if (entryCount * 8 > MAX_L1_TABLE_LENGTH) {
      throw new Qcow2Error("limit-exceeded", `L1 table would need ${entryCount * 8} bytes`, {
        found: entryCount * 8,
        expected: `at most ${MAX_L1_TABLE_LENGTH}`,
      });
    }
    this.flush();
    const run = this.allocator.allocateContiguous(Math.ceil(entryCount * 8 / clusterSize));
    const grown = new PointerTable(run.offset, new Uint8Array(entryCount * 8));
    grown.bytes.set(l1.bytes);
    try {
      this.file.clearAt(run.offset, run.count * clusterSize);
      this.file.writeAt(run.offset, grown.bytes);
      this.flush();
    } catch (error) {
      if (this.file.failure === undefined) this.allocator.release(run);
      throw error;
    }
    this.updateHeader({ l1TableOffset: run.offset, l1EntryCount: entryCount });
    this.mapping.adopt(grown);
    this.#regions.setRanges(this.#metadataRanges());
    const oldClusters = Math.ceil(l1.bytes.length / clusterSize);
    for (let index = 0; index < oldClusters; index++) this.allocator.freeLater(l1.offset + index * clusterSize);
    this.flush();
  }

  /**
   * Gives the end of the host file back, where no cluster is in use but refcount blocks that describe nothing else. Nothing may be
   * dirty in memory.
   */
  truncateHostFile(): void {
    for (;;) {
      const counted = this.refcounts.dropEmptyBlocks();
      for (const offset of counted) this.allocator.freeLater(offset);
      this.flush();
      // A block may have described nothing but another one.
      if (counted.length === 0) break;
    }
    const end = (this.refcounts.lastUsedCluster() + 1) * this.geometry.clusterSize;
    if (end < this.file.file.size) this.file.file.truncate(end);
  }

  /**
   * Writes the whole header, where its length, its extensions or the name of the backing file change. Where the geometry changes
   * with it, the caller opens the image anew.
   *
   * @param changes The fields to change.
   * @throws {Qcow2Error} With code `invalid-argument` where the header does not fit into one cluster, `no-space` or `io`.
   */
  rewriteHeader(changes: Partial<Header>): void {
    const { extensions = this.#header.extensions } = changes;
    const kept = extensions.filter(({ type }) => type !== VACANT_TYPE);
    const changed = { ...this.#header, ...changes, extensions: kept };
    try {
      writeWholeHeader(this.file, changed);
      this.#header = changed;
    } catch (error) {
      this.#readHeaderAgain(error);
      throw error;
    }
  }

  /** After a write that failed, only the file can tell what the header is. */
  #readHeaderAgain(failure: unknown): void {
    try {
      this.#header = readHeader(this.file.file);
    } catch {
      this.file.fail(failure);
    }
  }

  /** Makes everything durable that was written. See {@linkcode FlushOrder.flush}. */
  flush(): void {
    try {
      this.#order.flush();
    } catch (error) {
      throw this.#noteCorruption(error);
    }
  }

  /** Flushes where so many clusters wait to be freed that they would take up memory. */
  limitPendingFrees(): void {
    if (this.allocator.pendingFreeCount >= MAX_PENDING_FREES) this.flush();
  }

  /** Begins to make durable what the guest has written. */
  startFlush(): void {
    this.guestFile.startSync();
  }

  /** Flushes and syncs, unless the durability is `unsafe`: for closing. */
  flushForGood(): void {
    this.flush();
    if (this.hasDataFile) this.guestFile.syncForGood();
    this.file.syncForGood();
  }

  /**
   * Refuses a write that would destroy metadata, and marks the image as corrupt: only damaged tables can lead there.
   *
   * @param what What was to be written, for the message.
   * @param offset Host offset in bytes.
   * @param length Length in bytes.
   * @throws {Qcow2Error} With code `corrupt`.
   */
  assertNoMetadata(what: string, offset: number, length: number): void {
    const kind = this.#regions.find(offset, length);
    if (kind !== undefined) throw this.#noteCorruption(overlapError(what, offset, kind));
  }

  /**
   * Makes an error of a broken table, and marks the image so that nothing builds upon it: it takes no more writes until it
   * is repaired.
   *
   * @param message What is wrong.
   * @param offset Where, as host offset in bytes.
   * @returns The error to throw.
   */
  corruption(message: string, offset: number): Qcow2Error {
    return this.#noteCorruption(new Qcow2Error("corrupt", message, { offset, inMetadata: true }));
  }

  /** Rebuilds what was derived from tables that a repair has changed. */
  reset(): void {
    this.allocator.reset();
    this.#writePrepared = false;
  }

  #noteCorruption<E>(error: E): E {
    if (!(error instanceof Qcow2Error) || error.code !== "corrupt" || !this.#write || this.markedCorrupt) return error;
    // Without a bit for it, version 2 images cannot be marked.
    if (this.#header.version === 2) return error;
    try {
      this.updateHeader({ incompatibleFeatures: this.#header.incompatibleFeatures | INCOMPATIBLE.corrupt });
      this.#writePrepared = false;
    } catch {
      // The corruption is the news; that it could not be noted in the file changes nothing for the caller.
    }
    return error;
  }

  #writeHeader(changes: Partial<Header>): void {
    const changed = { ...this.#header, ...changes };
    this.file.writeAt(MUTABLE_FIELDS_OFFSET, encodeMutableFields(changed));
    this.#header = changed;
  }

  #writeMovedRefcountTable(): void {
    const { table } = this.refcounts;
    this.#writeHeader({
      refcountTableOffset: table.offset,
      refcountTableClusterCount: table.bytes.length / this.geometry.clusterSize,
    });
    if (this.#writePrepared) this.#regions.setRanges(this.#metadataRanges());
  }

  #writeBackL2(slice: TableSlice): void {
    const { unlinkedTables } = this.mapping;
    const isUnlinked = (candidate: TableSlice): boolean =>
      unlinkedTables.has(candidate.hostOffset - candidate.hostOffset % this.geometry.clusterSize);
    if (isUnlinked(slice)) this.l2Cache.writeDirty({ chosen: isUnlinked });
    else this.#order.writeBack();
  }

  /** What the autoclear field may go on saying once the image is written by a program that knows these bits only. */
  #truthfulAutoclearFeatures(): bigint {
    let features = this.#header.autoclearFeatures & KNOWN_AUTOCLEAR;
    if (!this.#header.extensions.some(({ type }) => type === EXTENSION.bitmaps)) features &= ~AUTOCLEAR.bitmaps;
    return features;
  }

  /** Notes where all metadata stands, and refuses tables that lie over each other. */
  #indexRegions(): void {
    this.#regions.clearTables();
    this.#regions.setRanges(this.#metadataRanges());
    const { table } = this.refcounts;
    for (let index = 0; index < table.entryCount; index++) {
      const offset = this.refcounts.blockOffset(index);
      if (offset !== 0) this.#indexTable("refcount block", offset);
    }
    const { l1 } = this.mapping;
    const { clusterSize } = this.geometry;
    for (let index = 0; index < l1.entryCount; index++) {
      const offset = entryOffset(l1.upper(index), l1.lower(index));
      // One that is not aligned is reported when it is used.
      if (offset !== 0 && offset % clusterSize === 0) this.#indexTable("active L2 table", offset);
    }
  }

  #indexTable(kind: "active L2 table" | "refcount block", offset: number): void {
    const found = this.#regions.find(offset, this.geometry.clusterSize);
    if (found !== undefined && found !== kind) {
      throw this.#noteCorruption(overlapError(kind, offset, found));
    }
    this.#regions.addTable(kind, offset);
  }

  #metadataRanges(): MetadataRange[] {
    const { clusterSize } = this.geometry;
    const header = this.#header;
    const ranges: MetadataRange[] = [
      { kind: "header", offset: 0, length: clusterSize },
      { kind: "active L1 table", offset: header.l1TableOffset, length: header.l1EntryCount * 8 },
      {
        kind: "refcount table",
        offset: header.refcountTableOffset,
        length: header.refcountTableClusterCount * clusterSize,
      },
    ];
    // Too much of it is no news where it is being mended.
    const onExcess = this.#tolerant ? () => {} : undefined;
    const { snapshots, length } = readSnapshotTable(this.file.file, header, onExcess);
    ranges.push({ kind: "snapshot table", offset: header.snapshotTableOffset, length });
    for (const snapshot of snapshots) {
      ranges.push({
        kind: "inactive L1 table",
        offset: snapshot.l1TableOffset,
        length: snapshot.l1EntryCount * 8,
      });
    }
    const bitmaps = header.extensions.find(({ type }) => type === EXTENSION.bitmaps);
    if (bitmaps !== undefined && this.#hasReadableBitmaps()) {
      const { directoryOffset, directorySize } = decodeBitmapsPointer(bitmaps.data);
      ranges.push({ kind: "bitmap directory", offset: directoryOffset, length: directorySize });
    }
    return ranges;
  }

  /** A crash may have torn the pointer to bitmaps that nobody trusts; their directory may stand anywhere then. */
  #hasReadableBitmaps(): boolean {
    if (bitmapsAreConsistent(this.#header)) return true;
    try {
      readBitmaps(this.file.file, this.#header);
      return true;
    } catch (error) {
      if (error instanceof Qcow2Error) return false;
      throw error;
    }
  }
}
