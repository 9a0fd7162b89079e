/**
 * Where `convert` writes: never half an image in the place of a whole one.
 *
 * @module
 */

import { basename, dirname, resolve } from "node:path";
import type { BlockFile } from "../storage/block_file.ts";
import { FsBlockFile } from "../storage/fs_block_file.ts";
import { causedBy, CliError, explainCreateError } from "./errors.ts";

/**
 * The place of a new image. Where there is no file yet, the image is made there, and taken away again should it not be completed.
 * Where there is one, the image is made beside it and takes its place in the end. A block device is written in place.
 */
export class ConversionTarget implements Disposable {
  /** Where to make the image. */
  readonly path: string;
  /** Whether the image must be made in a file that does not exist yet. */
  readonly createNew: boolean;
  /** The file whose place the image takes, if there is one. */
  readonly #replaces: { readonly path: string; readonly file: BlockFile; readonly info: Deno.FileInfo } | undefined;
  /** Whether there may be a file that has to go should the image not be completed. */
  #mayRemain: boolean;

  private constructor(path: string, kind: "new" | "device" | { path: string; file: BlockFile; info: Deno.FileInfo }) {
    this.path = path;
    this.createNew = kind === "new";
    this.#replaces = typeof kind === "object" ? kind : undefined;
    this.#mayRemain = this.#replaces !== undefined;
  }

  /**
   * Prepares the place. A file that is there already is locked, and not touched.
   *
   * @param path Path of the image, as it was given.
   * @param sources Paths of the files that will be read.
   * @returns The place; dispose of it in any case.
   * @throws {CliError} Where it is one of the sources, in use or not writable.
   */
  static prepare(path: string, sources: readonly string[]): ConversionTarget {
    try {
      const real = followLinks(path);
      const info = statOrUndefined(real);
      if (info === undefined) return new ConversionTarget(real, "new");
      if (sources.some((source) => isSameFile(info, real, source))) throw inUse(path);
      if (!info.isFile) return new ConversionTarget(real, "device");
      const file = FsBlockFile.open(real, { writable: true });
      try {
        if (!file.tryLock(true)) throw inUse(path);
        const temporary = Deno.makeTempFileSync({ dir: dirname(real), prefix: `.${basename(real)}.` });
        return new ConversionTarget(temporary, { path: real, file, info });
      } catch (error) {
        file.close();
        throw error;
      }
    } catch (error) {
      if (error instanceof CliError) throw error;
      throw causedBy(error, explainCreateError(error, path));
    }
  }

  /** Whether the image takes the place of a file in the end. */
  get replacesFile(): boolean {
    return this.#replaces !== undefined;
  }

  /** Says that the image exists now, at least in part. */
  markCreated(): void {
    this.#mayRemain = this.createNew || this.#replaces !== undefined;
  }

  /**
   * Puts the complete image, which must be closed, in its place. Where it replaces a file it should be durable: otherwise a power
   * cut may leave neither of the two.
   *
   * @throws {Error} Where the host refuses; what was there before is there still.
   */
  complete(): void {
    if (this.#replaces !== undefined) {
      const { path, info } = this.#replaces;
      takeOver(this.path, info);
      Deno.renameSync(this.path, path);
    }
    this.#mayRemain = false;
  }

  /** Takes away what was not completed. */
  [Symbol.dispose](): void {
    this.#replaces?.file.close();
    if (!this.#mayRemain) return;
    this.#mayRemain = false;
    try {
      Deno.removeSync(this.path);
    } catch {
      // What led here is the news; a file that cannot be removed, or is gone already, adds nothing to it.
    }
  }
}

function inUse(path: string): CliError {
  return new CliError(`Failed to get "write" lock\nIs another process using the image [${path}]?`);
}

/** The file that is meant by a path, also where it is a link to one that does not exist yet. */
function followLinks(path: string): string {
  try {
    return Deno.realPathSync(path);
  } catch {
    try {
      return resolve(dirname(path), Deno.readLinkSync(path));
    } catch {
      return path;
    }
  }
}

function statOrUndefined(path: string): Deno.FileInfo | undefined {
  try {
    return Deno.statSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

function isSameFile(info: Deno.FileInfo, path: string, source: string): boolean {
  const other = statOrUndefined(source);
  if (other === undefined) return false;
  if (info.ino === null || info.ino === 0) return followLinks(source) === path;
  return info.ino === other.ino && info.dev === other.dev;
}

/** Gives a file the mode of another one, and its owner where that is allowed. */
function takeOver(path: string, info: Deno.FileInfo): void {
  if (Deno.build.os === "windows" || info.mode === null) return;
  try {
    if (info.uid !== null && info.gid !== null) Deno.chownSync(path, info.uid, info.gid);
  } catch {
    // Only an administrator may give a file to somebody else.
  }
  Deno.chmodSync(path, info.mode & 0o7777);
}
