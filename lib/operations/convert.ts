/**
 * Copies the content of one disk to another.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { ClusterThreads } from "../image/cluster_threads.ts";
import type { Progress } from "../metadata/steps.ts";
import { type CompressibleDisk, isCompressible } from "./compressible_disk.ts";
import { DiskCopy } from "./disk_copy.ts";
import { RateLimit } from "./rate_limit.ts";
import { SECTOR_SIZE } from "./sector_comparison.ts";
import { TimeSlice } from "./time_slice.ts";

/** How {@linkcode convert} copies. */
export interface ConvertOptions {
  /**
   * How many zero bytes in a row become a hole in the target: a multiple of 512, or 0 to write zeroes as they are and leave
   * no holes at all.
   *
   * @default {4096}
   */
  readonly sparseSize?: number;
  /**
   * Whether the target reads as zeroes already, so that holes need nothing: true for one that was just created.
   *
   * @default {false}
   */
  readonly targetIsZero?: boolean;
  /**
   * Whether to leave out what the source has from its backing file: for a target that has the same backing file.
   *
   * @default {false}
   */
  readonly skipBacking?: boolean;
  /**
   * Whether to write compressed clusters. The target must be a `Qcow2File`, or something else that has `writeCompressedAt`.
   *
   * @default {false}
   */
  readonly compress?: boolean;
  /**
   * Whether the host copies what stands in its files as it is, where it can: where files can share their blocks, that takes neither
   * time nor space. Zeroes in what it copies stay what they are. Has no effect together with `compress`.
   *
   * @default {false}
   */
  readonly withinHost?: boolean;
  /** How many bytes may be written in a second; as many as possible without it. */
  readonly rateLimit?: number;
  /** Called while it goes on, some tens of times a second at most, and at the end. */
  readonly onProgress?: (progress: Progress) => void;
  /** Ends the operation early when it is aborted. */
  readonly signal?: AbortSignal;
}

/** The largest sparse size in bytes, as in QEMU. */
const MAX_SPARSE_SIZE = 16 * 1024 * 1024;

/** What {@linkcode convert} did. */
export interface ConvertResult {
  /** Bytes that were written as data. */
  readonly dataBytes: number;
  /** Bytes that were left, or made, a hole. */
  readonly zeroBytes: number;
}

const DEFAULT_SPARSE_SIZE = 4096;

/**
 * Copies one disk to another of at least the same size. What reads as zeroes in the source becomes a hole in the target. What
 * the target is larger is left alone.
 *
 * While one piece is written, the next is read; clusters are compressed and decompressed on all processors. The work is cut into
 * slices, between which the event loop runs, so that a signal can end it.
 *
 * @param source Where to read.
 * @param target Where to write; it is flushed at the end.
 * @param options How to copy.
 * @returns How much was data and how much holes.
 * @throws {Qcow2Error} With code `invalid-argument` where the target is too small, `aborted` where the signal says so, and
 * whatever reading and writing throw.
 *
 * @example Usage
 * ```ts
 * import { convert, Qcow2File, RawFile } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const folder = await Deno.makeTempDir();
 * using source = RawFile.create(`${folder}/disk.raw`, { size: 1 << 20 });
 * source.writeAt(0, new Uint8Array(65536).fill(7));
 * using target = Qcow2File.create(`${folder}/disk.qcow2`, { size: source.size, durability: "none" });
 * const { dataBytes } = await convert(source, target, { targetIsZero: true });
 * assertEquals(dataBytes, 65536);
 * source.close();
 * target.close();
 * Deno.removeSync(folder, { recursive: true });
 * ```
 */
export async function convert(source: Disk, target: Disk, options: ConvertOptions = {}): Promise<ConvertResult> {
  const { sparseSize = DEFAULT_SPARSE_SIZE, onProgress, signal } = options;
  if (target.size < source.size) {
    throw new Qcow2Error("invalid-argument", `Target has ${target.size} bytes, expected at least ${source.size}`, {
      found: target.size,
      expected: source.size,
    });
  }
  if (
    !Number.isSafeInteger(sparseSize) || sparseSize < 0 || sparseSize > MAX_SPARSE_SIZE ||
    sparseSize % SECTOR_SIZE !== 0
  ) {
    const expected = `a multiple of ${SECTOR_SIZE} up to ${MAX_SPARSE_SIZE}`;
    throw new Qcow2Error("invalid-argument", `Sparse size is ${sparseSize}, expected ${expected}`, {
      found: sparseSize,
      expected,
    });
  }
  using threads = new ClusterThreads();
  const copy = new DiskCopy(source, target, {
    sparseSize,
    targetIsZero: options.targetIsZero ?? false,
    skipBacking: options.skipBacking ?? false,
    compressedTarget: options.compress === true ? compressible(target) : undefined,
    withinHost: options.withinHost === true && options.compress !== true,
    threads,
    slice: new TimeSlice(signal),
    limit: options.rateLimit === undefined ? undefined : new RateLimit(options.rateLimit),
  });
  await copy.run((done) => onProgress?.({ done, total: source.size }));
  target.flush();
  onProgress?.({ done: source.size, total: source.size });
  return { dataBytes: copy.dataBytes, zeroBytes: copy.zeroBytes };
}

function compressible(target: Disk): CompressibleDisk {
  if (isCompressible(target)) return target;
  throw new Qcow2Error("invalid-argument", "Target cannot be written compressed, expected a qcow2 image");
}
