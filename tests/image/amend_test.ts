import { assert, assertEquals } from "@std/assert";
import { checkImage, type CreateOptions, type Disk, Qcow2File, RawFile } from "../../mod.ts";
import { decodeHeader, encodeHeader, EXTENSION, extensionText } from "../../lib/format/mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import {
  assertCode,
  copyOf,
  emptyImage,
  filled,
  getUint32,
  KIB,
  MIB,
  readBytes,
  setUint32,
  withFolder,
} from "../images.ts";
import { Random } from "../random.ts";

function assertClean(disk: Qcow2File): void {
  const { corruptions, leaks } = disk.check();
  assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
}

Deno.test("amend() changes the refcount width, and every refcount stays", () => {
  for (const clusterSize of [512, 4 * KIB, 64 * KIB]) {
    const content = new Random("widths").bytes(600 * KIB);
    const file = emptyImage({ size: 2 * MIB, clusterSize });
    let disk = Qcow2File.open(file, { write: true });
    disk.writeAt(MIB, content);
    for (const refcountBits of [64, 1, 2, 4, 8, 32, 16]) {
      disk.amend({ refcountBits });
      assertEquals(disk.header.refcountOrder, Math.log2(refcountBits));
      assertClean(disk);
      // The disk goes on being used, with the new refcounts.
      disk.writeAt(0, filled(clusterSize, refcountBits));
      disk.discardAt(0, clusterSize);
      assertClean(disk);
      assertEquals(readBytes(disk, MIB, content.length), content);
    }
    disk.close();
    disk = Qcow2File.open(copyOf(file));
    assertEquals(readBytes(disk, MIB, content.length), content);
    disk.close();
  }
});

Deno.test("amend() changes refcounts of images with subclusters, and their states stay", () => {
  const file = emptyImage({ size: 40 * MIB, clusterSize: 16 * KIB, extendedL2: true });
  const disk = Qcow2File.open(file, { write: true });
  const content = new Random("subclusters").bytes(3 * MIB);
  disk.writeAt(700, content);
  disk.writeZeroesAt(MIB, 1500);
  content.fill(0, MIB - 700, MIB + 800);
  disk.writeCompressedAt(20 * MIB, filled(64 * KIB, 1));
  disk.createSnapshot("kept");
  disk.writeAt(2 * MIB + 100, filled(100, 2));
  for (const refcountBits of [64, 2, 8, 32, 4, 16]) {
    // Five compressed clusters in a host cluster, twice.
    if (refcountBits === 2) assertCode("refcount-overflow", () => disk.amend({ refcountBits }));
    else disk.amend({ refcountBits, lazyRefcounts: refcountBits > 8 });
    assertClean(disk);
    assertEquals(readBytes(disk.openSnapshot("kept"), 700, content.length), content);
    assertEquals(readBytes(disk, 2 * MIB + 100, 100), filled(100, 2));
    assertEquals(readBytes(disk, 20 * MIB, 64 * KIB), filled(64 * KIB, 1));
  }
  const error = assertCode("unsupported", () => disk.amend({ version: 2 }));
  assertEquals(error.message, "Cannot downgrade an image with incompatible features 0x10 set");
  disk.close();
});

Deno.test("amend() keeps unknown header extensions through both versions, byte for byte", () => {
  for (const clusterSize of [512, 8 * KIB, 64 * KIB]) {
    const file = emptyImage({ size: MIB, clusterSize });
    const start = decodeHeader(file.toBytes());
    const unknown = { type: 0x12345678, data: new Random("extension").bytes(29) };
    const cluster = new Uint8Array(clusterSize);
    cluster.set(encodeHeader({ ...start, extensions: [unknown, ...start.extensions] }));
    file.writeAt(0, cluster);
    const before = file.toBytes().slice(0, clusterSize);
    using disk = Qcow2File.open(file, { write: true });
    disk.amend({ version: 2 });
    assertEquals(disk.header.version, 2);
    assertEquals(disk.header.extensions, [unknown]);
    disk.amend({ version: 3, lazyRefcounts: true });
    assertEquals(disk.header.compatibleFeatures, 1n);
    disk.amend({ lazyRefcounts: false });
    const names = disk.header.extensions.some(({ type }) => type === EXTENSION.featureNames);
    assertEquals(names, clusterSize >= 8 * KIB);
    assertEquals(file.toBytes().slice(0, clusterSize), before);
    assertClean(disk);
  }
});

