import { assertEquals } from "@std/assert";
import { alignDown, alignUp, geometryOf, l1EntryCountFor } from "../../lib/format/mod.ts";
import { assertCode, GIB, KIB, MIB } from "../images.ts";

Deno.test("geometryOf() derives every size, for the smallest and the largest clusters", () => {
  assertEquals(geometryOf({ clusterBits: 9, refcountOrder: 0 }), {
    clusterBits: 9,
    clusterSize: 512,
    subclusterSize: 512,
    l2EntrySize: 8,
    l2EntryCount: 64,
    l2TableSpan: 32 * KIB,
    refcountOrder: 0,
    refcountBits: 1,
    maxRefcount: 1,
    refcountBlockEntryCount: 4096,
    refcountBlockSpan: 2 * MIB,
  });
  const large = geometryOf({ clusterBits: 21, refcountOrder: 6 });
  assertEquals([large.l2EntryCount, large.l2TableSpan], [262144, 512 * GIB]);
  assertEquals([large.refcountBits, large.refcountBlockEntryCount, large.refcountBlockSpan], [64, 262144, 512 * GIB]);
  assertEquals(large.maxRefcount, Number.MAX_SAFE_INTEGER);
});

Deno.test("geometryOf() knows the largest refcount of every width", () => {
  const largest = [0, 1, 2, 3, 4, 5].map((refcountOrder) => geometryOf({ clusterBits: 16, refcountOrder }).maxRefcount);
  assertEquals(largest, [1, 3, 15, 255, 65535, 2 ** 32 - 1]);
});

Deno.test("geometryOf() halves the entries of an L2 table with subclusters", () => {
  const { l2EntrySize, l2EntryCount } = geometryOf({ clusterBits: 16, refcountOrder: 4, extendedL2: true });
  assertEquals([l2EntrySize, l2EntryCount], [16, 4096]);
});

Deno.test("geometryOf() refuses what the format does not allow", () => {
  for (const clusterBits of [8, 22, -1, 9.5, NaN]) {
    assertCode("unsupported", () => geometryOf({ clusterBits, refcountOrder: 4 }));
  }
  for (const refcountOrder of [-1, 7, 0.5, NaN]) {
    assertCode("unsupported", () => geometryOf({ clusterBits: 16, refcountOrder }));
  }
  assertCode("unsupported", () => geometryOf({ clusterBits: 13, refcountOrder: 4, extendedL2: true }));
});

Deno.test("l1EntryCountFor() rounds up", () => {
  const geometry = geometryOf({ clusterBits: 16, refcountOrder: 4 });
  assertEquals([0, 1, 512 * MIB, 512 * MIB + 1, 2 ** 53 - 1].map((size) => l1EntryCountFor(geometry, size)), [
    0,
    1,
    1,
    2,
    2 ** 24,
  ]);
});

Deno.test("alignUp() and alignDown() are exact beyond 32 bits", () => {
  assertEquals([alignDown(2 ** 40 + 65537, 65536), alignUp(2 ** 40 + 65537, 65536)], [
    2 ** 40 + 65536,
    2 ** 40 + 131072,
  ]);
  assertEquals([alignDown(2 ** 52, 512), alignUp(2 ** 52, 512)], [2 ** 52, 2 ** 52]);
  assertEquals([alignDown(0, 512), alignUp(0, 512), alignUp(1, 512)], [0, 0, 512]);
});
