/**
 * The persistent bitmaps of an image, as the bitmap directory lists them.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import {
  BITMAP_FLAG,
  BITMAP_TYPE_DIRTY_TRACKING,
  type BitmapEntry,
  decodeBitmapDirectory,
} from "../format/bitmap_directory.ts";
import { AUTOCLEAR } from "../format/feature_bits.ts";
import { decodeBitmapsPointer, EXTENSION } from "../format/header_extensions.ts";
import type { Header } from "../format/header.ts";
import {
  MAX_BITMAP_COUNT,
  MAX_BITMAP_DIRECTORY_LENGTH,
  MAX_BITMAP_GRANULARITY_BITS,
  MAX_BITMAP_LENGTH,
  MAX_BITMAP_NAME_LENGTH,
  MIN_BITMAP_GRANULARITY_BITS,
} from "../format/limits.ts";
import type { BlockFile } from "../storage/block_file.ts";

const KNOWN_FLAGS = BITMAP_FLAG.inUse | BITMAP_FLAG.auto | BITMAP_FLAG.extraDataCompatible;

/** What the size of a bitmap follows from. */
export interface BitmapDimensions {
  /** The virtual size in bytes. */
  readonly diskSize: number;
  /** Bytes in a cluster. */
  readonly clusterSize: number;
}

/**
 * Whether the autoclear bit says that the bitmaps agree with the disk. Without it all of them are inconsistent.
 *
 * @param header The image's header.
 * @returns Whether the bit is set.
 */
export function bitmapsAreConsistent(header: Header): boolean {
  return (header.autoclearFeatures & AUTOCLEAR.bitmaps) !== 0n;
}

/**
 * How many entries the table of a bitmap has: one for each cluster of bits.
 *
 * @param dimensions Sizes of disk and clusters.
 * @param granularityBits Base-2 logarithm of the bytes that one bit stands for.
 * @returns The number of entries, at least 1, since the format has no empty table.
 */
export function bitmapTableEntryCount({ diskSize, clusterSize }: BitmapDimensions, granularityBits: number): number {
  return Math.max(1, Math.ceil(Math.ceil(diskSize / 2 ** granularityBits) / (clusterSize * 8)));
}

/**
 * Says why a bitmap cannot be used by this package. Such a bitmap is kept as it is and can only be removed.
 *
 * @param entry The bitmap.
 * @param dimensions Sizes of disk and clusters.
 * @returns The reason, or `undefined` where it can be used.
 */
export function bitmapDefect(entry: BitmapEntry, dimensions: BitmapDimensions): string | undefined {
  const { flags, granularityBits, tableOffset, tableEntryCount } = entry;
  const { clusterSize } = dimensions;
  if (entry.type !== BITMAP_TYPE_DIRTY_TRACKING) return `unknown type ${entry.type}`;
  if ((flags & ~KNOWN_FLAGS) !== 0) return `unknown flags ${hex((flags & ~KNOWN_FLAGS) >>> 0)}`;
  if (entry.extraDataLength > 0 && (flags & BITMAP_FLAG.extraDataCompatible) === 0) {
    return `${entry.extraDataLength} bytes of unknown extra data`;
  }
  if (granularityBits < MIN_BITMAP_GRANULARITY_BITS || granularityBits > MAX_BITMAP_GRANULARITY_BITS) {
    return `granularity 2^${granularityBits}, expected 2^${MIN_BITMAP_GRANULARITY_BITS} to 2^${MAX_BITMAP_GRANULARITY_BITS}`;
  }
  if (entry.nameLength === 0 || entry.nameLength > MAX_BITMAP_NAME_LENGTH) {
    return `a name of ${entry.nameLength} bytes, expected 1 to ${MAX_BITMAP_NAME_LENGTH}`;
  }
  if (tableOffset === 0 || tableOffset % clusterSize !== 0) {
    return `table offset ${hex(tableOffset)}, expected a multiple of the cluster size ${clusterSize}`;
  }
  const expected = bitmapTableEntryCount(dimensions, granularityBits);
  if (tableEntryCount !== expected && !entry.inUse) {
    return `a table of ${tableEntryCount} entries, expected ${expected}`;
  }
  if (tableEntryCount * clusterSize > MAX_BITMAP_LENGTH) return `${tableEntryCount} clusters, which are too many`;
  return undefined;
}

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
  if (directoryOffset + directorySize > file.size) {
    throw new Qcow2Error("corrupt", `Bitmap directory at ${hex(directoryOffset)} runs past the end of the file`, {
      offset: directoryOffset,
      found: directorySize,
    });
  }
  const directory = new Uint8Array(directorySize);
  file.readAt(directoryOffset, directory);
  return decodeBitmapDirectory(directory, count, directoryOffset);
}