Deno.test("amend() keeps unknown header fields where the version stays", () => {
  const file = emptyImage({ size: MIB });
  const start = decodeHeader(file.toBytes());
  const unknownFields = new Random("fields").bytes(15);
  const cluster = new Uint8Array(65536);
  cluster.set(encodeHeader({ ...start, unknownFields }));
  file.writeAt(0, cluster);
  using disk = Qcow2File.open(file, { write: true });
  disk.amend({ refcountBits: 64, lazyRefcounts: true, size: 2 * MIB });
  assertEquals(decodeHeader(file.toBytes()).unknownFields, unknownFields);
  // Version 2 has no place for them.
  disk.amend({ refcountBits: 16 });
  assertCode("unsupported", () => disk.amend({ version: 2 }));
});

Deno.test("amend() to version 2 turns zero clusters into what version 2 can say", () => {
  for (const withBacking of [false, true]) {
    const backing = () => RawFile.open(MemoryBlockFile.from(filled(200 * KIB, 5)));
    const over: Partial<CreateOptions> = withBacking ? { backingFile: "b", backingFormat: "raw", backing } : {};
    const file = new MemoryBlockFile();
    using disk = Qcow2File.create(file, { size: 400 * KIB, clusterSize: 4096, ...over });
    disk.writeAt(0, filled(100 * KIB, 1));
    disk.writeZeroesAt(0, 40 * KIB);
    disk.writeZeroesAt(60 * KIB, 60 * KIB, { unmap: true });
    disk.writeZeroesAt(180 * KIB, 100 * KIB);
    const before = readBytes(disk, 0, disk.size);
    disk.amend({ version: 2 });
    assertEquals(readBytes(disk, 0, disk.size), before);
    assertEquals([...disk.extents()].filter(({ kind }) => kind === "zero"), []);
    assertClean(disk);
    disk.writeAt(10 * KIB, filled(KIB, 2));
    disk.close();
    const { corruptions, leaks } = checkImage(copyOf(file));
    assertEquals([corruptions, leaks], [0, 0]);
  }
});

for (const withBacking of [false, true]) {
  Deno.test(`amend() to version 2 keeps what snapshots hold${withBacking ? " over a backing file" : ""}`, () => {
    const backing = () => RawFile.open(MemoryBlockFile.from(filled(200 * KIB, 5)));
    const over: Partial<CreateOptions> = withBacking ? { backingFile: "b", backingFormat: "raw", backing } : {};
    const file = new MemoryBlockFile();
    using disk = Qcow2File.create(file, { size: 400 * KIB, clusterSize: 4096, ...over });
    const contentOf = (side: Pick<Qcow2File, "size" | "readAt">) => readBytes(side, 0, side.size);
    disk.writeAt(0, filled(100 * KIB, 1));
    disk.writeAt(240 * KIB, filled(40 * KIB, 1));
    disk.createSnapshot("no zeroes");
    // Zero clusters with a place of their own and without one, in tables of one snapshot, of two, and of the disk.
    disk.writeAt(40 * KIB, filled(20 * KIB, 2));
    disk.writeZeroesAt(40 * KIB, 12 * KIB);
    disk.writeZeroesAt(60 * KIB, 60 * KIB, { unmap: true });
    disk.writeZeroesAt(180 * KIB, 100 * KIB);
    disk.createSnapshot("zeroes");
    disk.writeAt(300 * KIB, filled(KIB, 3));
    disk.createSnapshot("zeroes again");
    for (const name of ["the same", "and again"]) disk.createSnapshot(name);
    disk.writeAt(45 * KIB, filled(30 * KIB, 4));
    const before = [disk, ...disk.snapshots.map(({ id }) => disk.openSnapshot(id))].map(contentOf);
    disk.amend({ version: 2 });
    const sides = (): Disk[] => [disk, ...disk.snapshots.map(({ id }) => disk.openSnapshot(id))];
    assertEquals(sides().map(contentOf), before);
    assertEquals(sides().flatMap((side) => [...side.extents(0, side.size)]).filter(({ kind }) => kind === "zero"), []);
    assertClean(disk);
    for (const [index, id] of ["2", "4", "3", "1", "5"].entries()) {
      disk.applySnapshot(id);
      assertEquals(contentOf(disk), before[Number(id)], `snapshot ${id}, in turn ${index}`);
      disk.writeAt(10 * KIB, filled(200 * KIB, 6));
      disk.deleteSnapshot(id);
      assertClean(disk);
    }
    disk.close();
    const { corruptions, leaks } = checkImage(copyOf(file));
    assertEquals([corruptions, leaks], [0, 0]);
  });
}

