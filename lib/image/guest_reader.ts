/**
 * {@linkcode GuestReader}: how a range of the disk that is read becomes the fewest calls to the host.
 *
 * @module
 */

import type { CompressedPart, Decompressor, Disk, Extent, ExtentKind, ExtentOptions, HostBytes } from "../disk.ts";
import type { ImageMetadata } from "../metadata/image_metadata.ts";
import { ClusterKind, hasHostCluster, isUnallocated, MappedRun, type Mapping } from "../metadata/mapping.ts";
import { CompressedClusters } from "./compressed_clusters.ts";
import { HostData } from "./host_data.ts";
import { allRead, readDiskAhead, readFileAhead } from "./read_ahead.ts";

const EXTENT_KINDS: Readonly<Record<ClusterKind, ExtentKind>> = {
  [ClusterKind.unallocated]: "unallocated",
  [ClusterKind.zero]: "zero",
  [ClusterKind.zeroAllocated]: "zero",
  [ClusterKind.data]: "data",
  [ClusterKind.compressed]: "compressed",
  [ClusterKind.reserved]: "unallocated",
};

/** Reads the guest's bytes from host clusters, and tells where they stand. The caller has checked ranges. */
export class GuestReader {
  /** The image's metadata. */
  protected readonly metadata: ImageMetadata;
  /** What unallocated clusters read as, if anything. */
  protected readonly backing: Disk | undefined;
  /** Remembers the cluster that it has decompressed last. */
  protected readonly compressed: CompressedClusters;
  readonly #mapping: Mapping;
  readonly #hostData: HostData;
  readonly #run = new MappedRun();

  /**
   * @param metadata The image's metadata.
   * @param backing What unallocated clusters read as; zeroes without it.
   * @param mapping The map of the disk: of a snapshot, to read that; the active one without it.
   */
  constructor(metadata: ImageMetadata, backing?: Disk, mapping: Mapping = metadata.mapping) {
    this.metadata = metadata;
    this.#mapping = mapping;
    this.backing = backing;
    this.compressed = new CompressedClusters(metadata);
    this.#hostData = new HostData(metadata);
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
      } else if (isUnallocated(run.kind) && this.backing !== undefined) {
        const inBacking = withinBacking(this.backing, offset + done, part);
        if (inBacking.length > 0) this.backing.readAt(offset + done, inBacking);
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
          reads.push(readFileAhead(this.metadata.guestFile.file, run.hostOffset, part));
        } else if (isUnallocated(run.kind) && this.backing !== undefined) {
          const inBacking = withinBacking(this.backing, offset + done, part);
          if (inBacking.length > 0) {
            reads.push(readDiskAhead(this.backing, offset + done, inBacking, decompressor));
          }
        } else if (run.kind === ClusterKind.compressed && decompressor !== undefined) {
          const { hostOffset, compressedLength: length } = run;
          const inCluster = (offset + done) % this.metadata.geometry.clusterSize;
          compressed.push({ position: 0, length, hostOffset, inCluster, count: run.length, target: done });
        } else {
          this.#fillPart(offset + done, part);
        }
        done += run.length;
      }
      if (decompressor !== undefined) reads.push(...this.compressed.readAhead(compressed, into, decompressor));
    } catch (error) {
      reads.push(Promise.reject(error));
    }
    await allRead(reads);
  }

  /** Fills a buffer with what a run stands for, as found in `#run`, that has no bytes on a host to be read as they are. */
  #fillPart(offset: number, part: Uint8Array): void {
    if (this.#run.kind === ClusterKind.compressed) {
      const inCluster = offset % this.metadata.geometry.clusterSize;
      part.set(this.compressed.read(this.#run).subarray(inCluster, inCluster + part.length));
    } else {
      part.fill(0);
    }
  }

  #readHost(hostOffset: number, into: Uint8Array): void {
    const length = this.metadata.guestFile.file.readAt(hostOffset, into);
    if (length < into.length) into.fill(0, length);
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
      const { file } = this.metadata.guestFile;
      const inFile = Math.min(run.length, file.size - run.hostOffset);
      return inFile > 0 ? { file, offset: run.hostOffset, length: inFile } : undefined;
    }
    if (!isUnallocated(run.kind) || this.backing === undefined) return undefined;
    const inBacking = Math.min(run.length, this.backing.size - offset);
    return inBacking > 0 ? this.backing.hostBytesAt?.(offset, inBacking) : undefined;
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
    const backingSize = this.backing?.size ?? 0;
    for (let position = offset; position < end; position += run.length) {
      this.#mapping.find(position, end - position, run);
      const inBacking = Math.min(position + run.length, backingSize) - position;
      if (!isUnallocated(run.kind) || this.backing === undefined) {
        const extent = extentOf(position, run.length, run);
        if (options.hostHoles === true && run.kind === ClusterKind.data) {
          yield* this.#dataAndHoles(extent, run.hostOffset);
        } else yield extent;
        continue;
      }
      if (inBacking > 0) {
        for (const extent of this.backing.extents(position, inBacking, options)) {
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
    const part = (from: number, to: number): Extent => {
      return { ...extent, offset: offset + from - hostOffset, length: to - from, hostOffset: from };
    };
    let position = hostOffset;
    for (const data of this.#hostData.extents(hostOffset, length)) {
      if (data.offset > position) yield { ...part(position, data.offset), hole: true };
      position = data.offset + data.length;
      yield part(data.offset, position);
    }
    if (position < end) yield { ...part(position, end), hole: true };
  }
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
  if (open.kind !== next.kind || open.depth !== next.depth || open.hole !== next.hole) return false;
  if (open.hostOffset === undefined || next.hostOffset === undefined) return open.hostOffset === next.hostOffset;
  return open.hostOffset + open.length === next.hostOffset;
}
