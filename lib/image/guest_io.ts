/**
 * Reads and writes of the guest's bytes: how a range of the disk becomes the fewest calls to the host.
 *
 * @module
 */

import type {
  CompressedPart,
  Decompressor,
  Disk,
  Extent,
  ExtentKind,
  ExtentOptions,
  HostBytes,
  WriteZeroesOptions,
} from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { alignDown, alignUp } from "../format/geometry.ts";
import type { ImageMetadata } from "../metadata/image_metadata.ts";
import { ClusterKind, MappedRun, type Mapping } from "../metadata/mapping.ts";
import { CompressedClusters } from "./compressed_clusters.ts";
import { allRead, readDiskAhead, readFileAhead } from "./read_ahead.ts";

/** The most zeroes that are written at once, in bytes. */
const ZEROES_LENGTH = 1024 * 1024;
/** What a host writes whole or not at all, in bytes. */
const SECTOR_SIZE = 512;
/** Shorter stretches of data are sooner read than the host is asked for holes in them. In bytes. */
const MIN_HOLE_LENGTH = 1024 * 1024;
/** How many clusters may wait to be freed before a flush frees them, so that memory stays bounded. */
const MAX_PENDING_FREES = 4096;

const EXTENT_KINDS: Readonly<Record<ClusterKind, ExtentKind>> = {
  [ClusterKind.unallocated]: "unallocated",
  [ClusterKind.zero]: "zero",
  [ClusterKind.zeroAllocated]: "zero",
  [ClusterKind.data]: "data",
  [ClusterKind.compressed]: "compressed",
  [ClusterKind.reserved]: "unallocated",
};

/** Static zeroes, shared by everybody. */
const zeroes = new Uint8Array(ZEROES_LENGTH);

/** Moves the guest's bytes between buffers and host clusters. The caller has checked ranges and permissions. */
export class GuestIo {
  readonly #metadata: ImageMetadata;
  readonly #backing: Disk | undefined;
  readonly #compressed: CompressedClusters;
  readonly #mapping: Mapping;
  readonly #run = new MappedRun();
  /** One cluster, for the head and tail around a partial write. */
  #clusterBuffer: Uint8Array<ArrayBuffer> | undefined;

  /**
   * @param metadata The image's metadata.
   * @param backing What unallocated clusters read as; zeroes without it.
   * @param mapping The map of the disk: of a snapshot, to read that; the active one without it.
   */
  constructor(metadata: ImageMetadata, backing?: Disk, mapping: Mapping = metadata.mapping) {
    this.#metadata = metadata;
    this.#mapping = mapping;
    this.#backing = backing;
    this.#compressed = new CompressedClusters(metadata);
  }

