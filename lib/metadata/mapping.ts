/**
 * From guest offsets to host clusters: the L1 table and the L2 tables.
 *
 * @module
 */

import { hex, type Qcow2Error } from "../errors.ts";
import { alignDown, type Geometry } from "../format/geometry.ts";
import {
  COMPRESSED_FLAG,
  COPIED_FLAG,
  decodeCompressedDescriptor,
  encodeCompressedDescriptor,
  entryLower,
  entryOffset,
  entryUpper,
  ZERO_FLAG,
} from "../format/table_entries.ts";
import { TWO_TO_32 } from "../format/uint64.ts";
import type { ClusterAllocator } from "./allocator.ts";
import type { OrderedFile } from "./ordered_file.ts";
import type { PointerTable } from "./pointer_table.ts";
import type { TableCache, TableSlice } from "./table_cache.ts";

/** What an L2 entry says of a guest cluster. Numbers, since they are compared once for each cluster. */
export const ClusterKind = {
  /** Nothing is allocated; reads as the backing disk or as zeroes. */
  unallocated: 0,
  /** Reads as zeroes, without a host cluster. */
  zero: 1,
  /** Reads as zeroes, with a host cluster kept in reserve. */
  zeroAllocated: 2,
  /** Stands in a host cluster. */
  data: 3,
  /** Stands compressed in one or more host clusters. */
  compressed: 4,
  /** Nothing is allocated, as in `unallocated`, but a host cluster is kept for it: only parts of clusters can be that. */
  reserved: 5,
} as const;
/** One of the values of {@linkcode ClusterKind}. */
export type ClusterKind = (typeof ClusterKind)[keyof typeof ClusterKind];

/**
 * Whether reads of a cluster go to the backing disk.
 *
 * @param kind What its entry says.
 * @returns Whether they do, if there is one.
 */
export function isUnallocated(kind: ClusterKind): boolean {
  return kind === ClusterKind.unallocated || kind === ClusterKind.reserved;
}

/**
 * Whether there are host clusters, so that parts of them beside a run may hold data.
 *
 * @param kind What the entry says.
 * @returns Whether there are.
 */
export function hasHostCluster(kind: ClusterKind): boolean {
  return kind >= ClusterKind.zeroAllocated;
}

/** A stretch of the disk that one kind of entry maps, contiguous on the host. Reused from call to call. */
export class MappedRun {
  /** What the entries say. */
  kind: ClusterKind = ClusterKind.unallocated;
  /**
   * Host offset of the stretch's first byte, for `data`, `zeroAllocated` and `reserved`; of the compressed bytes for
   * `compressed`.
   */
  hostOffset = 0;
  /** Length of the stretch in bytes. */
  length = 0;
  /** Whether the host clusters are used by this disk alone, so that they may be written in place. */
  copied = false;
  /** Bytes of compressed data at most, for `compressed`. */
  compressedLength = 0;

  /**
   * Makes it a run of another kind, empty as yet.
   *
   * @param kind What the entries say.
   * @param hostOffset Host offset of the first byte.
   * @param copied Whether the host clusters are used by this disk alone.
   */
  begin(kind: ClusterKind, hostOffset: number, copied: boolean): void {
    this.kind = kind;
    this.hostOffset = hostOffset;
    this.copied = copied;
    this.length = 0;
  }
}

/** What {@linkcode Mapping} needs of the image around it. */
export interface MappingOptions {
  /** Format version. */
  readonly version: 2 | 3;
  /** Whether guest clusters stand in a data file, each at its own offset, and without refcounts. */
  readonly dataFile: boolean;
  /** Called with the host offset of each cluster that becomes an L2 table, and of the one that it replaces or 0. */
  readonly onNewTable: (offset: number, replaced: number) => void;
  /** Called with the host offset of each cluster that is no L2 table any more. */
  readonly onDroppedTable: (offset: number) => void;
  /** Turns a broken entry into the error to throw, and marks the image. */
  readonly onCorruption: (message: string, offset: number) => Qcow2Error;
}

