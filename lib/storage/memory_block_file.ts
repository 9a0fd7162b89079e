/**
 * A block file in memory, {@linkcode MemoryBlockFile}.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import { checkBytes, closedError, readOnlyError } from "./_checks.ts";
import type { BlockFile, DataExtent } from "./block_file.ts";

/** The granularity in bytes in which memory is taken and given back. */
const PAGE_SIZE = 65536;

/** The longest file in bytes that {@linkcode MemoryBlockFile.toBytes} hands out in one piece. */
const MAX_BYTES_SIZE = 4 * 1024 ** 3;

/** What a {@linkcode MemoryBlockFile} is like. */
export interface MemoryBlockFileOptions {
  /**
   * The name for messages.
   *
   * @default {"memory"}
   */
  readonly name?: string;
  /**
   * Whether the file may be written.
   *
   * @default {true}
   */
  readonly writable?: boolean;
  /**
   * The length in bytes beyond which the file cannot grow, as on a host without room: growing it further throws with code
   * `no-space`. Without it there is no limit.
   */
  readonly maxSize?: number;
}

/**
 * A file in memory. It is sparse: memory is taken for the 64 KiB pages that were written, wherever they lie, so that a few
 * bytes at an offset of a terabyte cost one page.
 *
 * @example Usage
 * ```ts
 * import { MemoryBlockFile } from "@disk/qcow2/storage";
 * import { assertEquals } from "@std/assert";
 *
 * using file = new MemoryBlockFile({ name: "scratch" });
 * file.writeAt(2 ** 40, new Uint8Array([1, 2, 3]));
 * assertEquals(file.size, 2 ** 40 + 3);
 * assertEquals([...file.dataExtents(0, file.size)], [{ offset: 2 ** 40, length: 3 }]);
 * ```
 */
export class MemoryBlockFile implements BlockFile {
  /** The name for messages. */
  readonly name: string;
  /** Whether the file may be written. */
  readonly writable: boolean;
  readonly #maxSize: number;
  /** The pages that were written, by index. What lies beyond the end of the file in the last one is always zero. */
  readonly #pages = new Map<number, Uint8Array<ArrayBuffer>>();
  #size = 0;
  #closed = false;

  /**
   * Makes an empty file.
   *
   * @param options What the file is like.
   *
   * @example Usage
   * ```ts
   * import { MemoryBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * using file = new MemoryBlockFile();
   * assertEquals(file.size, 0);
   * assertEquals(file.name, "memory");
   * ```
   */
  constructor(options: MemoryBlockFileOptions = {}) {
    this.name = options.name ?? "memory";
    this.writable = options.writable ?? true;
    this.#maxSize = options.maxSize ?? Number.MAX_SAFE_INTEGER;
  }

  /**
   * Makes a file that holds a copy of some bytes.
   *
   * @param bytes What the file holds.
   * @param options What the file is like.
   * @returns The file.
   * @throws {Qcow2Error} With code `no-space` where there are more bytes than `maxSize`.
   *
   * @example Usage
   * ```ts
   * import { MemoryBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * using file = MemoryBlockFile.from(new Uint8Array([1, 2, 3]), { writable: false });
   * assertEquals(file.size, 3);
   * ```
   */
  static from(bytes: Uint8Array, options: MemoryBlockFileOptions = {}): MemoryBlockFile {
    const file = new MemoryBlockFile(options);
    file.#grow(bytes.length);
    file.#store(0, bytes);
    return file;
  }

  /**
   * The length in bytes.
   *
   * @example Usage
   * ```ts
   * import { MemoryBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * using file = MemoryBlockFile.from(new Uint8Array(10));
   * assertEquals(file.size, 10);
   * ```
   */
  get size(): number {
    return this.#size;
  }

  /**
   * How much memory the bytes of the file take, in bytes.
   *
   * @example Usage
   * ```ts
   * import { MemoryBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * using file = new MemoryBlockFile();
   * file.writeAt(2 ** 40, new Uint8Array([1]));
   * assertEquals(file.allocatedSize, 65536);
   * ```
   */
  get allocatedSize(): number {
    return this.#pages.size * PAGE_SIZE;
  }

