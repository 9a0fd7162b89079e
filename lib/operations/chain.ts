/**
 * Where the content of a disk comes from in its backing chain.
 *
 * @module
 */

import type { Disk, Extent } from "../disk.ts";
import { Qcow2File } from "../image/qcow2_file.ts";

/**
 * How far beneath an image a disk stands.
 *
 * @param image The image.
 * @param disk The disk.
 * @returns 0 for the image itself, 1 for its backing disk, and so on; infinity where the image does not read from it.
 */
export function depthOf(image: Disk, disk: Disk | undefined): number {
  let depth = 0;
  for (let layer: Disk | undefined = image; layer !== undefined; depth++) {
    if (layer === disk) return depth;
    layer = layer instanceof Qcow2File ? layer.backing : undefined;
  }
  return Infinity;
}

/**
 * Whether a stretch of a disk reads as it does because of an image above a certain one.
 *
 * @param extent The stretch.
 * @param depth How far beneath the disk that image stands; infinity for none.
 * @returns Whether an image above it has the stretch, or ends before it.
 */
export function comesFromAbove({ depth: found, kind }: Pick<Extent, "depth" | "kind">, depth: number): boolean {
  // What nobody knows lies behind the end of the image below the last one that was asked.
  return found < depth && !(kind === "unallocated" && found === depth - 1);
}

/**
 * Whether a stretch is known to read as zeroes.
 *
 * @param extent The stretch.
 * @returns Whether it is.
 */
export function isZeroExtent({ kind, hole }: Pick<Extent, "kind" | "hole">): boolean {
  return kind === "zero" || kind === "unallocated" || hole === true;
}