  /**
   * Fills a buffer from the disk.
   *
   * @param offset Guest offset in bytes.
   * @param into What to fill.
   */
  read(offset: number, into: Uint8Array): void {
    const run = this.#run;
    for (let done = 0; done < into.length;) {
      this.#mapping.find(offset + done, into.length - done, run);
      const part = run.length === into.length ? into : into.subarray(done, done + run.length);
      if (run.kind === ClusterKind.data) {
        this.#readHost(run.hostOffset, part);
      } else if (isUnallocated(run.kind) && this.#backing !== undefined) {
        const inBacking = withinBacking(this.#backing, offset + done, part);
        if (inBacking.length > 0) this.#backing.readAt(offset + done, inBacking);
      } else {
        this.#fillPart(offset + done, part);
      }
      done += run.length;
    }
  }

  /**
   * Fills a buffer from the disk while the caller goes on: what stands on the host as it is, here or in a backing file, is read in
   * the background.
   *
   * @param offset Guest offset in bytes.
   * @param into What to fill; to be left alone until the promise is settled.
   * @param decompressor Who decompresses clusters; the thread of the caller without it.
   */
  async readAhead(offset: number, into: Uint8Array, decompressor?: Decompressor): Promise<void> {
    const run = this.#run;
    const reads: Promise<void>[] = [];
    const compressed: CompressedPart[] = [];
    try {
      for (let done = 0; done < into.length;) {
        this.#mapping.find(offset + done, into.length - done, run);
        const part = run.length === into.length ? into : into.subarray(done, done + run.length);
        if (run.kind === ClusterKind.data) {
          reads.push(readFileAhead(this.#metadata.guestFile.file, run.hostOffset, part));
        } else if (isUnallocated(run.kind) && this.#backing !== undefined) {
          const inBacking = withinBacking(this.#backing, offset + done, part);
          if (inBacking.length > 0) {
            reads.push(readDiskAhead(this.#backing, offset + done, inBacking, decompressor));
          }
        } else if (run.kind === ClusterKind.compressed && decompressor !== undefined) {
          const { hostOffset, compressedLength: length } = run;
          const inCluster = (offset + done) % this.#metadata.geometry.clusterSize;
          compressed.push({ position: 0, length, hostOffset, inCluster, count: run.length, target: done });
        } else {
          this.#fillPart(offset + done, part);
        }
        done += run.length;
      }
      if (decompressor !== undefined) reads.push(...this.#compressed.readAhead(compressed, into, decompressor));
    } catch (error) {
      reads.push(Promise.reject(error));
    }
    await allRead(reads);
  }

  /** Fills a buffer with what a run stands for, as found in `#run`, that has no bytes on a host to be read as they are. */
  #fillPart(offset: number, part: Uint8Array): void {
    if (this.#run.kind === ClusterKind.compressed) {
      const inCluster = offset % this.#metadata.geometry.clusterSize;
      part.set(this.#compressed.read(this.#run).subarray(inCluster, inCluster + part.length));
    } else {
      part.fill(0);
    }
  }

  /**
   * Writes bytes to the disk: in place where a cluster is the disk's own, otherwise into fresh clusters.
   *
   * @param offset Guest offset in bytes.
   * @param data What to write.
   */
  write(offset: number, data: Uint8Array): void {
    const run = this.#run;
    const { mapping } = this.#metadata;
    for (let done = 0; done < data.length;) {
      mapping.find(offset + done, data.length - done, run);
      if (run.kind === ClusterKind.data && run.copied) {
        const part = run.length === data.length ? data : data.subarray(done, done + run.length);
        this.#writeHost(run.hostOffset, part);
        done += run.length;
      } else {
        done += this.#writeFresh(offset + done, data.subarray(done, done + run.length));
      }
    }
  }

  /**
   * Where the host has bytes of the disk as they are, here or in a backing file.
   *
   * @param offset Guest offset in bytes.
   * @param length How many are of interest at most, in bytes.
   * @returns The bytes, or undefined where the first of them stands nowhere as it is.
   */
  hostBytes(offset: number, length: number): HostBytes | undefined {
    const run = this.#run;
    this.#mapping.find(offset, length, run);
    if (run.kind === ClusterKind.data) {
      const { file } = this.#metadata.guestFile;
      const inFile = Math.min(run.length, file.size - run.hostOffset);
      return inFile > 0 ? { file, offset: run.hostOffset, length: inFile } : undefined;
    }
    if (!isUnallocated(run.kind) || this.#backing === undefined) return undefined;
    const inBacking = Math.min(run.length, this.#backing.size - offset);
    return inBacking > 0 ? this.#backing.hostBytesAt?.(offset, inBacking) : undefined;
  }

  /**
   * Writes bytes that stand in another file of the host without reading them, as far as the host can copy them and they fill whole
   * clusters.
   *
   * @param offset Guest offset in bytes.
   * @param bytes What to write.
   * @returns How many were written, from the first one on.
   */
  copy(offset: number, { file, offset: from, length }: HostBytes): number {
    const run = this.#run;
    let done = 0;
    for (let copied = 0; done < length; done += copied) {
      this.#mapping.find(offset + done, length - done, run);
      const rest = { file, offset: from + done, length: run.length };
      const isOwn = run.kind === ClusterKind.data && run.copied;
      copied = isOwn ? this.#copyHost(run.hostOffset, rest) : this.#copyFresh(offset + done, rest);
      if (copied === 0) break;
    }
    return done;
  }

  #copyHost(hostOffset: number, bytes: HostBytes): number {
    this.#assertForGuest(hostOffset, bytes.length);
    return this.#metadata.guestFile.copyAt(hostOffset, bytes);
  }

  /** Copies into fresh clusters. Clusters that are kept in reserve, or stand in a data file, are left to be written. */
  #copyFresh(offset: number, bytes: HostBytes): number {
    const { geometry: { clusterSize }, mapping, allocator, guestFile, hasDataFile } = this.#metadata;
    const { kind } = this.#run;
    const isReserved = kind === ClusterKind.zeroAllocated || kind === ClusterKind.reserved;
    const sliceEnd = alignDown(offset, mapping.sliceSpan) + mapping.sliceSpan;
    const wanted = alignDown(Math.min(bytes.length, sliceEnd - offset), clusterSize);
    if (hasDataFile || isReserved || offset % clusterSize !== 0 || wanted === 0) return 0;
    const slice = mapping.prepareSlice(offset);
    const fresh = allocator.allocateRun(wanted / clusterSize);
    let copied = 0;
    try {
      const length = fresh.count * clusterSize;
      copied = alignDown(guestFile.copyAt(fresh.offset, { ...bytes, length }), clusterSize);
    } finally {
      const count = copied / clusterSize;
      const unused = { offset: fresh.offset + copied, count: fresh.count - count };
      if (unused.count > 0 && guestFile.failure === undefined) allocator.release(unused);
    }
    if (copied > 0) mapping.link(slice, offset, copied, fresh.offset);
    this.#limitPendingFrees();
    return copied;
  }

  /**
   * Makes a range read as zeroes.
   *
   * @param offset Guest offset in bytes.
   * @param length Length in bytes.
   * @param options Whether host clusters may be given back, and whether entries must say so where nothing else stands beneath.
   */
  writeZeroes(offset: number, length: number, { unmap = false, explicit = false }: WriteZeroesOptions): void {
    const { subclusterSize, clusterSize } = this.#metadata.geometry;
    const end = offset + length;
    const [first, last] = this.#wholeUnits(offset, end, subclusterSize);
    if (first >= last) {
      this.#zeroBytes(offset, end, explicit);
      return;
    }
    this.#zeroBytes(offset, first, explicit);
    const [firstCluster, lastCluster] = this.#wholeUnits(first, last, clusterSize);
    if (firstCluster >= lastCluster) {
      this.#zeroStates(first, last, explicit);
    } else {
      this.#zeroStates(first, firstCluster, explicit);
      this.#zeroClusters(firstCluster, lastCluster, unmap, explicit);
      this.#zeroStates(lastCluster, last, explicit);
    }
    this.#zeroBytes(last, end, explicit);
  }

  /**
   * Gives the whole clusters of a range back.
   *
   * @param offset Guest offset in bytes.
   * @param length Length in bytes.
   */
  discard(offset: number, length: number): void {
    const { geometry, header, mapping } = this.#metadata;
    const [first, last] = this.#wholeUnits(offset, offset + length, geometry.clusterSize);
    const zeroFlag = header.version >= 3;
    // Version 2 has no entry that hides the backing file: there the content stays, as QEMU leaves it.
    if (first >= last || (this.#backing !== undefined && !zeroFlag)) return;
    this.#clearDataFile(first, last, true);
    this.#eachClusterRun(first, last, (kind, position, runLength) => {
      if (kind === ClusterKind.zero || (kind === ClusterKind.unallocated && this.#backing === undefined)) return;
      this.#eachSlice(position, runLength, (at, partLength) => {
        mapping.unlink(mapping.prepareSlice(at), at, partLength, zeroFlag);
      });
    });
  }

  /** The part of a range that consists of whole units; a last one that the disk cuts short is whole where its end is reached. */
  #wholeUnits(offset: number, end: number, unit: number): readonly [first: number, last: number] {
    return [alignUp(offset, unit), end >= this.#metadata.diskSize ? alignUp(end, unit) : alignDown(end, unit)];
  }

  /**
   * Makes a range behind the end of the disk read as zeroes, whatever its entries and the backing file hold there. A data file
   * holds zeroes there already.
   *
   * @param offset Guest offset of the first byte behind the end.
   * @param end Guest offset behind the range; the L1 table reaches as far.
   */
  clearBehindEnd(offset: number, end: number): void {
    const { header, geometry, mapping } = this.#metadata;
    const firstWhole = alignUp(offset, geometry.clusterSize);
    this.#zeroPart(offset, Math.min(end, firstWhole));
    const hidesBacking = header.version >= 3 && this.#backing !== undefined;
    this.#eachClusterRun(firstWhole, alignUp(end, geometry.clusterSize), (kind, position, runLength) => {
      if (kind === ClusterKind.zero) return;
      let length = runLength;
      if (kind === ClusterKind.unallocated) {
        const inBacking = alignUp(this.#backing?.size ?? 0, geometry.clusterSize) - position;
        if (inBacking <= 0) return;
        length = Math.min(length, inBacking);
      }
      if (this.#backing !== undefined && !hidesBacking) {
        this.#writeOverBacking(this.#backing, kind, position, length);
      } else {
        this.#eachSlice(position, length, (at, partLength) => {
          mapping.unlink(mapping.prepareSlice(at), at, partLength, hidesBacking);
        });
      }
    });
  }

  /** Version 2 has no entry that hides the backing file: zeroes are written, where anything else would be seen. */
  #writeOverBacking(backing: Disk, kind: ClusterKind, position: number, length: number): void {
    if (!isUnallocated(kind)) {
      this.#zeroBytes(position, position + length);
      return;
    }
    for (const extent of backing.extents(position, Math.min(length, backing.size - position))) {
      if (extent.kind === "zero" || extent.kind === "unallocated") continue;
      this.#zeroBytes(extent.offset, extent.offset + extent.length);
    }
  }

  /**
   * Gives a cluster that the end of the disk cuts its place on the host, where it has none. One that has subclusters needs
   * nothing for that but its entry.
   *
   * @param offset Guest offset of the first byte behind the end, which reads as zeroes.
   * @param whole Whether the host must have room for the rest of the cluster as well.
   */
  placeCutCluster(offset: number, whole: boolean): void {
    const { clusterSize, subclusterSize } = this.#metadata.geometry;
    if (offset % clusterSize === 0 || subclusterSize < clusterSize) return;
    this.#mapping.find(offset, SECTOR_SIZE, this.#run);
    if (hasHostCluster(this.#run.kind)) return;
    this.write(offset, new Uint8Array(whole ? clusterSize - offset % clusterSize : SECTOR_SIZE));
  }

  /**
   * The stretches of a range.
   *
   * @param offset Guest offset in bytes.
   * @param length Length in bytes.
   * @param options What to look at.
   * @returns The extents, each as long as it can be.
   */
  *extents(offset: number, length: number, options: ExtentOptions = {}): Generator<Extent> {
    let open: Extent | undefined;
    try {
      for (const next of this.#pieces(offset, length, options)) {
        if (open !== undefined && continues(open, next)) {
          open = { ...open, length: open.length + next.length };
          continue;
        }
        if (open !== undefined) yield open;
        open = next;
      }
    } catch (error) {
      // What stands before a broken entry is told before the error.
      if (open !== undefined) yield open;
      throw error;
    }
    if (open !== undefined) yield open;
  }

  *#pieces(offset: number, length: number, options: ExtentOptions): Generator<Extent> {
    const run = new MappedRun();
    const end = offset + length;
    const backingSize = this.#backing?.size ?? 0;
    for (let position = offset; position < end; position += run.length) {
      this.#mapping.find(position, end - position, run);
      const inBacking = Math.min(position + run.length, backingSize) - position;
      if (!isUnallocated(run.kind) || this.#backing === undefined) {
        const extent = extentOf(position, run.length, run);
        const mayHaveHoles = options.hostHoles === true && run.kind === ClusterKind.data &&
          run.length >= MIN_HOLE_LENGTH;
        if (mayHaveHoles) yield* this.#dataAndHoles(extent, run.hostOffset);
        else yield extent;
        continue;
      }
      if (inBacking > 0) {
        for (const extent of this.#backing.extents(position, inBacking, options)) {
          yield { ...extent, depth: extent.depth + 1 };
        }
      }
      // Behind the end of the backing disk, that end says that there are zeroes.
      const start = position + Math.max(0, inBacking);
      const length = position + run.length - start;
      if (length > 0) yield extentOf(start, length, run, start - position);
    }
  }

  /** Cuts an extent of data that stands at a host offset into what the host has and the holes of its file. */
  *#dataAndHoles(extent: Extent, hostOffset: number): Generator<Extent> {
    const { offset, length } = extent;
    const end = hostOffset + length;
    const part = (from: number, to: number, kind: ExtentKind): Extent => {
      return { ...extent, offset: offset + from - hostOffset, length: to - from, hostOffset: from, kind };
    };
    let position = hostOffset;
    for (const data of this.#metadata.guestFile.file.dataExtents(hostOffset, length)) {
      if (data.offset > position) yield part(position, data.offset, "zero");
      position = data.offset + data.length;
      yield part(data.offset, position, "data");
    }
    if (position < end) yield part(position, end, "zero");
  }

  /**
   * Writes whole clusters compressed where that saves space, and as they are otherwise.
   *
   * @param offset Guest offset in bytes, aligned to clusters.
   * @param data What to write; a last piece that is no whole cluster reaches to the end of the disk.
   * @param compressed What each cluster was compressed to already, or undefined for those that did not become smaller.
   */
  writeCompressed(offset: number, data: Uint8Array, compressed?: readonly (Uint8Array | undefined)[]): void {
    const { clusterSize } = this.#metadata.geometry;
    for (let done = 0; done < data.length; done += clusterSize) {
      const piece = data.subarray(done, done + clusterSize);
      const bytes = compressed?.[done / clusterSize];
      if (bytes !== undefined) this.#compressed.writeBytes(offset + done, bytes);
      else if (compressed !== undefined || !this.#compressed.write(offset + done, piece)) {
        this.write(offset + done, piece);
      }
    }
  }

  /** Maps every cluster of the disk to its place in the data file, as it is for a data file that is a raw image. */
  mapDataFile(): void {
    const { mapping, geometry, diskSize } = this.#metadata;
    this.#eachSlice(0, alignUp(diskSize, geometry.clusterSize), (at, length) => {
      mapping.link(mapping.prepareSlice(at), at, length, at);
    });
  }

  #readHost(hostOffset: number, into: Uint8Array): void {
    const length = this.#metadata.guestFile.file.readAt(hostOffset, into);
    if (length < into.length) into.fill(0, length);
  }

