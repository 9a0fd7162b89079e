/**
 * How the content of one disk gets to another: in which pieces it is read, how far ahead, and what becomes of each.
 *
 * @module
 */

import type { Disk, Extent } from "../disk.ts";
import { alignDown, alignUp } from "../format/geometry.ts";
import { isAllZero } from "../format/zeroes.ts";
import { MAX_JOB_LENGTH } from "../image/cluster_jobs.ts";
import type { ClusterThreads } from "../image/cluster_threads.ts";
import { MIN_AHEAD_LENGTH, readDiskAhead } from "../image/read_ahead.ts";
import { isZeroExtent } from "./chain.ts";
import type { CompressibleDisk } from "./compressible_disk.ts";
import { EarlyFlush } from "./early_flush.ts";
import type { RateLimit } from "./rate_limit.ts";
import type { TimeSlice } from "./time_slice.ts";

/** How much is read at once, in bytes: a read on another thread costs a turn of the event loop, however long it is. */
const CHUNK_SIZE = 4 * 1024 * 1024;
/** How many pieces are under way at least: while one is written, the next is read. */
const MIN_PIECES_AHEAD = 2;

/** How {@linkcode DiskCopy} copies. */
export interface DiskCopyOptions {
  /** How many zero bytes in a row become a hole; 0 for no holes. */
  readonly sparseSize: number;
  /** Whether holes of the target need nothing. */
  readonly targetIsZero: boolean;
  /** Whether to leave out what the source has from its backing file. */
  readonly skipBacking: boolean;
  /** The target, where it is written compressed. */
  readonly compressedTarget: CompressibleDisk | undefined;
  /** Whether to let the host copy what it can. */
  readonly withinHost: boolean;
  /** Who compresses and decompresses. */
  readonly threads: ClusterThreads;
  /** Gives way to the event loop. */
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

/** A part of a piece that is all zeroes, or not. */
interface Stretch {
  readonly start: number;
  readonly end: number;
  readonly isZero: boolean;
}

/** Memory for a piece; it is shared where threads have to do with it. */
interface Buffers {
  /** Its bytes. */
  readonly data: Uint8Array;
  /** What they are compressed to, where they are compressed. */
  readonly compressed: Uint8Array | undefined;
}

/** A piece of the source that is on its way to the target. */
interface Piece extends Buffers {
  readonly offset: number;
  readonly length: number;
  /** Settled when it can be written: with what its clusters were compressed to, by their index, where they are compressed. */
  readonly isReady: Promise<(Uint8Array | undefined)[] | undefined>;
}

/** Copies one disk to another, once. */
export class DiskCopy {
  #dataBytes = 0;
  #zeroBytes = 0;
  readonly #early = new EarlyFlush();
  readonly #source: Disk;
  readonly #target: Disk;
  readonly #options: DiskCopyOptions;
  /**
   * The unit in which the target is written: what it allocates at once, or more where fewer zeroes do not count. What is compressed
   * goes by clusters.
   */
  readonly #unit: number;
  readonly #chunkSize: number;
  /** What is under way, in order. */
  readonly #pieces: Piece[] = [];
  /** Buffers that nobody uses. */
  readonly #buffers: Buffers[] = [];
  /** Whether there is something to compress or decompress. */
  #usesThreads = false;
  /** How many pieces may be under way. */
  #maxPieces = MIN_PIECES_AHEAD;

  /**
   * @param source Where to read.
   * @param target Where to write.
   * @param options How to copy.
   */
  constructor(source: Disk, target: Disk, options: DiskCopyOptions) {
    this.#source = source;
    this.#target = target;
    this.#options = options;
    const { allocationSize } = target;
    const goesByClusters = options.compressedTarget !== undefined;
    this.#unit = goesByClusters
      ? allocationSize
      : alignUp(Math.max(options.sparseSize, allocationSize), allocationSize);
    this.#chunkSize = alignUp(CHUNK_SIZE, this.#unit);
    if (options.compressedTarget !== undefined) this.#keepThreadsBusy();
  }

  /** Bytes that were written as data so far. */
  get dataBytes(): number {
    return this.#dataBytes;
  }

  /** Bytes that were left, or made, a hole so far. */
  get zeroBytes(): number {
    return this.#zeroBytes;
  }

