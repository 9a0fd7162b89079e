import { assert, assertEquals } from "@std/assert";
import { readAllSync } from "@std/io/read-all";
import { writeAllSync } from "@std/io/write-all";
import { Buffer } from "@std/io/buffer";
import { copy } from "@std/io/copy";
import { type Disk, Qcow2Error, Qcow2File } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { decodeHeader, encodeHeader, EXTENSION } from "../../lib/format/mod.ts";
import { assertCode, copyOf, emptyImage, filled, GIB, KIB, MIB, readBytes, withFolder } from "../images.ts";
import { Random } from "../random.ts";

/** Calls a function with an open image, and with a file of the host that holds the same. */
function withTwins(size: number, fn: (disk: Qcow2File, file: Deno.FsFile) => void): Promise<void> {
  return withFolder((folder) => {
    using disk = Qcow2File.create(`${folder}/disk.qcow2`, { size });
    using file = Deno.openSync(`${folder}/disk.raw`, { read: true, write: true, create: true });
    file.truncateSync(size);
    const data = new Random("twins").bytes(size);
    disk.writeAt(0, data);
    file.writeSync(data);
    file.seekSync(0, Deno.SeekMode.Start);
    fn(disk, file);
  });
}

Deno.test("readSync(), writeSync() and seekSync() do what those of Deno.FsFile do, inside of the disk", () =>
  withTwins(200 * KIB, (disk, file) => {
    const random = new Random("cursor");
    for (let step = 0; step < 2000; step++) {
      const length = random.pick([0, 1, 100, 5000, 65536, 300 * KIB]);
      switch (random.below(4)) {
        case 0: {
          const whence = random.pick([Deno.SeekMode.Start, Deno.SeekMode.Current, Deno.SeekMode.End]);
          const here = file.seekSync(0, Deno.SeekMode.Current);
          const base = whence === Deno.SeekMode.Start ? 0 : whence === Deno.SeekMode.Current ? here : disk.size;
          const offset = random.below(disk.size + 1000) - base;
          assertEquals(disk.seekSync(offset, whence), file.seekSync(offset, whence));
          break;
        }
        case 1: {
          const room = disk.size - file.seekSync(0, Deno.SeekMode.Current);
          // A file would grow where a disk ends.
          const data = random.bytes(Math.max(0, Math.min(length, room)));
          assertEquals(disk.writeSync(data), file.writeSync(data));
          break;
        }
        default: {
          const ours = new Uint8Array(length);
          const theirs = new Uint8Array(length);
          assertEquals(disk.readSync(ours), file.readSync(theirs));
          assertEquals(ours, theirs);
        }
      }
      assertEquals(disk.seekSync(0, Deno.SeekMode.Current), file.seekSync(0, Deno.SeekMode.Current));
    }
  }));

Deno.test("readSync() ends with null at the end of the disk and behind it, like Deno.FsFile", () =>
  withTwins(1024, (disk, file) => {
    for (const position of [1000, 1023, 1024, 5000]) {
      for (const length of [0, 1, 100]) {
        disk.seekSync(position, Deno.SeekMode.Start);
        file.seekSync(position, Deno.SeekMode.Start);
        assertEquals(
          disk.readSync(new Uint8Array(length)),
          file.readSync(new Uint8Array(length)),
          `${position} ${length}`,
        );
      }
    }
  }));

Deno.test("seekSync() refuses a position before the start, like Deno.FsFile, and stays where it was", () =>
  withTwins(1024, (disk, file) => {
    for (const one of [disk, file]) {
      one.seekSync(100, Deno.SeekMode.Start);
      for (const [offset, whence] of [[-1, Deno.SeekMode.Start], [-101, Deno.SeekMode.Current], [-1025, 2]] as const) {
        let failed = false;
        try {
          one.seekSync(offset, whence);
        } catch {
          failed = true;
        }
        assertEquals(failed, true);
      }
      assertEquals(one.seekSync(0, Deno.SeekMode.Current), 100);
    }
    assertCode("invalid-argument", () => disk.seekSync(-1, Deno.SeekMode.Start));
    assertCode("invalid-argument", () => disk.seekSync(NaN, Deno.SeekMode.Start));
    assertCode("invalid-argument", () => disk.seekSync(0.5, Deno.SeekMode.Start));
  }));