/**
 * The two-level map of the disk. The L1 table is in memory, L2 tables are cached in slices.
 *
 * Changes are made in memory; `FlushOrder` decides when they reach the file.
 */
export class Mapping {
  /** L2 tables that no L1 entry in the file points to yet: they may be written at any time, nobody sees them. */
  readonly unlinkedTables: Set<number> = new Set<number>();
  #l1: PointerTable;
  readonly #file: OrderedFile;
  readonly #geometry: Geometry;
  readonly #cache: TableCache;
  readonly #allocator: ClusterAllocator;
  readonly #options: MappingOptions;
  readonly #dataFile: boolean;
  readonly #entriesPerSlice: number;
  readonly #sliceSpan: number;

  /**
   * @param file The host file.
   * @param geometry The image's geometry.
   * @param l1 The active L1 table.
   * @param cache A cache of slices of L2 tables.
   * @param allocator Where clusters for new tables come from.
   * @param options Version and callbacks.
   */
  constructor(
    file: OrderedFile,
    geometry: Geometry,
    l1: PointerTable,
    cache: TableCache,
    allocator: ClusterAllocator,
    options: MappingOptions,
  ) {
    this.#file = file;
    this.#geometry = geometry;
    this.#l1 = l1;
    this.#cache = cache;
    this.#allocator = allocator;
    this.#options = options;
    this.#dataFile = options.dataFile;
    this.#entriesPerSlice = cache.sliceSize / geometry.l2EntrySize;
    this.#sliceSpan = this.#entriesPerSlice * geometry.clusterSize;
  }

  /** The active L1 table. */
  get l1(): PointerTable {
    return this.#l1;
  }

  /**
   * Goes over to an L1 table that the header in the file points to already. Nothing of the old one may be dirty.
   *
   * @param l1 The new table.
   */
  adopt(l1: PointerTable): void {
    this.#l1 = l1;
    this.#cache.clear();
  }

  /** Bytes of the disk that one slice of an L2 table maps: what {@linkcode Mapping.prepareSlice} makes ready. */
  get sliceSpan(): number {
    return this.#sliceSpan;
  }

