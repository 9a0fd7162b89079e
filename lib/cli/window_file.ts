/**
 * {@linkcode WindowFile}: a part of a file as a file of its own, for raw images with the options `offset` and `size`.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { alignUp } from "../format/geometry.ts";
import type { BlockFile, DataExtent } from "../storage/block_file.ts";

/** QEMU counts the length of a file in these. */
const SECTOR_SIZE = 512;

/** A part of a file, from an offset up to a size, or up to the end of the file and as far as that grows. */
export class WindowFile implements BlockFile {
  readonly #file: BlockFile;
  readonly #offset: number;
  readonly #fixedSize: number | undefined;

  /**
   * @param file The whole file; it is closed with this one.
   * @param offset Where the part begins, in bytes.
   * @param fixedSize How long the part is, in bytes; up to the end of the file without it.
   */
  constructor(file: BlockFile, offset: number, fixedSize: number | undefined) {
    this.#file = file;
    this.#offset = offset;
    this.#fixedSize = fixedSize;
  }

  /** The name of the whole file. */
  get name(): string {
    return this.#file.name;
  }

  /** Whether the file may be written. */
  get writable(): boolean {
    return this.#file.writable;
  }

  /** The length of the part in bytes; what the file does not have of its last sector counts as well. */
  get size(): number {
    return this.#fixedSize ?? Math.max(0, alignUp(this.#file.size, SECTOR_SIZE) - this.#offset);
  }

  /** How much room the whole file takes on the host, in bytes, where that can be told. */
  get allocatedSize(): number | undefined {
    return this.#file.allocatedSize;
  }

  /**
   * Reads from a position until the buffer is full or the part ends.
   *
   * @param offset Where to begin, in bytes.
   * @param into What to fill.
   * @returns How many bytes were read.
   */
  readAt(offset: number, into: Uint8Array): number {
    const length = Math.max(0, Math.min(into.length, this.size - offset));
    return this.#file.readAt(this.#offset + offset, into.subarray(0, length));
  }

  /**
   * Writes all bytes at a position.
   *
   * @param offset Where to begin, in bytes.
   * @param data What to write.
   * @throws {Qcow2Error} With code `no-space` where the part is fixed and ends before.
   */
  writeAt(offset: number, data: Uint8Array): void {
    this.#assertInside(offset + data.length);
    this.#file.writeAt(this.#offset + offset, data);
  }

  /**
   * Sets the length.
   *
   * @param size The new length in bytes.
   * @throws {Qcow2Error} With code `unsupported` where it is fixed.
   */
  truncate(size: number): void {
    if (this.#fixedSize !== undefined) throw new Qcow2Error("unsupported", "Cannot resize fixed-size raw disks");
    this.#file.truncate(this.#offset + size);
  }

  /** Makes everything that was written durable. */
  sync(): void {
    this.#file.sync();
  }

  /**
   * Gives the space of a range back to the host.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes.
   * @returns Whether the host did it.
   */
  punchHole(offset: number, length: number): boolean {
    this.#assertInside(offset + length);
    return this.#file.punchHole(this.#offset + offset, length);
  }

  /**
   * Reserves space for a range.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes.
   * @returns Whether the host did it.
   */
  preallocate(offset: number, length: number): boolean {
    this.#assertInside(offset + length);
    return this.#file.preallocate(this.#offset + offset, length);
  }

  /**
   * The stretches of a range that may hold anything but zeroes.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes.
   * @returns The stretches in ascending order.
   */
  *dataExtents(offset: number, length: number): Generator<DataExtent> {
    const inside = Math.max(0, Math.min(length, this.size - offset));
    for (const extent of this.#file.dataExtents(this.#offset + offset, inside)) {
      yield { offset: extent.offset - this.#offset, length: extent.length };
    }
  }

  /**
   * Keeps others away from the whole file until it is closed.
   *
   * @param exclusive Whether to keep readers away as well.
   * @returns Whether the lock was had.
   */
  tryLock(exclusive: boolean): boolean {
    return this.#file.tryLock(exclusive);
  }

  /** Closes the file. */
  close(): void {
    this.#file.close();
  }

  /** Closes the file, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  #assertInside(end: number): void {
    if (this.#fixedSize === undefined || end <= this.#fixedSize) return;
    throw new Qcow2Error("no-space", `Image ends at ${this.#fixedSize}, and has no room up to ${end}`, {
      found: end,
      expected: `at most ${this.#fixedSize}`,
    });
  }
}
