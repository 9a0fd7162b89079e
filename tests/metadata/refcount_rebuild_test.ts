import { assertEquals } from "@std/assert";
import { ImageMetadata } from "../../lib/metadata/image_metadata.ts";
import { placeRefcountsAtEnd, type RefcountSource, writeRefcounts } from "../../lib/metadata/refcount_rebuild.ts";
import { allAtOnce } from "../../lib/metadata/steps.ts";
import { emptyImage, getUint64, KIB, MIB } from "../images.ts";

Deno.test("Refcounts are written anew in as many blocks as there are", () => {
  const file = emptyImage({ size: MIB, clusterSize: 512, refcountBits: 64 });
  const metadata = ImageMetadata.open(file, { write: true, durability: "none" });
  const perBlock = metadata.geometry.refcountBlockEntryCount;
  const blockCount = 200 * KIB;
  const refcounts: RefcountSource = {
    *clusters() {
      for (let block = 0; block < blockCount; block++) yield block * perBlock + block % perBlock;
    },
    get: (cluster) => cluster % perBlock === Math.floor(cluster / perBlock) % perBlock ? cluster + 1 : 0,
  };
  const placement = allAtOnce(placeRefcountsAtEnd(metadata, metadata.geometry, refcounts));
  const { table, tableClusterCount } = allAtOnce(writeRefcounts(metadata, metadata.geometry, refcounts, placement));
  assertEquals(table.bytes.length, tableClusterCount * 512);
  for (let block = 0; block < blockCount; block += 1001) {
    const cluster = block * perBlock + block % perBlock;
    assertEquals(
      getUint64(file, table.lower(block) + (block % perBlock) * 8 + table.upper(block) * 2 ** 32),
      BigInt(cluster + 1),
    );
  }
});
