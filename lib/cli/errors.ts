/**
 * How a command fails: errors that carry what to print and the exit status, and engine errors put into QEMU's words.
 *
 * @module
 */

import { Qcow2Error, type Qcow2ErrorCode } from "../errors.ts";
import type { SnapshotTableError } from "../metadata/snapshots.ts";
import { explainHeaderError } from "./header_errors.ts";

/** What is said around the message of an error. */
export interface CliErrorDetails {
  /** What is printed in front of it as it is, without a line end of its own. */
  readonly notice?: string;
  /** What is printed as it is, without a line end of its own. */
  readonly hint?: string;
  /** A second message, with the program's name in front of it too. */
  readonly second?: string;
  /** The image that it is about, as it was named. */
  readonly path?: string;
  /** The error that led to it. */
  readonly cause?: unknown;
}

/** Ends a command with a message and an exit status. */
export class CliError extends Error {
  /** The name of the class, as in every `Error`. */
  override readonly name: string = "CliError";
  /** The exit status. */
  readonly exitCode: number;
  /** What else is to be said. */
  readonly details: CliErrorDetails;

  /**
   * @param message What to say; the program's name comes in front. Further lines stand as they are.
   * @param exitCode The exit status.
   * @param details What else is to be said.
   */
  constructor(message: string, exitCode = 1, details: CliErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.exitCode = exitCode;
    this.details = details;
  }
}

/** Ends a command because its arguments make no sense; help is pointed to. */
export class UsageError extends CliError {
  /** The name of the class, as in every `Error`. */
  override readonly name: string = "UsageError";
}

/**
 * An error that another one led to.
 *
 * @param error What was caught.
 * @param message What to say of it.
 * @returns The error to throw.
 */
export function causedBy(error: unknown, message: string): CliError {
  return new CliError(message, 1, { cause: error });
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
    const headerFault = explainHeaderError(error);
    if (headerFault !== undefined) return headerFault;
    const { isDirectory, canBeImage } = kindOfFile(path);
    if (isDirectory && write) return `Could not open '${path}': Is a directory`;
    if (!canBeImage) return `'file' driver requires '${path}' to be a regular file`;
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
 * Says why something failed: in the host's words where it was the host.
 *
 * @param error What was caught.
 * @returns One line.
 */
export function explainIoError(error: unknown): string {
  return hostReason(error) ?? messageOf(error);
}

/** Why something failed, as the C library says it. */
export interface Failure {
  /** The number that it has there. */
  readonly number: number;
  /** What it is called there. */
  readonly text: string;
  /** What QEMU tells by itself of an image that it finds broken: a line, to be printed before. */
  readonly notice: string;
}

/** What the C library has for the errors of the engine. */
const FAILURES: Readonly<Partial<Record<Qcow2ErrorCode, readonly [number: number, text: string]>>> = {
  "not-found": [2, "No such file or directory"],
  "permission-denied": [13, "Permission denied"],
  "already-exists": [17, "File exists"],
  "invalid-argument": [22, "Invalid argument"],
  "invalid-header": [22, "Invalid argument"],
  "refcount-overflow": [22, "Invalid argument"],
  "limit-exceeded": [27, "File too large"],
  "no-space": [28, "No space left on device"],
  "unsupported": [95, "Operation not supported"],
  "marked-corrupt": [123, "No medium found"],
};
const IO_FAILURE = [5, "Input/output error"] as const;

/**
 * Says why reading or writing failed where QEMU says no more than the C library does.
 *
 * @param error What was caught.
 * @param write Whether the image was open for writing, so that it is marked where it is found broken.
 * @returns The reason.
 */
export function failureOf(error: unknown, write = false): Failure {
  const host = /([^:\n]+) \(os error (\d+)\)/.exec(causeMessages(error));
  if (host !== null) return { number: Number(host[2]), text: (host[1] ?? "").trim(), notice: "" };
  const code = error instanceof Qcow2Error ? error.code : "io";
  const [number, text] = FAILURES[code] ?? IO_FAILURE;
  const found = metadataDamage(error)?.message;
  const notice = found === undefined
    ? ""
    : write
    ? `qcow2: Marking image as corrupt: ${found}; further corruption events will be suppressed\n`
    : `qcow2: Image is corrupt: ${found}; further non-fatal corruption events will be suppressed\n`;
  return { number, text, notice };
}

/** What is broken in an image's tables, where an error comes from that. */
function metadataDamage(error: unknown): Qcow2Error | undefined {
  for (const inner of causesOf(error)) if (inner instanceof Qcow2Error && inner.inMetadata) return inner;
  return undefined;
}

/**
 * The error that ends a command where reading or writing failed.
 *
 * @param prefix What was being done; the reason comes behind it.
 * @param error What was caught.
 * @param write Whether the image was open for writing.
 * @returns The error to throw.
 */
export function ioError(prefix: string, error: unknown, write = false): CliError {
  const { text, notice } = failureOf(error, write);
  return new CliError(`${prefix}${text}`, 1, { notice, cause: error });
}

/**
 * What can be done about a snapshot table that cannot be read, in QEMU's words.
 *
 * @param error What was caught.
 * @returns A line with its end; empty where nothing can be done.
 */
export function snapshotTableHint({ problem, overhanging }: SnapshotTableError): string {
  if (problem === "offset") return "";
  const what = problem === "extra-data" ? "this extra metadata" : `all ${overhanging} overhanging snapshots`;
  return `You can force-remove ${what} with qemu-img check -r all\n`;
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
  return /([^:\n]+) \(os error \d+\)/.exec(causeMessages(error))?.[1]?.trim();
}

function causeMessages(error: unknown): string {
  return [...causesOf(error)].map(({ message }) => message).join("\n");
}

/** An error and those that led to it, as far as a command has not put them into words already. */
function* causesOf(error: unknown): Generator<Error> {
  for (let inner = error; inner instanceof Error; inner = inner.cause) {
    yield inner;
    if (inner instanceof CliError) return;
  }
}

/** What stands at a path; what cannot be looked at may be an image. */
function kindOfFile(path: string): { readonly isDirectory: boolean; readonly canBeImage: boolean } {
  try {
    const { isFile, isBlockDevice, isDirectory } = Deno.statSync(path);
    return { isDirectory, canBeImage: isFile || isBlockDevice === true };
  } catch {
    return { isDirectory: false, canBeImage: true };
  }
}
