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

Deno.test("ClusterAllocator.allocateBytes() packs bytes, and begins a cluster where the last one is full or was given up", () => {
  const metadata = ImageMetadata.open(emptyImage({ size: MIB, clusterSize: 4096 }), {
    write: true,
    durability: "full",
  });
  metadata.prepareForWriting();
  const { allocator, refcounts } = metadata;
  const refcountAt = (offset: number): number => refcounts.get(Math.floor(offset / 4096));
  const first = allocator.allocateBytes(4096 - 100);
  assertEquals([first % 4096, refcountAt(first)], [0, 1]);
  // Up to the very end of the cluster: the next ones have nothing to share.
  const filling = allocator.allocateBytes(100);
  assertEquals([filling, refcountAt(first)], [first + 4096 - 100, 2]);
  const fresh = allocator.allocateBytes(1000);
  assertEquals([fresh % 4096, refcountAt(fresh), refcountAt(first)], [0, 1, 2]);
  // Across two clusters, of which both count it.
  const across = allocator.allocateBytes(3500);
  assertEquals([across, refcountAt(fresh), refcountAt(fresh + 4096)], [fresh + 1000, 2, 1]);
  // Once nobody uses a cluster any more, nothing is put behind what stood there.
  allocator.releaseBytes(across, 3500);
  allocator.releaseBytes(fresh, 1000);
  assertEquals([refcountAt(fresh), refcountAt(fresh + 4096)], [0, 0]);
  const again = allocator.allocateBytes(500);
  assertEquals([again, refcountAt(again)], [fresh, 1]);
  allocator.freeLater(again);
  allocator.applyFrees();
  assertEquals(refcountAt(again), 0);
  const after = allocator.allocateBytes(500);
  assertEquals([after % 4096, refcountAt(after)], [0, 1]);
});

Deno.test("ClusterAllocator.allocateBytes() begins a cluster where the refcount of the last one is as high as it goes", () => {
  const metadata = ImageMetadata.open(emptyImage({ size: MIB, clusterSize: 4096, refcountBits: 2 }), {
    write: true,
    durability: "full",
  });
  metadata.prepareForWriting();
  const { allocator, refcounts } = metadata;
  const offsets = Array.from({ length: 9 }, () => allocator.allocateBytes(1500));
  const references = new Map<number, number>();
  for (const offset of offsets) {
    for (const cluster of new Set([Math.floor(offset / 4096), Math.floor((offset + 1499) / 4096)])) {
      references.set(cluster, (references.get(cluster) ?? 0) + 1);
    }
  }
  for (const [cluster, count] of references) assertEquals(refcounts.get(cluster), count);
  assertEquals(Math.max(...references.values()), 3);
});