Deno.test("amend() to version 2 takes a zstd image without compressed clusters, and refuses one with them anywhere", () => {
  const file = emptyImage({ size: MIB, compressionType: "zstd" });
  using disk = Qcow2File.open(file, { write: true });
  disk.writeAt(0, filled(MIB, 1));
  disk.amend({ version: 2 });
  assertEquals(disk.header.compressionType, "zlib");
  assertClean(disk);
  const other = emptyImage({ size: MIB, compressionType: "zstd" });
  using compressed = Qcow2File.open(other, { write: true });
  compressed.writeCompressedAt(0, filled(64 * KIB, 1));
  assertCode("unsupported", () => compressed.amend({ version: 2 }));
  compressed.createSnapshot("compressed");
  compressed.discardAt(0, MIB);
  // The snapshot has it still.
  assertCode("unsupported", () => compressed.amend({ version: 2 }));
  compressed.deleteSnapshot("compressed");
  compressed.amend({ version: 2 });
  assertClean(compressed);
});

Deno.test("amend() to version 2 is refused where snapshots could not be told there", () => {
  const file = emptyImage({ size: MIB });
  using disk = Qcow2File.open(file, { write: true });
  disk.createSnapshot("small");
  disk.resize(2 * MIB);
  const error = assertCode("unsupported", () => disk.amend({ version: 2 }));
  assertEquals(error.message, "Internal snapshots prevent downgrade of image");
  assertEquals(disk.header.version, 3);
  disk.amend({ version: 2, size: MIB, shrink: true });
  assertEquals(disk.header.version, 2);
  disk.amend({ version: 3 });
  // A machine's state of 4 GiB and more, as the extra data of the entry tells.
  setUint32(file, getUint32(file, 68) + 40, 1);
  assertCode("unsupported", () => disk.amend({ version: 2 }));
});

Deno.test("amend() to version 3 gives snapshots of old programs what version 3 demands of them", () => {
  for (const extraLength of [0, 8]) {
    const file = emptyImage({ size: MIB, version: 2 });
    {
      using disk = Qcow2File.open(file, { write: true });
      disk.writeAt(0, filled(MIB, 1));
      disk.createSnapshot("from today");
      disk.createSnapshot("ancient");
      disk.flush();
      // The second entry loses its extra data, all or but for the size of the machine's state, and its name is no text.
      const table = getUint32(file, 68);
      const entry = new Uint8Array(72);
      file.readAt(table + 80, entry);
      const ancient = new Uint8Array(72);
      ancient.set(entry.subarray(0, 40 + extraLength));
      ancient.set(entry.subarray(64), 40 + extraLength);
      ancient[40 + extraLength + 1] = 0xff;
      new DataView(ancient.buffer).setUint32(36, extraLength);
      if (extraLength === 0) new DataView(ancient.buffer).setUint32(32, 4711);
      else new DataView(ancient.buffer).setBigUint64(40, 4711n);
      file.writeAt(table + 80, ancient);
    }
    using disk = Qcow2File.open(copyOf(file), { write: true });
    assertEquals(disk.snapshots.map(({ diskSize }) => diskSize), [MIB, undefined]);
    const [first] = disk.snapshots;
    disk.amend({ version: 3 });
    const [untouched, completed] = disk.snapshots;
    assertEquals(untouched, first);
    assertEquals([completed?.diskSize, completed?.vmStateSize, completed?.name], [MIB, 4711, "\ufffdncient"]);
    assertEquals(completed?.instructionCount, -1n);
    assertClean(disk);
    disk.deleteSnapshot("1");
    disk.applySnapshot("2");
    assertEquals(readBytes(disk, 0, MIB), filled(MIB, 1));
  }
});