  /**
   * Cuts a range at the borders of slices: the entries of one can be changed together.
   *
   * @param offset Guest offset in bytes.
   * @param length Length in bytes.
   * @param visit Called with the offset and length of each part, in order.
   */
  eachSlice(offset: number, length: number, visit: (offset: number, length: number) => void): void {
    const end = offset + length;
    for (let position = offset; position < end;) {
      const sliceEnd = Math.min(end, alignDown(position, this.#sliceSpan) + this.#sliceSpan);
      visit(position, sliceEnd - position);
      position = sliceEnd;
    }
  }

  /**
   * Finds what a stretch of the disk is mapped to, as far as one kind of entry and one run on the host go.
   *
   * @param offset Guest offset in bytes.
   * @param maxLength How far to look in bytes, at least 1.
   * @param run Receives the answer.
   * @throws {Qcow2Error} With code `corrupt` where an entry contradicts the format.
   */
  find(offset: number, maxLength: number, run: MappedRun): void {
    const { clusterSize, l2TableSpan, l2EntrySize } = this.#geometry;
    const end = offset + maxLength;
    const lastInSlice = this.#entriesPerSlice - 1;
    // The entry that would continue the run: the first one, and after each cluster the same one cluster further on the host.
    let upper = 0;
    let lower = 0;
    let step = 0;
    run.length = 0;
    for (let position = offset; position < end;) {
      const l1Index = Math.floor(position / l2TableSpan);
      const tableEnd = Math.min(end, (l1Index + 1) * l2TableSpan);
      // A broken entry ends a run; it is an error only where one would begin with it.
      if (run.length > 0 && !this.hasSoundTable(l1Index)) return;
      const tableOffset = this.tableOffset(l1Index);
      if (tableOffset === 0) {
        if (run.length === 0) run.begin(ClusterKind.unallocated, 0, false);
        else if (run.kind !== ClusterKind.unallocated || step !== 0) return;
        run.length += tableEnd - position;
        position = tableEnd;
        continue;
      }
      let index = Math.floor((position - l1Index * l2TableSpan) / clusterSize);
      while (position < tableEnd) {
        let inSlice = index & lastInSlice;
        const slice = this.#cache.get(tableOffset + (index - inSlice) * l2EntrySize);
        const view = slice.view;
        if (run.length === 0) {
          upper = view.getUint32(inSlice * l2EntrySize);
          lower = view.getUint32(inSlice * l2EntrySize + 4);
          const inCluster = position - l1Index * l2TableSpan - index * clusterSize;
          this.#begin(run, upper, lower, position, inCluster, slice.hostOffset + inSlice * l2EntrySize);
          if (run.kind === ClusterKind.compressed) {
            run.length = Math.min(end - position, clusterSize - inCluster);
            return;
          }
          step = run.kind >= ClusterKind.zeroAllocated ? clusterSize : 0;
        }
        const first = index;
        const last = Math.min(lastInSlice, inSlice + Math.ceil((tableEnd - position) / clusterSize));
        for (; inSlice <= last; inSlice++, index++) {
          if (view.getUint32(inSlice * l2EntrySize) !== upper || view.getUint32(inSlice * l2EntrySize + 4) !== lower) {
            break;
          }
          lower += step;
          if (lower >= TWO_TO_32) {
            lower -= TWO_TO_32;
            upper++;
          }
        }
        const next = Math.min(tableEnd, l1Index * l2TableSpan + index * clusterSize);
        if (index > first) {
          run.length += next - position;
          position = next;
        }
        if (inSlice <= last) return;
      }
    }
  }

  /**
   * Makes the slice ready whose entries map a stretch of the disk: an absent L2 table is made, a shared one is copied.
   *
   * @param offset Guest offset in bytes.
   * @returns The slice; the caller changes its entries through {@linkcode Mapping.link} and {@linkcode Mapping.unlink}.
   * @throws {Qcow2Error} With code `no-space` where no cluster can be had, `corrupt` where the table is damaged.
   */
  prepareSlice(offset: number): TableSlice {
    const l1Index = Math.floor(offset / this.#geometry.l2TableSpan);
    let tableOffset = this.tableOffset(l1Index);
    if (tableOffset === 0) {
      tableOffset = this.#makeTable(l1Index);
    } else if ((this.#l1.upper(l1Index) & COPIED_FLAG) === 0) {
      tableOffset = this.#copyTable(l1Index, tableOffset);
    }
    return this.#sliceAt(tableOffset, offset);
  }

  /**
   * Whether a stretch of the disk has an L2 table.
   *
   * @param offset Guest offset in bytes.
   * @returns Whether the L1 entry points to a table.
   */
  hasTable(offset: number): boolean {
    return this.tableOffset(Math.floor(offset / this.#geometry.l2TableSpan)) !== 0;
  }

  /**
   * Points entries to a stretch of the host that holds the guest's data. What they pointed to before is freed later.
   *
   * @param slice The slice, from {@linkcode Mapping.prepareSlice}.
   * @param offset Guest offset in bytes, aligned to the smallest part of a cluster that has a state of its own.
   * @param length Length in bytes, aligned likewise; all within the slice.
   * @param hostOffset Host offset of the first byte.
   */
  link(slice: TableSlice, offset: number, length: number, hostOffset: number): void {
    const { clusterSize } = this.#geometry;
    const first = offset % this.#sliceSpan / clusterSize;
    const count = length / clusterSize;
    for (let index = 0; index < count; index++) {
      const host = hostOffset + index * clusterSize;
      this.#replace(slice, first + index, entryUpper(host, COPIED_FLAG), entryLower(host), host);
    }
    this.#cache.markDirty(slice);
  }

  /**
   * Gives host clusters to entries that have none. What is zero stays so; what is not allocated reads from its host cluster from
   * now on, unless clusters have subclusters: then it reads as before.
   *
   * @param slice The slice, from {@linkcode Mapping.prepareSlice}.
   * @param offset Guest offset of the first cluster in bytes, aligned.
   * @param length Length in bytes, whole clusters; all within the slice, none of them with a host cluster.
   * @param hostOffset Host offset of the first cluster.
   */
  reserve(slice: TableSlice, offset: number, length: number, hostOffset: number): void {
    const { clusterSize, l2EntrySize } = this.#geometry;
    for (let done = 0; done < length; done += clusterSize) {
      const position = (offset + done) % this.#sliceSpan / clusterSize * l2EntrySize;
      const zeroFlag = slice.view.getUint32(position + 4) & ZERO_FLAG;
      slice.view.setUint32(position, entryUpper(hostOffset + done, COPIED_FLAG));
      slice.view.setUint32(position + 4, entryLower(hostOffset + done, zeroFlag));
    }
    this.#cache.markDirty(slice);
  }

  /**
   * Points an entry to compressed bytes.
   *
   * @param slice The slice, from {@linkcode Mapping.prepareSlice}.
   * @param offset Guest offset of the cluster in bytes, aligned.
   * @param hostOffset Host offset of the bytes.
   * @param length How many bytes.
   */
  linkCompressed(slice: TableSlice, offset: number, hostOffset: number, length: number): void {
    const { clusterSize, clusterBits } = this.#geometry;
    const { upper, lower } = encodeCompressedDescriptor(hostOffset, length, clusterBits);
    this.#replace(slice, offset % this.#sliceSpan / clusterSize, upper, lower, 0);
    this.#cache.markDirty(slice);
  }

  /**
   * Takes host clusters away from entries.
   *
   * @param slice The slice, from {@linkcode Mapping.prepareSlice}.
   * @param offset Guest offset of the first cluster in bytes, aligned.
   * @param length Length in bytes, whole clusters; all within the slice.
   * @param readsAsZero Whether the entries say zero from now on; otherwise they are unallocated.
   */
  unlink(slice: TableSlice, offset: number, length: number, readsAsZero: boolean): void {
    const { clusterSize } = this.#geometry;
    const first = offset % this.#sliceSpan / clusterSize;
    for (let index = 0; index < length / clusterSize; index++) {
      this.#replace(slice, first + index, 0, readsAsZero ? ZERO_FLAG : 0, 0);
    }
    this.#cache.markDirty(slice);
  }

  /**
   * Makes entries read as zeroes and keeps their host clusters in reserve, if they have any.
   *
   * @param slice The slice, from {@linkcode Mapping.prepareSlice}.
   * @param offset Guest offset in bytes, aligned to the smallest part of a cluster that has a state of its own.
   * @param length Length in bytes, aligned likewise; all within the slice, nothing in it compressed.
   */
  setZeroFlag(slice: TableSlice, offset: number, length: number): void {
    const { clusterSize, l2EntrySize } = this.#geometry;
    const first = offset % this.#sliceSpan / clusterSize;
    for (let index = first; index < first + length / clusterSize; index++) {
      const position = index * l2EntrySize + 4;
      slice.view.setUint32(position, (slice.view.getUint32(position) | ZERO_FLAG) >>> 0);
    }
    this.#cache.markDirty(slice);
  }

  /**
   * Gives up an L2 table with everything that it points to.
   *
   * @param l1Index Index in the active L1 table.
   * @throws {Qcow2Error} With code `corrupt` where the entry is no offset of a cluster.
   */
  dropTable(l1Index: number): void {
    const { clusterSize, l2EntrySize } = this.#geometry;
    const tableOffset = this.tableOffset(l1Index);
    if (tableOffset === 0) return;
    for (let position = 0; position < clusterSize; position += this.#cache.sliceSize) {
      const { view } = this.#cache.get(tableOffset + position);
      for (let at = 0; at < this.#cache.sliceSize; at += l2EntrySize) {
        this.forgetReference(view.getUint32(at), view.getUint32(at + 4), 0);
      }
    }
    this.#l1.set(l1Index, 0, 0);
    this.#cache.drop(tableOffset, clusterSize);
    this.unlinkedTables.delete(tableOffset);
    this.#options.onDroppedTable(tableOffset);
    this.#allocator.freeLater(tableOffset);
  }

  /**
   * The host offset of an L2 table.
   *
   * @param l1Index Index in the active L1 table.
   * @returns The offset in bytes; 0 where there is no table.
   */
  protected tableOffset(l1Index: number): number {
    const offset = entryOffset(this.#l1.upper(l1Index), this.#l1.lower(l1Index));
    if (offset % this.#geometry.clusterSize !== 0 || offset > Number.MAX_SAFE_INTEGER) {
      throw this.#options.onCorruption(
        `L2 table offset ${hex(offset)} unaligned (L1 index: ${hex(l1Index)})`,
        this.#l1.offset + l1Index * 8,
      );
    }
    return offset;
  }

  /** Whether an L2 table's offset is one that a table can have. */
  protected hasSoundTable(l1Index: number): boolean {
    return entryOffset(this.#l1.upper(l1Index), this.#l1.lower(l1Index)) % this.#geometry.clusterSize === 0;
  }

  #sliceAt(tableOffset: number, guestOffset: number): TableSlice {
    const { l2TableSpan, clusterSize, l2EntrySize } = this.#geometry;
    const index = Math.floor(guestOffset % l2TableSpan / clusterSize);
    return this.#cache.get(tableOffset + (index - index % this.#entriesPerSlice) * l2EntrySize);
  }

  /** Begins a run with an entry. */
  #begin(
    run: MappedRun,
    upper: number,
    lower: number,
    guestOffset: number,
    inCluster: number,
    entryHostOffset: number,
  ): void {
    if ((upper & COMPRESSED_FLAG) !== 0) {
      this.beginCompressed(run, upper, lower, entryHostOffset);
      return;
    }
    const offset = entryOffset(upper, lower);
    // Most entries need no closer look.
    if (this.#dataFile || offset % this.#geometry.clusterSize !== 0 || offset > Number.MAX_SAFE_INTEGER) {
      this.hostClusterOf(upper, lower, guestOffset - inCluster, entryHostOffset);
    }
    const kind = this.#kindOf(upper, lower, offset, entryHostOffset);
    const onHost = kind >= ClusterKind.zeroAllocated;
    run.begin(kind, onHost ? offset + inCluster : 0, onHost && ((upper & COPIED_FLAG) !== 0 || this.#dataFile));
  }

  #kindOf(upper: number, lower: number, offset: number, entryHostOffset: number): ClusterKind {
    if ((lower & ZERO_FLAG) === 0) {
      if (offset !== 0) return ClusterKind.data;
      return this.hasHostCluster(upper, offset) ? ClusterKind.data : ClusterKind.unallocated;
    }
    if (this.#options.version === 2) {
      throw this.corruption("Zero cluster entry found in pre-v3 image", entryHostOffset);
    }
    return offset === 0 ? ClusterKind.zero : ClusterKind.zeroAllocated;
  }

  /** Begins a run with the descriptor of a compressed cluster. */
  protected beginCompressed(run: MappedRun, upper: number, lower: number, entryHostOffset: number): void {
    if (this.#dataFile) {
      throw this.corruption("Compressed cluster entry found in image with external data file", entryHostOffset);
    }
    const descriptor = decodeCompressedDescriptor(upper, lower, this.#geometry.clusterBits);
    run.begin(ClusterKind.compressed, descriptor.hostOffset, false);
    run.compressedLength = descriptor.length;
  }

  /** The host offset in an entry, once it is known to make sense for the guest cluster at an offset. */
  protected hostClusterOf(upper: number, lower: number, guestCluster: number, entryHostOffset: number): number {
    const offset = entryOffset(upper, lower);
    if (offset % this.#geometry.clusterSize !== 0 || offset > Number.MAX_SAFE_INTEGER) {
      throw this.corruption(`Cluster allocation offset ${hex(offset)} unaligned`, entryHostOffset);
    }
    if (this.#dataFile && offset !== guestCluster && this.hasHostCluster(upper, offset)) {
      throw this.corruption(
        `External data file host cluster offset ${hex(offset)} does not match guest cluster offset ${
          hex(guestCluster)
        }`,
        entryHostOffset,
      );
    }
    return offset;
  }

  /** Whether an entry has a host cluster. In a data file, offset 0 with the COPIED flag is the first cluster. */
  protected hasHostCluster(upper: number, offset: number): boolean {
    return offset !== 0 || (this.#dataFile && (upper & COPIED_FLAG) !== 0);
  }

  /** Whether an entry's host cluster is used by this disk alone. A data file belongs to one disk. */
  protected isOwn(upper: number): boolean {
    return (upper & COPIED_FLAG) !== 0 || this.#dataFile;
  }

  /** The error for a broken L2 entry. */
  protected corruption(message: string, entryHostOffset: number): Qcow2Error {
    const { clusterSize, l2EntrySize } = this.#geometry;
    const inTable = entryHostOffset % clusterSize;
    const place = `L2 offset: ${hex(entryHostOffset - inTable)}, L2 index: ${hex(inTable / l2EntrySize)}`;
    return this.#options.onCorruption(`${message} (${place})`, entryHostOffset);
  }

  /** Writes an entry, and gives up what it pointed to unless that is the host cluster it keeps. */
  #replace(slice: TableSlice, index: number, upper: number, lower: number, keptOffset: number): void {
    const position = index * this.#geometry.l2EntrySize;
    const oldUpper = slice.view.getUint32(position);
    const oldLower = slice.view.getUint32(position + 4);
    slice.view.setUint32(position, upper);
    slice.view.setUint32(position + 4, lower);
    this.forgetReference(oldUpper, oldLower, keptOffset);
  }

  /** Gives up what an entry pointed to, unless that is a host cluster that goes on being used. */
  protected forgetReference(upper: number, lower: number, keptOffset: number): void {
    // Clusters of a data file are not counted.
    if (this.#dataFile) return;
    const { clusterSize, clusterBits } = this.#geometry;
    if ((upper & COMPRESSED_FLAG) === 0) {
      const offset = entryOffset(upper, lower);
      if (offset !== 0 && offset !== keptOffset) this.#allocator.freeLater(offset);
      return;
    }
    // A compressed cluster has one reference to each host cluster that its sectors touch.
    const { hostOffset, length } = decodeCompressedDescriptor(upper, lower, clusterBits);
    const first = hostOffset - hostOffset % clusterSize;
    for (let offset = first; offset < hostOffset + length; offset += clusterSize) this.#allocator.freeLater(offset);
  }

  #makeTable(l1Index: number): number {
    const offset = this.#allocator.allocateCluster();
    try {
      this.#file.clearAt(offset, this.#geometry.clusterSize);
    } catch (error) {
      this.#allocator.release({ offset, count: 1 });
      throw error;
    }
    this.#pointTo(l1Index, offset, 0);
    this.#cache.expectZeroes(offset, this.#geometry.clusterSize);
    return offset;
  }

  /**
   * Copies an L2 table that a snapshot shares. The children keep their refcounts: each is reached by as many L1 tables as
   * before, once of them through the copy.
   */
  #copyTable(l1Index: number, oldOffset: number): number {
    const { clusterSize } = this.#geometry;
    const offset = this.#allocator.allocateCluster();
    try {
      const bytes = new Uint8Array(clusterSize);
      this.#file.file.readAt(oldOffset, bytes);
      this.#file.writeAt(offset, bytes);
    } catch (error) {
      this.#allocator.release({ offset, count: 1 });
      throw error;
    }
    this.#pointTo(l1Index, offset, oldOffset);
    this.#allocator.freeLater(oldOffset);
    return offset;
  }

  #pointTo(l1Index: number, tableOffset: number, replaced: number): void {
    this.#cache.drop(tableOffset, this.#geometry.clusterSize);
    this.unlinkedTables.add(tableOffset);
    this.#options.onNewTable(tableOffset, replaced);
    this.#l1.set(l1Index, entryUpper(tableOffset, COPIED_FLAG), entryLower(tableOffset));
  }
}