Deno.test("seekSync() takes a bigint, like Deno.FsFile", () =>
  withTwins(1024, (disk, file) => {
    assertEquals(disk.seekSync(500n, Deno.SeekMode.Start), file.seekSync(500n, Deno.SeekMode.Start));
    assertEquals(disk.seekSync(-24n, Deno.SeekMode.End), file.seekSync(-24n, Deno.SeekMode.End));
  }));

Deno.test("writeSync() writes what fits on the disk, and refuses to go on at its end", () => {
  using disk = Qcow2File.open(emptyImage({ size: 1024 }), { write: true });
  disk.seekSync(1000, Deno.SeekMode.Start);
  assertEquals(disk.writeSync(filled(100, 7)), 24);
  assertEquals(disk.seekSync(0, Deno.SeekMode.Current), 1024);
  assertCode("out-of-range", () => disk.writeSync(filled(1, 7)));
  assertEquals(disk.writeSync(new Uint8Array()), 0);
  assertEquals(readBytes(disk, 990, 34), new Uint8Array([...filled(10, 0), ...filled(24, 7)]));
});

Deno.test("@std/io reads and writes all of a disk", async () => {
  const data = new Random("std io").bytes(300 * KIB);
  const file = emptyImage({ size: 300 * KIB });
  {
    using disk = Qcow2File.open(file, { write: true });
    writeAllSync(disk, data);
    // A writer that is not done when the disk is full hears of it.
    assertCode("out-of-range", () => writeAllSync(disk, filled(10, 1)));
  }
  using disk = Qcow2File.open(copyOf(file));
  assertEquals(readAllSync(disk), data);
  assertEquals(readAllSync(disk), new Uint8Array());
  disk.seekSync(0, Deno.SeekMode.Start);
  const target = new Buffer();
  const source = { read: (into: Uint8Array): Promise<number | null> => Promise.resolve(disk.readSync(into)) };
  assertEquals(await copy(source, target), 300 * KIB);
  assertEquals(target.bytes(), data);
});

Deno.test("readAt(), writeAt() and the cursor do not meet", () => {
  using disk = Qcow2File.open(emptyImage({ size: MIB }), { write: true });
  disk.seekSync(77, Deno.SeekMode.Start);
  disk.writeAt(1000, filled(10, 1));
  disk.readAt(0, new Uint8Array(100));
  disk.writeZeroesAt(0, 10);
  assertEquals(disk.seekSync(0, Deno.SeekMode.Current), 77);
});

Deno.test("Ranges outside of the disk are refused, and change nothing", () => {
  const file = emptyImage({ size: 100 * KIB });
  using disk = Qcow2File.open(file, { write: true });
  disk.writeAt(0, filled(100 * KIB, 1));
  const one = new Uint8Array(1);
  for (const offset of [-1, 100 * KIB, 2 ** 40, -(2 ** 40), Number.MAX_SAFE_INTEGER]) {
    assertCode("out-of-range", () => disk.readAt(offset, one));
    assertCode("out-of-range", () => disk.writeAt(offset, one));
    assertCode("out-of-range", () => disk.writeZeroesAt(offset, 1));
    assertCode("out-of-range", () => disk.discardAt(offset, 1));
    assertCode("out-of-range", () => disk.extents(offset, 1));
  }
  assertCode("out-of-range", () => disk.writeAt(100 * KIB - 10, filled(11, 9)));
  assertCode("out-of-range", () => disk.writeZeroesAt(0, 100 * KIB + 1));
  assertCode("out-of-range", () => disk.discardAt(100 * KIB - 512, 513));
  assertEquals(readBytes(disk, 0, 100 * KIB), filled(100 * KIB, 1));
  // At the very end there is room for nothing.
  disk.readAt(100 * KIB, new Uint8Array());
  disk.writeAt(100 * KIB, new Uint8Array());
});

Deno.test("Offsets and lengths that are no whole numbers are refused", () => {
  using disk = Qcow2File.open(emptyImage({ size: MIB }), { write: true });
  for (const wrong of [NaN, Infinity, -Infinity, 0.5, 2 ** 53]) {
    assertCode("invalid-argument", () => disk.readAt(wrong, new Uint8Array(1)));
    assertCode("invalid-argument", () => disk.writeAt(wrong, new Uint8Array(1)));
    assertCode("invalid-argument", () => disk.writeZeroesAt(wrong, 1));
    assertCode("invalid-argument", () => disk.writeZeroesAt(0, wrong));
    assertCode("invalid-argument", () => disk.discardAt(0, wrong));
    assertCode("invalid-argument", () => disk.extents(wrong, 1));
    assertCode("invalid-argument", () => disk.extents(0, wrong));
  }
  assertCode("invalid-argument", () => disk.writeZeroesAt(10, -1));
  assertCode("invalid-argument", () => disk.discardAt(10, -1));
});

