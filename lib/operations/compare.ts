/**
 * Compares the content of two disks.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { MIN_AHEAD_LENGTH, readDiskAhead } from "../image/read_ahead.ts";
import type { Progress } from "../metadata/steps.ts";
import { type BlockStatus, blockStatus } from "./block_status.ts";
import { diskError, onDisk } from "./disk_error.ts";
import { CHUNK_SIZE, differences } from "./sector_comparison.ts";
import { TimeSlice } from "./time_slice.ts";

/** How {@linkcode compare} compares. */
export interface CompareOptions {
  /**
   * Whether the disks must be alike in size and in what is allocated as well. Otherwise what one of them is longer must read as
   * zeroes, and nobody asks how zeroes come about.
   *
   * @default {false}
   */
  readonly strict?: boolean;
  /** Called after each piece of the disks, of which those that must be read are at most 2 MiB long. */
  readonly onProgress?: (progress: Progress) => void;
  /** Ends the operation early when it is aborted. */
  readonly signal?: AbortSignal;
}

/** What {@linkcode compare} found. */
export interface CompareResult {
  /** Whether the disks are alike. */
  readonly identical: boolean;
  /** Whether they are of different sizes. */
  readonly sizesDiffer: boolean;
  /** In what they differ first, where they are not alike: `size` and `allocation` only where that was strictly asked for. */
  readonly difference?: "size" | "allocation" | "content";
  /** Where they differ first, in bytes of the disk: for `content` the sector, for `allocation` where the stretch begins. */
  readonly offset?: number;
}

/**
 * Compares two disks. What both of them say to be zeroes, or say nothing of, is not read.
 *
 * The work is cut into slices, between which the event loop runs, so that a signal can end it.
 *
 * @param first A disk.
 * @param second Another one.
 * @param options How strict to be.
 * @returns Whether they are alike, and if not, where they differ first.
 * @throws {DiskError} Where one of them, the `first disk` or the `second disk`, cannot be read.
 * @throws {Qcow2Error} With code `aborted` where the signal says so.
 *
 * @example Usage
 * ```ts
 * import { compare, Qcow2File } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const folder = await Deno.makeTempDir();
 * using first = Qcow2File.create(`${folder}/first.qcow2`, { size: 1 << 20 });
 * using second = Qcow2File.create(`${folder}/second.qcow2`, { size: 1 << 20, clusterSize: 512 });
 * assertEquals(await compare(first, second), { identical: true, sizesDiffer: false });
 * second.writeAt(70_000, new Uint8Array([1]));
 * const { difference, offset } = await compare(first, second);
 * assertEquals([difference, offset], ["content", 69632]);
 * first.close();
 * second.close();
 * Deno.removeSync(folder, { recursive: true });
 * ```
 */
export async function compare(first: Disk, second: Disk, options: CompareOptions = {}): Promise<CompareResult> {
  const { strict = false, onProgress, signal } = options;
  const slice = new TimeSlice(signal);
  const sizesDiffer = first.size !== second.size;
  if (strict && sizesDiffer) return { identical: false, sizesDiffer, difference: "size" };
  const total = Math.max(first.size, second.size);
  const sides = [new Side(first, "first disk"), new Side(second, "second disk")] as const;
  const pieces = piecesOf(sides, total);
  let next = upcoming(pieces, sides[0]);
  try {
    for (;;) {
      const { piece, reading, fault } = next;
      if (fault !== undefined) throw fault.error;
      if (piece === undefined) return { identical: true, sizesDiffer };
      const { offset, length, isSameStatus } = piece;
      if (strict && !isSameStatus) return { identical: false, sizesDiffer, difference: "allocation", offset };
      // While this one is looked at, the next one is read.
      next = upcoming(pieces, sides[0]);
      const different = await firstDifference(sides, piece, reading);
      if (different !== undefined) return { identical: false, sizesDiffer, difference: "content", offset: different };
      onProgress?.({ done: offset + length, total });
      if (slice.isOver()) await slice.next();
    }
  } finally {
    // The disk is at rest before anybody goes on.
    await next.reading?.catch(() => {});
  }
}

/** A piece of both disks, of which each of them says one thing. */
interface Piece {
  readonly offset: number;
  readonly length: number;
  /** Which of the disks say that it is all zeroes. */
  readonly areZero: readonly [boolean, boolean];
  /** Whether both say the same of it. */
  readonly isSameStatus: boolean;
  /** Which buffers it is read into. */
  readonly turn: 0 | 1;
}

