/**
 * Compares the content of two disks.
 *
 * @module
 */

import type { Disk, ExtentOptions } from "../disk.ts";
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
  // What the host has no bytes for is allocated all the same.
  const extents = { hostHoles: !strict };
  const sides = [new Side(first, "first disk", extents), new Side(second, "second disk", extents)] as const;
  for (let offset = 0; offset < total;) {
    const one = sides[0].statusAt(offset);
    const other = sides[1].statusAt(offset);
    if (strict && !isSameStatus(one, other)) return { identical: false, sizesDiffer, difference: "allocation", offset };
    let length = Math.min(endOf(one), endOf(other)) - offset;
    if (!one.zero || !other.zero) {
      length = Math.min(length, CHUNK_SIZE);
      const areBothRead = !one.zero && !other.zero;
      if (areBothRead && length >= MIN_AHEAD_LENGTH) await readBoth(sides, offset, length);
      else for (const side of sides) if (!side.isZeroAt(offset)) side.read(offset, length);
      const different = firstDifference(sides, offset, length);
      if (different !== undefined) return { identical: false, sizesDiffer, difference: "content", offset: different };
    }
    offset += length;
    onProgress?.({ done: offset, total });
    if (slice.isOver()) await slice.next();
  }
  return { identical: true, sizesDiffer };
}

/** Reads from both disks at the same time. */
async function readBoth([first, second]: readonly [Side, Side], offset: number, length: number): Promise<void> {
  const ahead = first.readAhead(offset, length);
  // Nobody waits for it yet; its error comes first nevertheless.
  ahead.catch(() => {});
  try {
    second.read(offset, length);
  } finally {
    await ahead;
  }
}

/** Where the first of the bytes stands that differ, or nothing where all of them are the same. */
function firstDifference(sides: readonly [Side, Side], offset: number, length: number): number | undefined {
  const [one, other] = sides.map((side) => side.isZeroAt(offset) ? undefined : side.bytes(length));
  const known = one ?? other;
  if (known === undefined) return undefined;
  for (const { start } of differences(known, known === one ? other : undefined)) return offset + start;
  return undefined;
}

function isSameStatus(one: BlockStatus, other: BlockStatus): boolean {
  return one.zero === other.zero && one.allocated === other.allocated && one.placed === other.placed &&
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
  readonly #buffer = new Uint8Array(CHUNK_SIZE);
  #current: BlockStatus;

  constructor(disk: Disk, name: string, options: ExtentOptions) {
    this.#disk = disk;
    this.#name = name;
    this.#pieces = blockStatus(disk, 0, disk.size, options)[Symbol.iterator]();
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

  isZeroAt(offset: number): boolean {
    return this.statusAt(offset).zero;
  }

  read(offset: number, length: number): void {
    onDisk(this.#name, "read", offset, () => this.#disk.readAt(offset, this.bytes(length)));
  }

  /** Reads while the caller goes on. */
  async readAhead(offset: number, length: number): Promise<void> {
    try {
      await readDiskAhead(this.#disk, offset, this.bytes(length));
    } catch (error) {
      throw diskError(this.#name, "read", offset, error);
    }
  }

  /** What was read. */
  bytes(length: number): Uint8Array {
    return this.#buffer.subarray(0, length);
  }
}

/** A piece that nobody says anything of. */
function nothing(offset: number, length: number): BlockStatus {
  return { offset, length, kind: "unallocated", depth: 0, zero: true, allocated: false, placed: false, last: false };
}
