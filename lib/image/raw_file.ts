/**
 * {@linkcode RawFile}: a raw image, byte for byte what the guest sees, as a disk.
 *
 * @module
 */

import type { Disk, Extent, HostBytes, WriteZeroesOptions } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import type { Durability } from "../metadata/ordered_file.ts";
import { allAtOnce, type Progress } from "../metadata/steps.ts";
import type { BlockFile } from "../storage/block_file.ts";
import { checkRange } from "./cursor.ts";
import { acquireFile, createFile, type FileSource } from "./host_file.ts";
import { checkedPreallocation, type Preallocation, reserveHostRange } from "./preallocation.ts";
import { readFileAhead } from "./read_ahead.ts";
import { checkedSize, type ResizeOptions } from "./resize.ts";

/** How {@linkcode RawFile.open} opens an image. */
export interface RawOpenOptions {
  /**
   * Whether the image may be changed.
   *
   * @default {false}
   */
  readonly write?: boolean;
  /**
   * Whether to lock the file.
   *
   * @default {true}
   */
  readonly lock?: boolean;
  /**
   * How much `flush()` promises: `full` makes everything durable, `none` leaves that to the host until the image is closed,
   * `unsafe` for good.
   *
   * @default {"full"}
   */
  readonly durability?: Durability;
}

/** How {@linkcode RawFile.create} makes an image. */
export interface RawCreateOptions extends Omit<RawOpenOptions, "write"> {
  /** Virtual size in bytes, rounded up to a multiple of 512. */
  readonly size: number;
  /**
   * What is allocated ahead of use: `off`, `falloc` or `full`.
   *
   * @default {"off"}
   */
  readonly preallocation?: Preallocation;
  /**
   * Whether to refuse where the file exists already.
   *
   * @default {false}
   */
  readonly createNew?: boolean;
}

const SECTOR_SIZE = 512;
/** A block of nearly every host file system. */
const BLOCK_SIZE = 4096;
/** The most zeroes that are written at once, in bytes. */
const ZEROES_LENGTH = 1024 * 1024;

/**
 * A raw image as a {@linkcode Disk}. Its size is the file's, rounded up to a multiple of 512 bytes as QEMU does; the bytes of
 * the last sector that the file does not have read as zeroes.
 *
 * @example Usage
 * ```ts
 * import { RawFile } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile({ suffix: ".raw" });
 * using disk = RawFile.create(path, { size: 1 << 20 });
 * disk.writeAt(512, new Uint8Array([1, 2, 3]));
 * assertEquals(disk.size, 1 << 20);
 * disk.close();
 * Deno.removeSync(path);
 * ```
 */
export class RawFile implements Disk {
  /** A block of the host's file system: 4096 bytes. */
  readonly allocationSize: number = BLOCK_SIZE;
  readonly #file: BlockFile;
  readonly #durability: Durability;
  #size: number;
  #closed = false;

  private constructor(file: BlockFile, durability: Durability = "full") {
    this.#file = file;
    this.#durability = durability;
    this.#size = Math.ceil(file.size / SECTOR_SIZE) * SECTOR_SIZE;
  }

