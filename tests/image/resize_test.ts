import { assert, assertEquals } from "@std/assert";
import { checkImage, type CreateOptions, type LayoutOptions, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import {
  assertCode,
  copyOf,
  emptyImage,
  filled,
  GIB,
  KIB,
  MIB,
  readBytes,
  RecordingFile,
  setUint32,
} from "../images.ts";
import { Random } from "../random.ts";

const GEOMETRIES: readonly LayoutOptions[] = [512, 4 * KIB, 64 * KIB, 2 * MIB].flatMap((clusterSize) =>
  [1, 16, 64].map((refcountBits) => ({ size: 10 * clusterSize, clusterSize, refcountBits }))
);

function assertClean(disk: Qcow2File): void {
  const { corruptions, leaks } = disk.check();
  assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
}

for (const layout of GEOMETRIES) {
  const { clusterSize = 0, refcountBits } = layout;
  Deno.test(`resize() moves the L1 table of ${clusterSize}-byte clusters and ${refcountBits}-bit refcounts`, () => {
    const file = emptyImage(layout);
    const disk = Qcow2File.open(file, { write: true });
    const content = new Random("resize").bytes(5 * clusterSize);
    disk.writeAt(0, content);
    // An L1 table of several clusters, and with small ones of more than a refcount block describes.
    const span = clusterSize * clusterSize / 8;
    for (const tables of [2, clusterSize / 8 + 1, Math.min(clusterSize * 20, 200_000)]) {
      if (tables * span > 2 ** 52) break;
      disk.resize(tables * span - 512);
      disk.writeAt(disk.size - 512, filled(512, 7));
      assertEquals(disk.header.l1EntryCount, tables);
      assertClean(disk);
    }
    disk.close();
    const reopened = Qcow2File.open(copyOf(file), { write: true });
    assertEquals(readBytes(reopened, 0, content.length), content);
    assertEquals(
      readBytes(reopened, reopened.size - 1024, 1024),
      new Uint8Array([...filled(512, 0), ...filled(512, 7)]),
    );
    reopened.resize(clusterSize + 512, { shrink: true });
    assertEquals(readBytes(reopened, 0, clusterSize + 512), content.slice(0, clusterSize + 512));
    assertClean(reopened);
    // What was lost does not come back.
    reopened.resize(4 * clusterSize);
    assertEquals(readBytes(reopened, clusterSize + 512, 3 * clusterSize - 512), filled(3 * clusterSize - 512, 0));
    assertClean(reopened);
  });
}

Deno.test("resize() shortens the file where the clusters at its end are free", () => {
  const file = emptyImage({ size: 64 * MIB });
  using disk = Qcow2File.open(file, { write: true });
  const empty = file.size;
  disk.writeAt(0, filled(32 * MIB, 1));
  disk.resize(64 * KIB, { shrink: true });
  assert(file.size <= empty + 3 * 64 * KIB, `${file.size} bytes`);
  assertEquals(readBytes(disk, 0, 64 * KIB), filled(64 * KIB, 1));
});

Deno.test("resize() refuses what would lose data, and sizes that are none", () => {
  using disk = Qcow2File.open(emptyImage({ size: MIB }), { write: true });
  const error = assertCode("invalid-argument", () => disk.resize(MIB - 512));
  assert(error.message.includes("shrink: true"));
  for (const size of [-1, 0.5, NaN, Infinity, 2 ** 53]) assertCode("invalid-argument", () => disk.resize(size));
  assertCode("limit-exceeded", () => disk.resize(2 ** 52));
  assertCode("invalid-argument", () => disk.resize(512, { shrink: true, preallocation: "full" }));
  assertEquals(disk.size, MIB);
  disk.resize(MIB + 1);
  assertEquals(disk.size, MIB + 512);
  disk.resize(disk.size);
  assertClean(disk);
  using reader = Qcow2File.open(emptyImage({ size: MIB }));
  assertCode("read-only", () => reader.resize(2 * MIB));
});

Deno.test("resize() refuses version 2 images that count a snapshot", () => {
  const file = emptyImage({ size: MIB, version: 2 });
  using disk = Qcow2File.open(file, { write: true });
  disk.resize(2 * MIB);
  disk.close();
  const copy = copyOf(file);
  setUint32(copy, 60, 1);
  // The table with the snapshot stands where the refcount table does in no image: behind everything.
  const end = Math.ceil(copy.size / 65536) * 65536;
  copy.truncate(end + 65536);
  setUint32(copy, 68, end);
  using marked = Qcow2File.open(copy, { write: true });
  assertCode("unsupported", () => marked.resize(4 * MIB));
});

Deno.test("resize() does not show a backing file that is longer than the disk was", () => {
  for (const version of [2, 3] as const) {
    for (const size of [64 * KIB, 100 * KIB - 512, 30 * KIB]) {
      const backing = new MemoryBlockFile();
      backing.writeAt(0, filled(400 * KIB, 5));
      const options: CreateOptions = {
        size,
        version,
        clusterSize: 4096,
        backingFile: "base.raw",
        backingFormat: "raw",
        backing: () => RawFile.open(backing),
      };
      using disk = Qcow2File.create(new MemoryBlockFile(), options);
      // The last cluster is copied whole from the backing file.
      disk.writeAt(size - 512, filled(512, 6));
      disk.resize(600 * KIB);
      const expected = new Uint8Array(600 * KIB).fill(5, 0, size).fill(6, size - 512, size);
      assertEquals(readBytes(disk, 0, disk.size), expected);
      disk.resize(size - 1024, { shrink: true });
      disk.resize(600 * KIB);
      assertEquals(readBytes(disk, 0, disk.size), expected.fill(0, size - 1024, size));
      assertClean(disk);
    }
  }
});

Deno.test("resize() within a cluster leaves the cluster where it is", () => {
  using disk = Qcow2File.open(emptyImage({ size: 1024, clusterSize: 4096 }), { write: true });
  disk.writeAt(0, filled(1024, 1));
  for (let size = 1536; size <= 5 * KIB; size += 512) {
    disk.resize(size);
    assertEquals(readBytes(disk, 0, size), new Uint8Array(size).fill(1, 0, 1024));
    assertClean(disk);
  }
});

Deno.test("resize() gives clusters to what it adds, which reads as zeroes", () => {
  for (const preallocation of ["metadata", "falloc", "full"] as const) {
    const file = emptyImage({ size: 100 * KIB, clusterSize: 4096, refcountBits: 64 });
    using disk = Qcow2File.open(file, { write: true });
    // Clusters that were freed are used again, and what stood there must not be seen.
    disk.writeAt(0, filled(100 * KIB, 1));
    disk.discardAt(0, 80 * KIB);
    disk.flush();
    disk.resize(40 * MIB, { preallocation });
    assertEquals(readBytes(disk, 100 * KIB, MIB), filled(MIB, 0));
    assertEquals([...disk.extents(100 * KIB)].filter(({ kind }) => kind !== "data"), []);
    assertClean(disk);
    const used = file.size;
    disk.writeAt(100 * KIB, filled(39 * MIB, 2));
    disk.flush();
    assertEquals(file.size, used);
  }
});

Deno.test("create() preallocates, and a backing file forbids it", () => {
  for (const preallocation of ["metadata", "falloc", "full"] as const) {
    const file = new MemoryBlockFile();
    using disk = Qcow2File.create(file, { size: 10 * MIB, preallocation });
    // As QEMU does it: header, refcounts, L1, one L2 table, then the data.
    assertEquals([...disk.extents()].map(({ hostOffset, length }) => [hostOffset, length]), [[327680, 10 * MIB]]);
    assertEquals(file.size, 10813440);
    assertEquals(readBytes(disk, 0, MIB), filled(MIB, 0));
    assertClean(disk);
  }
  assertCode("invalid-argument", () =>
    Qcow2File.create(new MemoryBlockFile(), {
      size: MIB,
      preallocation: "full",
      backingFile: "b",
      backingFormat: "raw",
      backing: () => RawFile.open(new MemoryBlockFile()),
    }));
  assertCode("invalid-argument", () => RawFile.create(new MemoryBlockFile(), { size: MIB, preallocation: "metadata" }));
});

Deno.test("RawFile.resize() makes the file longer and shorter", () => {
  const file = new MemoryBlockFile();
  using disk = RawFile.create(file, { size: MIB, preallocation: "full" });
  assertEquals([...file.dataExtents(0, MIB)], [{ offset: 0, length: MIB }]);
  disk.writeAt(MIB - 512, filled(512, 1));
  disk.resize(2 * MIB, { preallocation: "falloc" });
  assertEquals(readBytes(disk, MIB - 512, 1024), new Uint8Array([...filled(512, 1), ...filled(512, 0)]));
  assertCode("invalid-argument", () => disk.resize(MIB));
  assertCode("invalid-argument", () => disk.resize(3 * MIB, { preallocation: "metadata" }));
  disk.resize(1000, { shrink: true });
  assertEquals([disk.size, file.size], [1024, 1024]);
});

Deno.test("resize() costs a few syncs, however much it adds", () => {
  const file = new RecordingFile(emptyImage({ size: MIB }));
  using disk = Qcow2File.open(file, { write: true });
  file.calls.length = 0;
  disk.resize(8 * GIB);
  assert(file.count("sync") <= 3, `${file.count("sync")} syncs`);
  file.calls.length = 0;
  disk.resize(16 * 1024 * GIB);
  assert(file.count("sync") <= 6, `${file.count("sync")} syncs`);
});

const MODEL_CASES: readonly (readonly [name: string, layout: LayoutOptions, withBacking: boolean])[] = [
  ["512-byte clusters", { size: 0, clusterSize: 512, refcountBits: 64 }, false],
  ["512-byte clusters over a backing file", { size: 0, clusterSize: 512, refcountBits: 1 }, true],
  ["4 KiB clusters over a backing file", { size: 0, clusterSize: 4096 }, true],
  ["4 KiB clusters in version 2 over a backing file", { size: 0, clusterSize: 4096, version: 2 }, true],
  ["4 KiB clusters in version 2", { size: 0, clusterSize: 4096, version: 2 }, false],
];

for (const [name, layout, withBacking] of MODEL_CASES) {
  Deno.test(`A disk that is resized at random does what a plain array does, with ${name}`, () => {
    const random = new Random(`resize ${name}`);
    const base = random.bytes(withBacking ? 700 * KIB : 0);
    const backing = MemoryBlockFile.from(base);
    let file = new MemoryBlockFile();
    let model = base.slice(0, 300 * KIB + 512);
    const size = withBacking ? model.length : 300 * KIB + 512;
    if (!withBacking) model = new Uint8Array(size);
    const { backingFormat: _, ...rest } = layout;
    let disk = Qcow2File.create(file, {
      ...rest,
      size,
      ...(withBacking ? { backingFile: "b", backingFormat: "raw", backing: () => RawFile.open(copyOf(backing)) } : {}),
    });
    for (let step = 0; step < 1500; step++) {
      const offset = random.below(model.length);
      const length = Math.min(model.length - offset, random.pick([100, 512, 5000, 50_000]));
      const kind = random.below(16);
      if (kind < 6) {
        const data = random.bytes(length);
        disk.writeAt(offset, data);
        model.set(data, offset);
      } else if (kind < 8) {
        disk.writeZeroesAt(offset, length, { unmap: random.oneIn(2) });
        model.fill(0, offset, offset + length);
      } else if (kind < 9) {
        disk.flush();
      } else if (kind < 12) {
        const next = Math.max(512, Math.min(1500 * KIB, model.length + random.between(-200 * KIB, 210 * KIB)));
        const grows = next > model.length;
        const preallocation = random.pick(["off", "off", "metadata", "full"] as const);
        disk.resize(next, { shrink: true, preallocation: grows ? preallocation : "off" });
        const resized = new Uint8Array(disk.size);
        resized.set(model.subarray(0, resized.length));
        model = resized;
      } else if (kind < 15) {
        assertEquals(readBytes(disk, offset, length), model.slice(offset, offset + length));
      } else if (random.oneIn(10)) {
        assertClean(disk);
        assertEquals(readBytes(disk, 0, disk.size), model);
        disk.close();
        file = copyOf(file);
        disk = Qcow2File.open(file, { write: true, backing: () => RawFile.open(copyOf(backing)) });
      }
    }
    assertEquals(readBytes(disk, 0, disk.size), model);
    disk.close();
    const { corruptions, leaks } = checkImage(copyOf(file));
    assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
  });
}
