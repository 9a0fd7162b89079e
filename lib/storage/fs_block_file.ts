/**
 * A block file of the host's file system, {@linkcode FsBlockFile}.
 *
 * @module
 */

import type { FilePlace, HostFile } from "../disk.ts";
import { fromHostError, hex, Qcow2Error } from "../errors.ts";
import { checkBytes, closedError, readOnlyError } from "./_checks.ts";
import { tryLockFile, unlockFile } from "./_host_lock.ts";
import { BackgroundReader } from "./_background_reader.ts";
import type { BlockFile, DataExtent } from "./block_file.ts";
import { absolutePath, placeOf } from "./file_place.ts";
import { NativeFile } from "./native/native_file.ts";

/** How {@linkcode FsBlockFile.open} opens a file. */
export interface FsBlockFileOpenOptions {
  /**
   * Whether the file may be written.
   *
   * @default {false}
   */
  readonly writable?: boolean;
}

/** How {@linkcode FsBlockFile.create} makes a file. */
export interface FsBlockFileCreateOptions {
  /**
   * Whether to refuse when the file exists.
   *
   * @default {false}
   */
  readonly exclusive?: boolean;
}

/** What {@linkcode FsBlockFile.from} cannot see by itself. */
export interface FsBlockFileFromOptions {
  /** The name for messages. Where it is the path of the file, what goes by path (see {@linkcode FsBlockFile}) works too. */
  readonly name: string;
  /** Whether the file was opened for writing. */
  readonly writable: boolean;
}

/**
 * The host file position after a failed call: nobody knows. It differs from every offset, itself included, so that the next
 * call seeks.
 */
const UNKNOWN_POSITION = NaN;
/**
 * A longer write is cut into pieces: it would make the host look for memory in pieces as large, which takes longer than copying the
 * bytes. In bytes.
 */
const MAX_WRITE_LENGTH = 1024 * 1024;
/** The pieces end at multiples of this, in bytes. */
const WRITE_PIECE_LENGTH = 512 * 1024;
/** Shorter reads are over before another thread has begun. In bytes. */
const MIN_BACKGROUND_LENGTH = 128 * 1024;
/** What the host counts allocated blocks in, in bytes. */
const STAT_BLOCK_SIZE = 512;

/**
 * A file or block device of the host.
 *
 * Needs `--allow-read`, and `--allow-write` to write. With `--allow-ffi` on Linux and macOS it also punches holes, reserves
 * space and knows where a file is sparse, and on Linux its locks and those of QEMU keep each other out; without, those calls
 * answer as {@linkcode BlockFile} says for a host that cannot. It never asks for that permission.
 *
 * @example Usage
 * ```ts
 * import { FsBlockFile } from "@disk/qcow2/storage";
 * import { assertEquals } from "@std/assert";
 *
 * const path = Deno.makeTempFileSync();
 * {
 *   using file = FsBlockFile.open(path, { writable: true });
 *   file.writeAt(4096, new Uint8Array([1, 2, 3]));
 *   file.sync();
 *   assertEquals(file.size, 4099);
 * }
 * Deno.removeSync(path);
 * ```
 */
export class FsBlockFile implements BlockFile {
  /** The path, or the name that was given, for messages. */
  readonly name: string;
  /** Whether the file may be written. */
  readonly writable: boolean;
  /** Block devices have the size they have. */
  readonly #resizable: boolean;
  /** Where a second descriptor can be opened, if that is known. */
  readonly #path: string | undefined;
  #file: Deno.FsFile | undefined;
  #size: number;
  #position = UNKNOWN_POSITION;
  /** Opened at the first need; null where that failed. */
  #native: NativeFile | null | undefined;
  #backgroundReader: BackgroundReader | null | undefined;
  /** Found out at the first need; null where there is none. */
  #place: FilePlace | null | undefined;
  #lock: "none" | "shared" | "exclusive" = "none";

