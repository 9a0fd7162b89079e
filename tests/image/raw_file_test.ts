import { assert, assertEquals } from "@std/assert";
import { detectImageType, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { assertCode, filled, GIB, KIB, MIB, readBytes, withFolder } from "../images.ts";
import { Random } from "../random.ts";

Deno.test("RawFile.open() counts whole sectors, and the last one ends in zeroes", () => {
  for (const [length, size] of [[0, 0], [1, 512], [511, 512], [512, 512], [513, 1024], [1000, 1024]] as const) {
    using disk = RawFile.open(MemoryBlockFile.from(filled(length, 7)));
    assertEquals(disk.size, size);
    assertEquals(readBytes(disk, 0, size), new Uint8Array([...filled(length, 7), ...filled(size - length, 0)]));
  }
});

Deno.test("RawFile does what a plain array does", () => {
  const random = new Random("raw");
  const file = new MemoryBlockFile();
  using disk = RawFile.create(file, { size: MIB + 512 });
  const model = new Uint8Array(MIB + 512);
  for (let step = 0; step < 2000; step++) {
    const offset = random.below(disk.size);
    const length = Math.min(random.below(50 * KIB), disk.size - offset);
    switch (random.below(4)) {
      case 0:
        disk.writeZeroesAt(offset, length, { unmap: random.oneIn(2) });
        model.fill(0, offset, offset + length);
        break;
      case 1:
        assertEquals(readBytes(disk, offset, length), model.slice(offset, offset + length));
        break;
      case 2: {
        // What a discard leaves is the host's choice; here it is a hole.
        disk.discardAt(offset, length);
        model.fill(0, offset, offset + length);
        break;
      }
      default: {
        const data = random.bytes(length);
        disk.writeAt(offset, data);
        model.set(data, offset);
      }
    }
  }
  assertEquals(readBytes(disk, 0, disk.size), model);
  for (const { kind, offset, length } of disk.extents()) {
    if (kind !== "data") assert(model.subarray(offset, offset + length).every((byte) => byte === 0));
  }
  assertEquals(file.toBytes(), model);
});

Deno.test("RawFile.extents() covers the disk without gaps", () => {
  using disk = RawFile.create(new MemoryBlockFile(), { size: 10 * MIB });
  disk.writeAt(2 * MIB + 100, filled(1000, 1));
  disk.writeAt(8 * MIB, filled(MIB, 1));
  let end = 0;
  for (const extent of disk.extents()) {
    assertEquals(extent.offset, end);
    end += extent.length;
  }
  assertEquals(end, 10 * MIB);
  assertEquals(
    [...disk.extents(8 * MIB + 5, 100)].map(({ offset, length, kind, hostOffset }) => [
      offset,
      length,
      kind,
      hostOffset,
    ]),
    [[8 * MIB + 5, 100, "data", 8 * MIB + 5]],
  );
});

Deno.test("RawFile refuses what is outside of the disk, changes of a disk for reading, and bad sizes", () => {
  using disk = RawFile.open(MemoryBlockFile.from(filled(1024, 1)), { write: true });
  assertCode("out-of-range", () => disk.writeAt(1020, filled(5, 2)));
  assertCode("out-of-range", () => disk.readAt(1024, filled(1, 2)));
  assertCode("out-of-range", () => disk.writeZeroesAt(-1, 1));
  assertCode("invalid-argument", () => disk.readAt(NaN, filled(1, 2)));
  using reader = RawFile.open(MemoryBlockFile.from(filled(1024, 1), { writable: false }));
  assertCode("read-only", () => reader.writeAt(0, filled(1, 2)));
  assertCode("read-only", () => reader.writeZeroesAt(0, 1));
  assertCode("read-only", () => reader.discardAt(0, 1));
  reader.flush();
  for (const size of [-1, 0.5, NaN, 2 ** 53]) {
    assertCode("invalid-argument", () => RawFile.create(new MemoryBlockFile(), { size }));
  }
  disk.close();
  disk.close();
  assertCode("closed", () => disk.readAt(0, filled(1, 0)));
});

Deno.test("RawFile.create() makes a sparse file of the whole size", () =>
  withFolder((folder) => {
    const path = `${folder}/disk.raw`;
    {
      using disk = RawFile.create(path, { size: 4 * GIB + 1 });
      assertEquals(disk.size, 4 * GIB + 512);
      disk.writeAt(4 * GIB, filled(512, 3));
    }
    const info = Deno.statSync(path);
    assertEquals(info.size, 4 * GIB + 512);
    if (info.blocks !== null) assert(info.blocks * 512 < MIB, `${info.blocks} blocks`);
    assertCode("already-exists", () => RawFile.create(path, { size: MIB, createNew: true }));
  }));

Deno.test("detectImageType() tells qcow2 by magic and version, and takes everything else for raw", () =>
  withFolder((folder) => {
    const path = `${folder}/image`;
    const cases: readonly (readonly [bytes: readonly number[], type: string])[] = [
      [[], "raw"],
      [[0x51, 0x46, 0x49], "raw"],
      [[0x51, 0x46, 0x49, 0xfb], "raw"],
      [[0x51, 0x46, 0x49, 0xfb, 0, 0, 0], "raw"],
      [[0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 1], "raw"],
      [[0x51, 0x46, 0x49, 0xfa, 0, 0, 0, 3], "raw"],
      [[0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 2], "qcow2"],
      [[0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3, 1, 2], "qcow2"],
    ];
    for (const [bytes, type] of cases) {
      Deno.writeFileSync(path, new Uint8Array(bytes));
      assertEquals(detectImageType(path), type);
    }
    Qcow2File.create(path, { size: MIB }).close();
    assertEquals(detectImageType(path), "qcow2");
    assertCode("not-found", () => detectImageType(`${folder}/nothing`));
  }));
