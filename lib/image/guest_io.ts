/**
 * {@linkcode GuestIo}: how a range of the disk that is written becomes the fewest calls to the host.
 *
 * @module
 */

import type { HostBytes } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { alignDown, alignUp } from "../format/geometry.ts";
import { ClusterKind, hasHostCluster, isUnallocated, MappedRun } from "../metadata/mapping.ts";
import { GuestReader } from "./guest_reader.ts";

/** What a host writes whole or not at all, in bytes. */
const SECTOR_SIZE = 512;

/** Moves the guest's bytes between buffers and host clusters. The caller has checked ranges and permissions. */
export class GuestIo extends GuestReader {
  readonly #run = new MappedRun();
  /** One cluster, for the head and tail around a partial write. */
  #clusterBuffer: Uint8Array<ArrayBuffer> | undefined;

  /**
   * Writes bytes to the disk: in place where a cluster is the disk's own, otherwise into fresh clusters.
   *
   * @param offset Guest offset in bytes.
   * @param data What to write.
   */
  write(offset: number, data: Uint8Array): void {
    const run = this.#run;
    const { mapping } = this.metadata;
    for (let done = 0; done < data.length;) {
      mapping.find(offset + done, data.length - done, run);
      // Another view of the same bytes costs as much as the search for the cluster.
      const part = run.length === data.length ? data : data.subarray(done, done + run.length);
      if (run.kind === ClusterKind.data && run.copied) {
        this.#writeHost(run.hostOffset, part);
        done += run.length;
      } else {
        done += this.#writeFresh(offset + done, part);
      }
    }
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
      this.metadata.mapping.find(offset + done, length - done, run);
      const rest = { file, offset: from + done, length: run.length };
      const isOwn = run.kind === ClusterKind.data && run.copied;
      copied = isOwn ? this.#copyHost(run.hostOffset, rest) : this.#copyFresh(offset + done, rest);
      if (copied === 0) break;
    }
    return done;
  }

  #copyHost(hostOffset: number, bytes: HostBytes): number {
    this.#assertForGuest(hostOffset, bytes.length);
    return this.metadata.guestFile.copyAt(hostOffset, bytes);
  }

  /** Copies into fresh clusters. Clusters that are kept in reserve, or stand in a data file, are left to be written. */
  #copyFresh(offset: number, bytes: HostBytes): number {
    const { geometry: { clusterSize }, mapping, allocator, guestFile, hasDataFile } = this.metadata;
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
    this.metadata.limitPendingFrees();
    return copied;
  }

  /**
   * Writes whole clusters compressed where that saves space, and as they are otherwise.
   *
   * @param offset Guest offset in bytes, aligned to clusters.
   * @param data What to write; a last piece that is no whole cluster reaches to the end of the disk.
   * @param compressed What each cluster was compressed to already, or undefined for those that did not become smaller.
   */
  writeCompressed(offset: number, data: Uint8Array, compressed?: readonly (Uint8Array | undefined)[]): void {
    const { clusterSize } = this.metadata.geometry;
    for (let done = 0; done < data.length; done += clusterSize) {
      const piece = data.subarray(done, done + clusterSize);
      const bytes = compressed?.[done / clusterSize];
      if (bytes !== undefined) this.compressed.writeBytes(offset + done, bytes);
      else if (compressed !== undefined || !this.compressed.write(offset + done, piece)) {
        this.write(offset + done, piece);
      }
    }
  }

  /** Maps every cluster of the disk to its place in the data file, as it is for a data file that is a raw image. */
  mapDataFile(): void {
    const { mapping, geometry, diskSize } = this.metadata;
    mapping.eachSlice(0, alignUp(diskSize, geometry.clusterSize), (at, length) => {
      mapping.link(mapping.prepareSlice(at), at, length, at);
    });
  }

  /**
   * Gives a cluster that the end of the disk cuts its place on the host, where it has none. One that has subclusters needs
   * nothing for that but its entry.
   *
   * @param offset Guest offset of the first byte behind the end, which reads as zeroes.
   * @param whole Whether the host must have room for the rest of the cluster as well; a data file ends with the disk and has that.
   */
  placeCutCluster(offset: number, whole: boolean): void {
    const { geometry: { clusterSize, subclusterSize }, hasDataFile } = this.metadata;
    if (offset % clusterSize === 0 || subclusterSize < clusterSize) return;
    this.metadata.mapping.find(offset, SECTOR_SIZE, this.#run);
    if (hasHostCluster(this.#run.kind)) return;
    this.write(offset, new Uint8Array(whole && !hasDataFile ? clusterSize - offset % clusterSize : SECTOR_SIZE));
  }

  #writeHost(hostOffset: number, data: Uint8Array): void {
    this.#assertForGuest(hostOffset, data.length);
    this.metadata.guestFile.writeAt(hostOffset, data);
  }

  /** A data file holds no metadata that could be destroyed. */
  #assertForGuest(hostOffset: number, length: number): void {
    if (!this.metadata.hasDataFile) this.metadata.assertNoMetadata("guest data", hostOffset, length);
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
      if (!isFull || this.metadata.allocator.pendingFreeCount === 0) throw error;
    }
    this.metadata.flush();
    return this.#tryWriteFresh(offset, data, kind, copied, hostOffset);
  }

  /**
   * Takes as many clusters as lie in a row on the host, and of the first and last one only the parts that are touched. A
   * cluster that is kept in reserve is used where it is.
   */
  #tryWriteFresh(offset: number, data: Uint8Array, kind: ClusterKind, copied: boolean, hostOffset: number): number {
    const { geometry, mapping, allocator, guestFile, hasDataFile, diskSize } = this.metadata;
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
      const source = this.hasContent(kind, first) ? first : undefined;
      // A data file ends with the disk, also where that is in the middle of a cluster; a disk that grows is written behind its end.
      const filled = hasDataFile ? Math.min(target.length, Math.max(diskSize - first, head + written)) : target.length;
      const part = written === data.length ? data : data.subarray(0, written);
      this.#fill({ offset: target.offset, length: filled }, source, head, part);
      if (fresh !== undefined && hasHostCluster(kind)) this.#copyOthers(first, target);
    } catch (error) {
      if (fresh !== undefined && guestFile.failure === undefined) allocator.release(fresh);
      throw error;
    }
    mapping.link(slice, first, target.length, target.offset);
    this.metadata.limitPendingFrees();
    return written;
  }

  /**
   * Whether a cluster may read as something else than zeroes.
   *
   * @param kind What its entry says.
   * @param offset Guest offset in bytes.
   * @returns False where it reads as zeroes for certain.
   */
  hasContent(kind: ClusterKind, offset: number): boolean {
    if (isUnallocated(kind)) return this.backing !== undefined && offset < this.backing.size;
    return kind === ClusterKind.data || kind === ClusterKind.compressed;
  }

  /**
   * Writes data into fresh space with what belongs around it: what the guest reads there so far (`source` is its offset), or
   * zeroes. What lies behind the end of the file is zeroes without being written.
   */
  #fill(target: HostRange, source: number | undefined, head: number, data: Uint8Array): void {
    const { guestFile, geometry } = this.metadata;
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
    this.metadata.guestFile.writeAt(target + position, buffer);
  }

  #buffer(length: number): Uint8Array {
    const buffer = this.#clusterBuffer ??= new Uint8Array(this.metadata.geometry.clusterSize);
    return buffer.subarray(0, length);
  }

  /**
   * Copies the allocated parts of clusters that a write replaces without touching all of their parts. Without subclusters
   * there are none.
   */
  #copyOthers(first: number, target: HostRange): void {
    const { clusterSize } = this.metadata.geometry;
    const end = first + target.length;
    this.#copyParts(alignDown(first, clusterSize), first, target.offset - first);
    this.#copyParts(end, alignUp(end, clusterSize), target.offset - first);
  }

  #copyParts(from: number, to: number, distance: number): void {
    const run = new MappedRun();
    for (let position = from; position < to; position += run.length) {
      this.metadata.mapping.find(position, to - position, run);
      if (run.kind !== ClusterKind.data && run.kind !== ClusterKind.compressed) continue;
      const buffer = this.#buffer(run.length);
      this.read(position, buffer);
      this.metadata.guestFile.writeAt(position + distance, buffer);
    }
  }
}

/** A stretch of the file that the guest's clusters stand in. */
interface HostRange {
  readonly offset: number;
  readonly length: number;
}
