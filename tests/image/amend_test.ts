import { assert, assertEquals } from "@std/assert";
import { checkImage, type CreateOptions, Qcow2File, RawFile } from "../../mod.ts";
import { decodeHeader, encodeHeader, EXTENSION } from "../../lib/format/mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { assertCode, copyOf, emptyImage, filled, KIB, MIB, readBytes } from "../images.ts";
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

Deno.test("amend() refuses what contradicts the format, and changes nothing then", () => {
  const file = emptyImage({ size: MIB, refcountBits: 8, clusterSize: 4096 });
  using disk = Qcow2File.open(file, { write: true });
  disk.writeAt(0, filled(MIB, 1));
  disk.flush();
  const before = file.toBytes();
  assertCode("invalid-argument", () => disk.amend({ version: 2 }));
  assertCode("invalid-argument", () => disk.amend({ version: 2, refcountBits: 16 }));
  assertCode("invalid-argument", () => disk.amend({ refcountBits: 3 }));
  assertCode("invalid-argument", () => disk.amend({ version: 2, lazyRefcounts: true }));
  assertCode("invalid-argument", () => disk.amend({ size: 512 }));
  assertCode("unsupported", () => disk.amend({ backingFile: "other" }));
  disk.amend({});
  assertEquals(file.toBytes(), before);
  disk.amend({ size: 512, shrink: true });
  assertEquals(disk.size, 512);
  using reader = Qcow2File.open(copyOf(file));
  assertCode("read-only", () => reader.amend({ refcountBits: 16 }));
  assert(!reader.writable);
});
