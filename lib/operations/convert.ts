/**
 * Copies the content of one disk to another.
 *
 * @module
 */

import type { Disk, Extent } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { alignDown, alignUp } from "../format/geometry.ts";
import { CHUNK_SIZE, isAllZero, SECTOR_SIZE } from "./sector_comparison.ts";
import { TimeSlice } from "./time_slice.ts";

/** How far an operation has come. */
export interface Progress {
  /** How much is done, in bytes of the disk. */
  readonly done: number;
  /** How much there is, in bytes of the disk. */
  readonly total: number;
}

/** How {@linkcode convert} copies. */
export interface ConvertOptions {
  /**
   * How many zero bytes in a row become a hole in the target: a multiple of 512, or 0 to write zeroes as they are and leave
   * no holes at all.
   *
   * @default {4096}
   */
  readonly sparseSize?: number;
  /**
   * Whether the target reads as zeroes already, so that holes need nothing: true for one that was just created.
   *
   * @default {false}
   */
  readonly targetIsZero?: boolean;
  /**
   * Whether to leave out what the source has from its backing file: for a target that has the same backing file.
   *
   * @default {false}
   */
  readonly skipBacking?: boolean;
  /**
   * Whether to write compressed clusters. The target must be a `Qcow2File`, or something else that has `writeCompressedAt`.
   *
   * @default {false}
   */
  readonly compress?: boolean;
  /** Called while it goes on, some tens of times a second at most, and at the end. */
  readonly onProgress?: (progress: Progress) => void;
  /** Ends the operation early when it is aborted. */
  readonly signal?: AbortSignal;
}

/** The largest sparse size in bytes, as in QEMU. */
const MAX_SPARSE_SIZE = 16 * 1024 * 1024;

/** A disk that can be written compressed, as `Qcow2File` can. */
export interface CompressibleDisk extends Disk {
  /**
   * Writes whole clusters compressed.
   *
   * @param offset Where to begin on the disk, in bytes, a multiple of the allocation size.
   * @param data What to write: whole clusters, the last of which may be cut short by the end of the disk.
   */
  writeCompressedAt(offset: number, data: Uint8Array): void;
}

/** What {@linkcode convert} did. */
export interface ConvertResult {
  /** Bytes that were written as data. */
  readonly dataBytes: number;
  /** Bytes that were left, or made, a hole. */
  readonly zeroBytes: number;
}

const DEFAULT_SPARSE_SIZE = 4096;

/**
 * Copies one disk to another of at least the same size. What reads as zeroes in the source becomes a hole in the target. What
 * the target is larger is left alone.
 *
 * The work is cut into slices, between which the event loop runs, so that a signal can end it.
 *
 * @param source Where to read.
 * @param target Where to write; it is flushed at the end.
 * @param options How to copy.
 * @returns How much was data and how much holes.
 * @throws {Qcow2Error} With code `invalid-argument` where the target is too small, `aborted` where the signal says so, and
 * whatever reading and writing throw.
 *
 * @example Usage
 * ```ts
 * import { convert, Qcow2File, RawFile } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const folder = await Deno.makeTempDir();
 * using source = RawFile.create(`${folder}/disk.raw`, { size: 1 << 20 });
 * source.writeAt(0, new Uint8Array(65536).fill(7));
 * using target = Qcow2File.create(`${folder}/disk.qcow2`, { size: source.size, durability: "none" });
 * const { dataBytes } = await convert(source, target, { targetIsZero: true });
 * assertEquals(dataBytes, 65536);
 * source.close();
 * target.close();
 * Deno.removeSync(folder, { recursive: true });
 * ```
 */
export async function convert(source: Disk, target: Disk, options: ConvertOptions = {}): Promise<ConvertResult> {
  const { sparseSize = DEFAULT_SPARSE_SIZE, onProgress, signal } = options;
  if (target.size < source.size) {
    throw new Qcow2Error("invalid-argument", `Target has ${target.size} bytes, expected at least ${source.size}`, {
      found: target.size,
      expected: source.size,
    });
  }
  if (
    !Number.isSafeInteger(sparseSize) || sparseSize < 0 || sparseSize > MAX_SPARSE_SIZE ||
    sparseSize % SECTOR_SIZE !== 0
  ) {
    const expected = `a multiple of ${SECTOR_SIZE} up to ${MAX_SPARSE_SIZE}`;
    throw new Qcow2Error("invalid-argument", `Sparse size is ${sparseSize}, expected ${expected}`, {
      found: sparseSize,
      expected,
    });
  }
  const write = options.compress === true ? compressingWrite(target) : target.writeAt.bind(target);
  const copy = new Copy(source, target, {
    wholeUnits: options.compress ?? false,
    sparseSize,
    targetIsZero: options.targetIsZero ?? false,
    skipBacking: options.skipBacking ?? false,
    write,
  });
  const slice = new TimeSlice(signal);
  for (const extent of source.extents(0, source.size)) {
    for (const done of copy.copyExtent(extent)) {
      if (slice.isOver()) {
        onProgress?.({ done, total: source.size });
        await slice.next();
      }
    }
  }
  target.flush();
  onProgress?.({ done: source.size, total: source.size });
  return copy.result;
}

