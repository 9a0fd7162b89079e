/**
 * Offsets that callers pass: checks of ranges, and the cursor of an image.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";

/**
 * Refuses a range that does not lie on the disk.
 *
 * @param offset Where it begins, in bytes.
 * @param length How long it is, in bytes.
 * @param size The virtual size in bytes.
 * @throws {Qcow2Error} With code `invalid-argument` where a number is no whole number of bytes, `out-of-range` where the
 * range reaches beyond the disk.
 */
export function checkRange(offset: number, length: number, size: number): void {
  // The common case first, in one comparison: NaN and negative numbers fail it.
  if (offset >= 0 && length >= 0 && offset + length <= size && Number.isInteger(offset) && Number.isInteger(length)) {
    return;
  }
  if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || length < 0) {
    throw new Qcow2Error("invalid-argument", `Range of ${length} bytes at ${offset} is no range of whole bytes`, {
      found: `${length} at ${offset}`,
      expected: "whole numbers",
    });
  }
  throw new Qcow2Error(
    "out-of-range",
    `Range of ${length} bytes at ${offset} is outside of the disk of ${size} bytes`,
    {
      offset,
      found: `${length} at ${offset}`,
      expected: `0 to ${size}`,
    },
  );
}

/**
 * Where a seek leads.
 *
 * @param offset How far, in bytes.
 * @param whence From where.
 * @param cursor Where the cursor is, in bytes.
 * @param size The virtual size in bytes.
 * @returns The new position in bytes; it may be behind the end of the disk.
 * @throws {Qcow2Error} With code `invalid-argument` where it would be before the start or no whole number.
 */
export function seekTo(offset: number, whence: Deno.SeekMode, cursor: number, size: number): number {
  const base = whence === Deno.SeekMode.Start ? 0 : whence === Deno.SeekMode.Current ? cursor : size;
  const position = base + offset;
  if (!Number.isSafeInteger(position) || position < 0) {
    throw new Qcow2Error("invalid-argument", `Cannot seek to ${position}, expected a whole number from 0 on`, {
      found: position,
      expected: "0 or more",
    });
  }
  return position;
}
