import { assertEquals } from "@std/assert";
import { findRefcount, getRefcount, setRefcount } from "../../lib/format/mod.ts";
import { Random } from "../random.ts";

Deno.test("Refcounts below a byte are packed from the least significant bit up, as QEMU packs them", () => {
  const bytesOf = (order: number): number[] => {
    const bytes = new Uint8Array(8);
    const view = new DataView(bytes.buffer);
    for (let index = 0; index < 6; index++) setRefcount(view, index, order, 1);
    return [...bytes];
  };
  assertEquals(bytesOf(0), [0x3f, 0, 0, 0, 0, 0, 0, 0]);
  assertEquals(bytesOf(1), [0x55, 0x05, 0, 0, 0, 0, 0, 0]);
  assertEquals(bytesOf(2), [0x11, 0x11, 0x11, 0, 0, 0, 0, 0]);
  assertEquals(bytesOf(3), [1, 1, 1, 1, 1, 1, 0, 0]);
});

Deno.test("Refcounts of a byte and more are big-endian", () => {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  setRefcount(view, 1, 4, 0x1234);
  assertEquals([...bytes.subarray(2, 4)], [0x12, 0x34]);
  setRefcount(view, 1, 5, 0x12345678);
  assertEquals([...bytes.subarray(4, 8)], [0x12, 0x34, 0x56, 0x78]);
  setRefcount(view, 1, 6, 0x1f_2345_6789_abcd);
  assertEquals([...bytes.subarray(8)], [0, 0x1f, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd]);
});

Deno.test("Refcounts of every width are the same after writing and reading, and leave their neighbours alone", () => {
  const random = new Random("refcounts");
  for (let order = 0; order <= 6; order++) {
    const bits = 2 ** order;
    const count = 512 * 8 / bits;
    const view = new DataView(new ArrayBuffer(512));
    const expected = new Array<number>(count).fill(0);
    const largest = bits >= 53 ? Number.MAX_SAFE_INTEGER : 2 ** bits - 1;
    for (let step = 0; step < 3000; step++) {
      const index = random.below(count);
      const value = random.pick([0, 1, largest, random.below(largest + (bits >= 53 ? 0 : 1))]);
      setRefcount(view, index, order, value);
      expected[index] = value;
    }
    const actual = expected.map((_, index) => getRefcount(view, index, order));
    assertEquals(actual, expected, `${bits} bits`);
    for (let step = 0; step < 200; step++) {
      const from = random.below(count);
      const to = random.between(from, count);
      const firstOf = (test: (value: number) => boolean): number => {
        for (let index = from; index < to; index++) if (test(expected[index] ?? 0)) return index;
        return to;
      };
      assertEquals(findRefcount(view, from, to, order, true), firstOf((value) => value === 0));
      assertEquals(findRefcount(view, from, to, order, false), firstOf((value) => value !== 0));
    }
  }
});
