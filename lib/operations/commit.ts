/**
 * Brings the content of an image to the disk beneath it.
 *
 * @module
 */

import type { Extent } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { MIN_AHEAD_LENGTH, readDiskAhead } from "../image/read_ahead.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { RawFile } from "../image/raw_file.ts";
import type { Progress } from "../metadata/steps.ts";
import { comesFromAbove, depthOf, isZeroExtent } from "./chain.ts";
import { diskError, onDisk } from "./disk_error.ts";
import { EarlyFlush } from "./early_flush.ts";
import { RateLimit } from "./rate_limit.ts";
import { CHUNK_SIZE } from "./sector_comparison.ts";
import { TimeSlice } from "./time_slice.ts";

/** How {@linkcode commit} works. */
export interface CommitOptions {
  /** The disk that gets the content: one of those that the image reads from, open for writing. By default its backing disk. */
  readonly base?: Qcow2File | RawFile;
  /**
   * Whether the image keeps what it has. Otherwise it is empty afterwards. One with other images between it and the base keeps it in
   * any case, since those still say what was there before.
   *
   * @default {false}
   */
  readonly keep?: boolean;
  /** How many bytes may be written in a second at most; as many as can be without it. */
  readonly rateLimit?: number;
  /** Called while it goes on, some tens of times a second at most, and at the end: how much of what is brought is there. */
  readonly onProgress?: (progress: Progress) => void;
  /** Ends the operation early when it is aborted. The image keeps its content then, of which the base may have a part. */
  readonly signal?: AbortSignal;
}

/** What {@linkcode commit} did. */
export interface CommitResult {
  /** Bytes that were copied. */
  readonly copiedBytes: number;
  /** Bytes that were made zero. */
  readonly zeroedBytes: number;
}

/**
 * Brings what an image has of its own to its backing disk, or to another disk beneath it together with what the images between have.
 * The base grows where it is shorter, and never shrinks. The image is empty afterwards, once all of it is durable in the base.
 *
 * Whatever ends the operation early, a crash included, leaves the image with its content. Other images over the base, those
 * between it and the image included, read something else than before.
 *
 * The work is cut into slices, between which the event loop runs, so that a signal can end it.
 *
 * @param image The image, open for writing unless it keeps what it has, with a backing disk that is open for writing.
 * @param options Where to, whom to tell, and what ends it early.
 * @returns How much was brought.
 * @throws {DiskError} Where one of the disks fails: the `image` or the `base`.
 * @throws {Qcow2Error} With code `invalid-argument` where there is no such base, `aborted` where the signal says so.
 *
 * @example Usage
 * ```ts
 * import { commit, Qcow2File, RawFile } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const folder = await Deno.makeTempDir();
 * const base = RawFile.create(`${folder}/base.raw`, { size: 1 << 20 });
 * {
 *   const backing = { backingFile: "base.raw", backingFormat: "raw", backing: () => base };
 *   using disk = Qcow2File.create(`${folder}/disk.qcow2`, backing);
 *   disk.writeAt(0, new Uint8Array(65536).fill(7));
 *   await commit(disk);
 *   assertEquals([...disk.extents()][0]?.depth, 1);
 * }
 * assertEquals(Deno.readFileSync(`${folder}/base.raw`)[0], 7);
 * Deno.removeSync(folder, { recursive: true });
 * ```
 */
export async function commit(image: Qcow2File, options: CommitOptions = {}): Promise<CommitResult> {
  const { keep = false, onProgress, signal } = options;
  const slice = new TimeSlice(signal);
  const base = options.base ?? image.backing;
  if (!(base instanceof Qcow2File) && !(base instanceof RawFile)) {
    throw new Qcow2Error("invalid-argument", "Image does not have a backing file that it could be committed to");
  }
  const depth = depthOf(image, base);
  if (depth === 0 || depth === Infinity) {
    throw new Qcow2Error("invalid-argument", "Base is none of the disks beneath the image");
  }
  if (!keep && depth === 1 && !image.writable) {
    throw new Qcow2Error("read-only", "Image was opened for reading, so it must be kept");
  }
  const limit = options.rateLimit === undefined ? undefined : new RateLimit(options.rateLimit);
  const work = new Commit(image, base, depth);
  let total = 0;
  for (const counted of work.count()) {
    total = counted;
    if (slice.isOver()) await slice.next();
  }
  work.growBase();
  for await (const done of work.copy()) {
    const isOver = slice.isOver();
    if (isOver || limit !== undefined) onProgress?.({ done, total });
    if (isOver) await slice.next();
    while (await limit?.wait(work.result.copiedBytes)) await slice.next();
  }
  onDisk("base", "write", 0, () => base.flush());
  if (!keep && depth === 1) onDisk("image", "write", 0, () => image.revertToBacking({ contentStays: true }));
  onProgress?.({ done: total, total });
  return work.result;
}

