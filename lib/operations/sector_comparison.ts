/**
 * Compares bytes with each other or with zeroes, in native code.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { isAllZero } from "../format/zeroes.ts";

/** How much is read at once, in bytes: host calls of this size cost nearly nothing beside the copying itself. */
export const CHUNK_SIZE = 2 * 1024 * 1024;
/** What QEMU compares in. */
export const SECTOR_SIZE = 512;

/** A stretch of a buffer. */
export interface Stretch {
  /** Where it begins. */
  readonly start: number;
  /** Where it ends. */
  readonly end: number;
}

/**
 * Where two buffers differ, in whole sectors.
 *
 * @param one A buffer.
 * @param other One of the same length, or `undefined` for zeroes.
 * @returns The stretches in order, each as long as it can be.
 */
export function* differences(one: Uint8Array, other: Uint8Array | undefined): Generator<Stretch> {
  if (isEqual(one, other, 0, one.length)) return;
  let start = -1;
  for (let position = 0; position < one.length; position += SECTOR_SIZE) {
    const equal = isEqual(one, other, position, Math.min(position + SECTOR_SIZE, one.length));
    if (!equal && start < 0) start = position;
    if (!equal || start < 0) continue;
    yield { start, end: position };
    start = -1;
  }
  if (start >= 0) yield { start, end: one.length };
}

function isEqual(one: Uint8Array, other: Uint8Array | undefined, start: number, end: number): boolean {
  if (other === undefined) return isAllZero(one, start, end);
  // Most bytes that differ need no closer look.
  if (start < end && one[start] !== other[start]) return false;
  return Buffer.compare(one.subarray(start, end), other.subarray(start, end)) === 0;
}
