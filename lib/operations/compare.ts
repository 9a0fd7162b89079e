/**
 * Compares the content of two disks.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { type BlockStatus, blockStatus } from "./block_status.ts";
import type { Progress } from "./convert.ts";
import { onDisk } from "./disk_error.ts";
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
  for (let offset = 0; offset < total;) {
    const one = sides[0].statusAt(offset);
    const other = sides[1].statusAt(offset);
    if (strict && !isSameStatus(one, other)) return { identical: false, sizesDiffer, difference: "allocation", offset };
    let length = Math.min(endOf(one), endOf(other)) - offset;
    if (!one.zero || !other.zero) {
      length = Math.min(length, CHUNK_SIZE);
      const different = firstDifference(sides, [one, other], offset, length);
      if (different !== undefined) return { identical: false, sizesDiffer, difference: "content", offset: different };
    }
    offset += length;
    onProgress?.({ done: offset, total });
    if (slice.isOver()) await slice.next();
  }
  return { identical: true, sizesDiffer };
}

/** Where a piece begins that differs, or nothing where all of it is the same. */
function firstDifference(
  sides: readonly [Side, Side],
  statuses: readonly [BlockStatus, BlockStatus],
  offset: number,
  length: number,
): number | undefined {
  const [one, other] = sides.map((side, index) => statuses[index]?.zero ? undefined : side.read(offset, length));
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

  constructor(disk: Disk, name: string) {
    this.#disk = disk;
    this.#name = name;
    this.#pieces = blockStatus(disk)[Symbol.iterator]();
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

  /** Bytes of the disk, until the next call. */
  read(offset: number, length: number): Uint8Array {
    const bytes = this.#buffer.subarray(0, length);
    onDisk(this.#name, "read", offset, () => this.#disk.readAt(offset, bytes));
    return bytes;
  }
}

/** A piece that nobody says anything of. */
function nothing(offset: number, length: number): BlockStatus {
  return { offset, length, kind: "unallocated", depth: 0, zero: true, allocated: false, placed: false, last: false };
}
