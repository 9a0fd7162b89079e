/**
 * Finds zeroes, in native code.
 *
 * @module
 */

import { Buffer } from "node:buffer";

const ZEROES_LENGTH = 1024 * 1024;
/** Static zeroes to compare with, a word of memory at a time. */
const zeroes = Buffer.alloc(ZEROES_LENGTH);

/**
 * Whether a part of a buffer is all zeroes.
 *
 * @param bytes The buffer.
 * @param start Where the part begins.
 * @param end Where it ends.
 * @returns Whether there is nothing else in it.
 */
export function isAllZero(bytes: Uint8Array, start = 0, end: number = bytes.length): boolean {
  // Most data needs no closer look.
  if (start < end && bytes[start] !== 0) return false;
  for (let from = start; from < end; from += zeroes.length) {
    const to = Math.min(end, from + zeroes.length);
    if (Buffer.compare(bytes.subarray(from, to), zeroes.subarray(0, to - from)) !== 0) return false;
  }
  return true;
}
