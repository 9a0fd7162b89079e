import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  checkImage,
  type CreateOptions,
  type Disk,
  DiskError,
  Qcow2Error,
  Qcow2File,
  RawFile,
  rebase,
} from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { copyOf, filled, GIB, KIB, MIB, readBytes, RecordingFile } from "../images.ts";
import { Random } from "../random.ts";

/** A raw disk with random data in places. */
function rawDisk(size: number, random: Random): RawFile {
  const disk = RawFile.create(new MemoryBlockFile(), { size });
  for (let count = 0; count < 6; count++) {
    const offset = random.below(size);
    disk.writeAt(offset, random.bytes(Math.min(size - offset, random.between(1, 60 * KIB))));
  }
  return disk;
}

/** An image over a disk. */
function overlayOf(backing: Disk | undefined, options: Partial<CreateOptions>): [MemoryBlockFile, Qcow2File] {
  const file = new MemoryBlockFile();
  const named = backing === undefined ? {} : { backingFile: "old", backingFormat: "raw", backing: () => backing };
  return [file, Qcow2File.create(file, { ...named, ...options })];
}

Deno.test("rebase() keeps every byte, whatever sizes and formats are old, new and image", async () => {
  const random = new Random("rebase");
  for (let round = 0; round < 60; round++) {
    const extendedL2 = random.oneIn(4);
    const version = extendedL2 || random.oneIn(2) ? 3 : 2;
    const clusterSize = 2 ** random.between(extendedL2 ? 14 : 9, 17);
    const sizes = [1, 2, 3].map(() => random.between(1, 1500) * 512);
    const [size = 0, oldSize = 0, newSize = 0] = sizes;
    const old = random.oneIn(5) ? undefined : rawDisk(oldSize, random);
    const fresh = random.oneIn(5) ? undefined : rawDisk(newSize, random);
    // A part is the same in both.
    if (old !== undefined && fresh !== undefined) {
      const common = Math.min(oldSize, newSize) >> 1;
      fresh.writeAt(0, readBytes(old, 0, common));
    }
    const [file, image] = overlayOf(old, { size, version, clusterSize, extendedL2 });
    for (let count = 0; count < 3; count++) {
      const offset = random.below(size);
      image.writeAt(offset, random.bytes(Math.min(size - offset, random.between(1, 20 * KIB))));
      image.writeZeroesAt(random.below(size >> 1), random.below(size >> 2));
    }
    const before = readBytes(image, 0, size);
    await rebase(image, fresh === undefined ? undefined : { name: "new", format: "raw", disk: fresh });
    assertEquals(readBytes(image, 0, size), before);
    image.close();
    using again = Qcow2File.open(copyOf(file), {
      backing: ({ name }) => {
        assert(name === "new" && fresh !== undefined);
        return fresh;
      },
    });
    assertEquals(readBytes(again, 0, size), before);
    const { corruptions, leaks } = again.check();
    assertEquals([corruptions, leaks], [0, 0]);
  }
});

Deno.test("rebase() copies only what differs and tells how much", async () => {
  using old = RawFile.open(MemoryBlockFile.from(filled(MIB, 1)));
  const content = filled(2 * MIB, 1);
  content.fill(2, 300 * KIB, 301 * KIB);
  content.fill(3, MIB + 5000, MIB + 5100);
  using fresh = RawFile.open(MemoryBlockFile.from(content));
  const [, image] = overlayOf(old, { size: 3 * MIB, clusterSize: 65536 });
  image.writeAt(0, filled(64 * KIB, 9));
  const result = await rebase(image, { name: "new", format: "raw", disk: fresh });
  // What lies behind the end of the old one is zero, where the new one has something.
  assertEquals(result, { copiedBytes: KIB, zeroedBytes: MIB });
  const kinds = [...image.extents()].filter(({ depth }) => depth === 0).map(({ offset, length, kind }) => {
    return [kind, offset / KIB, length / KIB];
  });
  assertEquals(kinds, [["data", 0, 64], ["data", 256, 64], ["zero", 1024, 1024], ["unallocated", 2048, 1024]]);
  image.close();
});

