/**
 * What `ComparisonThread` and its thread tell each other, and the job itself: are the same bytes in two files?
 *
 * @module
 */

import { Buffer } from "node:buffer";
import type { FilePlace } from "../disk.ts";
import { openAgain } from "../storage/file_place.ts";

/** Bytes of a file. */
export interface PlacedBytes {
  /** Where the file is. */
  readonly place: FilePlace;
  /** Where the bytes begin in it. */
  readonly offset: number;
}

/** What the thread is told first: where it says that it is there, and where its answers go. */
export interface Greeting {
  /** Shared memory: {@linkcode READY}, then the answers in turn. */
  readonly state: Int32Array;
}

/** What it is asked. */
export interface Question {
  /** The bytes of one file. */
  readonly first: PlacedBytes;
  /** The bytes of the other. */
  readonly second: PlacedBytes;
  /** How many they are. */
  readonly length: number;
  /** Which part of the state the answer goes to. */
  readonly slot: number;
}

/** The part of the state that says whether the thread is there. */
export const READY = 0;
/** What a part of the state says. */
export const STATE = { none: 0, same: 1, unknown: 2 } as const;

/** More would not stay in the cache of a processor between being read and being compared. In bytes. */
export const PART_LENGTH = 256 * 1024;

/** Compares files, each of which is opened once and closed with the thread. */
export class FileComparison {
  readonly #buffers = [new Uint8Array(PART_LENGTH), new Uint8Array(PART_LENGTH)] as const;
  readonly #files = new Map<string, Deno.FsFile | undefined>();

  /**
   * Compares bytes of two files.
   *
   * @param question Which.
   * @returns Whether they are the same; false as well where that cannot be told.
   * @throws {unknown} What the host says.
   */
  areSame({ first, second, length }: Question): boolean {
    for (let done = 0; done < length; done += PART_LENGTH) {
      const count = Math.min(PART_LENGTH, length - done);
      const [one, other] = [this.#buffers[0].subarray(0, count), this.#buffers[1].subarray(0, count)];
      const areRead = this.#read(first, done, one) && this.#read(second, done, other);
      if (!areRead || Buffer.compare(one, other) !== 0) return false;
    }
    return true;
  }

  #read({ place, offset }: PlacedBytes, from: number, into: Uint8Array): boolean {
    const key = `${place.device} ${place.inode}`;
    if (!this.#files.has(key)) this.#files.set(key, openAgain(place));
    const file = this.#files.get(key);
    if (file === undefined) return false;
    file.seekSync(offset + from, Deno.SeekMode.Start);
    for (let done = 0; done < into.length;) {
      const count = file.readSync(into.subarray(done));
      if (count === null) return false;
      done += count;
    }
    return true;
  }
}
