import { assertEquals } from "@std/assert";
import { MetadataRegions, overlapError } from "../../lib/metadata/metadata_regions.ts";
import { TIB } from "../images.ts";
import { Random } from "../random.ts";

const CLUSTER = 65536;

Deno.test("MetadataRegions.find() finds ranges to the byte and tables to the cluster", () => {
  const regions = new MetadataRegions(CLUSTER);
  regions.setRanges([
    { kind: "header", offset: 0, length: CLUSTER },
    { kind: "active L1 table", offset: 3 * CLUSTER, length: 100 },
    { kind: "snapshot table", offset: 9 * CLUSTER, length: 0 },
  ]);
  regions.addTable("active L2 table", 5 * CLUSTER);
  regions.addTable("refcount block", 7 * TIB);
  assertEquals(regions.find(0, 1), "header");
  assertEquals(regions.find(CLUSTER - 1, 1), "header");
  assertEquals(regions.find(CLUSTER, 2 * CLUSTER), undefined);
  assertEquals(regions.find(CLUSTER, 2 * CLUSTER + 1), "active L1 table");
  assertEquals(regions.find(3 * CLUSTER + 99, 1), "active L1 table");
  assertEquals(regions.find(3 * CLUSTER + 100, 1), undefined);
  assertEquals(regions.find(4 * CLUSTER, CLUSTER), undefined);
  assertEquals(regions.find(5 * CLUSTER + 1000, 1), "active L2 table");
  assertEquals(regions.find(4 * CLUSTER, CLUSTER + 1), "active L2 table");
  assertEquals(regions.find(6 * CLUSTER - 1, 1), "active L2 table");
  assertEquals(regions.find(6 * CLUSTER, CLUSTER), undefined);
  assertEquals(regions.find(9 * CLUSTER, CLUSTER), undefined);
  assertEquals(regions.find(7 * TIB - CLUSTER, 3 * CLUSTER), "refcount block");
});

Deno.test("MetadataRegions.find() agrees with a plain search, for ranges that may lie over each other", () => {
  const random = new Random("regions");
  for (let round = 0; round < 50; round++) {
    const regions = new MetadataRegions(512);
    const ranges = Array.from({ length: random.below(20) }, () => ({
      kind: "inactive L1 table" as const,
      offset: random.below(200) * 512,
      length: random.below(3000),
    }));
    const tables = Array.from({ length: random.below(20) }, () => random.below(200) * 512);
    regions.setRanges(ranges);
    for (const table of tables) regions.addTable("refcount block", table);
    for (let step = 0; step < 200; step++) {
      const offset = random.below(110000);
      const length = random.between(1, 2000);
      const hits = [...ranges, ...tables.map((table) => ({ offset: table, length: 512 }))]
        .some((range) => range.length > 0 && offset < range.offset + range.length && range.offset < offset + length);
      assertEquals(regions.find(offset, length) !== undefined, hits);
    }
  }
});

Deno.test("overlapError() says what was to be written where, and what stands there", () => {
  const error = overlapError("guest data", 0x50000, "active L2 table");
  assertEquals([error.code, error.offset, error.found], ["corrupt", 0x50000, "active L2 table"]);
  assertEquals(error.message, "Preventing invalid write of guest data at 0x50000 (overlaps with active L2 table)");
});
