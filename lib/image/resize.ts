/**
 * Makes the disk of an image longer or shorter.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { alignUp, l1EntryCountFor } from "../format/geometry.ts";
import type { ImageMetadata } from "../metadata/image_metadata.ts";
import { ClusterKind, MappedRun } from "../metadata/mapping.ts";
import type { OrderedFile } from "../metadata/ordered_file.ts";
import type { Bitmaps } from "./bitmaps.ts";
import type { GuestIo } from "./guest_io.ts";
import type { GuestZeroes } from "./guest_zeroes.ts";
import { checkedPreallocation, preallocateGuestRange, type Preallocation, reserveHostRange } from "./preallocation.ts";

/** How a disk is resized. */
export interface ResizeOptions {
  /**
   * Whether the disk may become shorter. What stands behind its new end is lost.
   *
   * @default {false}
   */
  readonly shrink?: boolean;
  /**
   * What is allocated of a range that is added.
   *
   * @default {"off"}
   */
  readonly preallocation?: Preallocation;
}

/** QEMU counts virtual sizes in these. */
const SECTOR_SIZE = 512;

/**
 * The size that a disk gets.
 *
 * @param current The size now, in bytes.
 * @param wanted What was asked for, in bytes.
 * @param options Whether the disk may become shorter, and what is allocated.
 * @returns The size in whole sectors.
 * @throws {Qcow2Error} With code `invalid-argument` where the size makes no sense or the disk must not become shorter.
 */
export function checkedSize(current: number, wanted: number, options: ResizeOptions): number {
  if (!Number.isSafeInteger(wanted) || wanted < 0 || wanted > Number.MAX_SAFE_INTEGER - SECTOR_SIZE) {
    throw new Qcow2Error("invalid-argument", `Virtual size is ${wanted}, expected a whole number of bytes below 2^53`, {
      found: wanted,
    });
  }
  const size = alignUp(wanted, SECTOR_SIZE);
  const preallocation = checkedPreallocation(options.preallocation);
  if (size < current && options.shrink !== true) {
    throw new Qcow2Error(
      "invalid-argument",
      `Disk has ${current} bytes and would lose what stands behind ${size}; use { shrink: true } to allow that`,
      { found: size, expected: `at least ${current}` },
    );
  }
  if (size <= current && preallocation !== "off") {
    throw new Qcow2Error("invalid-argument", "Preallocation can only be used for growing images", {
      found: preallocation,
      expected: "off",
    });
  }
  return size;
}

/** What is resized. */
export interface ResizeTarget {
  /** The image, ready for writing. */
  readonly metadata: ImageMetadata;
  /** Its guest's bytes. */
  readonly io: GuestIo;
  /** Makes them zeroes. */
  readonly zeroes: GuestZeroes;
  /** Its bitmaps. */
  readonly bitmaps: Bitmaps;
}

/**
 * Resizes the disk of an image, so that a crash at any time leaves the old size or the new one.
 *
 * @param target The image.
 * @param wanted The new size in bytes, rounded up to a multiple of 512.
 * @param options Whether the disk may become shorter, and what is allocated.
 * @throws {Qcow2Error} With code `invalid-argument` as {@linkcode checkedSize} does, `unsupported` where snapshots or bitmaps
 * forbid it, `limit-exceeded` where the L1 table would be too long, `no-space`, `corrupt` or `io`.
 */
export function resizeImage(target: ResizeTarget, wanted: number, options: ResizeOptions): void {
  const { metadata, bitmaps } = target;
  const size = checkedSize(metadata.diskSize, wanted, options);
  const { header } = metadata;
  if (header.version === 2 && header.snapshotCount > 0) {
    throw new Qcow2Error("unsupported", "Can't resize a v2 image which has snapshots", {
      found: header.snapshotCount,
      expected: "version 3, or no snapshots",
    });
  }
  bitmaps.prepareResize(size);
  if (size > metadata.diskSize) grow(target, size, options.preallocation ?? "off");
  else if (size < metadata.diskSize) shrink(target, size);
}

/** The header tells the new size last, when everything behind the old end reads as zeroes for good. */
function grow({ metadata, io, zeroes, bitmaps }: ResizeTarget, size: number, mode: Preallocation): void {
  const oldSize = metadata.diskSize;
  metadata.growL1(l1EntryCountFor(metadata.geometry, size));
  if (metadata.hasDataFile) growDataFile(metadata.guestFile, oldSize, size, mode);
  zeroes.clearBehindEnd(oldSize, size);
  // A raw data file holds the whole disk, so everything in it is mapped.
  const allocated = metadata.hasRawDataFile && mode === "off" ? "metadata" : mode;
  if (allocated !== "off") {
    io.placeCutCluster(oldSize, allocated !== "metadata");
    preallocateGuestRange(metadata, oldSize, size, allocated);
  }
  metadata.flush();
  bitmaps.resize(size);
}

/** What a data file holds behind the end of the disk is nobody's, and must not come to light. */
function growDataFile(file: OrderedFile, oldSize: number, size: number, mode: Preallocation): void {
  if (file.size > oldSize) file.truncate(oldSize);
  reserveHostRange(file, oldSize, size - oldSize, mode);
}

/** The header tells the new size first: what stands behind the end from then on belongs to nobody. */
function shrink({ metadata, bitmaps }: ResizeTarget, size: number): void {
  metadata.flush();
  bitmaps.resize(size);
  const { geometry, mapping, guestFile } = metadata;
  const first = alignUp(size, geometry.clusterSize);
  const tablesEnd = l1EntryCountFor(geometry, first);
  unlinkRange(metadata, first, tablesEnd * geometry.l2TableSpan);
  for (let l1Index = tablesEnd; l1Index < mapping.l1.entryCount; l1Index++) mapping.dropTable(l1Index);
  metadata.flush();
  if (metadata.hasDataFile && guestFile.size > size) guestFile.truncate(size);
  metadata.truncateHostFile();
}

/** Empties the entries of the L2 table that the new end cuts. */
function unlinkRange({ geometry, mapping }: ImageMetadata, from: number, to: number): void {
  const run = new MappedRun();
  for (let position = from; position < to;) {
    mapping.find(position, Math.min(to - position, mapping.sliceSpan - position % mapping.sliceSpan), run);
    // The last cluster of a run may have other parts as well.
    const length = alignUp(run.length, geometry.clusterSize);
    if (run.kind !== ClusterKind.unallocated) {
      mapping.unlink(mapping.prepareSlice(position), position, length, false);
    }
    position += length;
  }
}
