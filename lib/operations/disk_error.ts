/**
 * Tells which of the disks that take part in an operation has failed.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";

/** What was being done to a disk: its bytes read or written, its stretches listed, or its size changed. */
export type DiskAction = "read" | "write" | "list" | "resize";

const WORDS: Readonly<Record<DiskAction, string>> = {
  read: "Cannot read",
  write: "Cannot write to",
  list: "Cannot tell what is allocated in",
  resize: "Cannot resize",
};

/**
 * The error of an operation over several disks: which of them has failed, and at what. Code and cause are those of the disk's
 * own error.
 *
 * @example Usage
 * ```ts
 * import { compare, DiskError, Qcow2File } from "@disk/qcow2";
 * import { assertEquals, assertRejects } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * const closed = Qcow2File.create(path, { size: 1 << 20 });
 * closed.close();
 * const error = await assertRejects(() => compare(closed, closed), DiskError);
 * assertEquals([error.disk, error.action, error.code], ["first disk", "list", "closed"]);
 * Deno.removeSync(path);
 * ```
 */
export class DiskError extends Qcow2Error {
  /** The disk that has failed, as the operation calls it. */
  readonly disk: string;
  /** What was being done. */
  readonly action: DiskAction;

  /**
   * Makes an error.
   *
   * @param disk The disk that has failed, as the operation calls it.
   * @param action What was being done.
   * @param offset Where, in bytes of the disk.
   * @param cause Why it has failed.
   */
  constructor(disk: string, action: DiskAction, offset: number, cause: Qcow2Error) {
    super(cause.code, `${WORDS[action]} the ${disk} at ${offset}: ${cause.message}`, { offset, cause });
    this.disk = disk;
    this.action = action;
  }
}

/**
 * Does something to one of several disks.
 *
 * @param disk What the disk is called.
 * @param action What is done.
 * @param offset Where, in bytes of the disk.
 * @param act Does it.
 * @returns What `act` returns.
 * @throws {DiskError} Where that fails.
 */
export function onDisk<T>(disk: string, action: DiskAction, offset: number, act: () => T): T {
  try {
    return act();
  } catch (error) {
    throw diskError(disk, action, offset, error);
  }
}

/**
 * The error for what one of several disks has thrown.
 *
 * @param disk What the disk is called.
 * @param action What was done.
 * @param offset Where, in bytes of the disk.
 * @param error What it has thrown.
 * @returns What to throw.
 */
export function diskError(disk: string, action: DiskAction, offset: number, error: unknown): unknown {
  return error instanceof Qcow2Error ? new DiskError(disk, action, offset, error) : error;
}