  /**
   * Opens a raw image.
   *
   * @param source Path of the image, or a file that was opened; it is closed with the image.
   * @param options How to open it.
   * @returns The image.
   * @throws {Qcow2Error} With code `not-found`, `permission-denied`, `locked`, `read-only` or `io`.
   *
   * @example Usage
   * ```ts
   * import { RawFile } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * Deno.writeFileSync(path, new Uint8Array(1000));
   * using disk = RawFile.open(path);
   * assertEquals(disk.size, 1024);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  static open(source: FileSource, options: RawOpenOptions = {}): RawFile {
    const { write = false, lock = true } = options;
    return new RawFile(acquireFile(source, { write, lock }), options.durability);
  }

  /**
   * Creates a raw image full of zeroes, without writing them.
   *
   * @param target Path of the image, or a file that was opened for reading and writing.
   * @param options Size, and whether the file must be new.
   * @returns The image, open for writing.
   * @throws {Qcow2Error} With code `invalid-argument`, `already-exists`, `permission-denied`, `locked`, `no-space` or `io`.
   *
   * @example Usage
   * ```ts
   * import { RawFile } from "@disk/qcow2";
   *
   * const path = await Deno.makeTempFile();
   * RawFile.create(path, { size: 1 << 20 }).close();
   * Deno.removeSync(path);
   * ```
   */
  static create(target: FileSource, options: RawCreateOptions): RawFile {
    const { size } = options;
    if (!Number.isSafeInteger(size) || size < 0 || size > Number.MAX_SAFE_INTEGER - SECTOR_SIZE) {
      throw new Qcow2Error("invalid-argument", `Virtual size is ${size}, expected a whole number of bytes below 2^53`, {
        found: size,
      });
    }
    refuseMetadata(options.preallocation);
    const preallocation = checkedPreallocation(options.preallocation);
    const file = createFile(target, { createNew: options.createNew ?? false, lock: options.lock ?? true });
    try {
      const length = Math.ceil(size / SECTOR_SIZE) * SECTOR_SIZE;
      allAtOnce(reserveHostRange(file, 0, length, preallocation));
      return new RawFile(file, options.durability);
    } catch (error) {
      file.close();
      throw error;
    }
  }

  /** The virtual size in bytes. */
  get size(): number {
    return this.#size;
  }

  /**
   * Makes the disk longer or shorter; what is added reads as zeroes.
   *
   * @param size The new length of the file in bytes; the disk has whole sectors of 512.
   * @param options Whether the disk may become shorter, and what is allocated of a range that is added.
   * @throws {Qcow2Error} With code `invalid-argument` where the disk would become shorter without `shrink: true` or
   * preallocation is `metadata`, `read-only`, `no-space` or `io`.
   *
   * @example Usage
   * ```ts
   * import { RawFile } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = RawFile.create(path, { size: 4096 });
   * disk.resize(1 << 20, { preallocation: "full" });
   * assertEquals(disk.size, 1 << 20);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  resize(size: number, options: ResizeOptions = {}): void {
    allAtOnce(this.resizeInSteps(size, options));
  }

  /**
   * Does what {@linkcode RawFile.resize} does, a step each time it is asked for a value, so that the caller can do something else in
   * between, or end it early: the disk has its old size then. `resize` of the operations does that with the event loop.
   *
   * @param size The new length of the file in bytes; the disk has whole sectors of 512.
   * @param options Whether the disk may become shorter, and what is allocated of a range that is added.
   * @returns How far it is after each step, in bytes of what is added.
   * @throws {Qcow2Error} As {@linkcode RawFile.resize} does.
   *
   * @example Usage
   * ```ts
   * import { RawFile } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = RawFile.create(path, { size: 4096 });
   * for (const { done, total } of disk.resizeInSteps(1 << 20, { preallocation: "full" })) {
   *   console.log(`${done} of ${total} bytes`);
   * }
   * assertEquals(disk.size, 1 << 20);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  *resizeInSteps(size: number, options: ResizeOptions = {}): Generator<Progress, void, void> {
    this.#assertWritable();
    refuseMetadata(options.preallocation);
    const target = checkedSize(this.#size, size, options);
    const mode = options.preallocation ?? "off";
    const { size: length } = this.#file;
    // As QEMU does: the file ends where it was told to, and what the last sector has behind that reads as zeroes.
    const end = size < length && options.shrink !== true ? target : size;
    const total = end - length;
    let done = 0;
    let isGivenUp = mode !== "off";
    try {
      if (total < 0) this.#file.truncate(end);
      else {
        for (const bytes of reserveHostRange(this.#file, length, total, mode)) yield { done: done += bytes, total };
      }
      isGivenUp = false;
    } catch (error) {
      isGivenUp = false;
      throw error;
    } finally {
      if (isGivenUp) this.#file.truncate(length);
    }
    this.#size = target;
  }

  /**
   * Fills a buffer from the disk.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param into What to fill.
   * @throws {Qcow2Error} With code `out-of-range` or `io`.
   */
  readAt(offset: number, into: Uint8Array): void {
    checkRange(offset, into.length, this.size);
    const length = this.#file.readAt(offset, into);
    if (length < into.length) into.fill(0, length);
  }

