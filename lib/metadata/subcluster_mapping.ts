/**
 * From guest offsets to host clusters where L2 entries are extended: each is 16 bytes, and of each cluster 32 parts have a
 * state of their own.
 *
 * @module
 */

import type { Geometry } from "../format/geometry.ts";
import { SUBCLUSTER_COUNT } from "../format/geometry.ts";
import { COMPRESSED_FLAG, COPIED_FLAG, entryLower, entryOffset, entryUpper } from "../format/table_entries.ts";
import type { ClusterAllocator } from "./allocator.ts";
import { ClusterKind, type MappedRun, Mapping, type MappingOptions } from "./mapping.ts";
import type { OrderedFile } from "./ordered_file.ts";
import type { PointerTable } from "./pointer_table.ts";
import type { TableCache, TableSlice } from "./table_cache.ts";

const ENTRY_SIZE = 16;
/** Where the bitmaps stand in an entry: a subcluster's bit is the same in both, the lowest is the first subcluster's. */
const ZERO_BITS_OFFSET = 8;
const ALLOCATED_BITS_OFFSET = 12;
const ALL_BITS = 0xffffffff;

/**
 * The map of a disk whose clusters have subclusters. A subcluster that is neither allocated nor zero reads as the backing
 * disk does, also where its cluster has a place on the host.
 */
export class SubclusterMapping extends Mapping {
  readonly #geometry: Geometry;
  readonly #cache: TableCache;
  readonly #entriesPerSlice: number;

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
    super(file, geometry, l1, cache, allocator, options);
    this.#geometry = geometry;
    this.#cache = cache;
    this.#entriesPerSlice = cache.sliceSize / ENTRY_SIZE;
  }

  /** Finds what a stretch of the disk is mapped to, as {@linkcode Mapping.find} does, in subclusters. */
  override find(offset: number, maxLength: number, run: MappedRun): void {
    const { clusterSize, subclusterSize, l2TableSpan } = this.#geometry;
    const end = offset + maxLength;
    run.length = 0;
    for (let position = offset; position < end;) {
      const l1Index = Math.floor(position / l2TableSpan);
      // A broken entry ends a run; it is an error only where one would begin with it.
      if (run.length > 0 && !this.hasSoundTable(l1Index)) return;
      const tableOffset = this.tableOffset(l1Index);
      if (tableOffset === 0) {
        if (run.length === 0) run.begin(ClusterKind.unallocated, 0, false);
        else if (run.kind !== ClusterKind.unallocated) return;
        const tableEnd = Math.min(end, (l1Index + 1) * l2TableSpan);
        run.length += tableEnd - position;
        position = tableEnd;
        continue;
      }
      const index = Math.floor((position - l1Index * l2TableSpan) / clusterSize);
      const inSlice = index % this.#entriesPerSlice;
      const slice = this.#cache.get(tableOffset + (index - inSlice) * ENTRY_SIZE);
      const entryAt = inSlice * ENTRY_SIZE;
      const inCluster = position % clusterSize;
      if ((slice.view.getUint32(entryAt) & COMPRESSED_FLAG) !== 0) {
        if (run.length > 0) return;
        const view = slice.view;
        this.beginCompressed(run, view.getUint32(entryAt), view.getUint32(entryAt + 4), slice.hostOffset + entryAt);
        run.length = Math.min(end - position, clusterSize - inCluster);
        return;
      }
      if (run.length === 0) this.#begin(run, slice, entryAt, position);
      else if (!this.#continues(run, slice, entryAt)) return;
      const first = Math.floor(inCluster / subclusterSize);
      const last = first + this.#countAlike(run.kind, slice, entryAt, first);
      const next = Math.min(end, position - inCluster + last * subclusterSize);
      run.length += next - position;
      position = next;
      if (last < SUBCLUSTER_COUNT) return;
    }
  }

  /** Points subclusters to a stretch of the host; what else their clusters hold must stand around it already. */
  override link(slice: TableSlice, offset: number, length: number, hostOffset: number): void {
    const { view } = slice;
    this.#eachEntry(offset, length, (entryAt, bits, clusterOffset) => {
      const upper = view.getUint32(entryAt);
      const lower = view.getUint32(entryAt + 4);
      const host = hostOffset + clusterOffset - offset;
      // All of a compressed cluster was copied.
      const isCompressed = (upper & COMPRESSED_FLAG) !== 0;
      const zero = isCompressed ? 0 : view.getUint32(entryAt + ZERO_BITS_OFFSET) & ~bits;
      const allocated = isCompressed ? ALL_BITS : view.getUint32(entryAt + ALLOCATED_BITS_OFFSET) | bits;
      view.setUint32(entryAt, entryUpper(host, COPIED_FLAG));
      view.setUint32(entryAt + 4, entryLower(host));
      setBitmaps(view, entryAt, zero, allocated);
      this.forgetReference(upper, lower, host);
    });
    this.#cache.markDirty(slice);
  }

  /** Points an entry to compressed bytes; a compressed cluster has no subclusters. */
  override linkCompressed(slice: TableSlice, offset: number, hostOffset: number, length: number): void {
    super.linkCompressed(slice, offset, hostOffset, length);
    this.#eachEntry(offset, this.#geometry.clusterSize, (entryAt) => setBitmaps(slice.view, entryAt, 0, 0));
  }

  /** Takes host clusters away from entries. */
  override unlink(slice: TableSlice, offset: number, length: number, readsAsZero: boolean): void {
    super.unlink(slice, offset, length, false);
    this.#eachEntry(offset, length, (entryAt) => setBitmaps(slice.view, entryAt, readsAsZero ? ALL_BITS : 0, 0));
  }

  /** Makes subclusters read as zeroes and keeps the host clusters. */
  override setZeroFlag(slice: TableSlice, offset: number, length: number): void {
    const { view } = slice;
    this.#eachEntry(offset, length, (entryAt, bits) => {
      const zero = view.getUint32(entryAt + ZERO_BITS_OFFSET) | bits;
      setBitmaps(view, entryAt, zero, view.getUint32(entryAt + ALLOCATED_BITS_OFFSET) & ~bits);
    });
    this.#cache.markDirty(slice);
  }

  /** Begins a run with the subcluster at a guest offset. */
  #begin(run: MappedRun, slice: TableSlice, entryAt: number, position: number): void {
    const { clusterSize, subclusterSize } = this.#geometry;
    const { view } = slice;
    const upper = view.getUint32(entryAt);
    const inCluster = position % clusterSize;
    const entryHostOffset = slice.hostOffset + entryAt;
    const offset = this.hostClusterOf(upper, view.getUint32(entryAt + 4), position - inCluster, entryHostOffset);
    const hasHost = this.hasHostCluster(upper, offset);
    // QEMU writes two spaces here.
    if (!hasSoundBitmaps(view, entryAt, hasHost)) {
      throw this.corruption("Invalid cluster entry found ", entryHostOffset);
    }
    const kind = kindAt(view, entryAt, Math.floor(inCluster / subclusterSize), hasHost);
    run.begin(kind, hasHost ? offset + inCluster : 0, hasHost && this.isOwn(upper));
  }

  /** Whether a run goes on with the first subcluster of an entry. */
  #continues(run: MappedRun, { view }: TableSlice, entryAt: number): boolean {
    const upper = view.getUint32(entryAt);
    const offset = entryOffset(upper, view.getUint32(entryAt + 4));
    const hasHost = this.hasHostCluster(upper, offset);
    return kindAt(view, entryAt, 0, hasHost) === run.kind && hasSoundBitmaps(view, entryAt, hasHost) &&
      (!hasHost || (offset === run.hostOffset + run.length && this.isOwn(upper) === run.copied)) &&
      (hasHost || offset === 0);
  }

  /** How many subclusters from one on are of the same kind. */
  #countAlike(kind: ClusterKind, { view }: TableSlice, entryAt: number, first: number): number {
    const zero = view.getUint32(entryAt + ZERO_BITS_OFFSET);
    const allocated = view.getUint32(entryAt + ALLOCATED_BITS_OFFSET);
    let alike = ~(zero | allocated);
    if (kind === ClusterKind.data) alike = allocated;
    else if (kind === ClusterKind.zero || kind === ClusterKind.zeroAllocated) alike = zero;
    const different = ~(alike >>> first);
    // Zeroes were shifted in from above, so a different bit is found behind the last subcluster at the latest.
    return different === 0 ? SUBCLUSTER_COUNT : 31 - Math.clz32(different & -different);
  }

  /** Calls back for each entry of a range, with the bits of the subclusters that lie in it. */
  #eachEntry(
    offset: number,
    length: number,
    visit: (entryAt: number, bits: number, clusterOffset: number) => void,
  ): void {
    const { clusterSize, subclusterSize } = this.#geometry;
    const end = offset + length;
    for (let cluster = offset - offset % clusterSize; cluster < end; cluster += clusterSize) {
      const first = Math.max(0, (offset - cluster) / subclusterSize);
      const last = Math.min(SUBCLUSTER_COUNT, (end - cluster) / subclusterSize);
      visit(cluster % this.sliceSpan / clusterSize * ENTRY_SIZE, bitsBetween(first, last), cluster);
    }
  }
}