  #writeHost(hostOffset: number, data: Uint8Array): void {
    this.#assertForGuest(hostOffset, data.length);
    this.#metadata.guestFile.writeAt(hostOffset, data);
  }

  /** A data file holds no metadata that could be destroyed. */
  #assertForGuest(hostOffset: number, length: number): void {
    if (!this.#metadata.hasDataFile) this.#metadata.assertNoMetadata("guest data", hostOffset, length);
  }

  /**
   * Writes into clusters that the guest does not have yet, as found in `#run`, and returns how many bytes that took. Where the
   * host is full, clusters that wait to be freed are freed first.
   */
  #writeFresh(offset: number, data: Uint8Array): number {
    const { kind, copied, hostOffset } = this.#run;
    try {
      return this.#tryWriteFresh(offset, data, kind, copied, hostOffset);
    } catch (error) {
      const isFull = error instanceof Qcow2Error && error.code === "no-space";
      if (!isFull || this.#metadata.allocator.pendingFreeCount === 0) throw error;
    }
    this.#metadata.flush();
    return this.#tryWriteFresh(offset, data, kind, copied, hostOffset);
  }

  /**
   * Takes as many clusters as lie in a row on the host, and of the first and last one only the parts that are touched. A
   * cluster that is kept in reserve is used where it is.
   */
  #tryWriteFresh(offset: number, data: Uint8Array, kind: ClusterKind, copied: boolean, hostOffset: number): number {
    const { geometry, mapping, allocator, guestFile, hasDataFile, diskSize } = this.#metadata;
    const { clusterSize, subclusterSize: unit } = geometry;
    const head = offset % unit;
    const first = offset - head;
    // The entries of one slice change together: it is in memory before anything is allocated, so linking cannot fail.
    const sliceEnd = alignDown(first, mapping.sliceSpan) + mapping.sliceSpan;
    const reserved = (kind === ClusterKind.zeroAllocated || kind === ClusterKind.reserved) && copied;
    const inPlace = reserved || hasDataFile;
    // In a reserved cluster old bytes may still be the guest's as far as the file says: no sector of it is written in two pieces.
    const tearsSectors = inPlace && (head % SECTOR_SIZE !== 0 || (head + data.length) % SECTOR_SIZE !== 0);
    const wanted = Math.min(sliceEnd - first, tearsSectors ? unit : alignUp(head + data.length, unit));
    const slice = mapping.prepareSlice(first);
    const inCluster = first % clusterSize;
    const fresh = inPlace ? undefined : allocator.allocateRun(Math.ceil((inCluster + wanted) / clusterSize));
    const target = fresh === undefined
      ? { offset: reserved ? hostOffset - head : first, length: wanted }
      : { offset: fresh.offset + inCluster, length: Math.min(wanted, fresh.count * clusterSize - inCluster) };
    const written = Math.min(data.length, target.length - head);
    try {
      if (reserved) this.#assertForGuest(target.offset, target.length);
      const source = this.#hasContent(kind, first) ? first : undefined;
      // A data file ends with the disk, also where that is in the middle of a cluster; a disk that grows is written behind its end.
      const filled = hasDataFile ? Math.min(target.length, Math.max(diskSize - first, head + written)) : target.length;
      this.#fill({ offset: target.offset, length: filled }, source, head, data.subarray(0, written));
      if (fresh !== undefined && hasHostCluster(kind)) this.#copyOthers(first, target);
    } catch (error) {
      if (fresh !== undefined && guestFile.failure === undefined) allocator.release(fresh);
      throw error;
    }
    mapping.link(slice, first, target.length, target.offset);
    this.#limitPendingFrees();
    return written;
  }

  /** Whether a cluster may read as something else than zeroes before it is written. */
  #hasContent(kind: ClusterKind, offset: number): boolean {
    if (isUnallocated(kind)) return this.#backing !== undefined && offset < this.#backing.size;
    return kind === ClusterKind.data || kind === ClusterKind.compressed;
  }

  /**
   * Writes data into fresh space with what belongs around it: what the guest reads there so far (`source` is its offset), or
   * zeroes. What lies behind the end of the file is zeroes without being written.
   */
  #fill(target: HostRange, source: number | undefined, head: number, data: Uint8Array): void {
    const { guestFile, geometry } = this.#metadata;
    const tail = target.length - head - data.length;
    const stale = target.offset < guestFile.file.size;
    if ((head === 0 && tail === 0) || (source === undefined && !stale)) {
      guestFile.writeAt(target.offset + head, data);
      return;
    }
    if (target.length <= geometry.clusterSize) {
      const buffer = this.#buffer(target.length);
      if (source === undefined) buffer.fill(0);
      else this.read(source, buffer);
      buffer.set(data, head);
      guestFile.writeAt(target.offset, buffer);
      return;
    }
    if (head > 0) this.#fillAround(target.offset, source, 0, head);
    guestFile.writeAt(target.offset + head, data);
    if (tail > 0) this.#fillAround(target.offset, source, target.length - tail, tail);
  }

  #fillAround(target: number, source: number | undefined, position: number, length: number): void {
    const buffer = this.#buffer(length);
    if (source === undefined) buffer.fill(0);
    else this.read(source + position, buffer);
    this.#metadata.guestFile.writeAt(target + position, buffer);
  }

  #buffer(length: number): Uint8Array {
    const buffer = this.#clusterBuffer ??= new Uint8Array(this.#metadata.geometry.clusterSize);
    return buffer.subarray(0, length);
  }

  /**
   * Copies the allocated parts of clusters that a write replaces without touching all of their parts. Without subclusters
   * there are none.
   */
  #copyOthers(first: number, target: HostRange): void {
    const { clusterSize } = this.#metadata.geometry;
    const end = first + target.length;
    this.#copyParts(alignDown(first, clusterSize), first, target.offset - first);
    this.#copyParts(end, alignUp(end, clusterSize), target.offset - first);
  }

  #copyParts(from: number, to: number, distance: number): void {
    const run = new MappedRun();
    for (let position = from; position < to; position += run.length) {
      this.#metadata.mapping.find(position, to - position, run);
      if (run.kind !== ClusterKind.data && run.kind !== ClusterKind.compressed) continue;
      const buffer = this.#buffer(run.length);
      this.read(position, buffer);
      this.#metadata.guestFile.writeAt(position + distance, buffer);
    }
  }

  /** Writes zeroes into a part of a cluster, unless it reads as zeroes anyway and needs no entry that says so. */
  #zeroBytes(offset: number, end: number, explicit = false): void {
    const run = new MappedRun();
    for (let position = offset; position < end;) {
      this.#metadata.mapping.find(position, Math.min(end - position, ZEROES_LENGTH), run);
      const { length } = run;
      if (this.#hasContent(run.kind, position) || (explicit && isUnallocated(run.kind))) {
        this.write(position, zeroes.subarray(0, length));
      }
      position += length;
    }
  }

  /** Makes a part of a cluster read as zeroes, which may lie behind the end of the disk: whole subclusters by their states. */
  #zeroPart(offset: number, end: number): void {
    const { subclusterSize, clusterSize } = this.#metadata.geometry;
    const first = Math.min(end, subclusterSize < clusterSize ? alignUp(offset, subclusterSize) : end);
    this.#zeroBytes(offset, first);
    const last = first < end ? alignUp(end, subclusterSize) : first;
    const run = new MappedRun();
    for (let position = first; position < last;) {
      this.#mapping.find(position, last - position, run);
      const { kind, length } = run;
      if (this.#hasContent(kind, position)) this.#zeroStates(position, position + length, false, end);
      position += length;
    }
  }

  /** Makes whole clusters read as zeroes. */
  #zeroClusters(first: number, last: number, unmap: boolean, explicit: boolean): void {
    const { header, mapping, geometry } = this.#metadata;
    if (!unmap && geometry.subclusterSize < geometry.clusterSize) {
      this.#zeroStates(first, last, explicit);
      return;
    }
    this.#clearDataFile(first, last, unmap);
    this.#eachClusterRun(first, last, (kind, position, length, copied) => {
      const isNeedless = kind === ClusterKind.unallocated && !explicit && !this.#hasContent(kind, position);
      if (kind === ClusterKind.zero || isNeedless) return;
      if (kind === ClusterKind.zeroAllocated && !unmap) return;
      if (header.version === 2 && (!unmap || explicit || this.#backing !== undefined)) {
        this.#zeroBytes(position, Math.min(position + length, this.#metadata.diskSize), explicit);
        return;
      }
      this.#eachSlice(position, length, (at, partLength) => {
        const slice = mapping.prepareSlice(at);
        if (unmap || !copied) mapping.unlink(slice, at, partLength, header.version >= 3);
        else mapping.setZeroFlag(slice, at, partLength);
      });
    });
  }

  /** Makes whole subclusters read as zeroes, the last of which the disk may cut short at its end; host clusters are kept. */
  #zeroStates(first: number, last: number, explicit: boolean, diskEnd = this.#metadata.diskSize): void {
    const { mapping, geometry } = this.#metadata;
    if (first >= last) return;
    this.#clearDataFile(first, last, false);
    const run = new MappedRun();
    for (let position = first; position < last;) {
      mapping.find(position, last - position, run);
      const { kind, length } = run;
      if (kind === ClusterKind.compressed) {
        // A part of a compressed cluster cannot change alone.
        if (length < geometry.clusterSize) this.#zeroBytes(position, Math.min(position + length, diskEnd), explicit);
        else mapping.unlink(mapping.prepareSlice(position), position, length, true);
      } else if (
        // Where nothing is allocated for a cluster that reads as zeroes, an entry would only cost space.
        kind === ClusterKind.reserved || this.#hasContent(kind, position) || (explicit && isUnallocated(kind))
      ) {
        this.#eachSlice(position, length, (at, partLength) => {
          mapping.setZeroFlag(mapping.prepareSlice(at), at, partLength);
        });
      }
      position += length;
      this.#limitPendingFrees();
    }
  }

  /**
   * Makes a range of the data file zeroes, if there is one. A raw one must hold them, since it is read without the image; of
   * any other the space is given back where that is asked for and the host can.
   */
  #clearDataFile(first: number, last: number, unmap: boolean): void {
    const { hasDataFile, hasRawDataFile, guestFile, diskSize } = this.#metadata;
    if (!hasDataFile || !(unmap || hasRawDataFile)) return;
    const end = Math.min(last, diskSize, guestFile.file.size);
    if (first >= end) return;
    if (unmap && guestFile.punchHole(first, end - first)) return;
    if (!hasRawDataFile) return;
    for (const extent of [...guestFile.file.dataExtents(first, end - first)]) {
      for (let done = 0; done < extent.length; done += ZEROES_LENGTH) {
        const length = Math.min(ZEROES_LENGTH, extent.length - done);
        guestFile.writeAt(extent.offset + done, zeroes.subarray(0, length));
      }
    }
  }

  /**
   * Calls back for each run of a range of whole clusters; the range may reach beyond the end of the disk. A cluster whose
   * parts differ counts as data.
   */
  #eachClusterRun(
    first: number,
    last: number,
    visit: (kind: ClusterKind, position: number, length: number, copied: boolean) => void,
  ): void {
    const { mapping, geometry } = this.#metadata;
    const run = new MappedRun();
    for (let position = first; position < last;) {
      mapping.find(position, last - position, run);
      const isMixed = run.length < geometry.clusterSize;
      const length = isMixed ? geometry.clusterSize : alignDown(run.length, geometry.clusterSize);
      visit(isMixed ? ClusterKind.data : run.kind, position, length, run.copied);
      position += length;
      this.#limitPendingFrees();
    }
  }

  /** Cuts a range at the borders of L2 slices. */
  #eachSlice(offset: number, length: number, visit: (offset: number, length: number) => void): void {
    const { mapping } = this.#metadata;
    const end = offset + length;
    for (let position = offset; position < end;) {
      const sliceEnd = Math.min(end, alignDown(position, mapping.sliceSpan) + mapping.sliceSpan);
      visit(position, sliceEnd - position);
      position = sliceEnd;
    }
  }

  #limitPendingFrees(): void {
    if (this.#metadata.allocator.pendingFreeCount >= MAX_PENDING_FREES) this.#metadata.flush();
  }
}