  /**
   * Fills a buffer as `readAt` does, while the caller goes on: what stands on the host as it is, another thread reads.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param into What to fill. Until the promise is settled it must be left alone, the range not be written and the disk not be
   * closed.
   * @returns Settled when the buffer is full, or with the error of `readAt`.
   *
   * @example Usage
   * ```ts
   * import { RawFile } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = RawFile.create(path, { size: 1 << 20 });
   * disk.writeAt(0, new Uint8Array(1 << 20).fill(7));
   * const bytes = new Uint8Array(1 << 20);
   * const reading = disk.readAhead(0, bytes);
   * // Something else is done here.
   * await reading;
   * assertEquals(bytes[0], 7);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  async readAhead(offset: number, into: Uint8Array): Promise<void> {
    checkRange(offset, into.length, this.size);
    await readFileAhead(this.#file, offset, into);
  }

  /**
   * Writes all bytes of a buffer to the disk.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param data What to write.
   * @throws {Qcow2Error} With code `read-only`, `out-of-range`, `no-space` or `io`.
   */
  writeAt(offset: number, data: Uint8Array): void {
    this.#assertWritable();
    checkRange(offset, data.length, this.size);
    this.#file.writeAt(offset, data);
  }

  /**
   * Where the host has bytes of the disk as they are: all that the file has.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param length How many are of interest at most, in bytes.
   * @returns The bytes, or undefined behind the end of the file.
   * @throws {Qcow2Error} With code `out-of-range`.
   *
   * @example Usage
   * ```ts
   * import { RawFile } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = RawFile.create(path, { size: 4096 });
   * const bytes = disk.hostBytesAt(512, 1024);
   * assertEquals([bytes?.file.name, bytes?.offset, bytes?.length], [path, 512, 1024]);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  hostBytesAt(offset: number, length: number): HostBytes | undefined {
    checkRange(offset, length, this.size);
    const inFile = Math.min(length, this.#file.size - offset);
    return inFile > 0 ? { file: this.#file, offset, length: inFile } : undefined;
  }

  /**
   * Writes bytes that stand in another file of the host without reading them, where the host can copy them.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param bytes What to write.
   * @returns How many were written, from the first one on; those that are left are to be read and written.
   * @throws {Qcow2Error} With code `read-only` or `out-of-range`.
   *
   * @example Usage
   * ```ts
   * import { RawFile } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const folder = await Deno.makeTempDir();
   * using source = RawFile.create(`${folder}/source.raw`, { size: 1 << 20 });
   * source.writeAt(0, new Uint8Array(1 << 20).fill(7));
   * using target = RawFile.create(`${folder}/target.raw`, { size: 1 << 20 });
   * const bytes = source.hostBytesAt(0, 1 << 20);
   * const copied = bytes === undefined ? 0 : target.copyAt(0, bytes);
   * const last = new Uint8Array(1);
   * target.readAt((1 << 20) - 1, last);
   * assertEquals(last[0], copied === 1 << 20 ? 7 : 0);
   * Deno.removeSync(folder, { recursive: true });
   * ```
   */
  copyAt(offset: number, bytes: HostBytes): number {
    this.#assertWritable();
    checkRange(offset, bytes.length, this.size);
    return this.#file.copyFrom?.(bytes.file, bytes.offset, offset, bytes.length) ?? 0;
  }

