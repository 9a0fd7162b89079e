/**
 * How a command fails: errors that carry what to print and the exit status, and engine errors put into QEMU's words.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";

/** Ends a command with a message and an exit status. */
export class CliError extends Error {
  /** The name of the class, as in every `Error`. */
  override readonly name: string = "CliError";
  /** The exit status. */
  readonly exitCode: number;

  /**
   * @param message What to say; the program's name comes in front. Further lines stand as they are.
   * @param exitCode The exit status.
   */
  constructor(message: string, exitCode = 1) {
    super(message);
    this.exitCode = exitCode;
  }
}

/** Ends a command because its arguments make no sense; help is pointed to. */
export class UsageError extends CliError {
  /** The name of the class, as in every `Error`. */
  override readonly name: string = "UsageError";
}

/**
 * The error for a capability that this program does not have.
 *
 * @param what What was asked for, such as `Compression (-c)`.
 * @returns The error to throw.
 */
export function notSupported(what: string): CliError {
  return new CliError(`${what} is not supported`);
}

/**
 * Says why an image could not be opened, the way `qemu-img` does.
 *
 * @param error What was caught.
 * @param path Path of the file.
 * @param write Whether it was to be written.
 * @returns One line, or two for a lock.
 */
export function explainOpenError(error: unknown, path: string, write: boolean): string {
  // A backing file has said what was wrong with it already.
  if (error instanceof CliError) return error.message;
  if (path === "") return "The 'file' block driver requires a file name";
  if (error instanceof Qcow2Error) {
    if (error.message.startsWith("Cannot open data file ")) {
      return explainOpenError(error.cause, String(error.found), write);
    }
    if (error.code === "locked") return lockMessage(path, write ? '"write"' : 'shared "write"');
    if (error.code === "not-qcow2") return "Image is not in qcow2 format";
    if (error.code === "unsupported-version") return `Unsupported qcow2 version ${error.found}`;
    if (error.code === "marked-corrupt") return "Image is corrupt; cannot be opened read/write";
    if (isNeitherFileNorDevice(path)) return `'file' driver requires '${path}' to be a regular file`;
  }
  const reason = hostReason(error);
  return reason === undefined ? messageOf(error) : `Could not open '${path}': ${reason}`;
}

/**
 * Says why an image could not be created, the way `qemu-img` does.
 *
 * @param error What was caught.
 * @param path Path of the file.
 * @returns One line, or two for a lock.
 */
export function explainCreateError(error: unknown, path: string): string {
  if (error instanceof Qcow2Error && error.code === "locked") return lockMessage(path, '"write"');
  const reason = hostReason(error);
  return reason === undefined ? messageOf(error) : `Could not create '${path}': ${reason}`;
}

/**
 * Says why reading or writing failed: in the host's words where it was the host.
 *
 * @param error What was caught.
 * @returns One line.
 */
export function explainIoError(error: unknown): string {
  return hostReason(error) ?? messageOf(error);
}

/**
 * The first line of an error's message: an error never prints more than it was meant to.
 *
 * @param error What was caught.
 * @returns One line.
 */
export function messageOf(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  return message.split("\n", 1)[0] ?? "";
}

function lockMessage(path: string, kind: string): string {
  return `Failed to get ${kind} lock\nIs another process using the image [${path}]?`;
}

/** The host's own words for what went wrong, such as `No such file or directory`. */
function hostReason(error: unknown): string | undefined {
  for (let inner = error; inner instanceof Error; inner = inner.cause) {
    const found = /([^:]+) \(os error \d+\)/.exec(inner.message)?.[1];
    if (found !== undefined) return found.trim();
  }
  return undefined;
}

function isNeitherFileNorDevice(path: string): boolean {
  try {
    const { isFile, isBlockDevice } = Deno.statSync(path);
    return !isFile && isBlockDevice !== true;
  } catch {
    return false;
  }
}
