import { assertEquals } from "@std/assert";
import { Qcow2File, RawFile } from "../../mod.ts";
import { EXTENSION, extensionText } from "../../lib/format/mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { assertCode, copyOf, filled, KIB, MIB, qemuImg, readBytes, withFolder } from "../images.ts";
import { qemuTest } from "../qemu.ts";

const nothing = () => RawFile.open(new MemoryBlockFile());

function referenceOf({ header }: Qcow2File): readonly [string | undefined, string | undefined] {
  return [header.backingFile, extensionText(header, EXTENSION.backingFormat)];
}

Deno.test("Qcow2File.changeBackingFile() adds, changes and takes away the name, and keeps everything else", () => {
  for (const version of [2, 3] as const) {
    const file = new MemoryBlockFile();
    const disk = Qcow2File.create(file, { size: MIB, version });
    disk.writeAt(0, filled(100 * KIB, 1));
    disk.createSnapshot("one");
    for (const [name, format] of [["a.raw", "raw"], ["/b/c.qcow2", "qcow2"], ["x".repeat(1023), "raw"], []] as const) {
      if (name === undefined) disk.changeBackingFile(undefined);
      else disk.changeBackingFile(name, format);
      assertEquals(referenceOf(disk), [name, format]);
      using again = Qcow2File.open(copyOf(file), { backing: nothing });
      assertEquals(referenceOf(again), [name, format]);
      assertEquals(again.header, disk.header);
      assertEquals(readBytes(again, 0, 100 * KIB), filled(100 * KIB, 1));
      assertEquals(again.snapshots.length, 1);
      const { corruptions, leaks } = again.check();
      assertEquals([corruptions, leaks], [0, 0]);
    }
    // The image goes on as any other.
    disk.writeAt(200 * KIB, filled(100 * KIB, 2));
    disk.close();
    using again = Qcow2File.open(copyOf(file));
    assertEquals(readBytes(again, 200 * KIB, 100 * KIB), filled(100 * KIB, 2));
  }
});

Deno.test("Qcow2File.changeBackingFile() reads from the disk that the image was opened with until it is opened again", () => {
  const file = new MemoryBlockFile();
  const old = () => RawFile.open(MemoryBlockFile.from(filled(MIB, 5)));
  const disk = Qcow2File.create(file, { backingFile: "old.raw", backingFormat: "raw", backing: old });
  disk.changeBackingFile("new.raw", "raw");
  assertEquals(readBytes(disk, 0, 512), filled(512, 5));
  disk.close();
  using again = Qcow2File.open(copyOf(file), { backing: ({ name }) => name === "new.raw" ? nothing() : old() });
  assertEquals(readBytes(again, 0, 512), filled(512, 0));
});

Deno.test("Qcow2File.changeBackingFile() refuses what the format has no place for", () => {
  const file = new MemoryBlockFile();
  using disk = Qcow2File.create(file, { size: MIB, clusterSize: 512 });
  const before = file.toBytes();
  assertCode("invalid-argument", () => disk.changeBackingFile(""));
  assertCode("invalid-argument", () => disk.changeBackingFile("a.raw"));
  assertCode("invalid-argument", () => disk.changeBackingFile("x".repeat(1024), "raw"));
  assertCode("no-space", () => disk.changeBackingFile("x".repeat(400), "raw"));
  assertEquals(file.toBytes(), before);
  using raw = Qcow2File.create(new MemoryBlockFile(), {
    size: MIB,
    dataFile: "data.raw",
    dataFileRaw: true,
    openDataFile: () => new MemoryBlockFile(),
  });
  assertCode("invalid-argument", () => raw.changeBackingFile("a.raw", "raw"));
  using reader = Qcow2File.open(copyOf(file));
  assertCode("read-only", () => reader.changeBackingFile("a.raw", "raw"));
});

qemuTest("Qcow2File.changeBackingFile() leaves the first cluster as qemu-img leaves it", async () => {
  await withFolder((folder) => {
    const [ours, theirs] = [`${folder}/ours.qcow2`, `${folder}/theirs.qcow2`];
    for (const options of ["compat=1.1", "compat=0.10", "cluster_size=512", "cluster_size=4k", "refcount_bits=64"]) {
      qemuImg("create", "-q", "-f", "qcow2", "-o", options, theirs, "1M");
      Deno.copyFileSync(theirs, ours);
      for (
        const [name, format] of [["a.raw", "raw"], ["b", "host_device"], ["y".repeat(300), "qcow2"], [], ["z", "raw"]]
      ) {
        qemuImg("rebase", "-u", "-b", name ?? "", ...(format === undefined ? [] : ["-F", format]), theirs);
        const disk = Qcow2File.open(ours, { write: true, backing: nothing });
        disk.changeBackingFile(name, format);
        disk.close();
        assertEquals(Deno.readFileSync(ours), Deno.readFileSync(theirs), `${options} ${name}`);
      }
    }
  });
});
