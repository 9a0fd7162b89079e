/**
 * Files as flat buffers, for building thousands of crash states a second: a state is a few sectors written over the durable
 * bytes, and taking it back costs as much as was written.
 *
 * @module
 */

import type { BlockFile, DataExtent } from "../../mod.ts";

/** What a power cut leaves whole, in bytes. */
export const SECTOR_SIZE = 512;

/** The bytes of a file. Those behind its end are always zero. */
export class FlatBytes {
  /** The bytes, and room behind them. */
  bytes: Uint8Array<ArrayBuffer>;
  /** The length of the file in bytes. */
  size: number;

  /** @param content What the file holds. */
  constructor(content: Uint8Array = new Uint8Array()) {
    this.bytes = new Uint8Array(roomFor(content.length));
    this.bytes.set(content);
    this.size = content.length;
  }

  /** Makes room up to an offset. */
  ensure(end: number): void {
    if (end <= this.bytes.length) return;
    const bytes = new Uint8Array(roomFor(end));
    bytes.set(this.bytes);
    this.bytes = bytes;
  }

  /** What the file holds, as a view. */
  content(): Uint8Array<ArrayBuffer> {
    return this.bytes.subarray(0, this.size);
  }

  /** Writes bytes; the file grows where they reach beyond its end. */
  write(offset: number, data: Uint8Array): void {
    const end = offset + data.length;
    this.ensure(end);
    this.bytes.set(data, offset);
    if (end > this.size) this.size = end;
  }

  /** Sets the length. */
  truncate(size: number): void {
    this.ensure(size);
    if (size < this.size) this.bytes.fill(0, size, this.size);
    this.size = size;
  }
}

function roomFor(length: number): number {
  let room = 1 << 18;
  while (room < length) room *= 2;
  return room;
}

/** A file that can be put back to what it was: bytes that are durable, with something written over them for a while. */
export class ScratchFile implements BlockFile {
  readonly name: string = "crash state";
  readonly writable: boolean = true;
  readonly #base: FlatBytes;
  readonly #flat: FlatBytes;
  /** Start and end of each stretch that may differ from the base, in bytes. */
  readonly #touched: number[] = [];

  /** @param base What the file is put back to; it may change as long as {@linkcode ScratchFile.touch} is told. */
  constructor(base: FlatBytes) {
    this.#base = base;
    this.#flat = new FlatBytes(base.content());
  }

  get size(): number {
    return this.#flat.size;
  }

  /** What the file holds, as a view. */
  content(): Uint8Array<ArrayBuffer> {
    return this.#flat.content();
  }

  /** Says that a stretch differs from the base. */
  touch(start: number, end: number): void {
    this.#touched.push(start, end);
  }

  /** Puts the file back to what the base holds. */
  restore(): void {
    const { bytes } = this.#base;
    for (let index = 0; index < this.#touched.length; index += 2) {
      const start = this.#touched[index] ?? 0;
      const end = this.#touched[index + 1] ?? 0;
      this.#flat.ensure(end);
      if (start < bytes.length) this.#flat.bytes.set(bytes.subarray(start, Math.min(end, bytes.length)), start);
      if (end > bytes.length) this.#flat.bytes.fill(0, Math.max(start, bytes.length), end);
    }
    this.#touched.length = 0;
    this.#flat.size = this.#base.size;
    this.#flat.ensure(this.#base.size);
  }

  readAt(offset: number, into: Uint8Array): number {
    const length = Math.max(0, Math.min(into.length, this.#flat.size - offset));
    if (length > 0) into.set(this.#flat.bytes.subarray(offset, offset + length));
    return length;
  }

  writeAt(offset: number, data: Uint8Array): void {
    this.touch(offset, offset + data.length);
    this.#flat.write(offset, data);
  }

  truncate(size: number): void {
    if (size < this.#flat.size) this.touch(size, this.#flat.size);
    this.#flat.truncate(size);
  }

  sync(): void {}

  punchHole(offset: number, length: number): boolean {
    const end = Math.min(offset + length, this.#flat.size);
    if (end <= offset) return true;
    this.touch(offset, end);
    this.#flat.bytes.fill(0, offset, end);
    return true;
  }

  preallocate(_offset: number, _length: number): boolean {
    return false;
  }

  dataExtents(offset: number, length: number): Iterable<DataExtent> {
    const end = Math.min(offset + length, this.#flat.size);
    return end > offset ? [{ offset, length: end - offset }] : [];
  }

  tryLock(_exclusive: boolean): boolean {
    return true;
  }

  close(): void {}

  [Symbol.dispose](): void {}
}
