/** Stands in for `@std/io` where JSR cannot be reached. @module */

import { concat, copy as copyBytes } from "./bytes.ts";

/** Reads up to a buffer's length, later; `null` at the end. */
export interface Reader {
  /** How many bytes came, or `null` at the end. */
  read(p: Uint8Array): Promise<number | null>;
}

/** Reads up to a buffer's length, at once; `null` at the end. */
export interface ReaderSync {
  /** How many bytes came, or `null` at the end. */
  readSync(p: Uint8Array): number | null;
}

/** Writes some of a buffer, later. */
export interface Writer {
  /** How many bytes went. */
  write(p: Uint8Array): Promise<number>;
}

/** Writes some of a buffer, at once. */
export interface WriterSync {
  /** How many bytes went. */
  writeSync(p: Uint8Array): number;
}

/** Can be closed. */
export interface Closer {
  /** Gives back what is held. */
  close(): void;
}

/** From where an offset counts. */
export enum SeekMode {
  /** The beginning. */
  Start = 0,
  /** The current position. */
  Current = 1,
  /** The end. */
  End = 2,
}

/** Moves the position of the next read or write, later. */
export interface Seeker {
  /** The new position, from the beginning. */
  seek(offset: number | bigint, whence: SeekMode): Promise<number>;
}

/** Moves the position of the next read or write, at once. */
export interface SeekerSync {
  /** The new position, from the beginning. */
  seekSync(offset: number | bigint, whence: SeekMode): number;
}

const CHUNK_LENGTH = 32 * 1024;

/** Everything that is left to read. */
export async function readAll(reader: Reader): Promise<Uint8Array> {
  const read: Uint8Array[] = [];
  const chunk = new Uint8Array(CHUNK_LENGTH);
  for (let n = await reader.read(chunk); n !== null; n = await reader.read(chunk)) read.push(chunk.slice(0, n));
  return concat(read);
}

/** Everything that is left to read, at once. */
export function readAllSync(reader: ReaderSync): Uint8Array {
  const read: Uint8Array[] = [];
  const chunk = new Uint8Array(CHUNK_LENGTH);
  for (let n = reader.readSync(chunk); n !== null; n = reader.readSync(chunk)) read.push(chunk.slice(0, n));
  return concat(read);
}

/** Writes the whole of `data`. */
export async function writeAll(writer: Writer, data: Uint8Array): Promise<void> {
  for (let left = data; left.length > 0;) left = left.subarray(await writer.write(left));
}

/** Writes the whole of `data`, at once. */
export function writeAllSync(writer: WriterSync, data: Uint8Array): void {
  for (let left = data; left.length > 0;) left = left.subarray(writer.writeSync(left));
}

/** Copies everything that is left to read, and says how many bytes that were. */
export async function copy(src: Reader, dst: Writer, options?: { bufSize?: number }): Promise<number> {
  const chunk = new Uint8Array(options?.bufSize ?? CHUNK_LENGTH);
  let length = 0;
  for (let n = await src.read(chunk); n !== null; n = await src.read(chunk)) {
    await writeAll(dst, chunk.subarray(0, n));
    length += n;
  }
  return length;
}

/** Bytes in memory that are read from the front and written at the end. */
export class Buffer implements Reader, ReaderSync, Writer, WriterSync {
  #storage: Uint8Array;
  #start = 0;
  #end: number;

  /** Begins with the given bytes, or empty. */
  constructor(ab: ArrayBufferLike | ArrayLike<number> = []) {
    // The constructor takes either; only its overloads are apart.
    this.#storage = new Uint8Array(ab as ArrayBufferLike);
    this.#end = this.#storage.length;
  }

  /** How many bytes are left to read. */
  get length(): number {
    return this.#end - this.#start;
  }

  /** For how many bytes there is room without growing. */
  get capacity(): number {
    return this.#storage.length;
  }

  /** The bytes left to read: a copy unless asked otherwise. */
  bytes(options: { copy: boolean } = { copy: true }): Uint8Array {
    const left = this.#storage.subarray(this.#start, this.#end);
    return options.copy === false ? left : left.slice();
  }

  /** Whether nothing is left to read. */
  empty(): boolean {
    return this.length <= 0;
  }

  /** Forgets all but the first `n` bytes left to read. */
  truncate(n: number): void {
    if (n < 0 || n > this.length) throw new Error(`Cannot truncate ${this.length} bytes to ${n}`);
    this.#end = this.#start + n;
  }

  /** Forgets everything. */
  reset(): void {
    this.#start = this.#end = 0;
  }

  /** Makes room for `n` more bytes. */
  grow(n: number): void {
    if (n < 0) throw new Error(`Cannot grow by ${n} bytes`);
    if (this.#end + n <= this.#storage.length) return;
    const left = this.bytes({ copy: false });
    // Twice what is held, so that many small writes do not copy everything each time.
    const storage = new Uint8Array(2 * left.length + n);
    storage.set(left);
    this.#storage = storage;
    this.#start = 0;
    this.#end = left.length;
  }

  /** Takes bytes from the front. */
  readSync(p: Uint8Array): number | null {
    if (this.empty()) return p.length === 0 ? 0 : null;
    const n = copyBytes(this.bytes({ copy: false }), p);
    this.#start += n;
    return n;
  }

  /** Takes bytes from the front. */
  read(p: Uint8Array): Promise<number | null> {
    return Promise.resolve(this.readSync(p));
  }

  /** Puts bytes at the end. */
  writeSync(p: Uint8Array): number {
    this.grow(p.length);
    this.#storage.set(p, this.#end);
    this.#end += p.length;
    return p.length;
  }

  /** Puts bytes at the end. */
  write(p: Uint8Array): Promise<number> {
    return Promise.resolve(this.writeSync(p));
  }

  /** Puts everything that is left to read at the end. */
  readFrom(r: Reader): Promise<number> {
    return copy(r, this);
  }

  /** Puts everything that is left to read at the end, at once. */
  readFromSync(r: ReaderSync): number {
    return this.writeSync(readAllSync(r));
  }
}
