/**
 * Changes what an image was created with.
 *
 * @module
 */

import type { AmendOptions as ImageAmendOptions, AmendProgress } from "../image/amend.ts";
import type { Qcow2File } from "../image/qcow2_file.ts";
import { inSlices } from "./time_slice.ts";

/** How {@linkcode amend} works. */
export interface AmendOptions extends ImageAmendOptions {
  /** Called after each step, of some milliseconds, and at the end: which change is being made, and how much of that is done. */
  readonly onProgress?: (progress: AmendProgress) => void;
  /**
   * Ends the operation early when it is aborted. The disk reads as before then, and each change was made or was not; for the size see
   * `resize`.
   */
  readonly signal?: AbortSignal;
}

/**
 * Changes what an image was created with, as {@linkcode Qcow2File.amend} does: format version, refcount width, lazy refcounts, size,
 * and which file its external data file is. What takes long is another refcount width, and version 2 for an image with many zero
 * clusters.
 *
 * The work is cut into slices, between which the event loop runs, so that a signal can end it; nothing else can be done with the image
 * meanwhile. Whatever ends the operation early, a crash included, leaves a sound image with some of the changes.
 *
 * @param image The image, open for writing.
 * @param options What to change, whom to tell, and what ends it early.
 * @throws {Qcow2Error} With code `aborted` where the signal says so, `busy` for other calls meanwhile; otherwise as
 * {@linkcode Qcow2File.amend} does.
 *
 * @example Usage
 * ```ts
 * import { amend, Qcow2File } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * using disk = Qcow2File.create(path, { size: 1 << 30 });
 * const changes = new Set<string>();
 * await amend(disk, { refcountBits: 64, size: 2 ** 31, onProgress: ({ change }) => changes.add(change) });
 * assertEquals([...changes], ["refcountBits", "size"]);
 * disk.close();
 * Deno.removeSync(path);
 * ```
 */
export async function amend(image: Qcow2File, options: AmendOptions): Promise<void> {
  await inSlices(image.amendInSteps(options), options);
}
