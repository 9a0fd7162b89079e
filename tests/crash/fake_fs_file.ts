/**
 * A file of the runtime, in memory, that reads and writes less than it is asked to, and fails as a host does.
 *
 * @module
 */

import type { Random } from "../random.ts";
import { FlatBytes } from "./flat_file.ts";

/** The calls of a `Deno.FsFile` that the engine makes. */
export type FsCall = "readSync" | "writeSync" | "syncDataSync" | "truncateSync" | "seekSync";

/** A stand-in for a `Deno.FsFile`. */
export class FakeFsFile {
  /** What it holds. */
  readonly flat: FlatBytes;
  /** Called before each call with how many there were before; throws what the host would. */
  onCall: ((call: FsCall, count: number) => void) | undefined;
  /** How many calls there were. */
  callCount = 0;
  readonly #random: Random;
  #position = 0;

  /**
   * @param content What it holds at first.
   * @param random Decides how short a call falls.
   */
  constructor(content: Uint8Array, random: Random) {
    this.flat = new FlatBytes(content);
    this.#random = random;
  }

  /** The same object, as the type that the engine takes. */
  asFsFile(): Deno.FsFile {
    return this as unknown as Deno.FsFile;
  }

  statSync(): { readonly isFile: boolean; readonly size: number } {
    return { isFile: true, size: this.flat.size };
  }

  seekSync(offset: number, _whence: Deno.SeekMode): number {
    this.#call("seekSync");
    return this.#position = offset;
  }

  readSync(into: Uint8Array): number | null {
    this.#call("readSync");
    const length = Math.min(this.#shorten(into.length), this.flat.size - this.#position);
    if (length <= 0) return into.length === 0 ? 0 : null;
    into.set(this.flat.bytes.subarray(this.#position, this.#position + length));
    this.#position += length;
    return length;
  }

  writeSync(data: Uint8Array): number {
    this.#call("writeSync");
    const length = this.#shorten(data.length);
    this.flat.write(this.#position, data.subarray(0, length));
    this.#position += length;
    return length;
  }

  truncateSync(size = 0): void {
    this.#call("truncateSync");
    this.flat.truncate(size);
  }

  syncDataSync(): void {
    this.#call("syncDataSync");
  }

  close(): void {}

  #call(call: FsCall): void {
    const count = this.callCount++;
    this.onCall?.(call, count);
  }

  #shorten(length: number): number {
    return length <= 1 || this.#random.oneIn(2) ? length : this.#random.between(1, length - 1);
  }
}