  private constructor(file: Deno.FsFile, name: string, writable: boolean, path: string | undefined) {
    this.name = name;
    this.writable = writable;
    this.#path = path;
    this.#file = file;
    const info = file.statSync();
    this.#resizable = info.isFile;
    // The stat of a block device says 0, and a pipe or directory fails here as it should.
    this.#size = info.isFile ? info.size : file.seekSync(0, Deno.SeekMode.End);
  }

  /**
   * Opens a file or block device that exists. Takes no lock.
   *
   * @param path The path.
   * @param options Whether it may be written.
   * @returns The file.
   * @throws {Qcow2Error} With code `not-found`, `permission-denied` or `io` where the host refuses.
   *
   * @example Usage
   * ```ts
   * import { FsBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * const path = Deno.makeTempFileSync();
   * const file = FsBlockFile.open(path);
   * assertEquals(file.writable, false);
   * file.close();
   * Deno.removeSync(path);
   * ```
   */
  static open(path: string, options: FsBlockFileOpenOptions = {}): FsBlockFile {
    const writable = options.writable ?? false;
    try {
      // Opening a named pipe would wait for its other end, for ever where there is none.
      const info = Deno.statSync(path);
      if (info.isFifo === true || info.isDirectory) throw new Error("it is neither a file nor a block device");
      return FsBlockFile.#adopt(Deno.openSync(path, { read: true, write: writable }), path, writable);
    } catch (error) {
      throw fromHostError(error, `Cannot open "${path}"`);
    }
  }

  /**
   * Makes a file, or empties one that exists, for reading and writing. The file is locked as by `tryLock(true)`, and emptied
   * only once the lock is had, so that a file in use is never destroyed. A block device keeps its content and size.
   *
   * @param path The path.
   * @param options Whether to refuse when the file exists.
   * @returns The file.
   * @throws {Qcow2Error} With code `already-exists` where it exists and `exclusive` is set, `locked` where somebody has it
   * open, `not-found`, `permission-denied`, `no-space` or `io` where the host refuses.
   *
   * @example Usage
   * ```ts
   * import { Qcow2Error } from "@disk/qcow2/errors";
   * import { FsBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals, assertThrows } from "@std/assert";
   *
   * const directory = Deno.makeTempDirSync();
   * const path = `${directory}/new.img`;
   * const file = FsBlockFile.create(path, { exclusive: true });
   * assertEquals(file.size, 0);
   * file.close();
   * assertThrows(() => FsBlockFile.create(path, { exclusive: true }), Qcow2Error, "Cannot create");
   * Deno.removeSync(directory, { recursive: true });
   * ```
   */
  static create(path: string, options: FsBlockFileCreateOptions = {}): FsBlockFile {
    const existing = options.exclusive ? { createNew: true } : { create: true };
    const doing = `Cannot create "${path}"`;
    let file: FsBlockFile | undefined;
    try {
      file = FsBlockFile.#adopt(Deno.openSync(path, { read: true, write: true, ...existing }), path, true);
      if (!file.tryLock(true)) throw new Qcow2Error("locked", `${doing}: somebody else has it open`);
      if (file.#resizable && file.#size > 0) file.truncate(0);
      return file;
    } catch (error) {
      file?.close();
      throw fromHostError(error, doing);
    }
  }

  /** Takes charge of a file that was just opened, and closes it should that fail. */
  static #adopt(file: Deno.FsFile, path: string, writable: boolean): FsBlockFile {
    try {
      return new FsBlockFile(file, path, writable, absolutePath(path));
    } catch (error) {
      file.close();
      throw error;
    }
  }

  /**
   * Wraps a file that is open already. From then on it belongs to the block file: closing that closes it, and moving its
   * position from elsewhere breaks it. Where this throws, the file stays the caller's.
   *
   * @param file The open file.
   * @param options Its name, and whether it was opened for writing.
   * @returns The file.
   * @throws {Qcow2Error} With code `io` where the host cannot tell its size.
   *
   * @example Usage
   * ```ts
   * import { FsBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * const path = Deno.makeTempFileSync();
   * const file = FsBlockFile.from(Deno.openSync(path), { name: path, writable: false });
   * assertEquals(file.size, 0);
   * file.close();
   * Deno.removeSync(path);
   * ```
   */
  static from(file: Deno.FsFile, options: FsBlockFileFromOptions): FsBlockFile {
    try {
      return new FsBlockFile(file, options.name, options.writable, absolutePath(options.name));
    } catch (error) {
      throw fromHostError(error, `Cannot use "${options.name}"`);
    }
  }

