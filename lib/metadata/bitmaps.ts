/**
 * The persistent bitmaps of an image.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import { type BitmapEntry, decodeBitmapDirectory } from "../format/bitmap_directory.ts";
import { decodeBitmapsPointer, EXTENSION } from "../format/header_extensions.ts";
import type { Header } from "../format/header.ts";
import { MAX_BITMAP_COUNT, MAX_BITMAP_DIRECTORY_LENGTH } from "../format/limits.ts";
import type { BlockFile } from "../storage/block_file.ts";

/**
 * Reads the bitmap directory.
 *
 * @param file The host file.
 * @param header The image's header.
 * @returns The bitmaps in the order of the directory; none where the image has no bitmaps.
 * @throws {Qcow2Error} With code `limit-exceeded` where the directory is too large, `corrupt` where it is broken.
 */
export function readBitmaps(file: BlockFile, header: Header): BitmapEntry[] {
  const extension = header.extensions.find(({ type }) => type === EXTENSION.bitmaps);
  if (extension === undefined) return [];
  const { count, directorySize, directoryOffset } = decodeBitmapsPointer(extension.data);
  if (count > MAX_BITMAP_COUNT || directorySize > MAX_BITMAP_DIRECTORY_LENGTH) {
    throw new Qcow2Error("limit-exceeded", `Bitmap directory too large: ${count} bitmaps in ${directorySize} bytes`, {
      offset: directoryOffset,
      found: `${count} in ${directorySize} bytes`,
      expected: `at most ${MAX_BITMAP_COUNT} in ${MAX_BITMAP_DIRECTORY_LENGTH} bytes`,
    });
  }
  if (directoryOffset === 0 || directoryOffset % 2 ** header.clusterBits !== 0) {
    throw new Qcow2Error("corrupt", `Bitmap directory offset ${hex(directoryOffset)} is not aligned to a cluster`, {
      offset: directoryOffset,
    });
  }
  const directory = new Uint8Array(directorySize);
  file.readAt(directoryOffset, directory);
  return decodeBitmapDirectory(directory, count, directoryOffset);
}