/** The piece that comes next, or none at the end. */
interface Upcoming {
  readonly piece?: Piece;
  /** Settled when the first disk is read, where that has begun. */
  readonly reading?: Promise<void>;
  /** What went wrong; it is told when it is its turn. */
  readonly fault?: { readonly error: unknown };
}

/** The pieces of both disks, in order. Those that must be read are at most a chunk long. */
function* piecesOf([first, second]: readonly [Side, Side], total: number): Generator<Piece, void, undefined> {
  let turn: Piece["turn"] = 0;
  for (let offset = 0; offset < total;) {
    const one = first.statusAt(offset);
    const other = second.statusAt(offset);
    const whole = Math.min(endOf(one), endOf(other)) - offset;
    const length = one.zero && other.zero ? whole : Math.min(whole, CHUNK_SIZE);
    yield { offset, length, areZero: [one.zero, other.zero], isSameStatus: isSameStatus(one, other), turn };
    offset += length;
    turn = turn === 0 ? 1 : 0;
  }
}

/** Goes on to the next piece, and begins to read it from the first disk where both must be read. */
function upcoming(pieces: Iterator<Piece, void, undefined>, first: Side): Upcoming {
  try {
    const step = pieces.next();
    if (step.done === true) return {};
    const piece = step.value;
    if (piece.areZero.includes(true) || piece.length < MIN_AHEAD_LENGTH) return { piece };
    const reading = first.readAhead(piece);
    // Nobody waits for it yet.
    reading.catch(() => {});
    return { piece, reading };
  } catch (error) {
    return { fault: { error } };
  }
}

/** Where the first of the bytes stands that differ, or nothing where all of them are the same. */
async function firstDifference(
  [first, second]: readonly [Side, Side],
  piece: Piece,
  reading: Promise<void> | undefined,
): Promise<number | undefined> {
  const [firstIsZero, secondIsZero] = piece.areZero;
  if (firstIsZero && secondIsZero) return undefined;
  try {
    if (!firstIsZero && reading === undefined) first.read(piece);
    if (!secondIsZero) second.read(piece);
  } finally {
    // The error of the first disk comes first.
    await reading;
  }
  const one = firstIsZero ? undefined : first.bytes(piece);
  const other = secondIsZero ? undefined : second.bytes(piece);
  const known = one ?? other;
  if (known === undefined) return undefined;
  for (const { start } of differences(known, known === one ? other : undefined)) return piece.offset + start;
  return undefined;
}

function isSameStatus(one: BlockStatus, other: BlockStatus): boolean {
  return one.zero === other.zero && one.data === other.data && one.allocated === other.allocated &&
    one.placed === other.placed &&
    one.last === other.last;
}

function endOf({ offset, length }: BlockStatus): number {
  return offset + length;
}

/** One of the disks, walked over from its beginning to its end. */
class Side {
  readonly #disk: Disk;
  readonly #name: string;
  readonly #pieces: Iterator<BlockStatus, void, undefined>;
  readonly #buffers = [new Uint8Array(CHUNK_SIZE), new Uint8Array(CHUNK_SIZE)] as const;
  #current: BlockStatus;

  constructor(disk: Disk, name: string) {
    this.#disk = disk;
    this.#name = name;
    this.#pieces = blockStatus(disk, 0, disk.size, { hostHoles: true })[Symbol.iterator]();
    this.#current = nothing(0, 0);
  }

  /** The piece that an offset lies in. Behind its end a disk counts as zeroes. */
  statusAt(offset: number): BlockStatus {
    while (offset >= endOf(this.#current)) {
      if (endOf(this.#current) >= this.#disk.size) {
        return nothing(offset, Infinity);
      }
      const next = onDisk(this.#name, "list", offset, () => this.#pieces.next());
      if (next.done !== true) this.#current = next.value;
    }
    return this.#current;
  }

  read(piece: Piece): void {
    const { offset } = piece;
    onDisk(this.#name, "read", offset, () => this.#disk.readAt(offset, this.bytes(piece)));
  }

  /** Reads while the caller goes on. */
  async readAhead(piece: Piece): Promise<void> {
    const { offset } = piece;
    try {
      await readDiskAhead(this.#disk, offset, this.bytes(piece));
    } catch (error) {
      throw diskError(this.#name, "read", offset, error);
    }
  }

  /** What was read of a piece. The next one has another buffer. */
  bytes({ length, turn }: Piece): Uint8Array {
    return this.#buffers[turn].subarray(0, length);
  }
}

/** A piece that nobody says anything of. */
function nothing(offset: number, length: number): BlockStatus {
  return {
    offset,
    length,
    kind: "unallocated",
    depth: 0,
    data: false,
    zero: true,
    allocated: false,
    placed: false,
    last: false,
  };
}