  /**
   * Makes a range read as zeroes: as a hole where that is allowed and the host can, by writing zeroes otherwise. What the
   * host knows to be a hole already is left alone.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param length How far, in bytes.
   * @param options Whether space may be given back.
   * @throws {Qcow2Error} With code `read-only`, `out-of-range`, `no-space` or `io`.
   */
  writeZeroesAt(offset: number, length: number, options: WriteZeroesOptions = {}): void {
    this.#assertWritable();
    checkRange(offset, length, this.size);
    if (length === 0) return;
    if (options.unmap === true && this.#file.punchHole(offset, length)) return;
    // Collected first: what is written must not be walked.
    for (const extent of [...this.#file.dataExtents(offset, length)]) {
      const zeroes = new Uint8Array(Math.min(extent.length, ZEROES_LENGTH));
      for (let done = 0; done < extent.length; done += zeroes.length) {
        this.#file.writeAt(extent.offset + done, zeroes.subarray(0, Math.min(zeroes.length, extent.length - done)));
      }
    }
  }

  /**
   * Gives the space of a range back where the host can; otherwise the content stays.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param length How far, in bytes.
   * @throws {Qcow2Error} With code `read-only`, `out-of-range` or `io`.
   */
  discardAt(offset: number, length: number): void {
    this.#assertWritable();
    checkRange(offset, length, this.size);
    if (length > 0) this.#file.punchHole(offset, length);
  }

  /**
   * The stretches that a range consists of: `data` where the host has bytes, `zero` in its holes.
   *
   * @param offset Where to begin on the disk, in bytes; 0 without it.
   * @param length How far, in bytes; to the end of the disk without it.
   * @returns The extents in order, without gaps.
   * @throws {Qcow2Error} With code `out-of-range` or `io`.
   */
  *extents(offset = 0, length: number = Math.max(0, this.size - offset)): Generator<Extent> {
    checkRange(offset, length, this.size);
    const end = offset + length;
    let position = offset;
    for (const extent of this.#file.dataExtents(offset, length)) {
      if (extent.offset > position) yield hole(position, extent.offset);
      yield {
        offset: extent.offset,
        length: extent.length,
        kind: "data",
        hostOffset: extent.offset,
        depth: 0,
      };
      position = extent.offset + extent.length;
    }
    if (position < end) yield hole(position, end);
  }

  /**
   * Asks the host to begin making durable what was written, so that the next {@linkcode RawFile.flush} takes less time: for who
   * writes much in one go. Promises nothing, and does not wait.
   *
   * @example Usage
   * ```ts
   * import { RawFile } from "@disk/qcow2";
   *
   * const path = await Deno.makeTempFile();
   * using disk = RawFile.create(path, { size: 1 << 20 });
   * disk.writeAt(0, new Uint8Array(1 << 20));
   * disk.startFlush();
   * // Something else is done here.
   * disk.flush();
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  startFlush(): void {
    if (this.#file.writable && this.#durability !== "unsafe") this.#file.startSync?.();
  }

  /**
   * Makes everything that was written durable.
   *
   * @throws {Qcow2Error} With code `io` where the host fails.
   */
  flush(): void {
    if (this.#file.writable && this.#durability === "full") this.#file.sync();
  }

  /** Makes everything durable, unless durability is `unsafe`, and closes the file. Closing twice is fine. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    try {
      if (this.#file.writable && this.#durability !== "unsafe") this.#file.sync();
    } finally {
      this.#file.close();
    }
  }

  /** Closes the image, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  #assertWritable(): void {
    if (!this.#file.writable) {
      throw new Qcow2Error("read-only", `"${this.#file.name}" was opened for reading; open it with { write: true }`);
    }
  }
}

function refuseMetadata(mode: Preallocation | undefined): void {
  if (mode !== "metadata") return;
  throw new Qcow2Error("invalid-argument", "Unsupported preallocation mode: metadata", {
    found: mode,
    expected: "off, falloc or full",
  });
}

function hole(offset: number, end: number): Extent {
  return { offset, length: end - offset, kind: "zero", hostOffset: offset, depth: 0 };
}
