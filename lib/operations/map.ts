/**
 * Tells where on the host the parts of a disk stand.
 *
 * @module
 */

import type { Extent } from "../disk.ts";
import { hasDataFile } from "../format/header.ts";
import { checkRange } from "../image/cursor.ts";
import type { BackingPolicy } from "../image/backing.ts";
import type { DataFilePolicy } from "../image/data_file.ts";
import { detectImageType, type ImageType } from "../image/detect.ts";
import { acquireFile } from "../image/host_file.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { RawFile } from "../image/raw_file.ts";
import type { BlockFile } from "../storage/block_file.ts";

/** How {@linkcode mapImage} looks at an image. */
export interface MapImageOptions {
  /** The format. Without it, the first bytes decide, as `detectImageType` does. */
  readonly format?: ImageType;
  /**
   * Where to begin on the disk, in bytes.
   *
   * @default {0}
   */
  readonly offset?: number;
  /** How far, in bytes; to the end of the disk without it, and never beyond. */
  readonly length?: number;
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
 * @param path Path of the image.
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
export function* mapImage(path: string | URL, options: MapImageOptions = {}): Generator<MapEntry, void, undefined> {
  const { format = detectImageType(path), offset = 0, lock = true, backing = "refuse", dataFile = "refuse" } = options;
  const file = acquireFile(path, { write: false, lock });
  // From here on the disk closes the file, also where it cannot be opened.
  using disk = format === "raw" ? RawFile.open(file, { lock }) : Qcow2File.open(file, { lock, backing, dataFile });
  const length = Math.min(options.length ?? Infinity, Math.max(0, disk.size - offset));
  checkRange(offset, length, Math.max(disk.size, offset));
  if (length === 0) return;
  // The host's file is known of the image itself only, and a data file's clusters have no refcounts to compare its size with.
  const holes = disk instanceof Qcow2File && !hasDataFile(disk.header) ? new HostHoles(file, disk, path) : undefined;
  let open: MapEntry | undefined;
  for (const extent of disk.extents(offset, length)) {
    for (const next of entriesOf(extent, holes)) {
      if (open !== undefined && continues(open, next)) {
        open = { ...open, length: open.length + next.length };
        continue;
      }
      if (open !== undefined) yield open;
      open = next;
    }
  }
  if (open !== undefined) yield open;
}

function* entriesOf(extent: Extent, holes: HostHoles | undefined): Generator<MapEntry> {
  const { offset, length, kind, depth, hostOffset } = extent;
  const onHost = hostOffset === undefined ? {} : { offset: hostOffset };
  const entry: MapEntry = {
    start: offset,
    length,
    depth,
    present: kind !== "unallocated",
    zero: kind === "zero" || kind === "unallocated",
    data: kind === "data" || kind === "compressed",
    ...onHost,
  };
  if (kind !== "data" || hostOffset === undefined || holes === undefined || depth > 0) yield entry;
  else yield* holes.split(entry, hostOffset);
}

/** Whether one entry goes on where another ends, on the disk and on the host. */
function continues(open: MapEntry, next: MapEntry): boolean {
  return open.zero === next.zero && open.data === next.data && open.present === next.present &&
    open.depth === next.depth &&
    (open.offset === undefined ? undefined : open.offset + open.length) === next.offset;
}

/** Tells holes in the host's file from data, for images whose clusters were allocated before they were written. */
class HostHoles {
  readonly #file: BlockFile;
  readonly #disk: Qcow2File;
  readonly #path: string | URL;
  /** Found out at the first need: it takes a walk over the refcounts. */
  #preallocated: boolean | undefined;

  constructor(file: BlockFile, disk: Qcow2File, path: string | URL) {
    this.#file = file;
    this.#disk = disk;
    this.#path = path;
  }

  /** Cuts an entry that stands at a host offset into what the host has and what it has not. */
  *split(entry: MapEntry, hostOffset: number): Generator<MapEntry> {
    this.#preallocated ??= isPreallocated(this.#file, this.#disk, this.#path);
    if (!this.#preallocated) {
      yield entry;
      return;
    }
    const end = hostOffset + entry.length;
    const part = (from: number, to: number, zero: boolean): MapEntry => {
      return { ...entry, start: entry.start + from - hostOffset, length: to - from, offset: from, zero };
    };
    let position = hostOffset;
    for (const data of this.#file.dataExtents(hostOffset, entry.length)) {
      if (data.offset > position) yield part(position, data.offset, true);
      position = Math.min(end, data.offset + data.length);
      yield part(data.offset, position, false);
    }
    if (position < end) yield part(position, end, true);
  }
}

/**
 * Whether clearly more clusters are in use than the host has room taken for. It is QEMU's measure: a tenth more, and at least
 * two clusters.
 */
function isPreallocated(file: BlockFile, disk: Qcow2File, path: string | URL): boolean {
  const { blocks } = Deno.statSync(path);
  if (blocks === null) return false;
  const clusterSize = disk.allocationSize;
  const onHost = Math.floor(blocks * 512 / clusterSize);
  const threshold = Math.max(Math.floor(onHost * 10 / 9), onHost + 2);
  let inUse = 0;
  for (let position = 0; position < file.size && inUse < threshold; position += clusterSize) {
    if (disk.refcountAt(position) > 0) inUse++;
  }
  return inUse >= threshold;
}
