/**
 * Compares the content of two disks.
 *
 * @module
 */

import type { Disk, HostBytes } from "../disk.ts";
import type { Progress } from "../metadata/steps.ts";
import { type BlockStatus, blockStatus } from "./block_status.ts";
import { PART_LENGTH } from "./comparison_jobs.ts";
import { ComparisonThread } from "./comparison_thread.ts";
import { onDisk } from "./disk_error.ts";
import { CHUNK_SIZE, differences } from "./sector_comparison.ts";
import { TimeSlice } from "./time_slice.ts";

/** As many are known ahead, every other one of which the thread compares meanwhile. */
const MAX_BEGUN_PIECES = 4;

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
  using thread = new ComparisonThread();
  const pieces = piecesOf(sides, total);
  const begun: BegunPiece[] = [];
  for (;;) {
    while (begun.length < MAX_BEGUN_PIECES && begun.at(-1)?.isLast !== true) begun.push(begin(pieces, sides, thread));
    const { piece, job, fault } = begun.shift() ?? {};
    if (fault !== undefined) throw fault.error;
    if (piece === undefined) return { identical: true, sizesDiffer };
    const { offset, length, isSameStatus } = piece;
    if (strict && !isSameStatus) return { identical: false, sizesDiffer, difference: "allocation", offset };
    const areSame = job !== undefined && thread.areSame(job);
    const different = areSame ? undefined : firstDifference(sides, piece);
    if (different !== undefined) return { identical: false, sizesDiffer, difference: "content", offset: different };
    onProgress?.({ done: offset + length, total });
    if (slice.isOver()) await slice.next();
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
}

/** A piece, or the end. */
interface BegunPiece {
  readonly piece?: Piece;
  /** What the thread is asked, where it compares it. */
  readonly job?: number | undefined;
  /** What went wrong; it is told when it is its turn. */
  readonly fault?: { readonly error: unknown };
  /** Whether nothing comes after it. */
  readonly isLast: boolean;
}

/** The pieces of both disks, in order. Those that must be read are at most a chunk long. */
function* piecesOf([first, second]: readonly [Side, Side], total: number): Generator<Piece, void, undefined> {
  for (let offset = 0; offset < total;) {
    const one = first.statusAt(offset);
    const other = second.statusAt(offset);
    const whole = Math.min(endOf(one), endOf(other)) - offset;
    const length = one.zero && other.zero ? whole : Math.min(whole, CHUNK_SIZE);
    yield { offset, length, areZero: [one.zero, other.zero], isSameStatus: isSameStatus(one, other) };
    offset += length;
  }
}

/** Goes on to the next piece. The thread gets every other one of those that it can compare. */
function begin(
  pieces: Iterator<Piece, void, undefined>,
  [first, second]: readonly [Side, Side],
  thread: ComparisonThread,
): BegunPiece {
  try {
    const step = pieces.next();
    if (step.done === true) return { isLast: true };
    const piece = step.value;
    if (piece.areZero.includes(true) || piece.offset / CHUNK_SIZE % 2 < 1) return { piece, isLast: false };
    const [one, other] = [first.hostBytes(piece), second.hostBytes(piece)];
    const job = one === undefined || other === undefined ? undefined : thread.begin(one, other);
    return { piece, job, isLast: false };
  } catch (error) {
    return { fault: { error }, isLast: true };
  }
}

/** Where the first of the bytes stands that differ, or nothing where all of them are the same. */
function firstDifference([first, second]: readonly [Side, Side], piece: Piece): number | undefined {
  const [firstIsZero, secondIsZero] = piece.areZero;
  if (firstIsZero && secondIsZero) return undefined;
  for (let done = 0; done < piece.length; done += PART_LENGTH) {
    const offset = piece.offset + done;
    const length = Math.min(PART_LENGTH, piece.length - done);
    const one = firstIsZero ? undefined : first.read(offset, length);
    const other = secondIsZero ? undefined : second.read(offset, length);
    const known = one ?? other;
    if (known === undefined) return undefined;
    for (const { start } of differences(known, known === one ? other : undefined)) return offset + start;
  }
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
  readonly #buffer = new Uint8Array(PART_LENGTH);
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

  /** Reads some bytes. The next ones take their place. */
  read(offset: number, length: number): Uint8Array {
    const bytes = this.#buffer.subarray(0, length);
    onDisk(this.#name, "read", offset, () => this.#disk.readAt(offset, bytes));
    return bytes;
  }

  /** Where all of a piece stands in a file as it is, if it does. */
  hostBytes({ offset, length }: Piece): HostBytes | undefined {
    const bytes = this.#disk.hostBytesAt?.(offset, length);
    return bytes?.length === length ? bytes : undefined;
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