Deno.test("A closed image answers every call with closed, and closing it again is fine", () => {
  const disk = Qcow2File.open(emptyImage({ size: MIB }), { write: true });
  disk.writeAt(0, filled(10, 1));
  disk.close();
  disk.close();
  const calls: readonly (() => unknown)[] = [
    () => disk.readAt(0, new Uint8Array(1)),
    () => disk.writeAt(0, new Uint8Array(1)),
    () => disk.writeZeroesAt(0, 1),
    () => disk.discardAt(0, 1),
    () => disk.punchHole(0, 1),
    () => disk.extents(0, 1),
    () => disk.seekData(0),
    () => disk.seekHole(0),
    () => disk.flush(),
    () => disk.readSync(new Uint8Array(1)),
    () => disk.writeSync(new Uint8Array(1)),
    () => disk.seekSync(0, Deno.SeekMode.Start),
    () => disk.check(),
    () => disk.l1Table,
    () => disk.l2Table(0),
    () => disk.refcountTable,
    () => disk.refcountBlock(0),
    () => disk.refcountAt(0),
    () => disk.firstZeroRefcount(),
    () => disk.snapshots,
  ];
  for (const call of calls) assertCode("closed", call);
});

Deno.test("An image opened for reading refuses every change, and its file stays as it is", () => {
  const file = emptyImage({ size: MIB });
  const before = file.toBytes();
  using disk = Qcow2File.open(file);
  assertEquals(disk.writable, false);
  for (
    const change of [
      () => disk.writeAt(0, filled(1, 1)),
      () => disk.writeAt(0, new Uint8Array()),
      () => disk.writeZeroesAt(0, 1),
      () => disk.discardAt(0, MIB),
      () => disk.punchHole(0, MIB),
      () => disk.writeSync(filled(1, 1)),
    ]
  ) assertCode("read-only", change);
  disk.flush();
  disk.close();
  assertEquals(file.toBytes(), before);
});

Deno.test("using flushes and closes an image", () => {
  const file = emptyImage({ size: MIB });
  {
    using disk: Disk = Qcow2File.open(file, { write: true });
    disk.writeAt(0, filled(100, 1));
  }
  assertCode("closed", () => file.readAt(0, new Uint8Array(1)));
  using disk = Qcow2File.open(copyOf(file));
  assertEquals(readBytes(disk, 0, 100), filled(100, 1));
});

Deno.test("An image is created and opened by path, URL, open file and block file", () =>
  withFolder((folder) => {
    const path = `${folder}/disk with spaces.qcow2`;
    const url = new URL(`file://${folder}/disk%20with%20spaces.qcow2`);
    {
      using disk = Qcow2File.create(url, { size: MIB });
      disk.writeAt(0, filled(100, 1));
    }
    for (const source of [path, url, Deno.openSync(path), MemoryBlockFile.from(Deno.readFileSync(path))]) {
      using disk = Qcow2File.open(source);
      assertEquals(readBytes(disk, 0, 100), filled(100, 1));
    }
    {
      using disk = Qcow2File.open(Deno.openSync(path, { read: true, write: true }), { write: true });
      disk.writeAt(50, filled(100, 2));
    }
    {
      const options = { read: true, write: true, create: true };
      using disk = Qcow2File.create(Deno.openSync(`${folder}/other.qcow2`, options), { size: MIB });
      disk.writeAt(0, filled(100, 3));
    }
    using disk = Qcow2File.open(path);
    assertEquals(readBytes(disk, 0, 150), new Uint8Array([...filled(50, 1), ...filled(100, 2)]));
    using other = Qcow2File.open(`${folder}/other.qcow2`);
    assertEquals(readBytes(other, 0, 100), filled(100, 3));
  }));

Deno.test("A file that was opened for reading is refused for writing", () => {
  const file = MemoryBlockFile.from(emptyImage({ size: MIB }).toBytes(), { writable: false });
  assertCode("read-only", () => Qcow2File.open(file, { write: true }));
  assertCode(
    "read-only",
    () => Qcow2File.create(MemoryBlockFile.from(new Uint8Array(), { writable: false }), { size: 1 }),
  );
});

