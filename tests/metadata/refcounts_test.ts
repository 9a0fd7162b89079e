import { assert, assertEquals } from "@std/assert";
import { checkImage, type LayoutOptions, Qcow2File } from "../../mod.ts";
import { ImageMetadata } from "../../lib/metadata/image_metadata.ts";
import type { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { assertCode, copyOf, emptyImage, filled, GIB, KIB, MIB, readBytes, RecordingFile } from "../images.ts";
import { Random } from "../random.ts";

function open(file: MemoryBlockFile, cacheSize?: number): ImageMetadata {
  const metadata = ImageMetadata.open(file, { write: true, durability: "full", cacheSize });
  metadata.prepareForWriting();
  return metadata;
}

const WIDTHS = [1, 2, 4, 8, 16, 32, 64] as const;

Deno.test("Refcounts of every width keep what they are set to, through a cache of four slices and a reopening", () => {
  for (const refcountBits of WIDTHS) {
    const random = new Random(`widths ${refcountBits}`);
    const file = emptyImage({ size: MIB, clusterSize: 512, refcountBits });
    const metadata = open(file, 1);
    const { refcounts, geometry } = metadata;
    const count = geometry.refcountBlockEntryCount;
    const expected = Array.from({ length: count }, (_, cluster) => refcounts.get(cluster));
    for (let step = 0; step < 1000; step++) {
      const cluster = random.below(count);
      const value = random.pick([0, 1, geometry.maxRefcount]);
      refcounts.set(cluster, value);
      expected[cluster] = value;
    }
    assertEquals(expected.map((_, cluster) => refcounts.get(cluster)), expected, `${refcountBits} bits`);
    metadata.flush();
    const again = ImageMetadata.open(copyOf(file), { write: false, durability: "full" });
    assertEquals(expected.map((_, cluster) => again.refcounts.get(cluster)), expected, `${refcountBits} bits`);
  }
});

Deno.test("Refcounts refuse a value that is wider than they are, and a cluster that no block describes", () => {
  for (const refcountBits of WIDTHS.slice(0, 6)) {
    const { refcounts, geometry } = open(emptyImage({ size: MIB, clusterSize: 512, refcountBits }));
    refcounts.set(0, geometry.maxRefcount);
    assertCode("refcount-overflow", () => refcounts.set(0, geometry.maxRefcount + 1));
    assertEquals(refcounts.get(0), geometry.maxRefcount);
    assertEquals(refcounts.get(2 ** 40), 0);
    assertCode("corrupt", () => refcounts.set(2 ** 40, 1));
  }
});

Deno.test("The refcount table grows with the file, and describes itself, for small clusters and every width", () => {
  for (const refcountBits of WIDTHS) {
    // A table of one 512-byte cluster holds 64 blocks.
    const size =
      { 1: 200 * MIB, 2: 100 * MIB, 4: 50 * MIB, 8: 30 * MIB, 16: 24 * MIB, 32: 16 * MIB, 64: 12 * MIB }[refcountBits];
    const file = emptyImage({ size, clusterSize: 512, refcountBits });
    const layout: LayoutOptions = { size, clusterSize: 512, refcountBits };
    let expected: Uint8Array;
    {
      using disk = Qcow2File.open(file, { write: true, durability: "none" });
      const before = disk.header.refcountTableClusterCount;
      expected = filled(MIB, 7);
      for (let offset = 0; offset < size; offset += MIB) disk.writeAt(offset, expected);
      disk.flush();
      assert(disk.header.refcountTableClusterCount > before, `${refcountBits} bits: ${layout.size}`);
    }
    const { corruptions, leaks } = checkImage(copyOf(file));
    assertEquals([corruptions, leaks], [0, 0], `${refcountBits} bits`);
    using disk = Qcow2File.open(copyOf(file));
    for (let offset = 0; offset < size; offset += 10 * MIB) assertEquals(readBytes(disk, offset, MIB), expected);
  }
});

Deno.test("The old refcount table is free once the file points to the new one", () => {
  const file = emptyImage({ size: 64 * MIB, clusterSize: 512, refcountBits: 64 });
  using disk = Qcow2File.open(file, { write: true });
  const oldTable = disk.header.refcountTableOffset;
  for (let offset = 0; offset < 3 * MIB; offset += 64 * KIB) disk.writeAt(offset, filled(64 * KIB, 1));
  disk.flush();
  assert(disk.header.refcountTableOffset !== oldTable);
  disk.flush();
  // Something else may have found its place there since; nothing may count it twice.
  const { corruptions, leaks } = disk.check();
  assertEquals([corruptions, leaks], [0, 0]);
});

Deno.test("allocateRun() takes the first free clusters, as many in a row as are wanted and there", () => {
  const { allocator, geometry } = open(emptyImage({ size: GIB }));
  const { clusterSize } = geometry;
  const runs = [1, 3, 2].map((count) => allocator.allocateRun(count));
  assertEquals(runs.map(({ offset, count }) => [offset / clusterSize, count]), [[4, 1], [5, 3], [8, 2]]);
  allocator.release({ offset: 5 * clusterSize, count: 2 });
  const again = [4, 4].map((count) => allocator.allocateRun(count));
  assertEquals(again.map(({ offset, count }) => [offset / clusterSize, count]), [[5, 2], [10, 4]]);
  assertEquals(allocator.allocateCluster() / clusterSize, 14);
});

Deno.test("A run ends at the end of a refcount block, and the next block describes itself first", () => {
  // With 512-byte clusters and 64-bit refcounts a block describes 64 clusters.
  const { allocator, refcounts } = open(emptyImage({ size: MIB, clusterSize: 512, refcountBits: 64 }));
  const first = allocator.allocateRun(1000);
  const last = first.offset / 512 + first.count;
  assertEquals(last % 64, 0);
  const second = allocator.allocateRun(1000);
  assertEquals([second.offset / 512, second.count], [last + 1, 63]);
  assertEquals(refcounts.get(last), 1);
});

Deno.test("Clusters that lost a reference are not handed out before a flush, and are afterwards", () => {
  const metadata = open(emptyImage({ size: GIB }));
  const { allocator, geometry, refcounts } = metadata;
  const { clusterSize } = geometry;
  const run = allocator.allocateRun(4);
  metadata.flush();
  for (let index = 0; index < 4; index++) allocator.freeLater(run.offset + index * clusterSize);
  assertEquals(allocator.pendingFreeCount, 4);
  assertEquals(refcounts.get(run.offset / clusterSize), 1);
  const between = allocator.allocateRun(4);
  assertEquals(between.offset, run.offset + 4 * clusterSize);
  metadata.flush();
  assertEquals([allocator.pendingFreeCount, refcounts.get(run.offset / clusterSize)], [0, 0]);
  assertEquals(allocator.allocateRun(4), run);
});

Deno.test("A cluster with two references is free when both are gone, and not before", () => {
  const metadata = open(emptyImage({ size: GIB }));
  const { allocator, geometry, refcounts } = metadata;
  const offset = allocator.allocateCluster();
  refcounts.set(offset / geometry.clusterSize, 2);
  allocator.freeLater(offset);
  metadata.flush();
  assertEquals(refcounts.get(offset / geometry.clusterSize), 1);
  assert(allocator.allocateCluster() !== offset);
  allocator.freeLater(offset);
  metadata.flush();
  assertEquals(allocator.allocateCluster(), offset);
});

Deno.test("A cluster that was in use with refcount 0 is corruption, not a free cluster", () => {
  const metadata = open(emptyImage({ size: GIB }));
  metadata.allocator.freeLater(100 * 65536);
  assertCode("corrupt", () => metadata.flush());
});

Deno.test("The allocator never hands out metadata that the refcounts call free", () => {
  for (const cluster of [0, 1, 2, 3]) {
    const file = emptyImage({ size: GIB });
    file.writeAt(0x20000 + cluster * 2, new Uint8Array([0, 0]));
    using disk = Qcow2File.open(file, { write: true });
    assertCode("corrupt", () => disk.writeAt(0, filled(512, 1)));
    assertEquals(disk.header.incompatibleFeatures, 2n);
  }
});

Deno.test("Opening an image costs a handful of reads, however large it is", () => {
  for (const size of [MIB, 1024 * GIB, 512 * 1024 * GIB]) {
    const file = new RecordingFile(emptyImage({ size }));
    Qcow2File.open(file).close();
    assert(file.count("read") <= 5, `${file.count("read")} reads for ${size} bytes`);
    const writing = new RecordingFile(emptyImage({ size }));
    Qcow2File.open(writing, { write: true }).close();
    assertEquals([writing.count("write"), writing.count("sync")], [0, 0]);
    assert(writing.count("read") <= 5, `${writing.count("read")} reads for ${size} bytes`);
  }
});

Deno.test("firstZeroRefcount() finds the first cluster that is free, with refcounts of every width", () => {
  for (const refcountBits of [1, 2, 4, 8, 16, 32, 64]) {
    const file = emptyImage({ size: MIB, clusterSize: 4096, refcountBits });
    using disk = Qcow2File.open(file, { write: true });
    disk.writeAt(0, new Uint8Array(30 * 4096).fill(1));
    const [data] = disk.extents(0, 4096);
    const start = data?.hostOffset ?? 0;
    for (const free of [29, 17, 8, 7, 3, 0]) {
      disk.discardAt(free * 4096, 4096);
      disk.flush();
      assertEquals(disk.firstZeroRefcount(), start + free * 4096, `${refcountBits} bits`);
    }
  }
});
