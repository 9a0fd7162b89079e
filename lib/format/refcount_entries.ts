/**
 * Refcounts of 1, 2, 4, 8, 16, 32 and 64 bits in the bytes of a refcount block.
 *
 * Widths below a byte are packed from the least significant bit up.
 *
 * @module
 */

import { TWO_TO_32, writeUint64 } from "./uint64.ts";

/**
 * Reads a refcount.
 *
 * @param view A refcount block, or a slice of one.
 * @param index Index of the refcount in the view.
 * @param order Base-2 logarithm of the width in bits, 0 to 6.
 * @returns The refcount. A 64-bit one beyond 2^53, which only a damaged image has, is rounded.
 *
 * @example Usage
 * ```ts
 * import { getRefcount, setRefcount } from "@disk/qcow2/format";
 * import { assertEquals } from "@std/assert";
 *
 * const view = new DataView(new ArrayBuffer(512));
 * setRefcount(view, 3, 1, 2);
 * assertEquals(getRefcount(view, 3, 1), 2);
 * assertEquals(view.getUint8(0), 0b1000_0000);
 * ```
 */
export function getRefcount(view: DataView, index: number, order: number): number {
  switch (order) {
    case 4:
      return view.getUint16(index * 2);
    case 3:
      return view.getUint8(index);
    case 5:
      return view.getUint32(index * 4);
    case 6:
      return view.getUint32(index * 8) * TWO_TO_32 + view.getUint32(index * 8 + 4);
    default: {
      const bit = index << order;
      return (view.getUint8(bit >>> 3) >>> (bit & 7)) & ((1 << (1 << order)) - 1);
    }
  }
}

/**
 * Reads a refcount to be shown: all digits of it, however many there are.
 *
 * @param view A refcount block, or a slice of one.
 * @param index Index of the refcount in the view.
 * @param order Base-2 logarithm of the width in bits, 0 to 6.
 * @returns The refcount as a decimal number.
 *
 * @example Usage
 * ```ts
 * import { refcountText } from "@disk/qcow2/format";
 * import { assertEquals } from "@std/assert";
 *
 * const view = new DataView(new ArrayBuffer(512));
 * view.setBigUint64(8, 2n ** 64n - 1n);
 * assertEquals(refcountText(view, 1, 6), "18446744073709551615");
 * ```
 */
export function refcountText(view: DataView, index: number, order: number): string {
  const refcount = getRefcount(view, index, order);
  return String(refcount <= Number.MAX_SAFE_INTEGER ? refcount : view.getBigUint64(index * 8));
}

/**
 * Writes a refcount.
 *
 * @param view A refcount block, or a slice of one.
 * @param index Index of the refcount in the view.
 * @param order Base-2 logarithm of the width in bits, 0 to 6.
 * @param refcount The value; the caller has checked that it fits.
 *
 * @example Usage
 * ```ts
 * import { setRefcount } from "@disk/qcow2/format";
 * import { assertEquals } from "@std/assert";
 *
 * const view = new DataView(new ArrayBuffer(512));
 * setRefcount(view, 1, 4, 7);
 * assertEquals(view.getUint16(2), 7);
 * ```
 */
export function setRefcount(view: DataView, index: number, order: number, refcount: number): void {
  switch (order) {
    case 4:
      view.setUint16(index * 2, refcount);
      return;
    case 3:
      view.setUint8(index, refcount);
      return;
    case 5:
      view.setUint32(index * 4, refcount);
      return;
    case 6:
      writeUint64(view, index * 8, refcount);
      return;
    default: {
      const bit = index << order;
      const mask = ((1 << (1 << order)) - 1) << (bit & 7);
      const position = bit >>> 3;
      view.setUint8(position, (view.getUint8(position) & ~mask) | (refcount << (bit & 7)));
    }
  }
}

/**
 * Finds the first refcount that is zero (or, with `zero` false, the first that is not).
 *
 * @param view A refcount block, or a slice of one.
 * @param from Index to begin at.
 * @param to Index to stop before.
 * @param order Base-2 logarithm of the width in bits, 0 to 6.
 * @param zero What to look for.
 * @returns The index, or `to` where there is none.
 */
export function findRefcount(view: DataView, from: number, to: number, order: number, zero: boolean): number {
  if (order === 4) {
    // The width nearly every image has, in a loop of its own that V8 keeps in registers.
    for (let index = from; index < to; index++) {
      if ((view.getUint16(index * 2) === 0) === zero) return index;
    }
    return to;
  }
  for (let index = from; index < to; index++) {
    if ((getRefcount(view, index, order) === 0) === zero) return index;
  }
  return to;
}