function compressingWrite(target: Disk): (offset: number, data: Uint8Array) => void {
  if (isCompressible(target)) return target.writeCompressedAt.bind(target);
  throw new Qcow2Error("invalid-argument", "Target cannot be written compressed, expected a qcow2 image");
}

/**
 * Whether a disk can be written compressed.
 *
 * @param disk A disk.
 * @returns Whether it has `writeCompressedAt`.
 */
export function isCompressible(disk: Disk): disk is CompressibleDisk {
  return "writeCompressedAt" in disk && typeof disk.writeCompressedAt === "function";
}

/** How {@linkcode Copy} treats the target. */
interface CopyOptions {
  readonly sparseSize: number;
  readonly targetIsZero: boolean;
  readonly skipBacking: boolean;
  /** Whether the target can only be written in whole units. */
  readonly wholeUnits: boolean;
  readonly write: (offset: number, data: Uint8Array) => void;
}

class Copy {
  #dataBytes = 0;
  #zeroBytes = 0;
  /** Everything before this offset is copied. */
  #done = 0;
  readonly #source: Disk;
  readonly #target: Disk;
  readonly #options: CopyOptions;
  /** The unit in which the target is written: what it allocates at once, or more where fewer zeroes do not count. */
  readonly #unit: number;
  readonly #chunkSize: number;
  readonly #buffer: Uint8Array<ArrayBuffer>;

  constructor(source: Disk, target: Disk, options: CopyOptions) {
    this.#source = source;
    this.#target = target;
    this.#options = options;
    this.#unit = alignUp(Math.max(options.sparseSize, target.allocationSize), target.allocationSize);
    this.#chunkSize = alignUp(CHUNK_SIZE, this.#unit);
    this.#buffer = new Uint8Array(this.#chunkSize);
  }

  get result(): ConvertResult {
    return { dataBytes: this.#dataBytes, zeroBytes: this.#zeroBytes };
  }

  /** Copies an extent piece by piece, and tells after each how far the disk is copied. */
  *copyExtent(extent: Extent): Generator<number> {
    const end = extent.offset + extent.length;
    if (this.#options.skipBacking && (extent.depth > 0 || extent.kind === "unallocated")) {
      this.#done = Math.max(this.#done, end);
      yield this.#done;
      return;
    }
    if ((extent.kind === "zero" || extent.kind === "unallocated") && this.#options.sparseSize > 0) {
      // Its beginning may have been copied along with the data before it.
      if (this.#done < end) this.#leaveHole(this.#done, end - this.#done);
      this.#done = Math.max(this.#done, end);
      yield this.#done;
      return;
    }
    const { wholeUnits } = this.#options;
    const start = Math.max(this.#done, wholeUnits ? alignDown(extent.offset, this.#unit) : extent.offset);
    const stop = wholeUnits ? Math.min(alignUp(end, this.#unit), this.#source.size) : end;
    for (let offset = start; offset < stop;) {
      const length = Math.min(stop - offset, this.#chunkSize - offset % this.#chunkSize);
      const piece = this.#buffer.subarray(0, length);
      this.#source.readAt(offset, piece);
      if (this.#options.sparseSize === 0) this.#writeData(offset, piece);
      else this.#copyPiece(offset, piece);
      offset += length;
      this.#done = offset;
      yield offset;
    }
  }

  /** Writes what is not zero: stretches that begin and end at multiples of the unit in which the target allocates. */
  #copyPiece(offset: number, piece: Uint8Array): void {
    let start = 0;
    let startIsZero: boolean | undefined;
    for (let position = 0; position < piece.length;) {
      const next = Math.min(piece.length, position + this.#unit - (offset + position) % this.#unit);
      const isZero = isAllZero(piece, position, next);
      if (startIsZero !== undefined && isZero !== startIsZero) {
        this.#put(offset + start, piece.subarray(start, position), startIsZero);
        start = position;
      }
      startIsZero = isZero;
      position = next;
    }
    if (startIsZero !== undefined) this.#put(offset + start, piece.subarray(start), startIsZero);
  }

  #put(offset: number, bytes: Uint8Array, isZero: boolean): void {
    if (isZero) this.#leaveHole(offset, bytes.length);
    else this.#writeData(offset, bytes);
  }

  #writeData(offset: number, bytes: Uint8Array): void {
    this.#options.write(offset, bytes);
    this.#dataBytes += bytes.length;
  }

  #leaveHole(offset: number, length: number): void {
    if (!this.#options.targetIsZero) this.#target.writeZeroesAt(offset, length, { unmap: true });
    this.#zeroBytes += length;
  }
}
