/**
 * Makes a disk longer or shorter.
 *
 * @module
 */

import type { Qcow2File } from "../image/qcow2_file.ts";
import type { RawFile } from "../image/raw_file.ts";
import type { ResizeOptions as ImageResizeOptions } from "../image/resize.ts";
import type { Progress } from "../metadata/steps.ts";
import { inSlices } from "./time_slice.ts";

/** How {@linkcode resize} works. */
export interface ResizeOptions extends ImageResizeOptions {
  /** Called after each step, of some milliseconds, and at the end: how much is there of what is added or taken away. */
  readonly onProgress?: (progress: Progress) => void;
  /**
   * Ends the operation early when it is aborted. A disk that was to grow has its old size then. One that was to shrink may have its new
   * size already; what stood behind its end takes space then until it grows again.
   */
  readonly signal?: AbortSignal;
}

/**
 * Makes a disk longer or shorter, as {@linkcode Qcow2File.resize} and {@linkcode RawFile.resize} do. What takes long is to allocate
 * a long range ahead of use, and to give back what stands behind a new end.
 *
 * The work is cut into slices, between which the event loop runs, so that a signal can end it; nothing else can be done with a qcow2
 * image meanwhile. Whatever ends the operation early, a crash included, leaves a sound image with the old size or the new one.
 *
 * @param disk The disk, open for writing.
 * @param size The new virtual size in bytes, rounded up to a multiple of 512.
 * @param options Whether the disk may become shorter, what is allocated, whom to tell, and what ends it early.
 * @throws {Qcow2Error} With code `aborted` where the signal says so, `busy` for other calls meanwhile; otherwise as the disk's own
 * `resize` does.
 *
 * @example Usage
 * ```ts
 * import { Qcow2File, resize } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * using disk = Qcow2File.create(path, { size: 1 << 20 });
 * let percent = 0;
 * await resize(disk, 1 << 30, {
 *   preallocation: "metadata",
 *   signal: AbortSignal.timeout(60_000),
 *   onProgress: ({ done, total }) => percent = done * 100 / total,
 * });
 * assertEquals([disk.size, percent], [1 << 30, 100]);
 * disk.close();
 * Deno.removeSync(path);
 * ```
 */
export async function resize(disk: Qcow2File | RawFile, size: number, options: ResizeOptions = {}): Promise<void> {
  await inSlices(disk.resizeInSteps(size, options), options);
}
