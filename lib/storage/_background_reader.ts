/**
 * A second file object of a file that is open already, for reads that go on while the caller does something else.
 *
 * @module
 */

/**
 * Where a file can be found again later, when the current directory may be another one.
 *
 * @param path The path as it was given.
 * @returns The path from the root, or undefined where nobody knows.
 */
export function absolutePath(path: string): string | undefined {
  if (path.startsWith("/") || Deno.build.os === "windows") return path;
  try {
    return `${Deno.cwd()}/${path}`;
  } catch {
    return undefined;
  }
}

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
   * @param path Where the file was when it was opened. What stands there now may be another file, which is left alone.
   * @param file The file.
   * @returns A reader, or undefined where there cannot be one. No permission is asked for.
   */
  static open(path: string, file: Deno.FsFile): BackgroundReader | undefined {
    let again: Deno.FsFile | undefined;
    try {
      if (Deno.permissions.querySync({ name: "read", path }).state !== "granted") return undefined;
      again = Deno.openSync(path);
      if (isSameFile(again.statSync(), file.statSync())) return new BackgroundReader(again);
    } catch {
      // Whatever it is, it is not known to be the same file.
    }
    again?.close();
    return undefined;
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

function isSameFile(one: Deno.FileInfo, other: Deno.FileInfo): boolean {
  // Where files have no numbers, nothing can be said.
  return one.ino !== null && one.ino !== 0 && one.ino === other.ino && one.dev === other.dev;
}
