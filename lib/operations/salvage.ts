/**
 * Reads what can be read of a damaged disk.
 *
 * @module
 */

import type { Disk, Extent, ExtentOptions } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";

/** A part of a disk that could not be read. */
export interface DamagedSector {
  /** What was asked for: the content, or only whether there is any. */
  readonly asked: "content" | "extent";
  /** Where it begins on the disk, in bytes. */
  readonly offset: number;
  /** What the disk said. */
  readonly error: unknown;
}

/** The smallest part of a disk that is given up, in bytes. */
const SECTOR_SIZE = 512;

/**
 * A disk that can only be read, and whose damaged sectors read as zeroes.
 *
 * @example Usage
 * ```ts
 * import { Qcow2File, SalvagedDisk } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * using disk = Qcow2File.create(path, { size: 1 << 20 });
 * const offsets: number[] = [];
 * const salvaged = new SalvagedDisk(disk, ({ offset }) => offsets.push(offset));
 * salvaged.readAt(0, new Uint8Array(4096));
 * assertEquals(offsets, []);
 * disk.close();
 * Deno.removeSync(path);
 * ```
 */
export class SalvagedDisk implements Disk {
  /** The virtual size in bytes. */
  readonly size: number;
  /** The granularity in bytes in which the disk allocates. */
  readonly allocationSize: number;
  readonly #disk: Disk;
  readonly #onDamage: (sector: DamagedSector) => void;

  /**
   * Puts itself in front of a disk.
   *
   * @param disk The disk; it is closed with this one.
   * @param onDamage Called with each sector that cannot be read.
   */
  constructor(disk: Disk, onDamage: (sector: DamagedSector) => void = () => {}) {
    this.size = disk.size;
    this.allocationSize = disk.allocationSize;
    this.#disk = disk;
    this.#onDamage = onDamage;
  }

  /**
   * Reads, sector by sector where the range cannot be read at once.
   *
   * @param offset Where to begin, in bytes.
   * @param into What to fill.
   */
  readAt(offset: number, into: Uint8Array): void {
    try {
      this.#disk.readAt(offset, into);
      return;
    } catch (error) {
      if (into.length <= SECTOR_SIZE) {
        this.#onDamage({ asked: "content", offset, error });
        into.fill(0);
        return;
      }
    }
    for (let position = 0; position < into.length; position += SECTOR_SIZE) {
      this.readAt(offset + position, into.subarray(position, position + SECTOR_SIZE));
    }
  }

  /** Refuses to write. */
  writeAt(): never {
    throw new Qcow2Error("read-only", "A salvaged disk can only be read");
  }

  /** Refuses to write. */
  writeZeroesAt(): never {
    this.writeAt();
  }

  /** Refuses to write. */
  discardAt(): never {
    this.writeAt();
  }

  /**
   * The stretches that a range consists of. Of a damaged sector nothing is known, so that it counts as data.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes.
   * @param options What to look at.
   * @returns The extents in order, without gaps.
   */
  *extents(offset: number, length: number, options?: ExtentOptions): Generator<Extent> {
    const end = offset + length;
    for (let position = offset; position < end;) {
      try {
        for (const extent of this.#disk.extents(position, end - position, options)) {
          yield extent;
          position = extent.offset + extent.length;
        }
      } catch (error) {
        // Whether it is this sector or one behind it: a shorter question tells.
        const step = Math.min(SECTOR_SIZE, end - position);
        yield this.#extentOf(position, step, error);
        position += step;
      }
    }
  }

  #extentOf(offset: number, length: number, error: unknown): Extent {
    try {
      for (const extent of this.#disk.extents(offset, length)) return extent;
    } catch (reason) {
      error = reason;
    }
    this.#onDamage({ asked: "extent", offset, error });
    return { offset, length, kind: "data", depth: 0 };
  }

  /** Does nothing: there is nothing to make durable. */
  flush(): void {}

  /** Closes the disk. */
  close(): void {
    this.#disk.close();
  }

  /** Closes the disk, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}
