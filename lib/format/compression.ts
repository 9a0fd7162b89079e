/**
 * The content of compressed clusters: bytes to bytes.
 *
 * @module
 */

import type * as Zlib from "node:zlib";
import { Qcow2Error } from "../errors.ts";
import { builtinModule } from "./builtin_modules.ts";
import type { CompressionType } from "./header.ts";
import { zstdFrameLength } from "./zstd_frame.ts";

/** The window that QEMU writes with; readers with more room read it too. */
const WRITE_WINDOW_BITS = 12;
/** The largest window of deflate, so that every stream can be read. */
const READ_WINDOW_BITS = 15;
const WRITE_MEMORY_LEVEL = 9;
/** Where the room for a cluster is filled to the last byte, the runtime takes as much again to look whether more comes. In bytes. */
const SPARE_LENGTH = 64;

/**
 * Compresses a cluster.
 *
 * @param type How.
 * @param cluster The whole cluster.
 * @returns The compressed bytes, or `undefined` where they would not be fewer.
 * @throws {Qcow2Error} With code `unsupported` where the runtime cannot compress in that way.
 */
export function compressCluster(type: CompressionType, cluster: Uint8Array): Uint8Array | undefined {
  const compressed = type === "zstd"
    ? zstd("zstdCompressSync")(cluster)
    : zlib().deflateRawSync(cluster, { windowBits: WRITE_WINDOW_BITS, memLevel: WRITE_MEMORY_LEVEL });
  return compressed.length < cluster.length ? compressed : undefined;
}

/**
 * Decompresses a cluster. Bytes behind the end of the compressed data do no harm: it is only known to the sector.
 *
 * @param type How it is compressed.
 * @param bytes The compressed bytes, and perhaps others behind them.
 * @param clusterSize How many bytes must come out.
 * @returns The whole cluster.
 * @throws {Qcow2Error} With code `corrupt` where the bytes are broken or are not exactly one cluster, `unsupported` where the
 * runtime cannot decompress them.
 */
export function decompressCluster(type: CompressionType, bytes: Uint8Array, clusterSize: number): Uint8Array {
  let cluster: Uint8Array;
  try {
    cluster = type === "zstd" ? decompressZstd(bytes, clusterSize) : zlib().inflateRawSync(bytes, {
      windowBits: READ_WINDOW_BITS,
      chunkSize: clusterSize + SPARE_LENGTH,
      maxOutputLength: clusterSize,
    });
  } catch (error) {
    if (error instanceof Qcow2Error) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    throw new Qcow2Error("corrupt", `Compressed cluster cannot be decompressed: ${reason}`, { cause: error });
  }
  if (cluster.length !== clusterSize) {
    throw new Qcow2Error("corrupt", `Compressed cluster holds ${cluster.length} bytes, expected ${clusterSize}`, {
      found: cluster.length,
      expected: clusterSize,
    });
  }
  return cluster;
}

function decompressZstd(bytes: Uint8Array, clusterSize: number): Uint8Array {
  const decompress = zstd("zstdDecompressSync");
  let cluster: Uint8Array = new Uint8Array();
  let filled = 0;
  for (let position = 0; filled < clusterSize;) {
    const length = zstdFrameLength(bytes.subarray(position));
    if (length === undefined) return cluster.subarray(0, filled);
    const frame = decompress(bytes.subarray(position, position + length), {
      chunkSize: clusterSize + SPARE_LENGTH,
      maxOutputLength: clusterSize - filled,
    });
    // One frame is the rule.
    if (frame.length === clusterSize) return frame;
    if (filled === 0) cluster = new Uint8Array(clusterSize);
    cluster.set(frame, filled);
    filled += frame.length;
    position += length;
  }
  return cluster;
}

let loaded: typeof Zlib | undefined;

function zlib(): typeof Zlib {
  return loaded ??= builtinModule("node:zlib");
}

let knowsZstd: boolean | undefined;

/** A function that older runtimes do not have, or that fails there whatever it is given. */
function zstd<Name extends "zstdCompressSync" | "zstdDecompressSync">(name: Name): typeof Zlib[Name] {
  const found: typeof Zlib[Name] | undefined = zlib()[name];
  knowsZstd ??= canCompress();
  if (typeof found === "function" && knowsZstd) return found;
  throw new Qcow2Error("unsupported", "Compression type zstd is not supported by this version of the runtime", {
    found: "zstd",
    expected: "zlib",
  });
}

function canCompress(): boolean {
  try {
    return zlib().zstdCompressSync(new Uint8Array(1)).length > 0;
  } catch {
    return false;
  }
}