Deno.test("open() closes the file it was handed when it refuses the image, and says what does not exist", () =>
  withFolder((folder) => {
    const file = MemoryBlockFile.from(new Uint8Array(1000));
    assertCode("not-qcow2", () => Qcow2File.open(file));
    assertCode("closed", () => file.readAt(0, new Uint8Array(1)));
    const error = assertCode("not-found", () => Qcow2File.open(`${folder}/nothing.qcow2`));
    assert(error.message.includes("nothing.qcow2"), error.message);
    assert(error.cause instanceof Deno.errors.NotFound);
  }));

Deno.test("create() replaces a file, unless it must be new", () =>
  withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    Deno.writeFileSync(path, filled(3 * MIB, 0xff));
    assertCode("already-exists", () => Qcow2File.create(path, { size: MIB, createNew: true }));
    assertEquals(Deno.statSync(path).size, 3 * MIB);
    using disk = Qcow2File.create(path, { size: MIB });
    assertEquals(readBytes(disk, 0, MIB), filled(MIB, 0));
    assert(Deno.statSync(path).size < MIB);
  }));

Deno.test("create() leaves a file alone when the options make no sense", () =>
  withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    Deno.writeFileSync(path, filled(100, 0xff));
    assertCode("invalid-argument", () => Qcow2File.create(path, { size: -1 }));
    assertCode("invalid-argument", () => Qcow2File.create(path, { size: MIB, clusterSize: 1000 }));
    assertEquals(Deno.readFileSync(path), filled(100, 0xff));
  }));

Deno.test("Two writers do not get at one image, nor a reader beside a writer; two readers do", () =>
  withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    Qcow2File.create(path, { size: MIB }).close();
    {
      using writer = Qcow2File.open(path, { write: true });
      assertCode("locked", () => Qcow2File.open(path, { write: true }));
      assertCode("locked", () => Qcow2File.open(path));
      assertCode("locked", () => Qcow2File.create(path, { size: MIB }));
      Qcow2File.open(path, { lock: false }).close();
      writer.writeAt(0, filled(10, 1));
    }
    using reader = Qcow2File.open(path);
    using another = Qcow2File.open(path);
    assertCode("locked", () => Qcow2File.open(path, { write: true }));
    assertEquals(readBytes(reader, 0, 10), readBytes(another, 0, 10));
    reader.close();
    another.close();
    Qcow2File.open(path, { write: true }).close();
  }));

Deno.test("extents() covers a range exactly and says what every stretch is", () => {
  const file = emptyImage({ size: 3 * 512 * MIB });
  using disk = Qcow2File.open(file, { write: true });
  disk.writeAt(65536, filled(3 * 65536, 1));
  disk.writeAt(8 * 65536, filled(2 * 65536, 1));
  disk.writeZeroesAt(9 * 65536, 65536);
  disk.writeZeroesAt(2 * 65536, 65536, { unmap: true });
  const found = [...disk.extents()].map((
    { offset, length, kind, depth },
  ) => [offset / 65536, length / 65536, kind, depth]);
  assertEquals(found, [
    [0, 1, "unallocated", 0],
    [1, 1, "data", 0],
    [2, 1, "zero", 0],
    [3, 1, "data", 0],
    [4, 4, "unallocated", 0],
    [8, 1, "data", 0],
    [9, 1, "zero", 0],
    [10, 3 * 8192 - 10, "unallocated", 0],
  ]);
  // A part of a cluster is told with the place of its first byte on the host.
  const [part, ...rest] = [...disk.extents(65536 + 100, 200)];
  assertEquals([part?.offset, part?.length, part?.kind, rest.length], [65636, 200, "data", 0]);
  const bytes = new Uint8Array(200);
  disk.flush();
  file.readAt(part?.hostOffset ?? 0, bytes);
  assertEquals(bytes, filled(200, 1));
  assertEquals([...disk.extents(0, 0)], []);
  assertEquals([...disk.extents(disk.size, 0)], []);
});

Deno.test("extents() joins clusters that stand in a row on the host, across L2 tables and slices", () => {
  const file = emptyImage({ size: 8 * MIB, clusterSize: 512 });
  using disk = Qcow2File.open(file, { write: true });
  disk.writeAt(0, filled(8 * MIB, 1));
  const extents = [...disk.extents()];
  assert(extents.length < 1000, `${extents.length} extents`);
  let end = 0;
  for (const [index, extent] of extents.entries()) {
    assertEquals(extent.offset, end);
    end += extent.length;
    const next = extents[index + 1];
    if (next !== undefined) {
      assert((extent.hostOffset ?? 0) + extent.length !== next.hostOffset, "These go on in a row");
    }
  }
  assertEquals(end, disk.size);
});

