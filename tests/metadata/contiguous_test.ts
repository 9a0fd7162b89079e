import { assert, assertEquals } from "@std/assert";
import { checkImage } from "../../mod.ts";
import { ImageMetadata } from "../../lib/metadata/image_metadata.ts";
import type { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { copyOf, emptyImage, MIB } from "../images.ts";
import { Random } from "../random.ts";

function open(file: MemoryBlockFile): ImageMetadata {
  const metadata = ImageMetadata.open(file, { write: true, durability: "full" });
  metadata.prepareForWriting();
  return metadata;
}

Deno.test("allocateContiguous() fills the first hole that is long enough, and leaves shorter ones to others", () => {
  const { allocator, refcounts } = open(emptyImage({ size: MIB, clusterSize: 4096 }));
  const first = allocator.allocateRun(20).offset / 4096;
  allocator.release({ offset: (first + 2) * 4096, count: 2 });
  allocator.release({ offset: (first + 6) * 4096, count: 5 });
  assertEquals(allocator.allocateContiguous(4), { offset: (first + 6) * 4096, count: 4 });
  assertEquals(allocator.allocateContiguous(2), { offset: (first + 2) * 4096, count: 2 });
  assertEquals(allocator.allocateContiguous(3).offset, (first + 20) * 4096);
  assertEquals(refcounts.get(first + 10), 0);
});

Deno.test("allocateContiguous() gives rows that are longer than what a refcount block describes", () => {
  // Blocks of 512 bytes with 64-bit refcounts describe 64 clusters, and a table of one cluster knows 64 of them.
  for (const counts of [[63], [64], [65, 1, 200], [100, 5000, 3], [1, 63, 64, 4096]]) {
    const file = emptyImage({ size: MIB, clusterSize: 512, refcountBits: 64 });
    const metadata = open(file);
    const seen = new Set<number>();
    const runs = counts.map((count) => metadata.allocator.allocateContiguous(count));
    metadata.flush();
    const again = open(copyOf(file));
    runs.forEach(({ offset, count }, index) => {
      assertEquals(count, counts[index]);
      for (let cluster = offset / 512; cluster < offset / 512 + count; cluster++) {
        assert(!seen.has(cluster), `Cluster ${cluster} was handed out twice`);
        seen.add(cluster);
        assertEquals(again.refcounts.get(cluster), 1);
      }
    });
    // Nothing points to them; apart from that the image is as good as any.
    const { corruptions, leaks } = checkImage(copyOf(file));
    assertEquals([corruptions, leaks], [0, [...seen].filter((cluster) => cluster * 512 < file.size).length]);
  }
});

Deno.test("Rows and single clusters never meet, in whatever order they are asked for", () => {
  for (const [clusterSize, refcountBits] of [[512, 64], [512, 1], [1024, 32]] as const) {
    const random = new Random(`rows ${clusterSize} ${refcountBits}`);
    const { allocator } = open(emptyImage({ size: MIB, clusterSize, refcountBits }));
    const used = new Set<number>();
    const runs: { offset: number; count: number }[] = [];
    for (let step = 0; step < 800; step++) {
      if (random.oneIn(3) && runs.length > 0) {
        const [run] = runs.splice(random.below(runs.length), 1);
        if (run === undefined) continue;
        allocator.release(run);
        for (let index = 0; index < run.count; index++) used.delete(run.offset + index * clusterSize);
        continue;
      }
      const count = random.pick([1, 2, 7, 70, 300]);
      const run = random.oneIn(2) ? allocator.allocateContiguous(count) : allocator.allocateRun(count);
      runs.push(run);
      for (let index = 0; index < run.count; index++) {
        const offset = run.offset + index * clusterSize;
        assert(!used.has(offset), `Cluster at ${offset} was handed out twice`);
        used.add(offset);
      }
    }
  }
});