Deno.test("amend() names the data file anew, and keeps everything else", () => {
  const data = new MemoryBlockFile();
  const openDataFile = () => data;
  const file = new MemoryBlockFile();
  using disk = Qcow2File.create(file, { size: MIB, dataFile: "first.raw", dataFileRaw: true, openDataFile });
  disk.writeAt(0, filled(MIB, 1));
  const extensions = disk.header.extensions.length;
  const nameOf = (): string | undefined => extensionText(decodeHeader(file.toBytes()), EXTENSION.dataFile);
  for (const name of ["second.raw", "a name that is longer ".repeat(100), "x", "", "third"]) {
    disk.amend({ dataFile: name });
    assertEquals(nameOf(), name === "" ? undefined : name);
    assertEquals(disk.header.extensions.length, name === "" ? extensions - 1 : extensions);
    assertEquals(readBytes(disk, 0, MIB), filled(MIB, 1));
    assertClean(disk);
  }
  const before = file.toBytes();
  assertCode("invalid-argument", () => disk.amend({ dataFile: "x".repeat(70_000) }));
  assertCode("unsupported", () => disk.amend({ version: 2 }));
  disk.amend({ dataFileRaw: true });
  assertEquals(file.toBytes(), before);
  disk.amend({ dataFileRaw: false, refcountBits: 64, lazyRefcounts: true });
  assertEquals([disk.header.autoclearFeatures, disk.header.refcountOrder], [0n, 6]);
  assertCode("invalid-argument", () => disk.amend({ dataFileRaw: true }));
  using plain = Qcow2File.open(emptyImage({ size: MIB }), { write: true });
  for (const options of [{ dataFile: "x" }, { dataFile: "" }, { dataFileRaw: true }]) {
    assertCode("invalid-argument", () => plain.amend(options));
  }
  plain.amend({ dataFileRaw: false });
});

Deno.test("amend() does not let an image be its own data file", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    using disk = Qcow2File.create(path, { size: MIB, dataFile: "data" });
    for (const name of ["disk.qcow2", "../" + folder.split("/").at(-1) + "/disk.qcow2", path]) {
      assertCode("invalid-argument", () => disk.amend({ dataFile: name }));
    }
    disk.amend({ dataFile: "other" });
    disk.close();
    Deno.renameSync(`${folder}/data`, `${folder}/other`);
    Qcow2File.open(path, { write: true, dataFile: "allow" }).close();
  });
});

Deno.test("amend() refuses what contradicts the format, and changes nothing then", () => {
  const file = emptyImage({ size: MIB, refcountBits: 8, clusterSize: 4096 });
  using disk = Qcow2File.open(file, { write: true });
  disk.writeAt(0, filled(MIB, 1));
  disk.flush();
  const before = file.toBytes();
  assertCode("invalid-argument", () => disk.amend({ version: 2 }));
  assertCode("invalid-argument", () => disk.amend({ version: 2, refcountBits: 32 }));
  assertCode("invalid-argument", () => disk.amend({ refcountBits: 3 }));
  assertCode("invalid-argument", () => disk.amend({ version: 2, lazyRefcounts: true }));
  assertCode("invalid-argument", () => disk.amend({ size: 512 }));
  assertCode("unsupported", () => disk.amend({ backingFile: "other" }));
  disk.amend({});
  assertEquals(file.toBytes(), before);
  disk.amend({ size: 512, shrink: true });
  assertEquals(disk.size, 512);
  // What version 2 demands may come in the same call.
  disk.amend({ version: 2, refcountBits: 16 });
  assertEquals([disk.header.version, disk.header.refcountOrder], [2, 4]);
  using reader = Qcow2File.open(copyOf(file));
  assertCode("read-only", () => reader.amend({ refcountBits: 16 }));
  assert(!reader.writable);
});
