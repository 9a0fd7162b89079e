/**
 * Gives back everything that an image has of its own.
 *
 * @module
 */

import type { ImageMetadata } from "../metadata/image_metadata.ts";

/** How {@linkcode Qcow2File.revertToBacking} treats the image. */
export interface RevertOptions {
  /**
   * Whether the disk beneath holds all of it already, so that the content stays what it is: after it was brought there. Bitmaps
   * that record writes take no notice then.
   *
   * @default {false}
   */
  readonly contentStays?: boolean;
}

/** How many clusters may wait to be freed before a flush frees them, so that memory stays bounded. */
const MAX_PENDING_FREES = 65536;

/**
 * Drops all L2 tables with the clusters that they map. A crash in between leaves some of them.
 *
 * @param metadata The image, ready for writing.
 * @throws {Qcow2Error} With code `corrupt`, `no-space` or `io`.
 */
export function revertToBacking(metadata: ImageMetadata): void {
  const { mapping, allocator, guestFile } = metadata;
  metadata.flush();
  for (let l1Index = 0; l1Index < mapping.l1.entryCount; l1Index++) {
    mapping.dropTable(l1Index);
    if (allocator.pendingFreeCount >= MAX_PENDING_FREES) metadata.flush();
  }
  metadata.flush();
  if (metadata.hasDataFile) guestFile.punchHole(0, guestFile.file.size);
  metadata.truncateHostFile();
}