Deno.test("discardAt() gives whole clusters back and leaves parts of clusters as they are", () => {
  for (const version of [2, 3] as const) {
    using disk = Qcow2File.open(emptyImage({ size: MIB + 512, version }), { write: true });
    disk.writeAt(0, filled(MIB + 512, 1));
    disk.discardAt(100, 65536 + 100);
    assertEquals(readBytes(disk, 0, 2 * 65536), filled(2 * 65536, 1));
    disk.discardAt(100, 2 * 65536);
    assertEquals(readBytes(disk, 0, 65536), filled(65536, 1));
    assertEquals(readBytes(disk, 65536, 65536), filled(65536, 0));
    assertEquals(readBytes(disk, 2 * 65536, 65536), filled(65536, 1));
    // The last cluster is cut short by the end of the disk; up to there it is whole.
    disk.discardAt(MIB, 512);
    assertEquals(readBytes(disk, MIB, 512), filled(512, 0));
    assertEquals(disk.seekData(MIB), null);
  }
});

Deno.test("writeZeroesAt() keeps clusters in place unless it may unmap them", () => {
  const file = emptyImage({ size: MIB });
  using disk = Qcow2File.open(file, { write: true });
  disk.writeAt(0, filled(MIB, 1));
  disk.flush();
  disk.writeZeroesAt(0, 4 * 65536);
  disk.writeZeroesAt(4 * 65536, 4 * 65536, { unmap: true });
  disk.flush();
  const [kept, given] = [...disk.extents(0, 8 * 65536)];
  assertEquals([kept?.kind, kept?.length, kept?.hostOffset !== undefined], ["zero", 4 * 65536, true]);
  assertEquals([given?.kind, given?.length, given?.hostOffset], ["zero", 4 * 65536, undefined]);
  const { size } = file;
  // What was kept takes data again without the file growing; what was given back does so too.
  disk.writeAt(0, filled(8 * 65536, 2));
  disk.flush();
  assertEquals(file.size, size);
  assertEquals(readBytes(disk, 0, MIB), new Uint8Array([...filled(8 * 65536, 2), ...filled(8 * 65536, 1)]));
});

Deno.test("A partial write into a kept zero cluster does not show what was there before", () => {
  using disk = Qcow2File.open(emptyImage({ size: MIB }), { write: true });
  disk.writeAt(0, filled(MIB, 0xdd));
  disk.writeZeroesAt(0, MIB);
  disk.writeAt(70000, filled(100, 1));
  disk.writeAt(3 * 65536 + 65000, filled(2 * 65536, 2));
  const expected = new Uint8Array(MIB);
  expected.fill(1, 70000, 70100);
  expected.fill(2, 3 * 65536 + 65000, 5 * 65536 + 65000);
  assertEquals(readBytes(disk, 0, MIB), expected);
});

Deno.test("A write into clusters that were freed does not show what was there before", () => {
  using disk = Qcow2File.open(emptyImage({ size: 4 * MIB }), { write: true });
  disk.writeAt(0, filled(2 * MIB, 0xdd));
  disk.discardAt(0, 2 * MIB);
  disk.flush();
  const expected = new Uint8Array(4 * MIB);
  for (let offset = 100; offset < 4 * MIB; offset += 150000) {
    disk.writeAt(offset, filled(10, 1));
    expected.fill(1, offset, offset + 10);
  }
  assertEquals(readBytes(disk, 0, 4 * MIB), expected);
});

Deno.test("An image of a size that is no multiple of 512 ends at the last whole sector, as at QEMU", () => {
  const file = emptyImage({ size: MIB });
  file.writeAt(24, new Uint8Array([0, 0, 0, 0, 0, 0, 0x03, 0xe8]));
  using disk = Qcow2File.open(file, { write: true });
  assertEquals(disk.size, 512);
  assertEquals(disk.header.size, 1000);
  disk.writeAt(0, filled(512, 1));
  assertCode("out-of-range", () => disk.writeAt(512, filled(1, 1)));
});

