/**
 * Compressing and decompressing several clusters at once, as one job that a thread can be given.
 *
 * @module
 */

import type { DecompressJob } from "../disk.ts";
import { hex, Qcow2Error } from "../errors.ts";
import { compressCluster, decompressCluster } from "../format/compression.ts";
import type { CompressionType } from "../format/header.ts";

/** The most bytes of clusters that one thread is given at once, so that others have something to do as well. */
export const MAX_JOB_LENGTH = 512 * 1024;

/** Clusters to compress. */
export interface CompressJob {
  /** How. */
  readonly type: CompressionType;
  /** Bytes in a cluster. */
  readonly clusterSize: number;
  /** Clusters in a row, of which the last one may be cut short: what is missing counts as zeroes. */
  readonly data: Uint8Array;
  /** Where the clusters begin that are to be compressed. */
  readonly positions: readonly number[];
  /** Room for what they are compressed to: of each at the place where it has itself in the data. */
  readonly into: Uint8Array;
}

/**
 * Compresses clusters.
 *
 * @param job Which, and how.
 * @returns How many bytes each was compressed to; 0 for those that would not become fewer.
 * @throws {Qcow2Error} With code `unsupported` where the runtime cannot compress in that way.
 */
export function compressClusters({ type, clusterSize, data, positions, into }: CompressJob): number[] {
  return positions.map((position) => {
    const compressed = compressCluster(
      type,
      wholeCluster(data.subarray(position, position + clusterSize), clusterSize),
    );
    if (compressed === undefined) return 0;
    into.set(compressed, position);
    return compressed.length;
  });
}

/**
 * A cluster that may be cut short by the end of the disk, whole.
 *
 * @param data What there is of it.
 * @param clusterSize Bytes in a cluster.
 * @returns The cluster; what was missing is zeroes.
 */
export function wholeCluster(data: Uint8Array, clusterSize: number): Uint8Array {
  if (data.length === clusterSize) return data;
  const cluster = new Uint8Array(clusterSize);
  cluster.set(data);
  return cluster;
}

/**
 * Decompresses parts of clusters.
 *
 * @param job Which, and how.
 * @throws {Qcow2Error} As {@linkcode decompressAt} does.
 */
export function decompressClusters({ type, clusterSize, bytes, parts, into }: DecompressJob): void {
  for (const { position, length, hostOffset, inCluster, target, count } of parts) {
    const cluster = decompressAt(type, bytes.subarray(position, position + length), clusterSize, hostOffset);
    into.set(count === clusterSize ? cluster : cluster.subarray(inCluster, inCluster + count), target);
  }
}

/**
 * Decompresses a cluster, and says of an error where it lies.
 *
 * @param type How it is compressed.
 * @param bytes The compressed bytes, and perhaps others behind them.
 * @param clusterSize How many bytes must come out.
 * @param hostOffset Where the bytes stand in the host file.
 * @returns The whole cluster.
 * @throws {Qcow2Error} With code `corrupt` where the bytes are broken, `unsupported` where the runtime cannot decompress them.
 */
export function decompressAt(
  type: CompressionType,
  bytes: Uint8Array,
  clusterSize: number,
  hostOffset: number,
): Uint8Array {
  try {
    return decompressCluster(type, bytes, clusterSize);
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error;
    throw new Qcow2Error(error.code, `${error.message} (at ${hex(hostOffset)})`, { offset: hostOffset, cause: error });
  }
}
