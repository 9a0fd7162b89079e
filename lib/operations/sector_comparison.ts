/**
 * Compares bytes with zeroes and with each other, in native code.
 *
 * @module
 */

import { Buffer } from "node:buffer";

/** How much is read at once, in bytes: host calls of this size cost nearly nothing beside the copying itself. */
export const CHUNK_SIZE = 2 * 1024 * 1024;
/** What QEMU compares in. */
export const SECTOR_SIZE = 512;

/** Static zeroes to compare with, a word of memory at a time. */
const zeroes = Buffer.alloc(CHUNK_SIZE);

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
  return Buffer.compare(one.subarray(start, end), other.subarray(start, end)) === 0;
}