  /**
   * Copies everything.
   *
   * @param onProgress Called now and then with how far the disk is copied.
   */
  async run(onProgress: (done: number) => void): Promise<void> {
    const { slice } = this.#options;
    try {
      for (const step of this.#steps()) {
        if (step.kind === "hole") this.#leaveHole(step.offset, step.length);
        else if (step.kind === "copy") await this.#copy(step);
        if (!slice.isOver()) continue;
        onProgress(this.#pieces[0]?.offset ?? step.offset + step.length);
        await slice.next();
      }
      await this.#finish(0);
    } finally {
      // The source is at rest, and no error of it left alone, before anybody goes on.
      await Promise.allSettled(this.#pieces.map(({ isReady }) => isReady));
    }
  }

  async #copy({ kind, offset, length }: Step): Promise<void> {
    const { limit, withinHost } = this.#options;
    const copied = withinHost ? this.#copyWithinHost(offset, length) : 0;
    const rest: Step = { kind, offset: offset + copied, length: length - copied };
    if (rest.length > 0 && this.#isWorthWaiting(rest)) return await this.#begin(rest);
    if (rest.length > 0) {
      if (this.#pieces.length > 0) await this.#finish(0);
      this.#copyNow(rest);
    }
    if (limit !== undefined) await this.#pace(limit);
  }

  /** Lets the host copy a stretch, as far as it can, and returns how far that was. */
  #copyWithinHost(offset: number, length: number): number {
    for (let done = 0; done < length;) {
      const bytes = this.#source.hostBytesAt?.(offset + done, length - done);
      const copied = bytes === undefined ? 0 : this.#target.copyAt?.(offset + done, bytes) ?? 0;
      this.#dataBytes += copied;
      this.#early.note(this.#target, copied);
      done += copied;
      if (copied === 0 || copied !== bytes?.length) return done;
    }
    return length;
  }

  /**
   * Cuts the source into stretches, in order. Where the target can only be written in whole units, one that is not all hole, or not
   * all to be left out, is copied.
   */
  *#steps(): Generator<Step> {
    const { size } = this.#source;
    const unit = this.#options.compressedTarget === undefined ? 1 : this.#unit;
    let position = 0;
    for (const extent of this.#source.extents(0, size, { hostHoles: true })) {
      if (extent.kind === "compressed") this.#keepThreadsBusy();
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

  #kindOf(extent: Extent): Step["kind"] {
    const { skipBacking, sparseSize } = this.#options;
    if (skipBacking && extent.depth > 0) return "skip";
    return sparseSize > 0 && isZeroExtent(extent) ? "hole" : "copy";
  }

  *#chunks(from: number, to: number): Generator<Step> {
    for (let offset = from; offset < to;) {
      const length = Math.min(to - offset, this.#chunkSize - offset % this.#chunkSize);
      yield { kind: "copy", offset, length };
      offset += length;
    }
  }

  /** From now on so much is under way that each thread has a job, and another one waits for it. */
  #keepThreadsBusy(): void {
    if (this.#usesThreads) return;
    this.#usesThreads = true;
    const jobsOfPiece = Math.max(1, Math.floor(this.#chunkSize / MAX_JOB_LENGTH));
    this.#maxPieces = MIN_PIECES_AHEAD + Math.ceil(this.#options.threads.count / jobsOfPiece);
    this.#buffers.length = 0;
  }

  #isWorthWaiting({ length }: Step): boolean {
    return length >= MIN_AHEAD_LENGTH || this.#usesThreads;
  }

  /** Begins to read a piece. It is written when others have been begun after it. */
  async #begin({ offset, length }: Step): Promise<void> {
    await this.#finish(this.#maxPieces - 1);
    const buffers = this.#buffers.pop() ?? this.#newBuffers();
    const isReady = this.#prepare(offset, length, buffers);
    // It may fail before its turn comes; whoever waits for it then hears of that.
    isReady.catch(() => {});
    this.#pieces.push({ ...buffers, offset, length, isReady });
  }

  #newBuffers(): Buffers {
    // Memory that is shared costs the runtime some microseconds more for each call.
    const newBuffer = (): Uint8Array => {
      const length = this.#chunkSize;
      return new Uint8Array(this.#usesThreads ? new SharedArrayBuffer(length) : new ArrayBuffer(length));
    };
    return { data: newBuffer(), compressed: this.#options.compressedTarget === undefined ? undefined : newBuffer() };
  }

  async #prepare(
    offset: number,
    length: number,
    buffers: Buffers,
  ): Promise<(Uint8Array | undefined)[] | undefined> {
    const { threads, compressedTarget } = this.#options;
    const data = buffers.data.subarray(0, length);
    await readDiskAhead(this.#source, offset, data, threads);
    const into = buffers.compressed;
    if (compressedTarget === undefined || into === undefined) return undefined;
    const { compressionType: type, allocationSize: clusterSize } = compressedTarget;
    const positions: number[] = [];
    for (const { start, end, isZero } of this.#stretches(offset, data)) {
      for (let position = start; !isZero && position < end; position += clusterSize) positions.push(position);
    }
    const lengths = await threads.compress({ type, clusterSize, data, positions, into });
    const compressed: (Uint8Array | undefined)[] = [];
    positions.forEach((position, index) => {
      const count = lengths[index] ?? 0;
      compressed[position / clusterSize] = count === 0 ? undefined : into.subarray(position, position + count);
    });
    return compressed;
  }

  #copyNow({ offset, length }: Step): void {
    const buffers = this.#buffers[0] ??= this.#newBuffers();
    const data = buffers.data.subarray(0, length);
    this.#source.readAt(offset, data);
    this.#write(offset, data);
  }

  /** Writes what was begun first, until no more than so many are left. */
  async #finish(left: number): Promise<void> {
    for (let first = this.#pieces[0]; first !== undefined && this.#pieces.length > left; first = this.#pieces[0]) {
      const compressed = await first.isReady;
      this.#pieces.shift();
      this.#write(first.offset, first.data.subarray(0, first.length), compressed);
      const isShared = first.data.buffer instanceof SharedArrayBuffer;
      if (isShared === this.#usesThreads) this.#buffers.push({ data: first.data, compressed: first.compressed });
      if (this.#options.limit !== undefined) await this.#pace(this.#options.limit);
    }
  }

  async #pace(limit: RateLimit): Promise<void> {
    while (await limit.wait(this.#dataBytes)) await this.#options.slice.next();
  }

  #write(offset: number, data: Uint8Array, compressed?: readonly (Uint8Array | undefined)[]): void {
    const { compressedTarget } = this.#options;
    for (const { start, end, isZero } of this.#stretches(offset, data)) {
      if (isZero) {
        this.#leaveHole(offset + start, end - start);
        continue;
      }
      const bytes = start === 0 && end === data.length ? data : data.subarray(start, end);
      if (compressedTarget === undefined) this.#target.writeAt(offset + start, bytes);
      else {
        const { allocationSize: clusterSize } = compressedTarget;
        const first = start / clusterSize;
        const clusters = compressed?.slice(first, first + Math.ceil((end - start) / clusterSize));
        compressedTarget.writeCompressedAt(offset + start, bytes, clusters);
      }
      this.#dataBytes += bytes.length;
      this.#early.note(this.#target, bytes.length);
    }
  }

  /** Cuts a piece at multiples of the unit in which the target allocates, where zeroes begin or end. */
  #stretches(offset: number, data: Uint8Array): Stretch[] {
    if (this.#options.sparseSize === 0) return [{ start: 0, end: data.length, isZero: false }];
    const stretches: Stretch[] = [];
    let start = 0;
    let startIsZero: boolean | undefined;
    let next = 0;
    for (let position = 0; position < data.length; position = next) {
      next = Math.min(data.length, position === 0 ? this.#unit - offset % this.#unit : position + this.#unit);
      const isZero = data[position] === 0 && isAllZero(data, position, next);
      if (startIsZero !== undefined && isZero !== startIsZero) {
        stretches.push({ start, end: position, isZero: startIsZero });
        start = position;
      }
      startIsZero = isZero;
    }
    if (startIsZero !== undefined) stretches.push({ start, end: data.length, isZero: startIsZero });
    return stretches;
  }

  #leaveHole(offset: number, length: number): void {
    if (!this.#options.targetIsZero) this.#target.writeZeroesAt(offset, length, { unmap: true });
    this.#zeroBytes += length;
  }
}