/** How much of the disk is looked at ahead, in bytes: what is being written must not be walked. */
const WINDOW_SIZE = 64 * CHUNK_SIZE;

/** A piece of the image that is being read. */
interface Reading {
  readonly offset: number;
  readonly data: Uint8Array;
  readonly isOver: Promise<void>;
}

class Commit {
  #copiedBytes = 0;
  #zeroedBytes = 0;
  readonly #image: Qcow2File;
  readonly #base: Qcow2File | RawFile;
  /** How far the base is beneath the image. */
  readonly #depth: number;
  readonly #early = new EarlyFlush();
  /** Buffers that nobody uses. */
  readonly #buffers: Uint8Array[] = [];
  /** The piece that is read while another one is written. */
  #reading: Reading | undefined;

  constructor(image: Qcow2File, base: Qcow2File | RawFile, depth: number) {
    this.#image = image;
    this.#base = base;
    this.#depth = depth;
  }

  get result(): CommitResult {
    return { copiedBytes: this.#copiedBytes, zeroedBytes: this.#zeroedBytes };
  }

  /** How many bytes there are to bring, as far as was looked. */
  *count(): Generator<number> {
    let total = 0;
    for (const { length } of this.#extents()) yield total += length;
  }

  growBase(): void {
    const { size } = this.#image;
    if (this.#base.size < size) onDisk("base", "resize", size, () => this.#base.resize(size));
  }

  /** Brings everything to the base, piece by piece, and tells after each how much is there. */
  async *copy(): AsyncGenerator<number> {
    try {
      for (const extent of this.#extents()) {
        if (isZeroExtent(extent)) yield this.#zero(extent);
        else yield* this.#copyData(extent);
      }
      yield* this.#finish();
    } finally {
      // The image is at rest before anybody goes on.
      await this.#reading?.isOver.catch(() => {});
    }
  }

  #zero({ offset, length }: Extent): number {
    onDisk("base", "write", offset, () => this.#base.writeZeroesAt(offset, length, { unmap: true }));
    return this.#copiedBytes + (this.#zeroedBytes += length);
  }

  async *#copyData({ offset: start, length: extentLength }: Extent): AsyncGenerator<number> {
    for (let offset = start; offset < start + extentLength; offset += CHUNK_SIZE) {
      const length = Math.min(CHUNK_SIZE, start + extentLength - offset);
      const data = (this.#buffers.pop() ?? new Uint8Array(CHUNK_SIZE)).subarray(0, length);
      const isOver = this.#read(offset, data);
      isOver.catch(() => {});
      // What was read before is written meanwhile.
      const next = { offset, data, isOver };
      try {
        yield* this.#finish();
      } finally {
        this.#reading = next;
      }
    }
  }

  async #read(offset: number, data: Uint8Array): Promise<void> {
    try {
      if (data.length < MIN_AHEAD_LENGTH) this.#image.readAt(offset, data);
      else await readDiskAhead(this.#image, offset, data);
    } catch (error) {
      throw diskError("image", "read", offset, error);
    }
  }

  /** Writes what was read. */
  async *#finish(): AsyncGenerator<number> {
    const reading = this.#reading;
    if (reading === undefined) return;
    const { offset, data, isOver } = reading;
    await isOver;
    this.#reading = undefined;
    onDisk("base", "write", offset, () => this.#base.writeAt(offset, data));
    this.#buffers.push(new Uint8Array(data.buffer));
    this.#copiedBytes += data.length;
    this.#early.note(this.#base, data.length);
    yield this.#copiedBytes + this.#zeroedBytes;
  }

  /** What the image and those between it and the base have. */
  *#extents(): Generator<Extent> {
    const { size } = this.#image;
    for (let offset = 0; offset < size; offset += WINDOW_SIZE) {
      const length = Math.min(WINDOW_SIZE, size - offset);
      const extents = onDisk("image", "list", offset, () => [...this.#image.extents(offset, length)]);
      for (const extent of extents) if (comesFromAbove(extent, this.#depth)) yield extent;
    }
  }
}
