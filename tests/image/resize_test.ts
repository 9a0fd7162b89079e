import { assert, assertEquals } from "@std/assert";
import { type CreateOptions, type LayoutOptions, Qcow2File, RawFile } from "../../mod.ts";
import { decodeBitmapsPointer, EXTENSION, hasExtendedL2 } from "../../lib/format/mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import {
  assertCode,
  copyOf,
  emptyImage,
  filled,
  getUint32,
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

Deno.test("resize() of a version 2 image writes zeroes only over what a longer backing file holds", () => {
  const backing = Qcow2File.create(new MemoryBlockFile(), { size: 1024 * GIB });
  backing.writeAt(512 * GIB + 512, filled(512, 5));
  const image = new MemoryBlockFile();
  using disk = Qcow2File.create(image, {
    size: MIB,
    version: 2,
    backingFile: "base.qcow2",
    backingFormat: "qcow2",
    backing: () => backing,
  });
  disk.resize(1024 * GIB);
  assertEquals(readBytes(disk, 512 * GIB, 2048), new Uint8Array(2048));
  assert(image.size < 2 * MIB);
  assertClean(disk);
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

Deno.test("resize() makes room on the host for the whole of the cluster that the old end cuts", () => {
  for (const preallocation of ["falloc", "full"] as const) {
    const file = emptyImage({ size: 80 * KIB });
    using disk = Qcow2File.open(file, { write: true });
    disk.resize(96 * KIB, { preallocation });
    assertEquals(file.size % (64 * KIB), 0);
    assertClean(disk);
  }
});

Deno.test("create() preallocates, and a backing file forbids it unless clusters have subclusters", () => {
  for (const preallocation of ["metadata", "falloc", "full"] as const) {
    const file = new MemoryBlockFile();
    using disk = Qcow2File.create(file, { size: 10 * MIB, preallocation });
    // As QEMU does it: header, refcounts, L1, one L2 table, then the data.
    assertEquals([...disk.extents()].map(({ hostOffset, length }) => [hostOffset, length]), [[327680, 10 * MIB]]);
    assertEquals(file.size, 10813440);
    assertEquals(readBytes(disk, 0, MIB), filled(MIB, 0));
    assertClean(disk);
  }
  const backing = () => RawFile.open(MemoryBlockFile.from(filled(MIB, 5)));
  const over = { size: MIB, preallocation: "full", backingFile: "b", backingFormat: "raw", backing } as const;
  assertCode("invalid-argument", () => Qcow2File.create(new MemoryBlockFile(), over));
  const file = new MemoryBlockFile();
  using disk = Qcow2File.create(file, { ...over, extendedL2: true });
  assertEquals(readBytes(disk, 0, MIB), filled(MIB, 5));
  const { size } = file;
  disk.writeAt(0, filled(MIB, 6));
  assertEquals([readBytes(disk, 0, MIB), file.size], [filled(MIB, 6), size]);
  assertClean(disk);
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
  disk.writeAt(0, filled(1024, 3));
  disk.resize(1000, { shrink: true });
  // The file ends amid a sector, and the disk with one.
  assertEquals([disk.size, file.size], [1024, 1000]);
  assertEquals(readBytes(disk, 0, 1024), new Uint8Array([...filled(1000, 3), ...filled(24, 0)]));
  disk.resize(900);
  assertEquals([disk.size, file.size], [1024, 1024]);
  assertEquals(readBytes(disk, 0, 1024), new Uint8Array([...filled(1000, 3), ...filled(24, 0)]));
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

/** The ways in which the cluster that the new end cuts can hold something. */
const CUT_CLUSTERS: Readonly<Record<string, (disk: Qcow2File) => void>> = {
  "data": (disk) => disk.writeAt(0, filled(disk.size, 1)),
  "shared data": (disk) => {
    disk.writeAt(0, filled(disk.size, 1));
    if (!hasExtendedL2(disk.header)) disk.createSnapshot("before");
  },
  "compressed": (disk) => disk.writeCompressedAt(0, filled(disk.size, 1)),
  "zeroes": (disk) => disk.writeZeroesAt(0, disk.size),
  "zeroes in place of data": (disk) => {
    disk.writeAt(0, filled(disk.size, 1));
    disk.writeZeroesAt(0, disk.size);
  },
  "zeroes in front of nothing": (disk) => disk.writeZeroesAt(0, disk.size - 12 * KIB),
  "nothing": () => {},
};

for (const [what, fill] of Object.entries(CUT_CLUSTERS)) {
  Deno.test(`resize() shows nothing of what a cluster that the end cuts holds behind it: ${what}`, () => {
    for (const extendedL2 of [false, true]) {
      for (const backingSize of [undefined, 20 * KIB, 60 * KIB]) {
        for (const preallocation of ["off", "metadata", "full"] as const) {
          const backing = () => RawFile.open(MemoryBlockFile.from(filled(backingSize ?? 0, 5)));
          const over = { backingFile: "base.raw", backingFormat: "raw", backing };
          using disk = Qcow2File.create(new MemoryBlockFile(), {
            size: 32 * KIB,
            clusterSize: 16 * KIB,
            extendedL2,
            ...(backingSize === undefined ? {} : over),
          });
          fill(disk);
          const content = readBytes(disk, 0, 32 * KIB);
          disk.resize(24 * KIB + 512, { shrink: true });
          disk.resize(200 * KIB, { preallocation });
          const expected = new Uint8Array(200 * KIB);
          expected.set(content.subarray(0, 24 * KIB + 512));
          assertEquals(readBytes(disk, 0, 200 * KIB), expected, `${extendedL2} ${backingSize} ${preallocation}`);
          assertClean(disk);
        }
      }
    }
  });
}

Deno.test("resize() leaves a cluster alone that holds zeroes behind the end", () => {
  for (const extendedL2 of [false, true]) {
    for (const kind of ["compressed", "data"]) {
      using disk = Qcow2File.create(new MemoryBlockFile(), { size: 1024, clusterSize: 16 * KIB, extendedL2 });
      disk.writeCompressedAt(0, filled(1024, 1));
      if (kind === "data") disk.writeAt(0, filled(512, 1));
      disk.resize(200 * KIB);
      const [first] = disk.extents();
      assertEquals([first?.kind, first?.length], [kind, 16 * KIB]);
      assertEquals(readBytes(disk, 0, 200 * KIB), new Uint8Array(200 * KIB).fill(1, 0, 1024));
    }
  }
});

/** An image in memory with a data file in memory, on a host that knows of no holes. */
function withDataFile(options: Partial<CreateOptions>, data: MemoryBlockFile): Qcow2File {
  const file = new RecordingFile(data);
  file.punchHole = () => false;
  return Qcow2File.create(new MemoryBlockFile(), {
    size: MIB,
    dataFile: "data",
    openDataFile: () => file,
    ...options,
  });
}

Deno.test("resize() makes a data file as long as the disk, and shows nothing of what it held behind the end", () => {
  for (const dataFileRaw of [false, true]) {
    for (const preallocation of ["off", "metadata", "falloc", "full"] as const) {
      const data = new MemoryBlockFile();
      data.writeAt(0, filled(4 * MIB, 7));
      using disk = withDataFile({ dataFileRaw, existingDataFile: "reuse" }, data);
      const content = readBytes(disk, 0, MIB);
      disk.resize(2 * MIB, { preallocation });
      assertEquals(data.size, 2 * MIB);
      assertEquals(readBytes(disk, 0, MIB), content);
      assertEquals(readBytes(disk, MIB, MIB), filled(MIB, 0));
      if (dataFileRaw) assertEquals(disk.seekHole(0), 2 * MIB);
      disk.resize(100 * KIB, { shrink: true });
      assertEquals(data.size, 100 * KIB);
      assertClean(disk);
    }
  }
});

Deno.test("resize() makes a data file no longer than the disk, also where both ends lie in one cluster", () => {
  for (const preallocation of ["metadata", "falloc", "full"] as const) {
    const data = new MemoryBlockFile();
    using disk = withDataFile({ size: 1024 }, data);
    disk.resize(2048, { preallocation });
    assertEquals(data.size, 2048);
  }
});

Deno.test("resize() shows nothing of what was discarded in a data file", () => {
  const data = new MemoryBlockFile();
  using disk = withDataFile({}, data);
  disk.writeAt(0, filled(MIB, 1));
  disk.discardAt(0, MIB);
  disk.resize(MIB - 30 * KIB, { shrink: true });
  disk.resize(2 * MIB, { preallocation: "metadata" });
  assertEquals(readBytes(disk, 0, 2 * MIB), filled(2 * MIB, 0));
  assertClean(disk);
});

Deno.test("create() makes what a data file holds the disk's where everything is preallocated", () => {
  for (const extendedL2 of [false, true]) {
    const data = new MemoryBlockFile();
    data.writeAt(0, filled(512 * KIB, 7));
    using disk = withDataFile({ preallocation: "full", existingDataFile: "reuse", extendedL2 }, data);
    assertEquals(readBytes(disk, 0, MIB), new Uint8Array(MIB).fill(7, 0, 512 * KIB));
    assertEquals([...data.dataExtents(0, MIB)], [{ offset: 0, length: MIB }]);
    assertClean(disk);
  }
});

Deno.test("resize() brings bitmaps to the new size, with what is added clear and what is lost gone", () => {
  const file = emptyImage({ size: 8 * MIB, clusterSize: 512 });
  const marked = [{ offset: 0, length: 4096 }, { offset: 3 * MIB - 512, length: MIB }];
  {
    using disk = Qcow2File.open(file, { write: true });
    for (const granularity of [512, 4096, MIB]) disk.addBitmap(`auto ${granularity}`, { granularity });
    disk.writeAt(0, filled(4096, 1));
    disk.writeAt(3 * MIB - 512, filled(MIB, 2));
    disk.addBitmap("still", { granularity: 512, disabled: true });
    disk.mergeBitmap("auto 512", "still");
  }
  for (const size of [3 * MIB + 1536, 9 * MIB, 2 * MIB - 512, 40 * MIB + 512, 512]) {
    using disk = Qcow2File.open(copyOf(file), { write: true });
    disk.resize(size, { shrink: true });
    const kept = marked.filter(({ offset }) => offset < size).map(({ offset, length }) => {
      return { offset, length: Math.min(length, size - offset) };
    });
    assertEquals([...disk.dirtyExtents("auto 512")], kept);
    assertEquals([...disk.dirtyExtents("still")], kept);
    assertEquals([...disk.dirtyExtents(`auto ${MIB}`)][0], { offset: 0, length: Math.min(MIB, size) });
    // They go on recording, in what was added as well.
    disk.writeAt(size - 512, filled(512, 3));
    const last = [...disk.dirtyExtents("auto 512")].at(-1) ?? { offset: 0, length: 0 };
    assertEquals(last.offset + last.length, size);
    assertClean(disk);
    assertEquals(disk.bitmaps.map(({ auto, inconsistent }) => [auto, inconsistent]), [
      [true, false],
      [true, false],
      [true, false],
      [false, false],
    ]);
  }
});

Deno.test("resize() refuses bitmaps that cannot be brought to the new size, and changes nothing", () => {
  const file = emptyImage({ size: MIB });
  {
    using disk = Qcow2File.open(file, { write: true });
    disk.addBitmap("fine", { granularity: 512 });
    disk.addBitmap("other");
  }
  {
    using disk = Qcow2File.open(copyOf(file), { write: true });
    const error = assertCode("unsupported", () => disk.resize(4096 * GIB));
    assert(error.message.includes('"fine" would take'));
    assertEquals([disk.size, disk.header.l1EntryCount], [MIB, 1]);
  }
  const directory = directoryOffset(copyOf(file));
  for (
    const [twist, code] of [
      [(copy: MemoryBlockFile) => setUint32(copy, directory + 12, 3), "unsupported"],
      [(copy: MemoryBlockFile) => setUint32(copy, directory + 12, 0x82), "unsupported"],
      [(copy: MemoryBlockFile) => setUint32(copy, getUint32(copy, directory + 4), 0x40000000), "corrupt"],
    ] as const
  ) {
    const copy = copyOf(file);
    twist(copy);
    const before = copy.toBytes();
    const disk = Qcow2File.open(copy, { write: true });
    assertCode(code, () => disk.resize(2 * MIB));
    assertCode(code, () => disk.resize(512 * KIB, { shrink: true }));
    assertEquals([disk.size, copy.toBytes()], [MIB, before]);
  }
  // Nobody trusts them without the autoclear bit, whatever their size.
  const copy = copyOf(file);
  setUint32(copy, 92, 0);
  using disk = Qcow2File.open(copy, { write: true });
  disk.resize(64 * GIB);
  assertEquals(disk.bitmaps.map(({ inconsistent }) => inconsistent), [true, true]);
  for (const name of ["fine", "other"]) disk.removeBitmap(name);
  assertClean(disk);
});

function directoryOffset(file: MemoryBlockFile): number {
  using disk = Qcow2File.open(file);
  const extension = disk.header.extensions.find(({ type }) => type === EXTENSION.bitmaps);
  return decodeBitmapsPointer(extension?.data ?? new Uint8Array()).directoryOffset;
}