  /**
   * The length in bytes, as it was when the file was opened and as the calls of this object have changed it since.
   *
   * @example Usage
   * ```ts
   * import { FsBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * const path = Deno.makeTempFileSync();
   * using file = FsBlockFile.create(path);
   * file.writeAt(10, new Uint8Array(5));
   * assertEquals(file.size, 15);
   * Deno.removeSync(path);
   * ```
   */
  get size(): number {
    return this.#size;
  }

  /**
   * Where the file can be opened once more for reading; undefined where nobody knows, or it may not be read there.
   *
   * @throws {Qcow2Error} With code `closed` after `close()`, unless it was asked for before.
   *
   * @example Usage
   * ```ts
   * import { FsBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * const path = Deno.makeTempFileSync();
   * using file = FsBlockFile.open(path);
   * assertEquals(file.place?.path, path);
   * Deno.removeSync(path);
   * ```
   */
  get place(): FilePlace | undefined {
    if (this.#place === undefined) {
      const file = this.#openFile();
      this.#place = (this.#path === undefined ? undefined : placeOf(this.#path, file)) ?? null;
    }
    return this.#place ?? undefined;
  }

  /** How much room the file takes on the host, in bytes, where the host can tell. */
  get allocatedSize(): number | undefined {
    const { blocks } = this.#openFile().statSync();
    return blocks === null ? undefined : blocks * STAT_BLOCK_SIZE;
  }

