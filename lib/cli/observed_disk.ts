/**
 * {@linkcode ObservedDisk}: a disk that tells what is done to it, and says of its errors where they happened.
 *
 * @module
 */

import type { Disk, Extent, ExtentOptions, WriteZeroesOptions } from "../disk.ts";
import { readDiskAhead } from "../image/read_ahead.ts";
import { isCompressible } from "../operations/convert.ts";
import { CliError, ioError } from "./errors.ts";

/** A disk with somebody who watches. */
export class ObservedDisk implements Disk {
  readonly #disk: Disk;
  readonly #onMoved: (length: number) => void;
  /** Settled when the last read that was begun is over. */
  #lastRead: Promise<void> = Promise.resolve();

  /**
   * @param disk The disk; it is closed with this one.
   * @param onMoved Called with the length in bytes of whatever was read or written.
   */
  constructor(disk: Disk, onMoved: (length: number) => void = () => {}) {
    this.#disk = disk;
    this.#onMoved = onMoved;
  }

  /** The virtual size in bytes. */
  get size(): number {
    return this.#disk.size;
  }

  /** The granularity in bytes in which the disk allocates. */
  get allocationSize(): number {
    return this.#disk.allocationSize;
  }

  /**
   * Reads.
   *
   * @param offset Where to begin, in bytes.
   * @param into What to fill.
   * @throws {CliError} Where the disk fails.
   */
  readAt(offset: number, into: Uint8Array): void {
    locating("reading", offset, () => this.#disk.readAt(offset, into));
    this.#onMoved(into.length);
  }

  /**
   * Reads while the caller goes on.
   *
   * @param offset Where to begin, in bytes.
   * @param into What to fill; to be left alone until the promise is settled.
   * @throws {CliError} Where the disk fails.
   */
  readAhead(offset: number, into: Uint8Array): Promise<void> {
    const reading = this.#readAhead(offset, into, this.#lastRead);
    this.#lastRead = reading.catch(() => {});
    return reading;
  }

  async #readAhead(offset: number, into: Uint8Array, earlier: Promise<void>): Promise<void> {
    try {
      await readDiskAhead(this.#disk, offset, into);
    } catch (error) {
      throw locatedError("reading", offset, error);
    }
    // Who watches is told of reads in the order in which they were asked for.
    await earlier;
    this.#onMoved(into.length);
  }

  /**
   * Writes.
   *
   * @param offset Where to begin, in bytes.
   * @param data What to write.
   * @throws {CliError} Where the disk fails.
   */
  writeAt(offset: number, data: Uint8Array): void {
    locating("writing", offset, () => this.#disk.writeAt(offset, data));
    this.#onMoved(data.length);
  }

  /**
   * Writes compressed.
   *
   * @param offset Where to begin, in bytes.
   * @param data What to write.
   * @throws {CliError} Where the disk fails, or cannot be written compressed.
   */
  writeCompressedAt(offset: number, data: Uint8Array): void {
    const disk = this.#disk;
    if (!isCompressible(disk)) throw new CliError("Compression not supported for this file format");
    locating("writing", offset, () => disk.writeCompressedAt(offset, data));
    this.#onMoved(data.length);
  }

  /**
   * Makes a range read as zeroes.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes.
   * @param options Whether space may be given back.
   * @throws {CliError} Where the disk fails.
   */
  writeZeroesAt(offset: number, length: number, options?: WriteZeroesOptions): void {
    locating("writing", offset, () => this.#disk.writeZeroesAt(offset, length, options));
  }

  /**
   * Gives a range back.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes.
   */
  discardAt(offset: number, length: number): void {
    this.#disk.discardAt(offset, length);
  }

  /**
   * The stretches that a range consists of.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes.
   * @param options What to look at.
   * @returns The extents in order, without gaps.
   * @throws {CliError} Where the disk fails.
   */
  *extents(offset: number, length: number, options?: ExtentOptions): Generator<Extent> {
    const extents = this.#disk.extents(offset, length, options)[Symbol.iterator]();
    for (let position = offset;;) {
      const next = locating("reading block status", position, () => extents.next());
      if (next.done === true) return;
      yield next.value;
      position = next.value.offset + next.value.length;
    }
  }

  /** Makes everything durable. */
  flush(): void {
    this.#disk.flush();
  }

  /** Closes the disk. */
  close(): void {
    this.#disk.close();
  }

  /** Closes the disk, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

function locating<T>(doing: string, offset: number, act: () => T): T {
  try {
    return act();
  } catch (error) {
    throw locatedError(doing, offset, error);
  }
}

function locatedError(doing: string, offset: number, error: unknown): CliError {
  const unit = doing === "reading block status" ? "offset" : "byte";
  if (error instanceof CliError) return error;
  return ioError(`error while ${doing} at ${unit} ${offset}: `, error, doing === "writing");
}
