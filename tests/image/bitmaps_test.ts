import { assert, assertEquals } from "@std/assert";
import { decodeBitmapsPointer, EXTENSION } from "../../lib/format/mod.ts";
import type { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { checkImage, type LayoutOptions, Qcow2Error, Qcow2File } from "../../mod.ts";
import {
  assertCode,
  copyOf,
  emptyImage,
  filled,
  getUint32,
  KIB,
  MIB,
  readBytes,
  RecordingFile,
  setUint32,
  setUint64,
  TIB,
} from "../images.ts";
import { Random } from "../random.ts";

function open(file: MemoryBlockFile): Qcow2File {
  return Qcow2File.open(file, { write: true });
}

/** An image with bitmaps, of which every one that is named "auto…" records writes. */
function imageWith(names: readonly string[], layout: LayoutOptions = { size: 4 * MIB }): MemoryBlockFile {
  const file = emptyImage(layout);
  const disk = open(file);
  for (const name of names) disk.addBitmap(name, { disabled: !name.startsWith("auto") });
  disk.close();
  return copyOf(file);
}

function directoryOf(file: MemoryBlockFile): { offset: number; bytes: Uint8Array } {
  using disk = Qcow2File.open(copyOf(file));
  const extension = disk.header.extensions.find(({ type }) => type === EXTENSION.bitmaps);
  const pointer = decodeBitmapsPointer(extension?.data ?? new Uint8Array());
  const bytes = new Uint8Array(pointer.directorySize);
  file.readAt(pointer.directoryOffset, bytes);
  return { offset: pointer.directoryOffset, bytes };
}

function assertClean(file: MemoryBlockFile): void {
  const { corruptions, leaks } = checkImage(copyOf(file));
  assertEquals([corruptions, leaks], [0, 0]);
}

Deno.test("Qcow2File.addBitmap() takes QEMU's granularity where none is given", () => {
  for (const [clusterSize, granularity] of [[512, 4096], [8192, 8192], [65536, 65536], [2 * MIB, 65536]] as const) {
    using disk = Qcow2File.create(emptyImage({ size: 0 }), { size: MIB, clusterSize });
    disk.addBitmap("a");
    assertEquals(disk.bitmaps[0]?.granularity, granularity);
  }
});

Deno.test("Qcow2File.addBitmap() refuses what the format or QEMU does not allow, and changes nothing", () => {
  const file = imageWith(["auto"], { size: 4 * TIB });
  const before = file.toBytes();
  const disk = open(file);
  for (const granularity of [0, 256, 513, 1000, 2 ** 32, -512, NaN, Infinity]) {
    assertCode("invalid-argument", () => disk.addBitmap("a", { granularity }));
  }
  assertCode("invalid-argument", () => disk.addBitmap(""));
  assertCode("invalid-argument", () => disk.addBitmap("x".repeat(1024)));
  assertCode("invalid-argument", () => disk.addBitmap("a", { granularity: 512 }));
  assertCode("already-exists", () => disk.addBitmap("auto"));
  for (const fn of [disk.removeBitmap, disk.clearBitmap, disk.enableBitmap, disk.disableBitmap, disk.dirtyExtents]) {
    assertCode("not-found", () => fn.call(disk, "none"));
  }
  assertCode("not-found", () => disk.mergeBitmap("none", "auto"));
  assertCode("not-found", () => disk.mergeBitmap("auto", "none"));
  disk.close();
  assertEquals(copyOf(file).toBytes(), before);
  assertCode("read-only", () => Qcow2File.open(copyOf(file)).addBitmap("a"));
  assertCode("unsupported", () => open(emptyImage({ size: MIB, version: 2 })).addBitmap("a"));
});

Deno.test("A bitmap is marked as in use from the first write until the image is closed", () => {
  const file = imageWith(["auto", "still"]);
  const flags = () => [directoryOf(file).bytes[15], directoryOf(file).bytes[32 + 15]];
  const disk = open(file);
  assertEquals(flags(), [2, 0]);
  disk.readAt(0, new Uint8Array(512));
  disk.writeAt(0, new Uint8Array());
  assertEquals(flags(), [2, 0]);
  disk.writeAt(0, filled(512, 1));
  assertEquals(flags(), [3, 0]);
  assertEquals(disk.bitmaps.map(({ inUse, inconsistent }) => [inUse, inconsistent]), [[false, false], [false, false]]);
  disk.flush();
  assertEquals(flags(), [3, 0]);
  using crashed = Qcow2File.open(copyOf(file));
  assertEquals(crashed.bitmaps.map(({ inconsistent }) => inconsistent), [true, false]);
  assertCode("unsupported", () => crashed.dirtyExtents("auto"));
  disk.close();
  assertEquals([directoryOf(copyOf(file)).bytes[15]], [2]);
  using closed = Qcow2File.open(copyOf(file));
  assertEquals([...closed.dirtyExtents("auto")], [{ offset: 0, length: 64 * KIB }]);
  assertClean(copyOf(file));
});

Deno.test("An inconsistent bitmap is kept through writes and changes of others, and can only be removed", () => {
  const file = imageWith(["auto", "still"]);
  const { offset, bytes } = directoryOf(file);
  setUint32(file, offset + 12, 3);
  const disk = open(file);
  disk.writeAt(0, filled(MIB, 1));
  disk.addBitmap("new");
  for (const fn of [disk.clearBitmap, disk.enableBitmap, disk.disableBitmap, disk.dirtyExtents]) {
    assertCode("unsupported", () => fn.call(disk, "auto"));
  }
  assertCode("unsupported", () => disk.mergeBitmap("auto", "still"));
  assertCode("unsupported", () => disk.mergeBitmap("still", "auto"));
  bytes[15] = 3;
  assertEquals(directoryOf(file).bytes.subarray(0, 64), bytes);
  disk.removeBitmap("auto");
  disk.close();
  assertClean(copyOf(file));
});

Deno.test("Bitmaps that cannot be used are listed, kept byte for byte, and can be removed", () => {
  const twists: [string, (file: MemoryBlockFile, entry: number) => void][] = [
    ["unknown flags", (file, entry) => setUint32(file, entry + 12, 0x80)],
    ["unknown type", (file, entry) => setUint32(file, entry + 16, 0x02100005)],
    ["granularity 2^8", (file, entry) => setUint32(file, entry + 16, 0x01080005)],
    ["granularity 2^32", (file, entry) => setUint32(file, entry + 16, 0x01200005)],
    ["table of 2 entries", (file, entry) => setUint32(file, entry + 8, 2)],
    ["table offset", (file, entry) => setUint64(file, entry, 0x10200n)],
    ["extra data", (file, entry) => {
      setUint32(file, entry + 16, 0x01100002);
      setUint32(file, entry + 20, 3);
    }],
  ];
  for (const [reason, twist] of twists) {
    const file = imageWith(["broke", "auto"]);
    const { offset } = directoryOf(file);
    twist(file, offset);
    const { bytes } = directoryOf(file);
    const disk = open(file);
    const [first] = disk.bitmaps;
    assert(first?.unusable?.includes(reason), `${reason}: ${first?.unusable}`);
    disk.writeAt(0, filled(MIB, 1));
    disk.addBitmap("new");
    disk.flush();
    const name = first?.name ?? "";
    assertCode("unsupported", () => disk.clearBitmap(name));
    assertCode("unsupported", () => disk.enableBitmap(name));
    assertCode("unsupported", () => disk.dirtyExtents(name));
    assertEquals(directoryOf(file).bytes.subarray(0, 32), bytes.subarray(0, 32));
    disk.removeBitmap(name);
    assertEquals(disk.bitmaps.map((bitmap) => bitmap.name), ["auto", "new"]);
    disk.close();
    assertEquals(checkImage(copyOf(file)).corruptions, 0);
  }
});

Deno.test("A bitmap whose extra data may be ignored is used, with its extra data kept", () => {
  const file = imageWith(["auto-extra"]);
  const { offset } = directoryOf(file);
  // "auto-extra" becomes 6 bytes of extra data and the name "xtra".
  setUint32(file, offset + 12, 6);
  setUint32(file, offset + 16, 0x01100004);
  setUint32(file, offset + 20, 6);
  const disk = open(file);
  disk.writeAt(MIB, filled(10, 1));
  disk.addBitmap("other");
  disk.close();
  using after = Qcow2File.open(copyOf(file));
  assertEquals([...after.dirtyExtents("xtra")], [{ offset: MIB, length: 64 * KIB }]);
  assertEquals(new TextDecoder().decode(directoryOf(copyOf(file)).bytes.subarray(24, 34)), "auto-extra");
});

Deno.test("Without the autoclear bit all bitmaps are inconsistent, also when the bit is set again", () => {
  const file = imageWith(["auto", "still"]);
  setUint64(file, 88, 0n);
  const disk = open(file);
  assertEquals(disk.bitmaps.map(({ inconsistent }) => inconsistent), [true, true]);
  disk.writeAt(0, filled(10, 1));
  assertEquals(getUint32(file, 92), 0);
  disk.addBitmap("auto 2");
  assertEquals(getUint32(file, 92), 1);
  assertEquals(disk.bitmaps.map(({ inconsistent }) => inconsistent), [true, true, false]);
  for (const name of ["auto", "still", "auto 2"]) disk.removeBitmap(name);
  assertEquals(getUint32(file, 92), 0);
  disk.close();
  assertClean(copyOf(file));
});

Deno.test("Qcow2File.mergeBitmap() takes the bitmap of another image, with another granularity", () => {
  const source = open(emptyImage({ size: 4 * MIB + 512, clusterSize: 512 }));
  source.addBitmap("fine", { granularity: 512 });
  source.writeAt(MIB + 100, filled(1000, 1));
  source.writeAt(4 * MIB, filled(512, 1));
  const target = open(emptyImage({ size: 4 * MIB + 512 }));
  target.addBitmap("coarse", { granularity: MIB, disabled: true });
  target.mergeBitmap("fine", "coarse", { from: source });
  assertEquals([...target.dirtyExtents("coarse")], [{ offset: MIB, length: MIB }, { offset: 4 * MIB, length: 512 }]);
  const larger = open(emptyImage({ size: 8 * MIB }));
  larger.addBitmap("a");
  assertCode("invalid-argument", () => larger.mergeBitmap("fine", "a", { from: source }));
});

Deno.test("A bitmap whose bits are all set takes no cluster for them", () => {
  const file = emptyImage({ size: 64 * MIB, clusterSize: 512 });
  const disk = open(file);
  disk.addBitmap("auto", { granularity: 512 });
  disk.writeZeroesAt(0, 64 * MIB);
  disk.close();
  const { offset } = directoryOf(copyOf(file));
  const after = copyOf(file);
  const table = Number(getUint32(after, offset + 4));
  for (let index = 0; index < 32; index++) assertEquals(getUint32(after, table + index * 8 + 4), 1);
  using reopened = Qcow2File.open(after);
  assertEquals([...reopened.dirtyExtents("auto")], [{ offset: 0, length: 64 * MIB }]);
});

Deno.test("Bitmaps are brought up to date where the snapshot table has moved since the last write", () => {
  const file = imageWith(["auto"]);
  const disk = open(file);
  disk.createSnapshot("first");
  disk.writeAt(0, filled(64 * KIB, 1));
  disk.createSnapshot("second");
  disk.close();
  using after = Qcow2File.open(copyOf(file));
  assertEquals([...after.dirtyExtents("auto")], [{ offset: 0, length: 64 * KIB }]);
  assertClean(file);
});

Deno.test("Where the host is full at the end, data is kept and bitmaps stay marked", () => {
  const file = imageWith(["auto"]);
  const recording = new RecordingFile(file);
  const disk = Qcow2File.open(recording, { write: true });
  disk.writeAt(0, filled(64 * KIB, 1));
  disk.flush();
  const { size } = file;
  recording.onCall = ({ call, offset, length }) => {
    if (call === "write" && offset + length > size) throw new Qcow2Error("no-space", "No space left on device");
  };
  assertCode("no-space", () => disk.close());
  using after = Qcow2File.open(copyOf(file));
  assertEquals(after.bitmaps.map(({ inUse }) => inUse), [true]);
  assertEquals(readBytes(after, 0, 64 * KIB), filled(64 * KIB, 1));
  assertEquals(checkImage(copyOf(file)).corruptions, 0);
});

for (
  const layout of [
    { size: 1 * MIB + 3584, clusterSize: 512, refcountBits: 64 },
    { size: 3 * MIB + 512, clusterSize: 512, refcountBits: 1 },
    { size: 8 * MIB - 512, clusterSize: 4096 },
    { size: 40 * MIB + 1024, clusterSize: 65536 },
  ]
) {
  Deno.test(`Bitmaps agree with a model, with ${JSON.stringify(layout)}`, () => {
    const random = new Random(`bitmaps ${JSON.stringify(layout)}`);
    const { size } = layout;
    let file = emptyImage(layout);
    let disk = open(file);
    const models = new Map<string, { granularity: number; auto: boolean; bits: Uint8Array }>();
    const mark = (bits: Uint8Array, granularity: number, offset: number, length: number) => {
      if (length > 0) bits.fill(1, Math.floor(offset / granularity), Math.ceil((offset + length) / granularity));
    };
    for (let step = 0; step < 150; step++) {
      const [name = ""] = models.size === 0 ? [] : [random.pick([...models.keys()])];
      const model = models.get(name);
      const offset = random.below(size / 512) * 512;
      const length = Math.min(size - offset, random.oneIn(3) ? random.below(size) : random.below(20000));
      const action = random.below(12);
      if (action < 5) {
        if (action < 2) disk.writeAt(offset, filled(Math.min(length, 50000), step % 255 + 1));
        else if (action < 4) disk.writeZeroesAt(offset, length, { unmap: random.oneIn(2) });
        else disk.discardAt(offset, length);
        for (const { granularity, auto, bits } of models.values()) {
          if (auto) mark(bits, granularity, offset, action < 2 ? Math.min(length, 50000) : length);
        }
      } else if (action === 5 && models.size < 6) {
        const granularity = random.pick([512, 1024, 4096, 65536, MIB, 2 ** 31]);
        const auto = random.oneIn(2);
        disk.addBitmap(`${step}`, { granularity, disabled: !auto });
        models.set(`${step}`, { granularity, auto, bits: new Uint8Array(Math.ceil(size / granularity)) });
      } else if (action === 6 && models.size > 3) {
        disk.removeBitmap(name);
        models.delete(name);
      } else if (action === 7 && model !== undefined && random.oneIn(3)) {
        disk.clearBitmap(name);
        model.bits.fill(0);
      } else if (action === 8 && model !== undefined) {
        model.auto = !model.auto;
        if (model.auto) disk.enableBitmap(name);
        else disk.disableBitmap(name);
      } else if (action === 9 && model !== undefined) {
        const [source, from] = random.pick([...models]);
        disk.mergeBitmap(source, name);
        from.bits.forEach((bit, index) => {
          const start = index * from.granularity;
          if (bit !== 0) mark(model.bits, model.granularity, start, Math.min(from.granularity, size - start));
        });
      } else if (action === 10) {
        disk.close();
        file = copyOf(file);
        assertClean(file);
        disk = open(file);
      }
      for (const [checked, { granularity, bits }] of models) {
        const found = new Uint8Array(bits.length);
        for (const extent of disk.dirtyExtents(checked)) mark(found, granularity, extent.offset, extent.length);
        assertEquals(found, bits, `bitmap ${checked} after step ${step}`);
      }
    }
    const auto = [...models].map(([name, model]) => [name, model.auto]);
    assertEquals(disk.bitmaps.map((bitmap) => [bitmap.name, bitmap.auto]), auto);
    for (const name of models.keys()) disk.removeBitmap(name);
    disk.close();
    assertClean(copyOf(file));
  });
}

Deno.test("Broken bitmaps end in errors of this package, and in nothing else", () => {
  const random = new Random("hostile bitmaps");
  const original = imageWith(["auto 1", "still 2", "auto 3"], { size: 4 * MIB, clusterSize: 512 });
  const { offset, bytes } = directoryOf(original);
  using probe = Qcow2File.open(copyOf(original));
  const extensionStart = 112;
  assert(probe.bitmaps.length === 3);
  for (let round = 0; round < 400; round++) {
    const file = copyOf(original);
    for (let turn = random.between(1, 4); turn > 0; turn--) {
      const where = random.pick([
        extensionStart + 8 + random.below(24),
        offset + random.below(bytes.length),
        getUint32(original, offset + 4) + random.below(16),
      ]);
      file.writeAt(where, Uint8Array.of(random.pick([0, 1, 0xff, random.below(256)])));
    }
    for (
      const act of [
        (disk: Qcow2File) => disk.bitmaps.forEach(({ name }) => [...disk.dirtyExtents(name)]),
        (disk: Qcow2File) => disk.writeAt(0, filled(5000, 1)),
        (disk: Qcow2File) => disk.addBitmap("new"),
        (disk: Qcow2File) => disk.mergeBitmap("auto 1", "auto 3"),
        (disk: Qcow2File) => disk.clearBitmap("auto 1"),
        (disk: Qcow2File) => disk.bitmaps.forEach(({ name }) => disk.removeBitmap(name)),
      ]
    ) {
      const one = copyOf(file);
      try {
        using disk = open(one);
        act(disk);
        disk.close();
      } catch (error) {
        if (!(error instanceof Qcow2Error)) throw error;
      }
      try {
        checkImage(copyOf(one));
      } catch (error) {
        if (!(error instanceof Qcow2Error)) throw error;
      }
    }
  }
});

Deno.test("Closing an image saves its bitmaps where tables stood that a snapshot or a repair has given up", () => {
  const file = emptyImage({ size: MIB, clusterSize: 512 });
  const disk = Qcow2File.open(file, { write: true });
  disk.addBitmap("auto", { granularity: 512 });
  for (const name of ["first", "second", "third"]) {
    disk.writeAt(0, filled(MIB, 1));
    disk.createSnapshot(name);
  }
  disk.close();
  using again = Qcow2File.open(copyOf(file));
  assertEquals(again.header.incompatibleFeatures, 0n);
  assertEquals(again.bitmaps.map(({ inconsistent }) => inconsistent), [false]);
  assertEquals([...again.dirtyExtents("auto")], [{ offset: 0, length: MIB }]);
});
