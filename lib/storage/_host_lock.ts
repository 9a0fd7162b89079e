/**
 * The lock of the runtime on a whole file, where the runtime has one that does not wait.
 *
 * @module
 */

/** What newer runtimes add to `Deno.FsFile`; the older ones that this package runs on can only wait for a lock. */
interface TryLockable {
  readonly tryLockSync: (exclusive: boolean) => boolean;
}

function isTryLockable(file: object): file is TryLockable {
  return "tryLockSync" in file && typeof file.tryLockSync === "function";
}

/**
 * Tries to take the lock of a file, or to change it into the other kind. A file system without locks counts as had.
 *
 * @returns Whether it was had, or undefined where the runtime cannot try.
 */
export function tryLockFile(file: Deno.FsFile, exclusive: boolean): boolean | undefined {
  if (!isTryLockable(file)) return undefined;
  try {
    return file.tryLockSync(exclusive);
  } catch {
    return true;
  }
}

/** Gives the lock of a file up. Answers false where {@linkcode tryLockFile} could not have taken it. */
export function unlockFile(file: Deno.FsFile): boolean {
  if (!isTryLockable(file)) return false;
  try {
    file.unlockSync();
  } catch {
    // There was none, as on a file system without locks.
  }
  return true;
}
