/**
 * Gives an image another backing file and keeps its content.
 *
 * @module
 */

import type { Disk, Extent } from "../disk.ts";
import type { Qcow2File } from "../image/qcow2_file.ts";
import { MIN_AHEAD_LENGTH, readDiskAhead } from "../image/read_ahead.ts";
import type { Progress } from "../metadata/steps.ts";
import { blockStatus, l2SliceSpan } from "./block_status.ts";
import { comesFromAbove, depthOf, isZeroExtent } from "./chain.ts";
import { diskError, onDisk } from "./disk_error.ts";
import { EarlyFlush } from "./early_flush.ts";
import { CHUNK_SIZE, differences } from "./sector_comparison.ts";
import { TimeSlice } from "./time_slice.ts";

/** The backing file that {@linkcode rebase} gives to an image. */
export interface NewBackingFile {
  /** Its name, as it shall stand in the image: relative to the image's folder, or absolute. */
  readonly name: string;
  /** Its format, such as `raw` or `qcow2`. */
  readonly format: string;
  /**
   * What it reads as. Where it is one of the disks that the image reads from already, only what was written above it is looked
   * at.
   */
  readonly disk: Disk;
}

/** How {@linkcode rebase} works. */
export interface RebaseOptions {
  /** Called after each piece of the disk that had to be compared, of at most 2 MiB. */
  readonly onProgress?: (progress: Progress) => void;
  /** Ends the operation early when it is aborted. The image keeps its backing file and its content then. */
  readonly signal?: AbortSignal;
}

/** What {@linkcode rebase} did. */
export interface RebaseResult {
  /** Bytes that were copied from the old backing file into the image. */
  readonly copiedBytes: number;
  /** Bytes that were made zero in the image, since the old backing file ends before them. */
  readonly zeroedBytes: number;
}

/**
 * Gives an image another backing file, or none, so that the disk reads as before: what the image has not of its own and what
 * differs between old and new backing file is copied into the image first.
 *
 * Until all of that is durable, the image names its old backing file. Whatever ends the operation early, a crash included, leaves the
 * content as it was. The work is cut into slices, between which the event loop runs, so that a signal can end it.
 *
 * Where both are known to read the same, {@linkcode Qcow2File.changeBackingFile} alone does.
 *
 * @param image The image, open for writing and with its old backing file. Until it is opened again it reads from that one.
 * @param backing The new backing file, or `undefined` for none.
 * @param options Whom to tell, and what ends it early.
 * @returns How much was copied.
 * @throws {DiskError} Where one of the disks fails: the `image`, the `old backing file` or the `new backing file`.
 * @throws {Qcow2Error} With code `aborted` where the signal says so, or as {@linkcode Qcow2File.changeBackingFile} does.
 *
 * @example Usage
 * ```ts
 * import { Qcow2File, RawFile, rebase } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const folder = await Deno.makeTempDir();
 * using base = RawFile.create(`${folder}/base.raw`, { size: 1 << 20 });
 * base.writeAt(0, new Uint8Array(65536).fill(7));
 * base.close();
 * {
 *   const path = `${folder}/disk.qcow2`;
 *   using disk = Qcow2File.create(path, { backingFile: "base.raw", backingFormat: "raw" });
 *   const { copiedBytes } = await rebase(disk, undefined);
 *   assertEquals(copiedBytes, 65536);
 * }
 * using alone = Qcow2File.open(`${folder}/disk.qcow2`);
 * assertEquals(alone.header.backingFile, undefined);
 * alone.close();
 * Deno.removeSync(folder, { recursive: true });
 * ```
 */
export async function rebase(
  image: Qcow2File,
  backing: NewBackingFile | undefined,
  options: RebaseOptions = {},
): Promise<RebaseResult> {
  const { onProgress, signal } = options;
  const slice = new TimeSlice(signal);
  const total = image.size;
  const work = new Rebase(image, backing?.disk);
  try {
    for (let piece = total > 0 ? work.begin(0) : undefined; piece !== undefined;) {
      const { mayDiffer, offset, length } = piece;
      const end = offset + length;
      // While this one is written, the next one is read, unless this one changes what is said of it.
      const ahead = end < total && end % image.allocationSize === 0 ? work.begin(end) : undefined;
      if (mayDiffer) {
        await work.copyDifferences(piece);
        onProgress?.({ done: end, total });
      }
      piece = ahead ?? (end < total ? work.begin(end) : undefined);
      if (slice.isOver()) await slice.next();
    }
  } finally {
    await work.settled();
  }
  image.changeBackingFile(backing?.name, backing?.format);
  return work.result;
}

/** A piece of the disk. */
interface Piece {
  readonly offset: number;
  readonly length: number;
  /** Whether the image reads it from the old backing file, which may hold something else there than the new one. */
  readonly mayDiffer: boolean;
  /** Whether the old backing file says that it is all zeroes. */
  readonly oldIsZero: boolean;
}

/** A piece of which the old backing file is being read already, where that is worth it. */
interface BegunPiece extends Piece {
  /** What the old backing file has there goes here. */
  readonly oldBytes: Uint8Array;
  /** Settled when it is read, where that has begun. */
  readonly reading: Promise<void> | undefined;
}

