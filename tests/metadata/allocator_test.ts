import { assertEquals } from "@std/assert";
import { ImageMetadata } from "../../lib/metadata/image_metadata.ts";
import { checkImage, Qcow2File } from "../../mod.ts";
import { copyOf, emptyImage, MIB } from "../images.ts";

for (const [clusterSize, refcountBits] of [[512, 64], [512, 1], [4096, 16]] as const) {
  Deno.test(`ClusterAllocator.allocateContiguous() finds rows of any length, with ${clusterSize}, ${refcountBits}`, () => {
    for (const count of [1, 2, 62, 63, 64, 65, 200, 256, 5000]) {
      const file = emptyImage({ size: MIB, clusterSize, refcountBits });
      const metadata = ImageMetadata.open(file, { write: true, durability: "full" });
      metadata.prepareForWriting();
      const runs = [3, count, 1, count].map((wanted) => metadata.allocator.allocateContiguous(wanted));
      assertEquals(runs.map((run) => run.count), [3, count, 1, count]);
      const taken = new Set<number>();
      for (const run of runs) {
        for (let index = 0; index < run.count; index++) {
          const cluster = run.offset / clusterSize + index;
          assertEquals(metadata.refcounts.get(cluster), 1);
          assertEquals(taken.has(cluster), false);
          taken.add(cluster);
        }
      }
      metadata.flush();
      // All that has a refcount without being referred to are these runs: refcount structures describe themselves.
      file.truncate(Math.max(file.size, ...runs.map((run) => run.offset + run.count * clusterSize)));
      const { corruptions, leaks } = checkImage(copyOf(file));
      assertEquals([corruptions, leaks], [0, 2 * count + 4], `count ${count}`);
      for (const run of runs) metadata.allocator.release(run);
      metadata.flush();
      const { corruptions: after, leaks: rest } = checkImage(copyOf(file));
      assertEquals([after, rest], [0, 0]);
    }
  });
}

Deno.test("A bitmap directory that is longer than what a refcount block describes is allocated and freed", () => {
  const file = emptyImage({ size: MIB, clusterSize: 512, refcountBits: 64 });
  const disk = Qcow2File.open(file, { write: true });
  const names = Array.from({ length: 60 }, (_, index) => `${index}`.padEnd(1000, "x"));
  for (const name of names) disk.addBitmap(name);
  disk.writeAt(0, new Uint8Array(100));
  disk.close();
  const reopened = Qcow2File.open(copyOf(file), { write: true });
  assertEquals(reopened.bitmaps.length, 60);
  const { corruptions, leaks } = reopened.check();
  assertEquals([corruptions, leaks], [0, 0]);
  for (const name of names) reopened.removeBitmap(name);
  const after = reopened.check();
  assertEquals([after.corruptions, after.leaks], [0, 0]);
});
