/** Stands in for `@std/bytes`, on `node:buffer`, where JSR cannot be reached. @module */

import { Buffer } from "node:buffer";

/** The bytes of all buffers, one after the other. */
export function concat(buffers: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  return new Uint8Array(Buffer.concat(buffers));
}

/** Copies what fits of `src` into `dst` from `offset` on, and says how many bytes that were. */
export function copy(src: Uint8Array, dst: Uint8Array, offset = 0): number {
  return view(src).copy(dst, Math.min(Math.max(offset, 0), dst.length));
}

/** Whether two arrays hold the same bytes. */
export function equals(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

/** Where `needle` first occurs in `source` at or behind `start` (counted from the end where negative), or -1. */
export function indexOfNeedle(source: Uint8Array, needle: Uint8Array, start = 0): number {
  if (needle.length === 0 || start >= source.length) return -1;
  return view(source).indexOf(needle, Math.max(start < 0 ? source.length + start : start, 0));
}

/** Where `needle` last occurs in `source` such that it ends at or before index `start`, or -1. */
export function lastIndexOfNeedle(source: Uint8Array, needle: Uint8Array, start: number = source.length - 1): number {
  const latest = Math.min(start, source.length - 1) - needle.length + 1;
  return needle.length === 0 || latest < 0 ? -1 : view(source).lastIndexOf(needle, latest);
}

/** Whether `needle` occurs in `source` at or behind `start`. */
export function includesNeedle(source: Uint8Array, needle: Uint8Array, start = 0): boolean {
  return indexOfNeedle(source, needle, start) >= 0;
}

/** Whether `source` begins with `prefix`. */
export function startsWith(source: Uint8Array, prefix: Uint8Array): boolean {
  return equals(source.subarray(0, prefix.length), prefix);
}

/** Whether `source` ends with `suffix`. */
export function endsWith(source: Uint8Array, suffix: Uint8Array): boolean {
  return equals(source.subarray(Math.max(source.length - suffix.length, 0)), suffix);
}

/** The bytes of `source`, `count` times over. */
export function repeat(source: Uint8Array, count: number): Uint8Array<ArrayBuffer> {
  if (!Number.isInteger(count) || count < 0) throw new RangeError(`Cannot repeat ${count} times`);
  return concat(new Array<Uint8Array>(count).fill(source));
}

function view(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
