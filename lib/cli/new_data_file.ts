/**
 * The external data file of an image that is being made.
 *
 * @module
 */

import { isAbsolute } from "node:path";
import { allowedDataFile, type DataFileReference } from "../image/data_file.ts";
import { acquireFile, createFile } from "../image/host_file.ts";
import type { BlockFile } from "../storage/block_file.ts";

/**
 * A data file made where `qemu-img` makes it: a relative name begins in the working directory. It is taken away again should the
 * image not be completed.
 */
export class NewDataFile implements Disposable {
  readonly #imagePath: string;
  #made: string | undefined;

  /** @param imagePath Path of the image, as it was given. */
  constructor(imagePath: string) {
    this.#imagePath = imagePath;
  }

  /**
   * Makes the file, or opens the one that is there.
   *
   * @param reference What the image will say of it.
   * @returns The file.
   */
  readonly open = (reference: DataFileReference): BlockFile => {
    const { name = "" } = reference;
    const here = reference.path === undefined || isAbsolute(name) ? reference : { ...reference, path: name };
    const path = allowedDataFile(here, this.#imagePath);
    if (exists(path)) return acquireFile(path, { write: true, lock: true });
    const file = createFile(path, { createNew: true, lock: true });
    this.#made = path;
    return file;
  };

  /** Says that the image is complete. */
  keep(): void {
    this.#made = undefined;
  }

  /** Takes away the file of an image that was not completed, unless it was there before. */
  [Symbol.dispose](): void {
    if (this.#made === undefined) return;
    try {
      Deno.removeSync(this.#made);
    } catch {
      // What led here is the news.
    }
    this.#made = undefined;
  }
}

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch (error) {
    return !(error instanceof Deno.errors.NotFound);
  }
}
