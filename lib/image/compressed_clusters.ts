/**
 * Compressed clusters: read through a small cache, and written packed.
 *
 * @module
 */

import type { CompressedPart, Decompressor } from "../disk.ts";
import { compressCluster } from "../format/compression.ts";
import type { ImageMetadata } from "../metadata/image_metadata.ts";
import type { MappedRun } from "../metadata/mapping.ts";
import { decompressAt, MAX_JOB_LENGTH, wholeCluster } from "./cluster_jobs.ts";

/** How many decompressed clusters are kept: enough for a few sequential readers to inflate each cluster once. */
const CACHED_CLUSTER_COUNT = 4;

/** Reads and writes the compressed clusters of an image. */
export class CompressedClusters {
  readonly #metadata: ImageMetadata;
  /** Decompressed clusters by the host offset of their bytes, the one used last at the end. */
  readonly #cache = new Map<number, Uint8Array>();
  /** Memory for compressed bytes that nobody uses. */
  readonly #spareMemory: SharedArrayBuffer[] = [];

  /** @param metadata The image's metadata. */
  constructor(metadata: ImageMetadata) {
    this.#metadata = metadata;
  }

  /**
   * The content of a compressed cluster.
   *
   * @param run The cluster, as the mapping found it.
   * @returns All of the cluster's bytes; not to be changed.
   * @throws {Qcow2Error} With code `corrupt` where the bytes are broken, `unsupported` where the runtime cannot decompress
   * them.
   */
  read(run: MappedRun): Uint8Array {
    const { hostOffset, compressedLength } = run;
    const cached = this.#cache.get(hostOffset);
    if (cached !== undefined) {
      this.#cache.delete(hostOffset);
      this.#cache.set(hostOffset, cached);
      return cached;
    }
    const { file, geometry, header } = this.#metadata;
    const bytes = new Uint8Array(compressedLength);
    const length = file.file.readAt(hostOffset, bytes);
    const cluster = decompressAt(
      header.compressionType,
      bytes.subarray(0, length),
      geometry.clusterSize,
      hostOffset,
    );
    for (const oldest of this.#cache.keys()) {
      if (this.#cache.size < CACHED_CLUSTER_COUNT) break;
      this.#cache.delete(oldest);
    }
    this.#cache.set(hostOffset, cluster);
    return cluster;
  }

  /**
   * Reads parts of compressed clusters that somebody else decompresses.
   *
   * @param parts What to read, in order; `position` counts nothing. Those that stand one behind the other on the host take one call.
   * @param into Where they go.
   * @param decompressor Who decompresses.
   * @returns Settled one by one when the parts are there.
   */
  readAhead(parts: readonly CompressedPart[], into: Uint8Array, decompressor: Decompressor): Promise<void>[] {
    const { clusterSize } = this.#metadata.geometry;
    const jobs: Promise<void>[] = [];
    for (let first = 0; first < parts.length;) {
      let last = first + 1;
      while ((last - first + 1) * clusterSize <= MAX_JOB_LENGTH && standsBehind(parts[last - 1], parts[last])) last++;
      jobs.push(this.#readTogether(parts.slice(first, last), into, decompressor));
      first = last;
    }
    return jobs;
  }

  async #readTogether(parts: readonly CompressedPart[], into: Uint8Array, decompressor: Decompressor): Promise<void> {
    const { file, geometry: { clusterSize }, header } = this.#metadata;
    const start = parts[0]?.hostOffset ?? 0;
    const last = parts.at(-1);
    const byteLength = last === undefined ? 0 : last.hostOffset + last.length - start;
    const spare = this.#spareMemory.pop();
    const memory = spare !== undefined && spare.byteLength >= byteLength ? spare : new SharedArrayBuffer(byteLength);
    try {
      const bytes = new Uint8Array(memory, 0, byteLength);
      const count = file.file.readAt(start, bytes);
      await decompressor.decompress({
        type: header.compressionType,
        clusterSize,
        bytes,
        parts: parts.map((part) => {
          const position = part.hostOffset - start;
          return { ...part, position, length: Math.max(0, Math.min(part.length, count - position)) };
        }),
        into,
      });
    } finally {
      this.#spareMemory.push(memory);
    }
  }

  /**
   * Compresses a cluster and writes it.
   *
   * @param offset Guest offset of the cluster in bytes, aligned.
   * @param data The cluster's bytes; those that the end of the disk cuts off count as zeroes.
   * @returns Whether it was written; not where compression would save nothing.
   */
  write(offset: number, data: Uint8Array): boolean {
    const { geometry: { clusterSize }, header } = this.#metadata;
    const bytes = compressCluster(header.compressionType, wholeCluster(data, clusterSize));
    if (bytes !== undefined) this.writeBytes(offset, bytes);
    return bytes !== undefined;
  }

  /**
   * Writes a cluster that is compressed already.
   *
   * @param offset Guest offset of the cluster in bytes, aligned.
   * @param bytes What it was compressed to: fewer than a cluster has.
   */
  writeBytes(offset: number, bytes: Uint8Array): void {
    const { allocator, file, mapping } = this.#metadata;
    const slice = mapping.prepareSlice(offset);
    const hostOffset = allocator.allocateBytes(bytes.length);
    try {
      this.#metadata.assertNoMetadata("compressed data", hostOffset, bytes.length);
      file.writeAt(hostOffset, bytes);
    } catch (error) {
      if (file.failure === undefined) allocator.releaseBytes(hostOffset, bytes.length);
      throw error;
    }
    this.#cache.delete(hostOffset);
    mapping.linkCompressed(slice, offset, hostOffset, bytes.length);
  }
}

/** Whether one cluster's bytes begin in the sector where another's end, or in the next one, and end behind them. */
function standsBehind(one: CompressedPart | undefined, other: CompressedPart | undefined): boolean {
  if (one === undefined || other === undefined || other.hostOffset <= one.hostOffset) return false;
  const end = one.hostOffset + one.length;
  return other.hostOffset <= end && other.hostOffset + other.length >= end;
}
