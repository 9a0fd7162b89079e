/**
 * Where a file can be opened once more: for reads that go on while the caller does something else, and for threads.
 *
 * @module
 */

import type { FilePlace } from "../disk.ts";

/**
 * The path of a file from the root, to be taken before the current directory is another one.
 *
 * @param path The path as it was given.
 * @returns The path, or undefined where nobody knows.
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
 * Where a file that is open can be opened once more. No permission is asked for.
 *
 * @param path Where it was when it was opened. What stands there now may be another file.
 * @param file The file.
 * @returns Its place, or undefined where it may not be read there, or files have no numbers.
 */
export function placeOf(path: string, file: Deno.FsFile): FilePlace | undefined {
  try {
    if (Deno.permissions.querySync({ name: "read", path }).state !== "granted") return undefined;
    const { dev, ino } = file.statSync();
    return ino === null || ino === 0 ? undefined : { path, device: dev, inode: ino };
  } catch {
    return undefined;
  }
}

/**
 * Opens a file once more for reading.
 *
 * @param place Where it is.
 * @returns The file, or undefined where it is there no more, or another one has taken its place.
 */
export function openAgain({ path, device, inode }: FilePlace): Deno.FsFile | undefined {
  let file: Deno.FsFile | undefined;
  try {
    file = Deno.openSync(path);
    const { dev, ino } = file.statSync();
    if (dev === device && ino === inode) return file;
  } catch {
    // Whatever it is, it is not known to be the same file.
  }
  file?.close();
  return undefined;
}