Deno.test("Errors are Qcow2Errors with a code and one line to read", () => {
  using disk = Qcow2File.open(emptyImage({ size: MIB }));
  const error = assertCode("out-of-range", () => disk.readAt(MIB, new Uint8Array(1)));
  assert(error instanceof Qcow2Error && error instanceof Error);
  assertEquals(error.name, "Qcow2Error");
  assertEquals(error.offset, MIB);
  assert(!error.message.includes("\n") && !error.message.endsWith("."));
});

Deno.test("Nothing of an image is kept between its sessions but what is in the file", () => {
  const random = new Random("sessions");
  let file = emptyImage({ size: 4 * MIB, clusterSize: 4096 });
  const model = new Uint8Array(4 * MIB);
  for (let session = 0; session < 30; session++) {
    {
      using disk = Qcow2File.open(file, { write: true });
      for (let step = 0; step < 10; step++) {
        const data = random.bytes(random.between(1, 20000));
        const offset = random.below(4 * MIB - data.length);
        disk.writeAt(offset, data);
        model.set(data, offset);
      }
    }
    file = copyOf(file);
  }
  using disk = Qcow2File.open(file);
  assertEquals(readBytes(disk, 0, 4 * MIB), model);
});

Deno.test("Clusters beyond 4 GiB of the host's file are read, written, shared, compressed and checked", () =>
  withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    const size = 5 * GIB;
    const content = new Random("far up").bytes(300 * KIB);
    {
      // All of the disk has its place in the file, so whatever is new stands behind 5 GiB.
      using disk = Qcow2File.create(path, { size, preallocation: "metadata", refcountBits: 8 });
      disk.writeAt(size - MIB, content);
      const [extent] = disk.extents(size - MIB, 64 * KIB);
      assert((extent?.hostOffset ?? 0) > 2 ** 32, "The cluster stands beyond 4 GiB");
      disk.createSnapshot("far up");
      disk.writeAt(size - MIB + 100, filled(100 * KIB, 1));
      disk.writeCompressedAt(size - 512 * KIB, filled(256 * KIB, 2));
      disk.addBitmap("far up");
      disk.writeAt(size - 100, filled(100, 3));
    }
    using disk = Qcow2File.open(path, { write: true });
    const { corruptions, leaks } = disk.check();
    assertEquals([corruptions, leaks], [0, 0]);
    assertEquals(readBytes(disk.openSnapshot("far up"), size - MIB, content.length), content);
    content.fill(1, 100, 100 + 100 * KIB);
    assertEquals(readBytes(disk, size - MIB, content.length), content);
    assertEquals(readBytes(disk, size - 512 * KIB, 256 * KIB), filled(256 * KIB, 2));
    assertEquals(readBytes(disk, size - 100, 100), filled(100, 3));
    assertEquals([...disk.dirtyExtents("far up")], [{ offset: size - 64 * KIB, length: 64 * KIB }]);
  }));

Deno.test("Header fields and extensions that nobody knows are kept, whatever is done to the image", () => {
  const file = emptyImage({ size: MIB });
  const start = decodeHeader(file.toBytes());
  const unknownFields = new Random("fields").bytes(15);
  const extension = { type: 0x12345678, data: new Random("extension").bytes(5001) };
  const cluster = new Uint8Array(64 * KIB);
  cluster.set(encodeHeader({ ...start, unknownFields, extensions: [extension, ...start.extensions] }));
  file.writeAt(0, cluster);
  const disk = Qcow2File.open(file, { write: true });
  const changes: readonly (readonly [what: string, change: () => void])[] = [
    ["a write", () => disk.writeAt(0, filled(100 * KIB, 1))],
    ["a snapshot", () => disk.createSnapshot("kept")],
    ["a new bitmap", () => disk.addBitmap("bitmap")],
    ["a write that is recorded", () => disk.writeAt(0, filled(100, 2))],
    ["a bitmap that goes", () => disk.removeBitmap("bitmap")],
    ["an older state", () => disk.applySnapshot("kept")],
    ["another size", () => disk.resize(600 * MIB)],
    ["another width", () => disk.amend({ refcountBits: 32, lazyRefcounts: true })],
    ["a repair", () => disk.check({ repair: "all" })],
  ];
  for (const [what, change] of changes) {
    change();
    disk.flush();
    const header = decodeHeader(file.toBytes().subarray(0, 64 * KIB));
    assertEquals(header.unknownFields, unknownFields, what);
    assertEquals(header.extensions[0], extension, what);
    assertEquals(header.extensions.slice(1).filter(({ type }) => type !== EXTENSION.bitmaps), start.extensions, what);
  }
  disk.close();
});
