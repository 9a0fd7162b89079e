/**
 * The checks that every block file makes of what it is handed.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";

/** Throws unless a value can be an offset, a length or a size in bytes: an exact integer that is not negative. */
export function checkBytes(what: string, value: number): void {
  if (Number.isSafeInteger(value) && value >= 0) return;
  const found = Number.isSafeInteger(value) ? hex(value) : String(value);
  throw new Qcow2Error("invalid-argument", `${what} is ${found}, expected an integer from 0 to 2^53 - 1`, { found });
}

/** The error of every call on a file that was closed. */
export function closedError(name: string): Qcow2Error {
  return new Qcow2Error("closed", `Cannot use "${name}": it is closed`);
}

/** The error of a call that would change a file which was opened for reading. */
export function readOnlyError(name: string): Qcow2Error {
  return new Qcow2Error("read-only", `Cannot change "${name}": it is open for reading only`);
}
