/**
 * Where the host has data for clusters that were allocated before they were written.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import type { ImageMetadata } from "../metadata/image_metadata.ts";
import type { DataExtent } from "../storage/block_file.ts";

/** Tells data from holes in the host's file, for images whose tables reach much farther than their data. */
export class HostData {
  readonly #metadata: ImageMetadata;
  /** Found out at the first need: it takes a walk over the refcounts. */
  #preallocated: boolean | undefined;

  /** @param metadata The image. */
  constructor(metadata: ImageMetadata) {
    this.#metadata = metadata;
  }

  /**
   * The stretches of a range of the file with the guest's clusters that may hold anything but zeroes. All of the range is one,
   * unless the image was preallocated and the host can tell.
   *
   * @param offset Where to begin in the file, in bytes.
   * @param length How far, in bytes.
   * @returns The stretches in ascending order.
   */
  extents(offset: number, length: number): Iterable<DataExtent> {
    this.#preallocated ??= isPreallocated(this.#metadata);
    return this.#preallocated ? this.#metadata.guestFile.file.dataExtents(offset, length) : [{ offset, length }];
  }
}

/**
 * Whether clearly more clusters are in use than the host has room taken for. It is QEMU's measure: a tenth more, and at least
 * two clusters.
 */
function isPreallocated({ file: { file }, geometry: { clusterSize }, refcounts }: ImageMetadata): boolean {
  const { allocatedSize } = file;
  if (allocatedSize === undefined) return false;
  const onHost = Math.floor(allocatedSize / clusterSize);
  const threshold = Math.max(Math.floor(onHost * 10 / 9), onHost + 2);
  const clusterCount = Math.ceil(file.size / clusterSize);
  if (clusterCount < threshold) return false;
  let inUse = 0;
  try {
    for (let cluster = 0; cluster < clusterCount && inUse < threshold; cluster++) {
      if (refcounts.get(cluster) > 0) inUse++;
    }
  } catch (error) {
    // Where a refcount block is damaged, reading has to do without.
    if (error instanceof Qcow2Error) return false;
    throw error;
  }
  return inUse >= threshold;
}