/** A stretch of the file that the guest's clusters stand in. */
interface HostRange {
  readonly offset: number;
  readonly length: number;
}

/** Whether reads go to the backing disk. */
function isUnallocated(kind: ClusterKind): boolean {
  return kind === ClusterKind.unallocated || kind === ClusterKind.reserved;
}

/** Whether there are host clusters, so that parts of them beside a run may hold data. */
function hasHostCluster(kind: ClusterKind): boolean {
  return kind >= ClusterKind.zeroAllocated;
}

/** The part of a buffer that the backing disk has; the rest, behind its end, is filled with zeroes. */
function withinBacking(backing: Disk, offset: number, into: Uint8Array): Uint8Array {
  const length = Math.max(0, Math.min(into.length, backing.size - offset));
  if (length === into.length) return into;
  into.fill(0, length);
  return into.subarray(0, length);
}

/** An extent that is a run, or what of it stands behind its first bytes. */
function extentOf(offset: number, length: number, run: MappedRun, skipped = 0): Extent {
  const onHost = hasHostCluster(run.kind) && run.kind !== ClusterKind.compressed;
  return {
    offset,
    length,
    kind: EXTENT_KINDS[run.kind],
    depth: 0,
    ...(onHost ? { hostOffset: run.hostOffset + skipped } : {}),
  };
}

/** Whether one extent goes on where another ends, on the disk and on the host. */
function continues(open: Extent, next: Extent): boolean {
  if (open.kind !== next.kind || open.depth !== next.depth) return false;
  if (open.hostOffset === undefined || next.hostOffset === undefined) return open.hostOffset === next.hostOffset;
  return open.hostOffset + open.length === next.hostOffset;
}
