/**
 * The one error class of this package, {@linkcode Qcow2Error}, and the closed union of its codes.
 *
 * @module
 */

/**
 * What went wrong, for programs. The set is closed: a `switch` over it can be exhaustive.
 *
 * | code | meaning |
 * |---|---|
 * | `invalid-argument` | the caller passed a value that makes no sense here |
 * | `out-of-range` | an offset or length lies outside of the disk |
 * | `not-qcow2` | the file does not begin with the qcow2 magic |
 * | `unsupported-version` | a qcow2 version other than 2 and 3 |
 * | `unknown-feature` | an incompatible feature bit that this package does not know |
 * | `unsupported` | a known capability of the format that is not available here |
 * | `backing-refused` | the image names a backing file and the caller did not allow opening it |
 * | `data-file-refused` | the image names an external data file and the caller did not allow opening it |
 * | `encrypted` | the image is encrypted |
 * | `invalid-header` | a header field or header extension contradicts the format |
 * | `limit-exceeded` | a size taken from the file is beyond the limit that protects memory |
 * | `corrupt` | a table contradicts the format or another table |
 * | `marked-corrupt` | the image carries the corrupt bit and may only be read |
 * | `read-only` | a write to an image that was opened for reading |
 * | `closed` | a call on an image that was closed |
 * | `busy` | a call on an image that is being resized or amended step by step |
 * | `failed` | an earlier failure leaves it unknown what is on stable storage; only reads are possible |
 * | `locked` | somebody else has the file open in a way that does not go together |
 * | `no-space` | the host has no room left |
 * | `refcount-overflow` | a refcount does not fit into its width |
 * | `not-found` | the file, or the bitmap, does not exist |
 * | `already-exists` | the file, or the bitmap, exists and must not be replaced |
 * | `permission-denied` | the host or the runtime's permissions forbid it |
 * | `io` | any other failure of the host |
 * | `aborted` | the caller's signal ended the operation |
 */
export type Qcow2ErrorCode =
  | "invalid-argument"
  | "out-of-range"
  | "not-qcow2"
  | "unsupported-version"
  | "unknown-feature"
  | "unsupported"
  | "backing-refused"
  | "data-file-refused"
  | "encrypted"
  | "invalid-header"
  | "limit-exceeded"
  | "corrupt"
  | "marked-corrupt"
  | "read-only"
  | "closed"
  | "busy"
  | "failed"
  | "locked"
  | "no-space"
  | "refcount-overflow"
  | "not-found"
  | "already-exists"
  | "permission-denied"
  | "io"
  | "aborted";

/** Where an error happened and what was expected there. */
export interface Qcow2ErrorDetails {
  /** Offset in bytes at which the fault lies: in the host file, or on the disk for `out-of-range`. */
  readonly offset?: number;
  /** What was found, as it would be shown to a person. */
  readonly found?: string | number;
  /** What would have been right, as it would be shown to a person. */
  readonly expected?: string | number;
  /** Whether an image's tables are what is broken, rather than the content of one cluster. */
  readonly inMetadata?: boolean;
  /** The error beneath, such as a `Deno.errors.NotFound`. */
  readonly cause?: unknown;
}

/**
 * The error that everything in this package throws.
 *
 * @example Usage
 * ```ts
 * import { Qcow2Error } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const error = new Qcow2Error("corrupt", "L1 table offset 0x1234 is not aligned", { offset: 40 });
 * assertEquals(error.code, "corrupt");
 * assertEquals(error.offset, 40);
 * ```
 */
export class Qcow2Error extends Error {
  /** The name of the class, as in every `Error`. */
  override readonly name = "Qcow2Error";
  /** What went wrong, for programs. */
  readonly code: Qcow2ErrorCode;
  /** Offset in bytes at which the fault lies, where there is one. */
  readonly offset: number | undefined;
  /** What was found, where that can be said. */
  readonly found: string | number | undefined;
  /** What was expected, where that can be said. */
  readonly expected: string | number | undefined;
  /** Whether an image's tables are what is broken, rather than the content of one cluster. */
  readonly inMetadata: boolean;

  /**
   * Makes an error.
   *
   * @param code What went wrong, for programs.
   * @param message One line for people: sentence case, no final period.
   * @param details Where it happened and what was expected.
   */
  constructor(code: Qcow2ErrorCode, message: string, details: Qcow2ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.offset = details.offset;
    this.found = details.found;
    this.expected = details.expected;
    this.inMetadata = details.inMetadata ?? false;
  }
}

/**
 * Turns whatever the host threw into a {@linkcode Qcow2Error} with the code that fits; one that is a `Qcow2Error` already
 * comes back as it is.
 *
 * @param error What was caught.
 * @param doing What was being done, in the form `Cannot read "disk.qcow2"`.
 * @param offset Offset in bytes in the host file, where there is one.
 * @returns The error to throw.
 *
 * @example Usage
 * ```ts
 * import { fromHostError } from "@disk/qcow2/errors";
 * import { assertEquals } from "@std/assert";
 *
 * const error = fromHostError(new Deno.errors.NotFound("No such file"), 'Cannot open "a.qcow2"');
 * assertEquals(error.code, "not-found");
 * ```
 */
export function fromHostError(error: unknown, doing: string, offset?: number): Qcow2Error {
  if (error instanceof Qcow2Error) return error;
  const reason = error instanceof Error ? error.message : String(error);
  return new Qcow2Error(hostErrorCode(error, reason), `${doing}: ${reason}`, {
    cause: error,
    ...(offset === undefined ? {} : { offset }),
  });
}

function hostErrorCode(error: unknown, reason: string): Qcow2ErrorCode {
  if (error instanceof Deno.errors.NotFound) return "not-found";
  if (error instanceof Deno.errors.AlreadyExists) return "already-exists";
  if (error instanceof Deno.errors.PermissionDenied || error instanceof Deno.errors.NotCapable) {
    return "permission-denied";
  }
  // The runtime has no class of its own for a full disk, a full quota or a file beyond the host's largest size.
  if (/no space left|not enough space|disk full|quota exceeded|file too large|os error (28|27|122)\b/i.test(reason)) {
    return "no-space";
  }
  return "io";
}

/**
 * Writes an offset or size the way every message of this package does, in hexadecimal.
 *
 * @param value A non-negative integer.
 * @returns Such as `0x10000`; `0` for zero.
 *
 * @example Usage
 * ```ts
 * import { hex } from "@disk/qcow2/errors";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(hex(65536), "0x10000");
 * ```
 */
export function hex(value: number): string {
  return value === 0 ? "0" : `0x${value.toString(16)}`;
}
