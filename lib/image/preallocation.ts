/**
 * Preallocation: host clusters for guest clusters that nobody has written yet.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { alignDown, alignUp } from "../format/geometry.ts";
import type { ImageMetadata } from "../metadata/image_metadata.ts";
import { ClusterKind, MappedRun } from "../metadata/mapping.ts";
import { allAtOnce, type Steps } from "../metadata/steps.ts";
import type { BlockFile } from "../storage/block_file.ts";

/**
 * What is allocated ahead of use. `off` is nothing, `metadata` gives every guest cluster its place in a sparse file, `falloc`
 * reserves the space on the host as well (where the host cannot, it does as `full`), `full` writes zeroes.
 */
export type Preallocation = "off" | "metadata" | "falloc" | "full";

/** The most zeroes that are written at once, in bytes. */
const ZEROES_LENGTH = 1024 * 1024;
/** Of clusters that are written full of zeroes so many bytes are a step, or a single cluster. */
const STEP_LENGTH = 8 * ZEROES_LENGTH;
/** How much of an empty file is allocated when it gets a length, in bytes. */
const FIRST_BLOCK_LENGTH = 4096;

/** What {@linkcode reserveHostRange} needs of a file. */
type HostFile = Pick<BlockFile, "size" | "writeAt" | "truncate" | "preallocate">;

/**
 * Gives host clusters to all guest clusters of a range that have none. They go on reading as they do.
 *
 * In a data file each guest cluster has its place from the start: only the tables change, and what stands in the file becomes the
 * disk's unless clusters have subclusters.
 *
 * @param metadata The image, ready for writing.
 * @param from Guest offset of the first byte. What a cluster holds in front of it must read as zeroes or have a place, unless
 * clusters have subclusters.
 * @param to Guest offset behind the last byte.
 * @param mode How much to allocate.
 * @returns Steps, each of which tells how many bytes of the disk it has done. Those that are done are not undone.
 * @throws {Qcow2Error} With code `no-space` or `io` where the host fails; a part of the range may be allocated then.
 */
export function* preallocateGuestRange(
  metadata: ImageMetadata,
  from: number,
  to: number,
  mode: Preallocation,
): Steps<number, void> {
  if (mode === "off") return;
  const { geometry, mapping, allocator, file, hasDataFile } = metadata;
  const { clusterSize, subclusterSize } = geometry;
  const run = new MappedRun();
  const end = alignUp(to, clusterSize);
  const stepLength = mode === "metadata" ? Infinity : Math.max(clusterSize, STEP_LENGTH);
  for (let position = alignDown(from, clusterSize); position < end;) {
    mapping.find(position, end - position, run);
    const { kind } = run;
    if (kind !== ClusterKind.unallocated && kind !== ClusterKind.zero) {
      const next = alignUp(position + run.length, clusterSize);
      yield next - position;
      position = next;
      continue;
    }
    // A cluster whose parts differ is taken alone.
    const whole = alignDown(run.length, clusterSize);
    const sliceEnd = alignDown(position, mapping.sliceSpan) + mapping.sliceSpan;
    const wanted = Math.min(sliceEnd - position, Math.max(whole, clusterSize), stepLength);
    const slice = mapping.prepareSlice(position);
    if (hasDataFile) {
      mapping.reserve(slice, position, wanted, position);
      position += wanted;
      yield wanted;
      continue;
    }
    const target = allocator.allocateRun(wanted / clusterSize);
    const length = target.count * clusterSize;
    // As QEMU does: a file in which nothing is reserved ends with the last part of a cluster that the disk has.
    const isShort = mode === "metadata" && subclusterSize < clusterSize;
    try {
      metadata.assertNoMetadata("preallocated clusters", target.offset, length);
      allAtOnce(reserveHostRange(file, target.offset, isShort ? Math.min(length, to - position) : length, mode));
    } catch (error) {
      if (file.failure === undefined) allocator.release(target);
      throw error;
    }
    // Zeroes that the host has taken space for are as good as any others.
    if (mode !== "metadata" && kind === ClusterKind.zero && whole > 0) {
      mapping.link(slice, position, length, target.offset);
    } else {
      mapping.reserve(slice, position, length, target.offset);
    }
    position += length;
    yield length;
  }
}

/**
 * Makes a range of a file its own and full of zeroes.
 *
 * @param file The file.
 * @param offset Where to begin, in bytes.
 * @param length How far, in bytes.
 * @param mode How much to allocate.
 * @returns Steps, each of which tells how many bytes it has done.
 * @throws {Qcow2Error} With code `no-space` or `io`.
 */
export function* reserveHostRange(
  file: HostFile,
  offset: number,
  length: number,
  mode: Preallocation,
): Steps<number, void> {
  const end = offset + length;
  const wasEmpty = file.size === 0;
  // What the file has already may hold what was freed there: it is written over, which allocates it.
  const inside = Math.min(end, Math.max(offset, file.size));
  yield* writeZeroes(file, offset, inside);
  if (inside === end) return;
  if (mode === "full" || (mode === "falloc" && !file.preallocate(inside, end - inside))) {
    yield* writeZeroes(file, inside, end);
  } else if (mode !== "falloc") file.truncate(end);
  // As QEMU does: with its first block allocated, a file answers questions about its alignment like any other.
  if (wasEmpty && mode !== "full") allAtOnce(writeZeroes(file, 0, Math.min(end, FIRST_BLOCK_LENGTH)));
}

function* writeZeroes(file: HostFile, from: number, to: number): Steps<number, void> {
  const zeroes = new Uint8Array(Math.min(ZEROES_LENGTH, to - from));
  for (let position = from; position < to; position += zeroes.length) {
    const length = Math.min(zeroes.length, to - position);
    file.writeAt(position, zeroes.subarray(0, length));
    yield length;
  }
}

/**
 * Checks a mode that a caller passed.
 *
 * @param mode What was passed, if anything.
 * @returns The mode; `off` where nothing was passed.
 * @throws {Qcow2Error} With code `invalid-argument` where there is no such mode.
 */
export function checkedPreallocation(mode: Preallocation | undefined): Preallocation {
  const modes: readonly Preallocation[] = ["off", "metadata", "falloc", "full"];
  if (mode === undefined || modes.includes(mode)) return mode ?? "off";
  throw new Qcow2Error("invalid-argument", `Preallocation is "${mode}", expected ${modes.join(", ")}`, {
    found: String(mode),
    expected: modes.join(", "),
  });
}
