/**
 * Compressed clusters: read through a small cache, and written packed.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import { compressCluster, decompressCluster } from "../format/compression.ts";
import type { ImageMetadata } from "../metadata/image_metadata.ts";
import type { MappedRun } from "../metadata/mapping.ts";

/** How many decompressed clusters are kept: enough for a few sequential readers to inflate each cluster once. */
const CACHED_CLUSTER_COUNT = 4;

/** Reads and writes the compressed clusters of an image. */
export class CompressedClusters {
  readonly #metadata: ImageMetadata;
  /** Decompressed clusters by the host offset of their bytes, the one used last at the end. */
  readonly #cache = new Map<number, Uint8Array>();

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
    const cluster = this.#decompress(
      bytes.subarray(0, length),
      hostOffset,
      geometry.clusterSize,
      header.compressionType,
    );
    for (const oldest of this.#cache.keys()) {
      if (this.#cache.size < CACHED_CLUSTER_COUNT) break;
      this.#cache.delete(oldest);
    }
    this.#cache.set(hostOffset, cluster);
    return cluster;
  }

  /**
   * Writes a whole cluster compressed.
   *
   * @param offset Guest offset of the cluster in bytes, aligned.
   * @param cluster All of the cluster's bytes.
   * @returns Whether it was written; not where compression would save nothing.
   */
  write(offset: number, cluster: Uint8Array): boolean {
    const { allocator, file, mapping, header } = this.#metadata;
    const bytes = compressCluster(header.compressionType, cluster);
    if (bytes === undefined) return false;
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
    return true;
  }

  #decompress(bytes: Uint8Array, hostOffset: number, clusterSize: number, type: "zlib" | "zstd"): Uint8Array {
    try {
      return decompressCluster(type, bytes, clusterSize);
    } catch (error) {
      if (!(error instanceof Qcow2Error)) throw error;
      throw new Qcow2Error(error.code, `${error.message} (at ${hex(hostOffset)})`, {
        offset: hostOffset,
        cause: error,
      });
    }
  }
}