class Rebase {
  #copiedBytes = 0;
  #zeroedBytes = 0;
  readonly #early = new EarlyFlush();
  readonly #image: Qcow2File;
  readonly #old: Disk | undefined;
  readonly #new: Disk | undefined;
  /** How far below the image the new backing file is already; infinitely far where it is not. */
  readonly #newDepth: number;
  readonly #sliceSpan: number;
  /** For the piece at hand and the one after it, in turn. */
  #oldBuffers = [new Uint8Array(CHUNK_SIZE), new Uint8Array(CHUNK_SIZE)] as const;
  #lastReading: Promise<void> | undefined;
  readonly #newBuffer = new Uint8Array(CHUNK_SIZE);

  constructor(image: Qcow2File, newDisk: Disk | undefined) {
    this.#image = image;
    this.#old = image.backing;
    this.#new = newDisk;
    this.#newDepth = depthOf(image, newDisk);
    this.#sliceSpan = l2SliceSpan(image);
  }

  get result(): RebaseResult {
    return { copiedBytes: this.#copiedBytes, zeroedBytes: this.#zeroedBytes };
  }

  /** The piece that begins at an offset. The one before it may be at work still. */
  begin(offset: number): BegunPiece {
    const piece = this.#pieceAt(offset);
    const [buffer, other] = this.#oldBuffers;
    this.#oldBuffers = [other, buffer];
    const oldBytes = buffer.subarray(0, piece.length);
    const old = this.#old;
    if (old === undefined || !piece.mayDiffer || piece.oldIsZero || piece.length < MIN_AHEAD_LENGTH) {
      return { ...piece, oldBytes, reading: undefined };
    }
    const reading = readDiskAhead(old, offset, oldBytes);
    // Nobody waits for it yet.
    this.#lastReading = reading.catch(() => {});
    return { ...piece, oldBytes, reading };
  }

  /** Waits until nothing is read any more. */
  async settled(): Promise<void> {
    await this.#lastReading;
  }

  /** The piece that begins at an offset: at most a chunk, within what QEMU looks at once, and not across the end of a disk. */
  #pieceAt(offset: number): Piece {
    const ends = [offset + CHUNK_SIZE, offset - offset % this.#sliceSpan + this.#sliceSpan, this.#image.size];
    for (const size of [sizeOf(this.#old), sizeOf(this.#new)]) if (size > offset) ends.push(size);
    return onDisk("image", "list", offset, () => {
      let mayDiffer: boolean | undefined;
      let oldIsZero = true;
      let end = offset;
      const length = Math.min(...ends) - offset;
      const isBeneath = this.#newDepth !== Infinity;
      for (const extent of isBeneath ? blockStatus(this.#image, offset, length) : this.#image.extents(offset, length)) {
        const differs = this.#mayDiffer(extent);
        // Where the new backing file is beneath already, QEMU asks all images above it, each time anew.
        if (mayDiffer !== undefined && (isBeneath || differs !== mayDiffer)) break;
        mayDiffer = differs;
        oldIsZero &&= isZeroExtent(extent);
        end = extent.offset + extent.length;
      }
      return { offset, length: end - offset, mayDiffer: mayDiffer ?? false, oldIsZero };
    });
  }

  /** Brings the sectors of a piece that differ from the old backing file to the image. */
  async copyDifferences(piece: BegunPiece): Promise<void> {
    const { offset, length, oldIsZero, oldBytes, reading } = piece;
    if (oldIsZero && this.#newIsZero(piece)) return;
    const newBytes = this.#newBuffer.subarray(0, length);
    if (oldIsZero) oldBytes.fill(0);
    else if (reading === undefined) {
      onDisk("old backing file", "read", offset, () => this.#old?.readAt(offset, oldBytes));
    } else {
      try {
        await reading;
      } catch (error) {
        throw diskError("old backing file", "read", offset, error);
      }
    }
    if (offset >= sizeOf(this.#new)) newBytes.fill(0);
    else onDisk("new backing file", "read", offset, () => this.#new?.readAt(offset, newBytes));
    const isBehindOld = offset >= sizeOf(this.#old);
    for (const { start, end } of differences(oldBytes, newBytes)) {
      onDisk("image", "write", offset + start, () => {
        if (isBehindOld) this.#zero(offset + start, offset + end);
        else this.#copy(offset + start, oldBytes.subarray(start, end));
      });
    }
  }

  #copy(offset: number, bytes: Uint8Array): void {
    this.#image.writeAt(offset, bytes);
    this.#copiedBytes += bytes.length;
    this.#early.note(this.#image, bytes.length);
  }

  #zero(offset: number, end: number): void {
    this.#image.writeZeroesAt(offset, end - offset, { explicit: true });
    this.#zeroedBytes += end - offset;
  }

  #newIsZero({ offset, length }: Piece): boolean {
    if (offset >= sizeOf(this.#new)) return true;
    return onDisk(
      "new backing file",
      "list",
      offset,
      () => [...this.#new?.extents(offset, length) ?? []].every(isZeroExtent),
    );
  }

  /** Whether the image reads a stretch from above the new backing file, and not from a cluster of its own. */
  #mayDiffer(extent: Pick<Extent, "depth" | "kind">): boolean {
    return (extent.depth > 0 || extent.kind === "unallocated") && comesFromAbove(extent, this.#newDepth);
  }
}

function sizeOf(disk: Disk | undefined): number {
  return disk?.size ?? 0;
}
