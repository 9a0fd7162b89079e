/**
 * The host file beneath an image: opened or created, and locked.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { builtinModule } from "../format/builtin_modules.ts";
import type { BlockFile } from "../storage/block_file.ts";
import { FsBlockFile } from "../storage/fs_block_file.ts";

/** What can stand beneath an image: a path, a file that was opened, or anything that behaves like one. */
export type FileSource = string | URL | Deno.FsFile | BlockFile;

/**
 * Opens the file beneath an image.
 *
 * @param source A path or an open file.
 * @param options Whether it is written, and whether it is locked.
 * @returns The file.
 * @throws {Qcow2Error} With code `not-found`, `permission-denied`, `locked`, `read-only` or `io`.
 */
export function acquireFile(
  source: FileSource,
  options: { readonly write: boolean; readonly lock: boolean },
): BlockFile {
  const file = openFile(source, options.write);
  try {
    if (options.write && !file.writable) {
      throw new Qcow2Error("read-only", `"${file.name}" was opened for reading, expected one that can be written`);
    }
    if (options.lock) lockFile(file, options.write);
  } catch (error) {
    file.close();
    throw error;
  }
  return file;
}

function openFile(source: FileSource, write: boolean): BlockFile {
  if (isPath(source)) return FsBlockFile.open(pathOf(source), { writable: write });
  if (source instanceof Deno.FsFile) return FsBlockFile.from(source, { name: "open file", writable: write });
  return source;
}

/**
 * Creates the file beneath an image; whatever it held is gone.
 *
 * @param target A path or an open file.
 * @param options Whether the file must be new, and whether it is locked.
 * @returns The file, empty.
 * @throws {Qcow2Error} With code `already-exists`, `permission-denied`, `locked`, `read-only` or `io`.
 */
export function createFile(
  target: FileSource,
  options: { readonly createNew: boolean; readonly lock: boolean },
): BlockFile {
  if (isPath(target)) {
    return FsBlockFile.create(pathOf(target), { exclusive: options.createNew });
  }
  const file = acquireFile(target, { write: true, lock: options.lock });
  try {
    file.truncate(0);
  } catch (error) {
    file.close();
    throw error;
  }
  return file;
}

function isPath(source: FileSource): source is string | URL {
  return typeof source === "string" || source instanceof URL;
}

function pathOf(path: string | URL): string {
  return typeof path === "string" ? path : builtinModule("node:url").fileURLToPath(path);
}

/**
 * Locks a file until it is closed.
 *
 * @param file The file.
 * @param exclusive Whether to keep readers away as well.
 * @throws {Qcow2Error} With code `locked` where somebody else has it open.
 */
export function lockFile(file: BlockFile, exclusive: boolean): void {
  if (file.tryLock(exclusive)) return;
  const wanted = exclusive ? "write" : "shared";
  throw new Qcow2Error("locked", `Failed to get ${wanted} lock: another process has "${file.name}" open`, {
    found: "a lock",
    expected: "no other user",
  });
}
