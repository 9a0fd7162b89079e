/**
 * A second file object of a file that is open already, for reads that go on while the caller does something else.
 *
 * @module
 */

import type { FilePlace } from "../disk.ts";
import { openAgain } from "./file_place.ts";

/**
 * Reads on a thread of the runtime. It takes a file object of its own: one that reads in the background refuses everything else
 * meanwhile, and its position is where that read has come to.
 */
export class BackgroundReader {
  readonly #file: Deno.FsFile;
  #position = 0;
  /** The read that is under way, if there is one. It never rejects. */
  #busy: Promise<void> | undefined;

  private constructor(file: Deno.FsFile) {
    this.#file = file;
  }

  /**
   * Opens a file again.
   *
   * @param place Where the file is.
   * @returns A reader, or undefined where there cannot be one.
   */
  static open(place: FilePlace): BackgroundReader | undefined {
    const file = openAgain(place);
    return file === undefined ? undefined : new BackgroundReader(file);
  }

  /**
   * Reads from a position until the buffer is full or the file ends. It has begun when the call returns, unless another one is
   * under way, which it waits for.
   *
   * @param offset Where to begin, in bytes.
   * @param into What to fill; to be left alone until the promise is settled.
   * @returns How many bytes were read.
   */
  async read(offset: number, into: Uint8Array): Promise<number> {
    while (this.#busy !== undefined) await this.#busy;
    const reading = this.#read(offset, into);
    const settled = (): void => {
      this.#busy = undefined;
    };
    this.#busy = reading.then(settled, settled);
    return await reading;
  }

  async #read(offset: number, into: Uint8Array): Promise<number> {
    if (offset !== this.#position) this.#file.seekSync(offset, Deno.SeekMode.Start);
    // After a failure nobody knows where the file stands.
    this.#position = NaN;
    let done = 0;
    while (done < into.length) {
      const count = await this.#file.read(done === 0 ? into : into.subarray(done));
      if (count === null) break;
      done += count;
    }
    this.#position = offset + done;
    return done;
  }

  /** Closes the file object. */
  close(): void {
    this.#file.close();
  }
}
