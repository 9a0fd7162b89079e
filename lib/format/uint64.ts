/**
 * 64-bit big-endian fields as JavaScript numbers, exact up to 2^53.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";

/** 2^32, the weight of the upper half of a 64-bit field. */
export const TWO_TO_32 = 0x100000000;

/** The upper half from which on a 64-bit field is beyond 2^53. */
const FIRST_INEXACT_UPPER_HALF = 0x200000;

/**
 * Reads a 64-bit field that must fit into a JavaScript number.
 *
 * @param view Where to read.
 * @param position Position of the field in the view, in bytes.
 * @param name The field's name for the error message.
 * @returns The value, exact.
 * @throws {Qcow2Error} With code `limit-exceeded` where it is 2^53 or more.
 */
export function readUint64(view: DataView, position: number, name: string): number {
  const upper = view.getUint32(position);
  const lower = view.getUint32(position + 4);
  if (upper >= FIRST_INEXACT_UPPER_HALF) {
    const value = (BigInt(upper) << 32n) | BigInt(lower);
    throw new Qcow2Error("limit-exceeded", `${name} is ${value}, expected less than 2^53`, {
      offset: position,
      found: `${value}`,
      expected: "less than 2^53",
    });
  }
  return upper * TWO_TO_32 + lower;
}

/**
 * Writes a number as a 64-bit field.
 *
 * @param view Where to write.
 * @param position Position of the field in the view, in bytes.
 * @param value An integer from 0 to 2^53 - 1.
 */
export function writeUint64(view: DataView, position: number, value: number): void {
  view.setUint32(position, Math.floor(value / TWO_TO_32));
  view.setUint32(position + 4, value % TWO_TO_32);
}

/**
 * A DataView over the bytes of an array, wherever it lies in its buffer.
 *
 * @param bytes The bytes to look at.
 * @returns A view of exactly these bytes.
 */
export function viewOf(bytes: Uint8Array): DataView<ArrayBufferLike> {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