  /**
   * Reads from a position until the buffer is full or the file ends.
   *
   * @param offset Where to begin, in bytes.
   * @param into What to fill.
   * @returns How many bytes were read: all, or fewer where the file ends.
   * @throws {Qcow2Error} With code `closed` after `close()`, `invalid-argument` where the offset cannot be one.
   *
   * @example Usage
   * ```ts
   * import { MemoryBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * using file = MemoryBlockFile.from(new Uint8Array([1, 2, 3]));
   * const bytes = new Uint8Array(4);
   * assertEquals(file.readAt(1, bytes), 2);
   * assertEquals(bytes, new Uint8Array([2, 3, 0, 0]));
   * ```
   */
  readAt(offset: number, into: Uint8Array): number {
    this.#checkOpen();
    checkBytes("Offset", offset);
    const length = Math.max(0, Math.min(into.length, this.#size - offset));
    let done = 0;
    while (done < length) {
      const start = (offset + done) % PAGE_SIZE;
      const count = Math.min(PAGE_SIZE - start, length - done);
      const page = this.#pages.get(Math.floor((offset + done) / PAGE_SIZE));
      if (page === undefined) into.fill(0, done, done + count);
      else into.set(page.subarray(start, start + count), done);
      done += count;
    }
    return length;
  }

  /**
   * Writes all bytes at a position, growing the file where they reach beyond its end.
   *
   * @param offset Where to begin, in bytes.
   * @param data What to write.
   * @throws {Qcow2Error} With code `closed` after `close()`, `read-only` on a file for reading, `invalid-argument` where the
   * offset cannot be one, `no-space` beyond `maxSize`; nothing has been written then.
   *
   * @example Usage
   * ```ts
   * import { MemoryBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * using file = new MemoryBlockFile();
   * file.writeAt(2, new Uint8Array([7]));
   * assertEquals(file.toBytes(), new Uint8Array([0, 0, 7]));
   * ```
   */
  writeAt(offset: number, data: Uint8Array): void {
    this.#checkWritable();
    checkBytes("Offset", offset);
    if (data.length === 0) return;
    this.#grow(offset + data.length);
    this.#store(offset, data);
  }

  /**
   * Sets the length. A longer file reads as zeroes in what was added.
   *
   * @param size The new length in bytes.
   * @throws {Qcow2Error} With code `closed` after `close()`, `read-only` on a file for reading, `invalid-argument` where the
   * size cannot be one, `no-space` beyond `maxSize`.
   *
   * @example Usage
   * ```ts
   * import { MemoryBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * using file = MemoryBlockFile.from(new Uint8Array([1, 2, 3]));
   * file.truncate(1);
   * file.truncate(2);
   * assertEquals(file.toBytes(), new Uint8Array([1, 0]));
   * ```
   */
  truncate(size: number): void {
    this.#checkWritable();
    checkBytes("Size", size);
    if (size > this.#size) return this.#grow(size);
    this.#clear(size, this.#size);
    this.#size = size;
  }

  /**
   * Does nothing: memory is as durable as it gets.
   *
   * @throws {Qcow2Error} With code `closed` after `close()`.
   *
   * @example Usage
   * ```ts
   * import { MemoryBlockFile } from "@disk/qcow2/storage";
   *
   * using file = new MemoryBlockFile();
   * file.sync();
   * ```
   */
  sync(): void {
    this.#checkOpen();
  }

  /**
   * Gives the memory of a range back; it reads as zeroes afterwards and the length stays.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes.
   * @returns True: memory can always do it.
   * @throws {Qcow2Error} With code `closed` after `close()`, `read-only` on a file for reading, `invalid-argument` where the
   * range cannot be one.
   *
   * @example Usage
   * ```ts
   * import { MemoryBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * using file = MemoryBlockFile.from(new Uint8Array([1, 2, 3]));
   * assertEquals(file.punchHole(0, 2), true);
   * assertEquals(file.toBytes(), new Uint8Array([0, 0, 3]));
   * ```
   */
  punchHole(offset: number, length: number): boolean {
    this.#checkWritable();
    checkBytes("Offset", offset);
    checkBytes("Length", length);
    this.#clear(offset, Math.min(offset + length, this.#size));
    return true;
  }

  /**
   * Grows the file where a range reaches beyond its end. Memory is taken only when it is written.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes.
   * @returns True.
   * @throws {Qcow2Error} With code `closed` after `close()`, `read-only` on a file for reading, `invalid-argument` where the
   * range cannot be one, `no-space` beyond `maxSize`.
   *
   * @example Usage
   * ```ts
   * import { MemoryBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * using file = new MemoryBlockFile();
   * file.preallocate(0, 4096);
   * assertEquals(file.size, 4096);
   * ```
   */
  preallocate(offset: number, length: number): boolean {
    this.#checkWritable();
    checkBytes("Offset", offset);
    checkBytes("Length", length);
    if (length > 0) this.#grow(offset + length);
    return true;
  }

  /**
   * The stretches of a range that were written, to the page.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes; what lies beyond the end of the file is left out.
   * @returns The stretches in ascending order, none touching the next.
   * @throws {Qcow2Error} With code `closed` after `close()`, `invalid-argument` where the range cannot be one.
   *
   * @example Usage
   * ```ts
   * import { MemoryBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * using file = new MemoryBlockFile();
   * file.truncate(1 << 20);
   * file.writeAt(70000, new Uint8Array([1]));
   * assertEquals([...file.dataExtents(0, 1 << 20)], [{ offset: 65536, length: 65536 }]);
   * ```
   */
  dataExtents(offset: number, length: number): Iterable<DataExtent> {
    this.#checkOpen();
    checkBytes("Offset", offset);
    checkBytes("Length", length);
    const end = Math.min(offset + length, this.#size);
    const extents: { offset: number; length: number }[] = [];
    for (const index of this.#pageIndexes(offset, end).sort((a, b) => a - b)) {
      const from = Math.max(offset, index * PAGE_SIZE);
      const to = Math.min(end, (index + 1) * PAGE_SIZE);
      const last = extents.at(-1);
      if (last !== undefined && last.offset + last.length === from) last.length += to - from;
      else extents.push({ offset: from, length: to - from });
    }
    return extents;
  }

  /**
   * Answers that the lock was had: nobody else can reach this memory.
   *
   * @param _exclusive Whether to keep readers away as well.
   * @returns True.
   * @throws {Qcow2Error} With code `closed` after `close()`.
   *
   * @example Usage
   * ```ts
   * import { MemoryBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * using file = new MemoryBlockFile();
   * assertEquals(file.tryLock(true), true);
   * ```
   */
  tryLock(_exclusive: boolean): boolean {
    this.#checkOpen();
    return true;
  }

  /**
   * Closes the file. What it holds can still be had by `toBytes()`. Closing twice is fine.
   *
   * @example Usage
   * ```ts
   * import { MemoryBlockFile } from "@disk/qcow2/storage";
   *
   * const file = new MemoryBlockFile();
   * file.close();
   * file.close();
   * ```
   */
  close(): void {
    this.#closed = true;
  }

  /**
   * Closes the file at the end of a `using` block.
   *
   * @example Usage
   * ```ts
   * import { MemoryBlockFile } from "@disk/qcow2/storage";
   *
   * using file = new MemoryBlockFile();
   * file.writeAt(0, new Uint8Array(512));
   * ```
   */
  [Symbol.dispose](): void {
    this.close();
  }

  /**
   * A copy of all that the file holds, also after it was closed.
   *
   * @returns The bytes.
   * @throws {Qcow2Error} With code `limit-exceeded` where the file is longer than 4 GiB.
   *
   * @example Usage
   * ```ts
   * import { MemoryBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * using file = MemoryBlockFile.from(new Uint8Array([1, 2]));
   * assertEquals(file.toBytes(), new Uint8Array([1, 2]));
   * ```
   */
  toBytes(): Uint8Array<ArrayBuffer> {
    if (this.#size > MAX_BYTES_SIZE) {
      const message = `Cannot copy "${this.name}" into one buffer: it is ${this.#size} bytes long, the limit is 4 GiB`;
      throw new Qcow2Error("limit-exceeded", message, { found: this.#size, expected: MAX_BYTES_SIZE });
    }
    const bytes = new Uint8Array(this.#size);
    for (const [index, page] of this.#pages) {
      const start = index * PAGE_SIZE;
      bytes.set(page.subarray(0, Math.min(PAGE_SIZE, this.#size - start)), start);
    }
    return bytes;
  }

  #checkOpen(): void {
    if (this.#closed) throw closedError(this.name);
  }

  #checkWritable(): void {
    this.#checkOpen();
    if (!this.writable) throw readOnlyError(this.name);
  }

  #grow(size: number): void {
    if (size <= this.#size) return;
    if (size > this.#maxSize) {
      const message = `Cannot grow "${this.name}" to ${hex(size)}: no room beyond ${hex(this.#maxSize)}`;
      throw new Qcow2Error("no-space", message, { found: size, expected: this.#maxSize });
    }
    this.#size = size;
  }

  #store(offset: number, data: Uint8Array): void {
    let done = 0;
    while (done < data.length) {
      const index = Math.floor((offset + done) / PAGE_SIZE);
      const start = (offset + done) % PAGE_SIZE;
      const count = Math.min(PAGE_SIZE - start, data.length - done);
      let page = this.#pages.get(index);
      if (page === undefined) this.#pages.set(index, page = new Uint8Array(PAGE_SIZE));
      page.set(data.subarray(done, done + count), start);
      done += count;
    }
  }

  /** Makes a range zero: pages within it go, pages that it cuts are filled. */
  #clear(offset: number, end: number): void {
    for (const index of this.#pageIndexes(offset, end)) {
      const pageStart = index * PAGE_SIZE;
      const from = Math.max(0, offset - pageStart);
      // A page that ends with the file holds nothing behind it, so clearing up to there frees it too.
      const to = end === this.#size ? PAGE_SIZE : Math.min(PAGE_SIZE, end - pageStart);
      if (from === 0 && to === PAGE_SIZE) this.#pages.delete(index);
      else this.#pages.get(index)?.fill(0, from, to);
    }
  }

  /** The indexes of the pages there are in a range, in no order. Looks at the fewer of: the range's pages, the file's pages. */
  #pageIndexes(offset: number, end: number): number[] {
    if (end <= offset) return [];
    const first = Math.floor(offset / PAGE_SIZE);
    const last = Math.floor((end - 1) / PAGE_SIZE);
    const indexes: number[] = [];
    if (last - first < this.#pages.size) {
      for (let index = first; index <= last; index++) if (this.#pages.has(index)) indexes.push(index);
    } else {
      for (const index of this.#pages.keys()) if (index >= first && index <= last) indexes.push(index);
    }
    return indexes;
  }
}
