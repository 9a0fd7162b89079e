/**
 * {@linkcode ObservedDisk}: a disk that tells what is done to it, and says of its errors where they happened.
 *
 * @module
 */

import type { Decompressor, Disk, Extent, ExtentOptions, HostBytes, WriteZeroesOptions } from "../disk.ts";
import type { CompressionType } from "../format/header.ts";
import { readDiskAhead } from "../image/read_ahead.ts";
import { type CompressibleDisk, isCompressible } from "../operations/compressible_disk.ts";
import { CliError, ioError } from "./errors.ts";

/** How many extents are remembered at most: they take some megabytes. */
const MAX_WALKED_EXTENTS = 50_000;

/** A disk with somebody who watches. */
export class ObservedDisk implements Disk {
  readonly #disk: Disk;
  readonly #onMoved: (length: number) => void;
  readonly #onCopied: (length: number) => void;
  /** Settled when the last read that was begun is over. */
  #lastRead: Promise<void> = Promise.resolve();
  /** All extents, where they are known. */
  #walked: readonly Extent[] | undefined;

  /**
   * @param disk The disk; it is closed with this one.
   * @param onMoved Called with the length in bytes of whatever was read or written.
   * @param onCopied Called with the length in bytes of whatever the host has copied to the disk.
   */
  constructor(
    disk: Disk,
    onMoved: (length: number) => void = () => {},
    onCopied: (length: number) => void = onMoved,
  ) {
    this.#disk = disk;
    this.#onMoved = onMoved;
    this.#onCopied = onCopied;
  }

  /** The virtual size in bytes. */
  get size(): number {
    return this.#disk.size;
  }

  /** The granularity in bytes in which the disk allocates. */
  get allocationSize(): number {
    return this.#disk.allocationSize;
  }

  /** How clusters are compressed, where the disk can be written so. */
  get compressionType(): CompressionType {
    return this.#compressible().compressionType;
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
   * @param decompressor Who decompresses clusters; the thread of the caller without it.
   * @throws {CliError} Where the disk fails.
   */
  readAhead(offset: number, into: Uint8Array, decompressor?: Decompressor): Promise<void> {
    const earlier = this.#lastRead;
    const read = async (): Promise<void> => {
      try {
        await readDiskAhead(this.#disk, offset, into, decompressor);
      } catch (error) {
        throw locatedError("reading", offset, error);
      }
      // Who watches is told of reads in the order in which they were asked for.
      await earlier;
      this.#onMoved(into.length);
    };
    const reading = read();
    this.#lastRead = reading.catch(() => {});
    return reading;
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
   * Where the host has bytes of the disk as they are.
   *
   * @param offset Where to begin, in bytes.
   * @param length How many are of interest at most, in bytes.
   * @returns The bytes, or undefined where the first of them stands nowhere as it is.
   * @throws {CliError} Where the disk fails.
   */
  hostBytesAt(offset: number, length: number): HostBytes | undefined {
    return locating("reading", offset, () => this.#disk.hostBytesAt?.(offset, length));
  }

  /**
   * Lets the host copy bytes.
   *
   * @param offset Where to begin, in bytes.
   * @param bytes What to write.
   * @returns How many were written, from the first one on.
   * @throws {CliError} Where the disk fails.
   */
  copyAt(offset: number, bytes: HostBytes): number {
    const count = locating("writing", offset, () => this.#disk.copyAt?.(offset, bytes)) ?? 0;
    this.#onCopied(count);
    return count;
  }

  /**
   * Writes compressed.
   *
   * @param offset Where to begin, in bytes.
   * @param data What to write.
   * @param compressed What the clusters were compressed to already.
   * @throws {CliError} Where the disk fails, or cannot be written compressed.
   */
  writeCompressedAt(offset: number, data: Uint8Array, compressed?: readonly (Uint8Array | undefined)[]): void {
    const disk = this.#compressible();
    locating("writing", offset, () => disk.writeCompressedAt(offset, data, compressed));
    this.#onMoved(data.length);
  }

  #compressible(): CompressibleDisk {
    if (isCompressible(this.#disk)) return this.#disk;
    throw new CliError("Compression not supported for this file format");
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
    if (this.#walked !== undefined && offset === 0 && length === this.size) {
      yield* this.#walked;
      return;
    }
    const extents = this.#disk.extents(offset, length, options)[Symbol.iterator]();
    for (let position = offset;;) {
      const next = locating("reading block status", position, () => extents.next());
      if (next.done === true) return;
      yield next.value;
      position = next.value.offset + next.value.length;
    }
  }

  /**
   * Walks over the whole disk, which will not change, and remembers what there is, unless that is too much to remember: whoever asks
   * for all extents next, with the same options, is told without another walk.
   *
   * @param options What to look at.
   * @returns The extents in order, without gaps.
   * @throws {CliError} Where the disk fails.
   */
  *walk(options: ExtentOptions): Generator<Extent> {
    const walked: Extent[] = [];
    for (const extent of this.extents(0, this.size, options)) {
      if (walked.length <= MAX_WALKED_EXTENTS) walked.push(extent);
      yield extent;
    }
    if (walked.length <= MAX_WALKED_EXTENTS) this.#walked = walked;
  }

  /** Begins to make everything durable. */
  startFlush(): void {
    this.#disk.startFlush?.();
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
