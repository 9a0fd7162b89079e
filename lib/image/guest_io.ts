/**
 * Reads and writes of the guest's bytes: how a range of the disk becomes the fewest calls to the host.
 *
 * @module
 */

import type { Disk, Extent, ExtentKind } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { alignDown, alignUp } from "../format/geometry.ts";
import type { ImageMetadata } from "../metadata/image_metadata.ts";
import { ClusterKind, MappedRun, type Mapping } from "../metadata/mapping.ts";
import { CompressedClusters } from "./compressed_clusters.ts";
import type { ClusterRun } from "../metadata/refcounts.ts";

/** The most zeroes that are written at once, in bytes. */
const ZEROES_LENGTH = 1024 * 1024;
/** What a host writes whole or not at all, in bytes. */
const SECTOR_SIZE = 512;
/** How many clusters may wait to be freed before a flush frees them, so that memory stays bounded. */
const MAX_PENDING_FREES = 4096;

const EXTENT_KINDS: Readonly<Record<ClusterKind, ExtentKind>> = {
  [ClusterKind.unallocated]: "unallocated",
  [ClusterKind.zero]: "zero",
  [ClusterKind.zeroAllocated]: "zero",
  [ClusterKind.data]: "data",
  [ClusterKind.compressed]: "compressed",
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
      } else if (run.kind === ClusterKind.compressed) {
        const inCluster = (offset + done) % this.#metadata.geometry.clusterSize;
        part.set(this.#compressed.read(run).subarray(inCluster, inCluster + run.length));
      } else if (run.kind === ClusterKind.unallocated && this.#backing !== undefined) {
        readBacking(this.#backing, offset + done, part);
      } else {
        part.fill(0);
      }
      done += run.length;
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
   * Makes a range read as zeroes.
   *
   * @param offset Guest offset in bytes.
   * @param length Length in bytes.
   * @param unmap Whether host clusters may be given back.
   */
  writeZeroes(offset: number, length: number, unmap: boolean): void {
    const { clusterSize } = this.#metadata.geometry;
    const end = offset + length;
    const firstWhole = alignUp(offset, clusterSize);
    const lastWhole = end === this.#metadata.diskSize ? alignUp(end, clusterSize) : alignDown(end, clusterSize);
    if (firstWhole >= lastWhole) {
      this.#zeroBytes(offset, end);
      return;
    }
    this.#zeroBytes(offset, firstWhole);
    this.#zeroClusters(firstWhole, lastWhole, unmap);
    if (lastWhole < end) this.#zeroBytes(lastWhole, end);
  }

  /**
   * Gives the whole clusters of a range back.
   *
   * @param offset Guest offset in bytes.
   * @param length Length in bytes.
   */
  discard(offset: number, length: number): void {
    const { clusterSize } = this.#metadata.geometry;
    const end = offset + length;
    const first = alignUp(offset, clusterSize);
    const last = end === this.#metadata.diskSize ? alignUp(end, clusterSize) : alignDown(end, clusterSize);
    const zeroFlag = this.#metadata.header.version >= 3;
    // Version 2 has no entry that hides the backing file: there the content stays, as QEMU leaves it.
    if (this.#backing !== undefined && !zeroFlag) return;
    this.#eachRun(first, last, (run, position) => {
      if (run.kind === ClusterKind.zero || (run.kind === ClusterKind.unallocated && this.#backing === undefined)) {
        return;
      }
      this.#eachSlice(position, run.length, (at, count) => {
        const slice = this.#metadata.mapping.prepareSlice(at);
        this.#metadata.mapping.unlink(slice, at, count, zeroFlag);
      });
    });
  }

  /**
   * Makes a range behind the end of the disk read as zeroes, whatever its entries and the backing file hold there.
   *
   * @param offset Guest offset of the first byte behind the end.
   * @param end Guest offset behind the range; the L1 table reaches as far.
   */
  clearBehindEnd(offset: number, end: number): void {
    const { header, geometry, mapping } = this.#metadata;
    const firstWhole = alignUp(offset, geometry.clusterSize);
    this.#zeroBytes(offset, Math.min(end, firstWhole));
    const hidesBacking = header.version >= 3 && this.#backing !== undefined;
    this.#eachRun(firstWhole, alignUp(end, geometry.clusterSize), (run, position) => {
      if (run.kind === ClusterKind.zero) return;
      let { length } = run;
      if (run.kind === ClusterKind.unallocated) {
        const inBacking = alignUp(this.#backing?.size ?? 0, geometry.clusterSize) - position;
        if (inBacking <= 0) return;
        length = Math.min(length, inBacking);
      }
      // Version 2 has no entry that hides the backing file: there zeroes are written.
      if (this.#backing !== undefined && !hidesBacking) this.#zeroBytes(position, position + length);
      else {
        this.#eachSlice(position, length, (at, count) => {
          mapping.unlink(mapping.prepareSlice(at), at, count, hidesBacking);
        });
      }
    });
  }

  /**
   * The stretches of a range.
   *
   * @param offset Guest offset in bytes.
   * @param length Length in bytes.
   * @returns The extents, each as long as it can be.
   */
  *extents(offset: number, length: number): Generator<Extent> {
    let open: Extent | undefined;
    try {
      for (const next of this.#pieces(offset, length)) {
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

  *#pieces(offset: number, length: number): Generator<Extent> {
    const run = new MappedRun();
    const end = offset + length;
    const backingSize = this.#backing?.size ?? 0;
    for (let position = offset; position < end; position += run.length) {
      this.#mapping.find(position, end - position, run);
      const inBacking = Math.min(position + run.length, backingSize) - position;
      if (run.kind !== ClusterKind.unallocated || this.#backing === undefined || inBacking <= 0) {
        yield extentOf(position, run.length, run);
        continue;
      }
      for (const extent of this.#backing.extents(position, inBacking)) yield { ...extent, depth: extent.depth + 1 };
      if (inBacking < run.length) yield extentOf(position + inBacking, run.length - inBacking, run);
    }
  }

  /**
   * Writes whole clusters compressed where that saves space, and as they are otherwise.
   *
   * @param offset Guest offset in bytes, aligned to clusters.
   * @param data What to write; a last piece that is no whole cluster reaches to the end of the disk.
   */
  writeCompressed(offset: number, data: Uint8Array): void {
    const { clusterSize } = this.#metadata.geometry;
    for (let done = 0; done < data.length; done += clusterSize) {
      const piece = data.subarray(done, done + clusterSize);
      let cluster = piece;
      if (piece.length < clusterSize) {
        cluster = new Uint8Array(clusterSize);
        cluster.set(piece);
      }
      if (!this.#compressed.write(offset + done, cluster)) this.write(offset + done, piece);
    }
  }

  #readHost(hostOffset: number, into: Uint8Array): void {
    const length = this.#metadata.file.file.readAt(hostOffset, into);
    if (length < into.length) into.fill(0, length);
  }

  #writeHost(hostOffset: number, data: Uint8Array): void {
    this.#metadata.assertNoMetadata("guest data", hostOffset, data.length);
    this.#metadata.file.writeAt(hostOffset, data);
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

  /** Takes as many clusters as lie in a row on the host. A cluster that is kept in reserve is used where it is. */
  #tryWriteFresh(offset: number, data: Uint8Array, kind: ClusterKind, copied: boolean, hostOffset: number): number {
    const { geometry, mapping, allocator, file } = this.#metadata;
    const { clusterSize } = geometry;
    const head = offset % clusterSize;
    const first = offset - head;
    // The entries of one slice change together: it is in memory before anything is allocated, so linking cannot fail.
    const sliceEnd = alignDown(first, mapping.sliceSpan) + mapping.sliceSpan;
    const reserved = kind === ClusterKind.zeroAllocated && copied;
    // In a reserved cluster old bytes may still be the guest's as far as the file says: no sector of it is written in two pieces.
    const tearsSectors = reserved && (head % SECTOR_SIZE !== 0 || (head + data.length) % SECTOR_SIZE !== 0);
    const wholeEnd = tearsSectors ? clusterSize : alignUp(head + data.length, clusterSize);
    const wanted = Math.min(sliceEnd - first, wholeEnd) / clusterSize;
    const slice = mapping.prepareSlice(first);
    const target: ClusterRun = reserved ? { offset: hostOffset - head, count: wanted } : allocator.allocateRun(wanted);
    const written = Math.min(data.length, target.count * clusterSize - head);
    const source = this.#hasContent(kind, first) ? first : undefined;
    try {
      if (reserved) this.#metadata.assertNoMetadata("guest data", target.offset, target.count * clusterSize);
      this.#fillClusters(target, source, head, data.subarray(0, written));
    } catch (error) {
      if (!reserved && file.failure === undefined) allocator.release(target);
      throw error;
    }
    mapping.link(slice, first, target.count, target.offset);
    this.#limitPendingFrees();
    return written;
  }

  /** Whether a cluster may read as something else than zeroes before it is written. */
  #hasContent(kind: ClusterKind, offset: number): boolean {
    if (kind === ClusterKind.unallocated) return this.#backing !== undefined && offset < this.#backing.size;
    return kind === ClusterKind.data || kind === ClusterKind.compressed;
  }

  /**
   * Writes data into fresh clusters with what belongs around it: what the guest reads there so far (`source` is its offset),
   * or zeroes. Clusters behind the end of the file are zeroes without being written.
   */
  #fillClusters(target: ClusterRun, source: number | undefined, head: number, data: Uint8Array): void {
    const { file, geometry } = this.#metadata;
    const { clusterSize } = geometry;
    const length = target.count * clusterSize;
    const tail = length - head - data.length;
    const stale = target.offset < file.file.size;
    if ((head === 0 && tail === 0) || (source === undefined && !stale)) {
      file.writeAt(target.offset + head, data);
      return;
    }
    if (target.count === 1) {
      const buffer = this.#clusterBuffer ??= new Uint8Array(clusterSize);
      if (source === undefined) buffer.fill(0);
      else this.read(source, buffer);
      buffer.set(data, head);
      file.writeAt(target.offset, buffer);
      return;
    }
    if (head > 0) this.#fillAround(target.offset, source, 0, head);
    file.writeAt(target.offset + head, data);
    if (tail > 0) this.#fillAround(target.offset, source, length - tail, tail);
  }

  #fillAround(target: number, source: number | undefined, position: number, length: number): void {
    const { file, geometry } = this.#metadata;
    const buffer = (this.#clusterBuffer ??= new Uint8Array(geometry.clusterSize)).subarray(0, length);
    if (source === undefined) buffer.fill(0);
    else this.read(source + position, buffer);
    file.writeAt(target + position, buffer);
  }

  /** Writes zeroes into a part of a cluster, unless it reads as zeroes anyway. */
  #zeroBytes(offset: number, end: number): void {
    const run = new MappedRun();
    for (let position = offset; position < end;) {
      this.#metadata.mapping.find(position, Math.min(end - position, ZEROES_LENGTH), run);
      const { length } = run;
      if (this.#hasContent(run.kind, position)) this.write(position, zeroes.subarray(0, length));
      position += length;
    }
  }

  #zeroClusters(first: number, last: number, unmap: boolean): void {
    const { header, mapping } = this.#metadata;
    this.#eachRun(first, last, (run, position) => {
      const { kind, copied, length } = run;
      if (kind === ClusterKind.zero || (kind === ClusterKind.unallocated && !this.#hasContent(kind, position))) return;
      if (kind === ClusterKind.zeroAllocated && !unmap) return;
      if (header.version === 2 && (!unmap || this.#backing !== undefined)) {
        this.#zeroBytes(position, Math.min(position + length, this.#metadata.diskSize));
        return;
      }
      this.#eachSlice(position, length, (at, count) => {
        const slice = mapping.prepareSlice(at);
        if (unmap || !copied) mapping.unlink(slice, at, count, header.version >= 3);
        else mapping.setZeroFlag(slice, at, count);
      });
    });
  }

  /** Calls back for each run of a range of whole clusters; the range may reach beyond the end of the disk. */
  #eachRun(first: number, last: number, visit: (run: MappedRun, position: number) => void): void {
    const run = new MappedRun();
    for (let position = first; position < last;) {
      this.#metadata.mapping.find(position, last - position, run);
      const { length } = run;
      visit(run, position);
      position += length;
      this.#limitPendingFrees();
    }
  }

  /** Cuts a range of whole clusters at the borders of L2 slices. */
  #eachSlice(offset: number, length: number, visit: (offset: number, clusterCount: number) => void): void {
    const { geometry, mapping } = this.#metadata;
    const end = offset + length;
    for (let position = offset; position < end;) {
      const sliceEnd = Math.min(end, alignDown(position, mapping.sliceSpan) + mapping.sliceSpan);
      visit(position, (sliceEnd - position) / geometry.clusterSize);
      position = sliceEnd;
    }
  }

  #limitPendingFrees(): void {
    if (this.#metadata.allocator.pendingFreeCount >= MAX_PENDING_FREES) this.#metadata.flush();
  }
}

function readBacking(backing: Disk, offset: number, into: Uint8Array): void {
  const length = Math.max(0, Math.min(into.length, backing.size - offset));
  if (length > 0) backing.readAt(offset, length === into.length ? into : into.subarray(0, length));
  if (length < into.length) into.fill(0, length);
}

function extentOf(offset: number, length: number, run: MappedRun): Extent {
  const onHost = run.kind === ClusterKind.data || run.kind === ClusterKind.zeroAllocated;
  return {
    offset,
    length,
    kind: EXTENT_KINDS[run.kind],
    depth: 0,
    ...(onHost ? { hostOffset: run.hostOffset } : {}),
  };
}

/** Whether one extent goes on where another ends, on the disk and on the host. */
function continues(open: Extent, next: Extent): boolean {
  if (open.kind !== next.kind || open.depth !== next.depth) return false;
  if (open.hostOffset === undefined || next.hostOffset === undefined) return open.hostOffset === next.hostOffset;
  return open.hostOffset + open.length === next.hostOffset;
}
