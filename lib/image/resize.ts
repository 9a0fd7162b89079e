/**
 * Makes the disk of an image longer or shorter.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { alignUp, l1EntryCountFor } from "../format/geometry.ts";
import type { ImageMetadata } from "../metadata/image_metadata.ts";
import { ClusterKind, MappedRun } from "../metadata/mapping.ts";
import type { OrderedFile } from "../metadata/ordered_file.ts";
import { allAtOnce, type Progress, type Steps } from "../metadata/steps.ts";
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
/** So many bytes of the disk are cleared in a step, or what an L2 table describes. */
const MIN_PIECE_LENGTH = 16 * 1024 * 1024;

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
  /** What unallocated clusters read as, if anything. */
  readonly backing: Disk | undefined;
}

/**
 * Resizes the disk of an image, so that a crash at any time leaves the old size or the new one. Where it is given up, what had been
 * allocated for a longer disk is given back, and a disk that has become shorter stays so; what stands behind its end then takes space
 * until it grows again.
 *
 * @param target The image.
 * @param wanted The new size in bytes, rounded up to a multiple of 512.
 * @param options Whether the disk may become shorter, and what is allocated.
 * @returns Steps, which tell of the bytes that are added or taken away.
 * @throws {Qcow2Error} With code `invalid-argument` as {@linkcode checkedSize} does, `unsupported` where snapshots or bitmaps
 * forbid it, `limit-exceeded` where the L1 table would be too long, `no-space`, `corrupt` or `io`.
 */
export function* resizeImage(
  target: ResizeTarget,
  wanted: number,
  options: ResizeOptions,
): Steps<Progress, void> {
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
  const total = Math.abs(size - metadata.diskSize);
  if (total === 0) return;
  let done = 0;
  const steps = size > metadata.diskSize ? grow(target, size, options.preallocation ?? "off") : shrink(target, size);
  for (const bytes of steps) {
    done = Math.min(total, done + bytes);
    yield { done, total };
  }
}

/** The header tells the new size last, when everything behind the old end reads as zeroes for good. */
function* grow(target: ResizeTarget, size: number, mode: Preallocation): Steps<number, void> {
  const { metadata, io, bitmaps } = target;
  const oldSize = metadata.diskSize;
  metadata.growL1(l1EntryCountFor(metadata.geometry, size));
  let isGivenUp = true;
  try {
    if (metadata.hasDataFile) yield* growDataFile(metadata.guestFile, oldSize, size, mode);
    // A raw data file holds the whole disk, so everything in it is mapped.
    const allocated = metadata.hasRawDataFile && mode === "off" ? "metadata" : mode;
    for (const bytes of clearBehindEnd(target, size)) yield allocated === "off" ? bytes : 0;
    if (allocated !== "off") {
      io.placeCutCluster(oldSize, allocated !== "metadata");
      yield* preallocateGuestRange(metadata, oldSize, size, allocated);
    }
    isGivenUp = false;
  } catch (error) {
    isGivenUp = false;
    throw error;
  } finally {
    if (isGivenUp) allAtOnce(giveBackBehind(metadata, oldSize));
  }
  metadata.flush();
  bitmaps.resize(size);
}

/** What a data file holds behind the end of the disk is nobody's, and must not come to light. */
function* growDataFile(file: OrderedFile, oldSize: number, size: number, mode: Preallocation): Steps<number, void> {
  if (file.size > oldSize) file.truncate(oldSize);
  yield* reserveHostRange(file, oldSize, size - oldSize, mode);
}

/** Where a backing file may be seen there is much to write in version 2, so that it is done piece by piece. */
function* clearBehindEnd({ metadata, zeroes, backing }: ResizeTarget, size: number): Steps<number, void> {
  const { diskSize, geometry } = metadata;
  const pieceLength = Math.max(geometry.l2TableSpan, MIN_PIECE_LENGTH);
  const backingEnd = Math.min(size, backing?.size ?? 0);
  for (let offset = diskSize; offset < size;) {
    const end = offset < backingEnd ? Math.min(size, alignUp(offset + 1, pieceLength)) : size;
    zeroes.clearBehindEnd(offset, end);
    yield end - offset;
    offset = end;
  }
}

/** The header tells the new size first: what stands behind the end from then on belongs to nobody. */
function* shrink({ metadata, bitmaps }: ResizeTarget, size: number): Steps<number, void> {
  metadata.flush();
  bitmaps.resize(size);
  yield* giveBackBehind(metadata, size);
}

/** Gives back what stands behind the end of the disk. */
function* giveBackBehind(metadata: ImageMetadata, size: number): Steps<number, void> {
  const { geometry, mapping, guestFile } = metadata;
  const first = alignUp(size, geometry.clusterSize);
  const tablesEnd = l1EntryCountFor(geometry, first);
  unlinkRange(metadata, first, tablesEnd * geometry.l2TableSpan);
  yield tablesEnd * geometry.l2TableSpan - size;
  for (let l1Index = tablesEnd; l1Index < mapping.l1.entryCount; l1Index++) {
    mapping.dropTable(l1Index);
    yield geometry.l2TableSpan;
  }
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