Deno.test("rebase() looks only at what was written above a backing file that is beneath already", async () => {
  const file = new RecordingFile(MemoryBlockFile.from(filled(16 * MIB, 1)));
  const base = RawFile.open(file);
  const [, middle] = overlayOf(base, { size: 16 * MIB });
  middle.writeAt(5 * MIB, filled(100, 2));
  const [, image] = overlayOf(middle, { size: 16 * MIB });
  const before = readBytes(image, 0, 16 * MIB);
  file.calls.length = 0;
  const { copiedBytes } = await rebase(image, { name: "base", format: "raw", disk: base });
  assertEquals(copiedBytes, 512);
  const read = file.calls.filter(({ call }) => call === "read").reduce((sum, { length }) => sum + length, 0);
  assert(read <= 256 * KIB, `${read} bytes were read`);
  assertEquals(readBytes(image, 0, 16 * MIB), before);
  assertEquals(image.header.backingFile, "base");
  image.close();
});

Deno.test("rebase() reads nothing where both backing files are known to be empty", async () => {
  using old = Qcow2File.create(new MemoryBlockFile(), { size: 50 * GIB });
  const file = new RecordingFile(new MemoryBlockFile());
  using fresh = Qcow2File.create(file, { size: 50 * GIB });
  const [, image] = overlayOf(old, { size: 50 * GIB });
  file.calls.length = 0;
  assertEquals(await rebase(image, { name: "new", format: "qcow2", disk: fresh }), { copiedBytes: 0, zeroedBytes: 0 });
  assert(file.calls.every(({ length }) => length <= 65536));
  image.close();
});

Deno.test("rebase() that is aborted or fails leaves the image with its backing file and its content", async () => {
  const random = new Random("rebase fails");
  const broken = (action: "read" | "write", disk: Disk): Disk =>
    Object.create(disk, {
      size: { value: disk.size },
      close: { value: () => disk.close() },
      readAhead: { value: undefined },
      extents: { value: (offset: number, length: number) => disk.extents(offset, length) },
      readAt: {
        value: (offset: number, into: Uint8Array) => {
          if (action === "read" && offset >= MIB) throw new Qcow2Error("io", "The disk is broken");
          disk.readAt(offset, into);
        },
      },
    });
  for (const failing of ["old backing file", "new backing file", "image", "signal"]) {
    const content = random.bytes(6 * MIB);
    const old = RawFile.open(MemoryBlockFile.from(content));
    const fresh = RawFile.open(MemoryBlockFile.from(random.bytes(6 * MIB)));
    const inner = new MemoryBlockFile();
    const file = new RecordingFile(inner);
    const backing = failing === "old backing file" ? broken("read", old) : old;
    const named = { backingFile: "old", backingFormat: "raw", backing: () => backing };
    const image = Qcow2File.create(file, { ...named, size: 6 * MIB });
    image.flush();
    if (failing === "image") {
      file.onCall = ({ call, offset }) => {
        if (call === "write" && offset > 3 * MIB) throw new Qcow2Error("no-space", "The host is full");
      };
    }
    const controller = new AbortController();
    const disk = failing === "new backing file" ? broken("read", fresh) : fresh;
    const error = await assertRejects(() =>
      rebase(image, { name: "new", format: "raw", disk }, {
        signal: controller.signal,
        onProgress: () => {
          if (failing === "signal") controller.abort();
          const start = performance.now();
          while (performance.now() - start < 30);
        },
      }), Qcow2Error);
    if (failing === "signal") assertEquals(error.code, "aborted");
    else assertEquals(error instanceof DiskError && error.disk, failing);
    file.onCall = undefined;
    image.close();
    assertEquals(checkImage(copyOf(inner)).corruptions, 0);
    using again = Qcow2File.open(copyOf(inner), { backing: () => RawFile.open(MemoryBlockFile.from(content)) });
    assertEquals(again.header.backingFile, "old");
    assertEquals(readBytes(again, 0, 6 * MIB), content);
  }
});

Deno.test("rebase() tells of each piece that had to be compared", async () => {
  const [, image] = overlayOf(RawFile.open(MemoryBlockFile.from(filled(9 * MIB, 1))), { size: 9 * MIB });
  image.writeAt(2 * MIB, filled(2 * MIB, 1));
  const told: number[] = [];
  await rebase(image, undefined, { onProgress: ({ done }) => told.push(done / MIB) });
  assertEquals(told, [2, 6, 8, 9]);
  image.close();
});
