/**
 * Bitmaps that cannot be used since a writer has not brought them up to date.
 *
 * @module
 */

import type { Qcow2File } from "../image/qcow2_file.ts";
import { bitmapsAreConsistent } from "../metadata/bitmaps.ts";
import { CliError } from "./errors.ts";

/**
 * Refuses a bitmap that is inconsistent.
 *
 * @param image The image.
 * @param name Name of the bitmap.
 * @throws {CliError} In QEMU's words.
 */
export function refuseInconsistentBitmap(image: Qcow2File, name: string): void {
  if (!image.bitmaps.some((candidate) => candidate.name === name && candidate.inconsistent)) return;
  throw new CliError(
    `Bitmap '${name}' is inconsistent and cannot be used\nTry block-dirty-bitmap-remove to delete this bitmap from disk`,
  );
}

/**
 * Refuses an image of which a bitmap is inconsistent, but not one that has lost the word of all its bitmaps.
 *
 * @param image The image.
 * @throws {CliError} In QEMU's words.
 */
export function refuseInconsistentBitmaps(image: Qcow2File): void {
  if (!bitmapsAreConsistent(image.header)) return;
  for (const { name } of image.bitmaps) refuseInconsistentBitmap(image, name);
}
