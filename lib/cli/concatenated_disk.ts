/**
 * {@linkcode ConcatenatedDisk}: several disks, one behind the other, as one to read.
 *
 * @module
 */

import type { Decompressor, Disk, Extent, ExtentOptions, HostBytes } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { allRead, readDiskAhead } from "../image/read_ahead.ts";

/** Several disks, one behind the other, as one that can only be read. */
export class ConcatenatedDisk implements Disk {
  /** The virtual size in bytes. */
  readonly size: number;
  /** The largest unit of the disks in bytes. */
  readonly allocationSize: number;
  readonly #parts: readonly { readonly disk: Disk; readonly start: number }[];

  /** @param disks The disks in order; they are closed with this one. */
  constructor(disks: readonly Disk[]) {
    let size = 0;
    this.#parts = disks.map((disk) => {
      const start = size;
      size += disk.size;
      return { disk, start };
    });
    this.size = size;
    this.allocationSize = Math.max(...disks.map(({ allocationSize }) => allocationSize));
  }

  /**
   * Fills a buffer from the disks.
   *
   * @param offset Where to begin, in bytes.
   * @param into What to fill.
   */
  readAt(offset: number, into: Uint8Array): void {
    for (const { disk, start, from, to } of this.#within(offset, into.length)) {
      disk.readAt(from - start, into.subarray(from - offset, to - offset));
    }
  }

  /**
   * Fills a buffer from the disks while the caller goes on.
   *
   * @param offset Where to begin, in bytes.
   * @param into What to fill; to be left alone until the promise is settled.
   * @param decompressor Who decompresses clusters; the thread of the caller without it.
   */
  async readAhead(offset: number, into: Uint8Array, decompressor?: Decompressor): Promise<void> {
    const parts = [...this.#within(offset, into.length)];
    await allRead(parts.map(({ disk, start, from, to }) => {
      return readDiskAhead(disk, from - start, into.subarray(from - offset, to - offset), decompressor);
    }));
  }

  /**
   * Where the host has bytes as they are.
   *
   * @param offset Where to begin, in bytes.
   * @param length How many are of interest at most, in bytes.
   * @returns The bytes, or undefined where the first of them stands nowhere as it is.
   */
  hostBytesAt(offset: number, length: number): HostBytes | undefined {
    for (const { disk, start, from, to } of this.#within(offset, length)) {
      return disk.hostBytesAt?.(from - start, to - from);
    }
    return undefined;
  }

  /** Refuses to write. */
  writeAt(): never {
    throw new Qcow2Error("read-only", "Concatenated images can only be read");
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
   * The stretches that a range consists of.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes.
   * @param options What to look at.
   * @returns The extents in order, without gaps.
   */
  *extents(offset: number, length: number, options?: ExtentOptions): Generator<Extent> {
    for (const { disk, start, from, to } of this.#within(offset, length)) {
      for (const extent of disk.extents(from - start, to - from, options)) {
        yield { ...extent, offset: extent.offset + start };
      }
    }
  }

  /** Does nothing: there is nothing to make durable. */
  flush(): void {}

  /** Closes all disks. */
  close(): void {
    for (const { disk } of this.#parts) disk.close();
  }

  /** Closes all disks, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** The disks that a range touches, with the part of the range that each of them has. */
  *#within(offset: number, length: number): Generator<{ disk: Disk; start: number; from: number; to: number }> {
    for (const { disk, start } of this.#parts) {
      const from = Math.max(offset, start);
      const to = Math.min(offset + length, start + disk.size);
      if (from < to) yield { disk, start, from, to };
    }
  }
}