/** The bits of the subclusters from one on up to, but not including, another. */
function bitsBetween(first: number, last: number): number {
  return last - first === SUBCLUSTER_COUNT ? ALL_BITS : ((2 ** (last - first) - 1) << first) >>> 0;
}

function setBitmaps(view: DataView, entryAt: number, zero: number, allocated: number): void {
  view.setUint32(entryAt + ZERO_BITS_OFFSET, zero);
  view.setUint32(entryAt + ALLOCATED_BITS_OFFSET, allocated);
}

/** No subcluster is both zero and allocated, and none is allocated where there is no host cluster. */
function hasSoundBitmaps(view: DataView, entryAt: number, hasHost: boolean): boolean {
  const allocated = view.getUint32(entryAt + ALLOCATED_BITS_OFFSET);
  return hasHost ? (allocated & view.getUint32(entryAt + ZERO_BITS_OFFSET)) === 0 : allocated === 0;
}

function kindAt(view: DataView, entryAt: number, subcluster: number, hasHost: boolean): ClusterKind {
  if (((view.getUint32(entryAt + ZERO_BITS_OFFSET) >>> subcluster) & 1) !== 0) {
    return hasHost ? ClusterKind.zeroAllocated : ClusterKind.zero;
  }
  if (((view.getUint32(entryAt + ALLOCATED_BITS_OFFSET) >>> subcluster) & 1) !== 0) return ClusterKind.data;
  return hasHost ? ClusterKind.reserved : ClusterKind.unallocated;
}
