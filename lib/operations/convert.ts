/**
 * Copies the content of one disk to another.
 *
 * @module
 */

import type { Disk, Extent } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { alignDown, alignUp } from "../format/geometry.ts";
import { isAllZero } from "../format/zeroes.ts";
import { readDiskAhead } from "../image/read_ahead.ts";
import { RateLimit } from "./rate_limit.ts";
import { CHUNK_SIZE, SECTOR_SIZE } from "./sector_comparison.ts";
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
  /** How many bytes may be written in a second; as many as possible without it. */
  readonly rateLimit?: number;
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

/** How many chunks are under way at once: while one is written, the next is read. */
const CHUNKS_AHEAD = 2;
/** Shorter pieces are read on the spot: they are over before another thread has begun. In bytes. */
const MIN_AHEAD_LENGTH = 512 * 1024;
const DEFAULT_SPARSE_SIZE = 4096;

/**
 * Copies one disk to another of at least the same size. What reads as zeroes in the source becomes a hole in the target. What
 * the target is larger is left alone.
 *
 * While one piece is written, the next is read. The work is cut into slices, between which the event loop runs, so that a signal can
 * end it.
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
    slice: new TimeSlice(signal),
    limit: options.rateLimit === undefined ? undefined : new RateLimit(options.rateLimit),
  });
  await copy.run((done) => onProgress?.({ done, total: source.size }));
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
  readonly slice: TimeSlice;
  /** How fast it may write, where that matters. */
  readonly limit: RateLimit | undefined;
}

/** A stretch of the source, and what becomes of it. */
interface Step {
  readonly kind: "copy" | "hole" | "skip";
  readonly offset: number;
  readonly length: number;
}

/** A piece of the source that is being read. */
interface Reading {
  readonly offset: number;
  readonly piece: Uint8Array<ArrayBuffer>;
  readonly isOver: Promise<void>;
}

class Copy {
  #dataBytes = 0;
  #zeroBytes = 0;
  readonly #source: Disk;
  readonly #target: Disk;
  readonly #options: CopyOptions;
  /** The unit in which the target is written: what it allocates at once, or more where fewer zeroes do not count. */
  readonly #unit: number;
  readonly #chunkSize: number;
  /** What is read ahead, in order. */
  readonly #readings: Reading[] = [];
  /** Buffers that nobody uses. */
  readonly #buffers: Uint8Array<ArrayBuffer>[] = [];

  constructor(source: Disk, target: Disk, options: CopyOptions) {
    this.#source = source;
    this.#target = target;
    this.#options = options;
    this.#unit = alignUp(Math.max(options.sparseSize, target.allocationSize), target.allocationSize);
    this.#chunkSize = alignUp(CHUNK_SIZE, this.#unit);
  }

  get result(): ConvertResult {
    return { dataBytes: this.#dataBytes, zeroBytes: this.#zeroBytes };
  }

  /** Copies everything, and tells now and then how far the disk is copied. */
  async run(onProgress: (done: number) => void): Promise<void> {
    const { slice } = this.#options;
    try {
      for (const step of this.#steps()) {
        if (step.kind === "hole") this.#leaveHole(step.offset, step.length);
        else if (step.kind === "copy") {
          if (step.length >= MIN_AHEAD_LENGTH) await this.#copyAhead(step);
          else {
            if (this.#readings.length > 0) await this.#finish(0);
            this.#copyNow(step);
            await this.#pace();
          }
        }
        if (!slice.isOver()) continue;
        onProgress(this.#readings[0]?.offset ?? step.offset + step.length);
        await slice.next();
      }
      await this.#finish(0);
    } finally {
      // The source is at rest, and no error of it left alone, before anybody goes on.
      await Promise.allSettled(this.#readings.map(({ isOver }) => isOver));
    }
  }

  /**
   * Cuts the source into stretches, in order. Where the target can only be written in whole units, one that is not all hole, or not
   * all to be left out, is copied.
   */
  *#steps(): Generator<Step> {
    const { size } = this.#source;
    const unit = this.#options.wholeUnits ? this.#unit : 1;
    let position = 0;
    for (const extent of this.#source.extents(0, size, { hostHoles: true })) {
      const end = extent.offset + extent.length;
      const kind = this.#kindOf(extent);
      const start = alignUp(extent.offset, unit);
      const stop = end === size ? size : alignDown(end, unit);
      if (kind === "copy") {
        // What is left of it goes together with what follows.
        const whole = alignDown(end, this.#chunkSize);
        yield* this.#chunks(position, whole);
        position = Math.max(position, whole);
      } else if (start < stop) {
        yield* this.#chunks(position, start);
        yield { kind, offset: start, length: stop - start };
        position = stop;
      }
    }
    yield* this.#chunks(position, size);
  }

  #kindOf({ kind, depth }: Extent): Step["kind"] {
    const { skipBacking, sparseSize } = this.#options;
    if (skipBacking && (depth > 0 || kind === "unallocated")) return "skip";
    return sparseSize > 0 && (kind === "zero" || kind === "unallocated") ? "hole" : "copy";
  }

  *#chunks(from: number, to: number): Generator<Step> {
    for (let offset = from; offset < to;) {
      const length = Math.min(to - offset, this.#chunkSize - offset % this.#chunkSize);
      yield { kind: "copy", offset, length };
      offset += length;
    }
  }

  /** Begins to read a stretch. It is written when others have been begun after it. */
  async #copyAhead({ offset, length }: Step): Promise<void> {
    await this.#finish(CHUNKS_AHEAD - 1);
    const piece = (this.#buffers.pop() ?? new Uint8Array(this.#chunkSize)).subarray(0, length);
    this.#readings.push({ offset, piece, isOver: readDiskAhead(this.#source, offset, piece) });
  }

  #copyNow({ offset, length }: Step): void {
    const buffer = this.#buffers[0] ??= new Uint8Array(this.#chunkSize);
    const piece = buffer.subarray(0, length);
    this.#source.readAt(offset, piece);
    this.#write(offset, piece);
  }

  /** Writes what was begun first, until no more than so many are left. */
  async #finish(left: number): Promise<void> {
    for (let first = this.#readings[0]; first !== undefined && this.#readings.length > left;) {
      await first.isOver;
      this.#readings.shift();
      this.#write(first.offset, first.piece);
      await this.#pace();
      this.#buffers.push(new Uint8Array(first.piece.buffer));
      first = this.#readings[0];
    }
  }

  async #pace(): Promise<void> {
    const { limit, slice } = this.#options;
    while (limit !== undefined && await limit.wait(this.#dataBytes)) await slice.next();
  }

  #write(offset: number, piece: Uint8Array): void {
    if (this.#options.sparseSize === 0) this.#writeData(offset, piece);
    else this.#writePiece(offset, piece);
  }

  /** Writes what is not zero: stretches that begin and end at multiples of the unit in which the target allocates. */
  #writePiece(offset: number, piece: Uint8Array): void {
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
