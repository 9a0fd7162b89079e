import { assertEquals } from "@std/assert";
import {
  COPIED_FLAG,
  decodeCompressedDescriptor,
  entryLower,
  entryOffset,
  entryUpper,
  hasReservedL1Bits,
  hasReservedL2Bits,
  hasReservedRefcountTableBits,
  refcountTableEntryOffset,
  ZERO_FLAG,
} from "../../lib/format/mod.ts";
import { Random } from "../random.ts";

function halves(entry: bigint): [upper: number, lower: number] {
  return [Number(entry >> 32n), Number(entry & 0xffffffffn)];
}

Deno.test("Entries of L1 and L2 tables hold an offset in bits 9 to 55 beside their flags", () => {
  assertEquals(entryOffset(...halves(0x8000_0000_0005_0000n)), 0x50000);
  assertEquals(entryOffset(...halves(0x8000_0000_0005_0001n)), 0x50000);
  assertEquals(entryOffset(...halves(0xff1f_ffff_ffff_ffffn)), 0x1f_ffff_ffff_fe00);
  assertEquals(entryOffset(...halves(0x0000_0001_8000_0200n)), 0x1_8000_0200);
  assertEquals(entryOffset(...halves(0xff00_0000_0000_01ffn)), 0);
  assertEquals([entryUpper(0x1_8000_0200, COPIED_FLAG), entryLower(0x1_8000_0200)], [0x8000_0001, 0x8000_0200]);
  assertEquals([entryUpper(0, 0), entryLower(0, ZERO_FLAG)], [0, 1]);
});

Deno.test("Entries of the refcount table hold an offset in bits 9 to 63", () => {
  assertEquals(refcountTableEntryOffset(...halves(0x0012_3456_789a_bc00n)), 0x12_3456_789a_bc00);
  assertEquals(refcountTableEntryOffset(...halves(0x8000_0000_0000_01ffn)), 2 ** 63);
});

Deno.test("Random offsets are the same after encoding and decoding", () => {
  const random = new Random("entries");
  for (let round = 0; round < 1000; round++) {
    const offset = random.below(2 ** 44) * 512;
    const flags = random.pick([0, COPIED_FLAG]);
    assertEquals(entryOffset(entryUpper(offset, flags), entryLower(offset, random.pick([0, ZERO_FLAG]))), offset);
    assertEquals(entryUpper(offset, flags) >= COPIED_FLAG, flags === COPIED_FLAG);
  }
});

Deno.test("Exactly the bits that the format reserves count as reserved", () => {
  const reserved = (test: (upper: number, lower: number) => boolean): number[] =>
    Array.from({ length: 64 }, (_, bit) => bit).filter((bit) => test(...halves(1n << BigInt(bit))));
  const range = (from: number, to: number): number[] =>
    Array.from({ length: to - from + 1 }, (_, index) => from + index);
  assertEquals(reserved(hasReservedL1Bits), [...range(0, 8), ...range(56, 62)]);
  assertEquals(reserved(hasReservedL2Bits), [...range(1, 8), ...range(56, 61)]);
  assertEquals(reserved((_, lower) => hasReservedRefcountTableBits(lower)), range(0, 8));
});

/** A descriptor as the format defines it, in whole numbers of any size. */
function compressedEntry(clusterBits: number, hostOffset: bigint, furtherSectors: bigint): bigint {
  const x = BigInt(62 - (clusterBits - 8));
  return (1n << 62n) | (furtherSectors << x) | hostOffset;
}

Deno.test("Compressed clusters of 64 KiB have 54 bits of offset and 8 of sectors", () => {
  const entry = compressedEntry(16, 0x5_0123n, 3n);
  assertEquals(entry, 0x40c0_0000_0005_0123n);
  assertEquals(decodeCompressedDescriptor(...halves(entry), 16), { hostOffset: 0x50123, length: 4 * 512 - 0x123 });
});

Deno.test("Compressed clusters of 512 bytes have 61 bits of offset and 1 of sectors, those of 2 MiB 49 and 13", () => {
  assertEquals(decodeCompressedDescriptor(...halves(compressedEntry(9, 0x1_0000_0001n, 1n)), 9), {
    hostOffset: 0x1_0000_0001,
    length: 1023,
  });
  assertEquals(decodeCompressedDescriptor(...halves(compressedEntry(21, 0x1_ffff_ffff_ffffn, 8191n)), 21), {
    hostOffset: 0x1_ffff_ffff_ffff,
    length: 8192 * 512 - 511,
  });
  assertEquals(decodeCompressedDescriptor(...halves(compressedEntry(21, 512n, 0n)), 21), {
    hostOffset: 512,
    length: 512,
  });
});

Deno.test("Random compressed descriptors are read as the format defines them", () => {
  const random = new Random("descriptors");
  for (let round = 0; round < 2000; round++) {
    const clusterBits = random.between(9, 21);
    const offsetBits = Math.min(53, 62 - (clusterBits - 8));
    const hostOffset = random.below(2 ** random.between(9, offsetBits));
    const sectors = random.below(2 ** (clusterBits - 8));
    const entry = compressedEntry(clusterBits, BigInt(hostOffset), BigInt(sectors)) & ~(1n << 63n);
    assertEquals(
      decodeCompressedDescriptor(...halves(entry), clusterBits),
      { hostOffset, length: (sectors + 1) * 512 - hostOffset % 512 },
    );
  }
});