  /**
   * Reads from a position until the buffer is full or the file ends.
   *
   * @param offset Where to begin, in bytes.
   * @param into What to fill.
   * @returns How many bytes were read: all, or fewer where the file ends. The rest of the buffer is left as it was.
   * @throws {Qcow2Error} With code `closed` after `close()`, `invalid-argument` where the offset cannot be one, `io` where the
   * host fails.
   *
   * @example Usage
   * ```ts
   * import { FsBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * const path = Deno.makeTempFileSync();
   * Deno.writeFileSync(path, new Uint8Array([1, 2, 3]));
   * using file = FsBlockFile.open(path);
   * const bytes = new Uint8Array(4);
   * assertEquals(file.readAt(1, bytes), 2);
   * assertEquals(bytes, new Uint8Array([2, 3, 0, 0]));
   * Deno.removeSync(path);
   * ```
   */
  readAt(offset: number, into: Uint8Array): number {
    const file = this.#file;
    if (file === undefined) throw closedError(this.name);
    try {
      if (offset !== this.#position) seek(file, offset);
      const count = file.readSync(into);
      if (count !== into.length) return this.#readRest(file, offset, into, count);
      this.#position = offset + count;
      return count;
    } catch (error) {
      const fault = this.#fault("read", offset, error);
      // A host refuses to go where none of its files can have bytes: nothing stands there.
      if (Number.isSafeInteger(offset) && !this.#canReach(file, offset)) return 0;
      throw fault;
    }
  }

  /**
   * Reads as {@linkcode FsBlockFile.readAt} does, on another thread while the caller goes on. Where the file cannot be opened a
   * second time, or the read is too short to be worth a thread, it is done before the call returns.
   *
   * @param offset Where to begin, in bytes.
   * @param into What to fill. Until the promise is settled it must be left alone, and the file not be closed.
   * @returns How many bytes were read: all, or fewer where the file ends.
   * @throws {Qcow2Error} With code `closed` after `close()`, `invalid-argument` where the offset cannot be one, `io` where the
   * host fails.
   *
   * @example Usage
   * ```ts
   * import { FsBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * const path = Deno.makeTempFileSync();
   * Deno.writeFileSync(path, new Uint8Array(1 << 20).fill(7));
   * using file = FsBlockFile.open(path);
   * const bytes = new Uint8Array(1 << 20);
   * const reading = file.readAhead(0, bytes);
   * // Something else is done here.
   * assertEquals(await reading, 1 << 20);
   * assertEquals(bytes[0], 7);
   * Deno.removeSync(path);
   * ```
   */
  async readAhead(offset: number, into: Uint8Array): Promise<number> {
    if (into.length < MIN_BACKGROUND_LENGTH) return this.readAt(offset, into);
    const file = this.#openFile();
    checkBytes("Offset", offset);
    if (this.#backgroundReader === undefined) {
      const { place } = this;
      this.#backgroundReader = (place === undefined ? undefined : BackgroundReader.open(place)) ?? null;
    }
    if (this.#backgroundReader === null) return this.readAt(offset, into);
    try {
      return await this.#backgroundReader.read(offset, into);
    } catch (error) {
      if (!this.#canReach(file, offset)) return 0;
      throw fromHostError(error, `Cannot read "${this.name}" at ${hex(offset)}`, offset);
    }
  }

  /**
   * Writes all bytes at a position, growing the file where they reach beyond its end.
   *
   * @param offset Where to begin, in bytes.
   * @param data What to write.
   * @throws {Qcow2Error} With code `closed` after `close()`, `read-only` on a file for reading, `invalid-argument` where the
   * offset cannot be one, `no-space` or `io` where the host fails; a part may have been written.
   *
   * @example Usage
   * ```ts
   * import { FsBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * const path = Deno.makeTempFileSync();
   * using file = FsBlockFile.create(path);
   * file.writeAt(2, new Uint8Array([7]));
   * assertEquals(Deno.readFileSync(path), new Uint8Array([0, 0, 7]));
   * Deno.removeSync(path);
   * ```
   */
  writeAt(offset: number, data: Uint8Array): void {
    const file = this.#file;
    if (file === undefined || !this.writable) throw this.#refusal();
    try {
      if (offset !== this.#position) seek(file, offset);
      const isLong = data.length > MAX_WRITE_LENGTH;
      const count = file.writeSync(isLong ? data.subarray(0, WRITE_PIECE_LENGTH - offset % WRITE_PIECE_LENGTH) : data);
      if (count !== data.length || count === 0) return this.#writeRest(file, offset, data, count);
      const end = offset + count;
      this.#position = end;
      if (end > this.#size) this.#size = end;
    } catch (error) {
      throw this.#fault("write", offset, error);
    }
  }

  /**
   * Copies bytes of another file within the host, or lets both files share their space, where the host can: on Linux, with
   * `--allow-ffi`, between files. Grows the file where they reach beyond its end.
   *
   * @param source The other file; one that is no {@linkcode FsBlockFile} cannot be copied from.
   * @param sourceOffset Where to begin there, in bytes.
   * @param offset Where to begin here, in bytes.
   * @param length How far, in bytes.
   * @returns How many bytes were copied, from the first one on: not all where the host could not do it, or where the other file ends.
   * @throws {Qcow2Error} With code `closed` after `close()`, `read-only` on a file for reading, `invalid-argument` where the range
   * cannot be one.
   *
   * @example Usage
   * ```ts
   * import { FsBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * const folder = Deno.makeTempDirSync();
   * using source = FsBlockFile.create(`${folder}/source`);
   * source.writeAt(0, new Uint8Array(65536).fill(7));
   * using file = FsBlockFile.create(`${folder}/target`);
   * const count = file.copyFrom(source, 0, 4096, 65536);
   * assertEquals(file.size, count === 0 ? 0 : 4096 + count);
   * Deno.removeSync(folder, { recursive: true });
   * ```
   */
  copyFrom(source: HostFile, sourceOffset: number, offset: number, length: number): number {
    this.#writableFile();
    checkBytes("Source offset", sourceOffset);
    checkBytes("Offset", offset);
    checkBytes("Length", length);
    if (!(source instanceof FsBlockFile)) return 0;
    const from = source.#nativeFile();
    const count = from === undefined ? 0 : this.#nativeFile()?.copyFrom(from, sourceOffset, offset, length) ?? 0;
    if (count > 0) this.#size = Math.max(this.#size, offset + count);
    return count;
  }

  /**
   * Sets the length. A longer file reads as zeroes in what was added. A block device keeps its size, and refuses a longer one.
   *
   * @param size The new length in bytes.
   * @throws {Qcow2Error} With code `closed` after `close()`, `read-only` on a file for reading, `invalid-argument` where the
   * size cannot be one, `no-space` or `io` where the host fails.
   *
   * @example Usage
   * ```ts
   * import { FsBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * const path = Deno.makeTempFileSync();
   * using file = FsBlockFile.create(path);
   * file.truncate(1 << 20);
   * assertEquals(file.size, 1 << 20);
   * Deno.removeSync(path);
   * ```
   */
  truncate(size: number): void {
    const file = this.#writableFile();
    checkBytes("Size", size);
    const doing = `Cannot resize "${this.name}" to ${hex(size)}`;
    if (!this.#resizable) {
      if (size <= this.#size) return;
      throw new Qcow2Error("no-space", `${doing}: the device has ${hex(this.#size)} bytes`, { expected: this.#size });
    }
    try {
      file.truncateSync(size);
      this.#size = size;
    } catch (error) {
      throw fromHostError(error, doing);
    }
  }

  /**
   * Makes everything that was written durable, with the length that the file had then.
   *
   * @throws {Qcow2Error} With code `closed` after `close()`, `no-space` or `io` where the host fails.
   *
   * @example Usage
   * ```ts
   * import { FsBlockFile } from "@disk/qcow2/storage";
   *
   * const path = Deno.makeTempFileSync();
   * using file = FsBlockFile.create(path);
   * file.writeAt(0, new Uint8Array(512));
   * file.sync();
   * Deno.removeSync(path);
   * ```
   */
  sync(): void {
    const file = this.#openFile();
    // Nothing can be waiting, and some hosts refuse to flush what they opened for reading.
    if (!this.writable) return;
    try {
      file.syncDataSync();
    } catch (error) {
      throw fromHostError(error, `Cannot sync "${this.name}"`);
    }
  }

  /**
   * Asks the host to begin making durable what was written, so that the next {@linkcode FsBlockFile.sync} takes less time. Promises
   * nothing, and does not wait. Does nothing where the host cannot do that.
   *
   * @throws {Qcow2Error} With code `closed` after `close()`.
   *
   * @example Usage
   * ```ts
   * import { FsBlockFile } from "@disk/qcow2/storage";
   *
   * const path = Deno.makeTempFileSync();
   * using file = FsBlockFile.create(path);
   * file.writeAt(0, new Uint8Array(1 << 20));
   * file.startSync();
   * // Something else is done here.
   * file.sync();
   * Deno.removeSync(path);
   * ```
   */
  startSync(): void {
    this.#openFile();
    if (this.writable) this.#nativeFile()?.startSync();
  }

  /**
   * Gives the space of a range back to the host; it reads as zeroes afterwards and the length stays.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes.
   * @returns Whether the host did it; if not, nothing has changed.
   * @throws {Qcow2Error} With code `closed` after `close()`, `read-only` on a file for reading, `invalid-argument` where the
   * range cannot be one.
   *
   * @example Usage
   * ```ts
   * import { FsBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * const path = Deno.makeTempFileSync();
   * using file = FsBlockFile.create(path);
   * file.writeAt(0, new Uint8Array(8192).fill(1));
   * const byte = new Uint8Array(1);
   * const punched = file.punchHole(0, 4096);
   * file.readAt(0, byte);
   * assertEquals(byte[0], punched ? 0 : 1);
   * Deno.removeSync(path);
   * ```
   */
  punchHole(offset: number, length: number): boolean {
    this.#writableFile();
    checkBytes("Offset", offset);
    checkBytes("Length", length);
    const clipped = Math.min(length, this.#size - offset);
    if (clipped <= 0) return true;
    return this.#nativeFile()?.punchHole(offset, clipped) ?? false;
  }

  /**
   * Reserves space for a range, growing the file where it reaches beyond the end.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes.
   * @returns Whether the host did it; if not, nothing has changed.
   * @throws {Qcow2Error} With code `closed` after `close()`, `read-only` on a file for reading, `invalid-argument` where the
   * range cannot be one, `no-space` where the host has no room; the file may have grown then.
   *
   * @example Usage
   * ```ts
   * import { FsBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * const path = Deno.makeTempFileSync();
   * using file = FsBlockFile.create(path);
   * const reserved = file.preallocate(0, 65536);
   * assertEquals(file.size, reserved ? 65536 : 0);
   * Deno.removeSync(path);
   * ```
   */
  preallocate(offset: number, length: number): boolean {
    const file = this.#writableFile();
    checkBytes("Offset", offset);
    checkBytes("Length", length);
    if (length === 0) return true;
    const outcome = this.#resizable ? this.#nativeFile()?.preallocate(offset, length, this.#size) : undefined;
    if (outcome === undefined || outcome === "unsupported") return false;
    if (outcome === "done") {
      this.#size = Math.max(this.#size, offset + length);
      return true;
    }
    // A host that runs out of room half-way keeps what it got that far.
    this.#size = file.statSync().size;
    const message = `Cannot reserve ${hex(length)} bytes of "${this.name}" at ${
      hex(offset)
    }: no space left on the host`;
    throw new Qcow2Error("no-space", message, { offset });
  }

  /**
   * The stretches of a range that may hold anything but zeroes. A host that cannot tell answers with the whole range.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes; what lies beyond the end of the file is left out.
   * @returns The stretches in ascending order.
   * @throws {Qcow2Error} With code `closed` after `close()`, `invalid-argument` where the range cannot be one.
   *
   * @example Usage
   * ```ts
   * import { FsBlockFile } from "@disk/qcow2/storage";
   * import { assert } from "@std/assert";
   *
   * const path = Deno.makeTempFileSync();
   * using file = FsBlockFile.create(path);
   * file.truncate(1 << 20);
   * file.writeAt(1 << 19, new Uint8Array([1]));
   * assert([...file.dataExtents(0, 1 << 20)].some((data) => data.offset <= 1 << 19));
   * Deno.removeSync(path);
   * ```
   */
  dataExtents(offset: number, length: number): Iterable<DataExtent> {
    this.#openFile();
    checkBytes("Offset", offset);
    checkBytes("Length", length);
    const end = Math.min(offset + length, this.#size);
    if (end <= offset) return [];
    return this.#nativeFile()?.dataExtents(offset, end) ?? [{ offset, length: end - offset }];
  }

  /**
   * Keeps others away from the file until it is closed: other programs that lock, such as a second one of this package, and
   * with `--allow-ffi` on Linux also QEMU. A lock that is had can be changed into the other kind.
   *
   * @param exclusive Whether to keep readers away as well, as one who writes must.
   * @returns Whether the lock was had; if not, the one had before still is. A host that knows no locks answers true.
   * @throws {Qcow2Error} With code `closed` after `close()`.
   *
   * @example Usage
   * ```ts
   * import { FsBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * const path = Deno.makeTempFileSync();
   * using file = FsBlockFile.open(path, { writable: true });
   * assertEquals(file.tryLock(true), true);
   * Deno.removeSync(path);
   * ```
   */
  tryLock(exclusive: boolean): boolean {
    const file = this.#openFile();
    const wanted = exclusive ? "exclusive" : "shared";
    if (this.#lock === wanted) return true;
    const native = this.#nativeFile();
    const had = tryLockFile(file, exclusive) ?? native?.tryLock(exclusive) ?? true;
    if (had && (native?.tryQemuLock(wanted) ?? true)) {
      this.#lock = wanted;
      return true;
    }
    this.#restoreLock(file, native);
    return false;
  }

  /**
   * Closes the file and gives up its locks. Does not sync. Closing twice is fine.
   *
   * @example Usage
   * ```ts
   * import { Qcow2Error } from "@disk/qcow2/errors";
   * import { FsBlockFile } from "@disk/qcow2/storage";
   * import { assertThrows } from "@std/assert";
   *
   * const path = Deno.makeTempFileSync();
   * const file = FsBlockFile.open(path);
   * file.close();
   * assertThrows(() => file.readAt(0, new Uint8Array(1)), Qcow2Error, "closed");
   * Deno.removeSync(path);
   * ```
   */
  close(): void {
    const file = this.#file;
    if (file === undefined) return;
    this.#file = undefined;
    this.#native?.close();
    this.#native = null;
    this.#backgroundReader?.close();
    this.#backgroundReader = null;
    file.close();
  }

  /**
   * Closes the file at the end of a `using` block.
   *
   * @example Usage
   * ```ts
   * import { FsBlockFile } from "@disk/qcow2/storage";
   * import { assertEquals } from "@std/assert";
   *
   * const path = Deno.makeTempFileSync();
   * {
   *   using file = FsBlockFile.open(path);
   *   assertEquals(file.size, 0);
   * }
   * Deno.removeSync(path);
   * ```
   */
  [Symbol.dispose](): void {
    this.close();
  }

  #openFile(): Deno.FsFile {
    if (this.#file === undefined) throw closedError(this.name);
    return this.#file;
  }

  #writableFile(): Deno.FsFile {
    if (this.#file === undefined || !this.writable) throw this.#refusal();
    return this.#file;
  }

  #refusal(): Qcow2Error {
    return this.#file === undefined ? closedError(this.name) : readOnlyError(this.name);
  }

  #nativeFile(): NativeFile | undefined {
    if (this.#native === undefined) {
      const file = this.#openFile();
      this.#native = (this.#path === undefined ? undefined : NativeFile.open(this.#path, file, this.writable)) ?? null;
    }
    return this.#native ?? undefined;
  }

  /** Goes on after a first call that read less than all; a count of null is the host's word for the end of the file. */
  #readRest(file: Deno.FsFile, offset: number, into: Uint8Array, count: number | null): number {
    let done = 0;
    while (count !== null) {
      done += count;
      if (done === into.length) break;
      count = file.readSync(into.subarray(done));
    }
    this.#position = offset + done;
    return done;
  }

  /** Goes on after a first call that did not write all. */
  #writeRest(file: Deno.FsFile, offset: number, data: Uint8Array, count: number): void {
    let done = count;
    while (true) {
      if (done > 0) this.#size = Math.max(this.#size, offset + done);
      if (done === data.length) break;
      if (count === 0) throw new Error("the host took none of the bytes");
      count = file.writeSync(data.subarray(done, done + WRITE_PIECE_LENGTH));
      done += count;
    }
    this.#position = offset + done;
  }

  /** Whether there can be bytes at a position. */
  #canReach(file: Deno.FsFile, offset: number): boolean {
    if (offset < this.#size) return true;
    this.#position = UNKNOWN_POSITION;
    try {
      seek(file, offset);
      return true;
    } catch {
      return false;
    }
  }

  #fault(verb: string, offset: number, error: unknown): Qcow2Error {
    this.#position = UNKNOWN_POSITION;
    return fromHostError(error, `Cannot ${verb} "${this.name}" at ${hex(offset)}`, offset);
  }

  /** Goes back to the lock that was had before a try that failed half-way. */
  #restoreLock(file: Deno.FsFile, native: NativeFile | undefined): void {
    native?.tryQemuLock(this.#lock);
    if (this.#lock !== "none") {
      tryLockFile(file, this.#lock === "exclusive") ?? native?.tryLock(this.#lock === "exclusive");
    } else if (!unlockFile(file)) native?.unlock();
  }
}

function seek(file: Deno.FsFile, offset: number): void {
  checkBytes("Offset", offset);
  file.seekSync(offset, Deno.SeekMode.Start);
}
