/**
 * Tells where on the host the parts of a disk stand.
 *
 * @module
 */

import type { Disk, Extent } from "../disk.ts";
import { checkRange } from "../image/cursor.ts";
import type { BackingPolicy } from "../image/backing.ts";
import type { DataFilePolicy } from "../image/data_file.ts";
import { type ImageType, imageTypeOf } from "../image/detect.ts";
import { acquireFile, type FileSource } from "../image/host_file.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { RawFile } from "../image/raw_file.ts";
import { isZeroExtent } from "./chain.ts";

/** A range of a disk. */
export interface MapRange {
  /**
   * Where to begin on the disk, in bytes.
   *
   * @default {0}
   */
  readonly offset?: number;
  /** How far, in bytes; to the end of the disk without it, and never beyond. */
  readonly length?: number;
}

/** How {@linkcode mapImage} looks at an image. */
export interface MapImageOptions extends MapRange {
  /** The format. Without it, the first bytes decide, as `detectImageType` does. */
  readonly format?: ImageType;
  /**
   * Whether to lock the file.
   *
   * @default {true}
   */
  readonly lock?: boolean;
  /**
   * Whether a backing file may be opened.
   *
   * @default {"refuse"}
   */
  readonly backing?: BackingPolicy;
  /**
   * Whether an external data file may be opened.
   *
   * @default {"refuse"}
   */
  readonly dataFile?: DataFilePolicy;
}

/** A stretch of a disk whose bytes all have the same origin, as long as it could be made. */
export interface MapEntry {
  /** Where it begins on the disk, in bytes. */
  readonly start: number;
  /** How long it is, in bytes. */
  readonly length: number;
  /** How many backing files below the image its content comes from; 0 is the image itself. */
  readonly depth: number;
  /** Whether the image says something of it, be it that it is zero. */
  readonly present: boolean;
  /** Whether it reads as zeroes. */
  readonly zero: boolean;
  /** Whether the image has its bytes on the host. Together with `zero`: in a hole of the host's file. */
  readonly data: boolean;
  /** Where its first byte stands in the host file, in bytes, if it stands there as it is. */
  readonly offset?: number;
}

/**
 * Tells where on the host the parts of a disk stand, the way `qemu-img map` does. Neighbours of the same kind are one entry.
 *
 * An image whose tables reach much farther than its data was preallocated; there, holes in the host's file are told apart from
 * data, if the host can tell.
 *
 * @param source Path of the image, or a file that was opened; it is closed with the image.
 * @param options Format and range.
 * @returns The entries in order, without gaps. The image is open until the last one was taken.
 * @throws {Qcow2Error} With the codes of `Qcow2File.open` where the image cannot be read, `corrupt` where a table is damaged,
 * `invalid-argument` where the range is none.
 *
 * @example Usage
 * ```ts
 * import { mapImage, Qcow2File } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * const disk = Qcow2File.create(path, { size: 1 << 20 });
 * disk.writeAt(0, new Uint8Array(65536).fill(7));
 * disk.close();
 * const [data, rest] = mapImage(path);
 * assertEquals([data?.length, data?.data, data?.offset], [65536, true, 327680]);
 * assertEquals([rest?.length, rest?.zero, rest?.present], [983040, true, false]);
 * Deno.removeSync(path);
 * ```
 */
export function* mapImage(source: FileSource, options: MapImageOptions = {}): Generator<MapEntry, void, undefined> {
  const { lock = true, backing = "refuse", dataFile = "refuse" } = options;
  const file = acquireFile(source, { write: false, lock });
  const format = options.format ?? imageTypeOf(file);
  // From here on the disk closes the file, also where it cannot be opened.
  using disk = format === "raw" ? RawFile.open(file, { lock }) : Qcow2File.open(file, { lock, backing, dataFile });
  yield* mapDisk(disk, options);
}

/**
 * Tells where on the host the parts of a disk stand that is open, as {@linkcode mapImage} does.
 *
 * @param disk The disk. Do not change it while walking the entries.
 * @param range Where to begin, and how far.
 * @returns The entries in order, without gaps.
 * @throws {Qcow2Error} With code `corrupt` where a table is damaged, `invalid-argument` where the range is none.
 */
export function* mapDisk(disk: Disk, range: MapRange = {}): Generator<MapEntry, void, undefined> {
  const { offset = 0 } = range;
  const length = Math.min(range.length ?? Infinity, Math.max(0, disk.size - offset));
  checkRange(offset, length, Math.max(disk.size, offset));
  if (length === 0) return;
  let open: MapEntry | undefined;
  for (const extent of disk.extents(offset, length, { hostHoles: true })) {
    const next = entryOf(extent);
    if (open !== undefined && continues(open, next)) {
      open = { ...open, length: open.length + next.length };
      continue;
    }
    if (open !== undefined) yield open;
    open = next;
  }
  if (open !== undefined) yield open;
}

function entryOf(extent: Extent): MapEntry {
  const { offset, length, kind, depth, hostOffset } = extent;
  return {
    start: offset,
    length,
    depth,
    present: kind !== "unallocated",
    zero: isZeroExtent(extent),
    data: kind === "data" || kind === "compressed",
    ...(hostOffset === undefined ? {} : { offset: hostOffset }),
  };
}

/** Whether one entry goes on where another ends, on the disk and on the host. */
function continues(open: MapEntry, next: MapEntry): boolean {
  return open.zero === next.zero && open.data === next.data && open.present === next.present &&
    open.depth === next.depth &&
    (open.offset === undefined ? undefined : open.offset + open.length) === next.offset;
}
