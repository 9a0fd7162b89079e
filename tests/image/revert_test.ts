import { assert, assertEquals } from "@std/assert";
import { checkImage, type CreateOptions, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { decodeHeader } from "../../lib/format/mod.ts";
import { assertCode, copyOf, emptyImage, filled, getUint64, GIB, KIB, MIB, readBytes, setUint64 } from "../images.ts";
import { Random } from "../random.ts";

const CONTENT = filled(3 * MIB, 5);
const backing = () => RawFile.open(MemoryBlockFile.from(CONTENT, { writable: false }));
const OVER: Partial<CreateOptions> = { backingFile: "base.raw", backingFormat: "raw", backing };

for (
  const options of [
    {},
    { version: 2 },
    { clusterSize: 512, refcountBits: 64 },
    { clusterSize: 512, refcountBits: 1 },
    { extendedL2: true, clusterSize: 16384 },
    { clusterSize: 2 * MIB },
  ] satisfies Partial<CreateOptions>[]
) {
  Deno.test(`Qcow2File.revertToBacking() leaves nothing of the image's own: ${JSON.stringify(options)}`, () => {
    const random = new Random(`revert ${JSON.stringify(options)}`);
    const file = new MemoryBlockFile();
    const disk = Qcow2File.create(file, { ...OVER, ...options, size: 3 * MIB });
    const { size: emptySize } = file;
    for (let count = 0; count < 30; count++) {
      const offset = random.below(3 * MIB - 100 * KIB);
      if (random.oneIn(3)) disk.writeZeroesAt(offset, random.below(100 * KIB));
      else disk.writeAt(offset, random.bytes(random.below(100 * KIB)));
    }
    disk.writeCompressedAt(0, filled(disk.allocationSize, 3));
    disk.revertToBacking();
    assertEquals([...disk.extents()].map(({ depth, length }) => [depth, length]), [[1, 3 * MIB]]);
    assertEquals(readBytes(disk, 0, 3 * MIB), CONTENT);
    const state = copyOf(file);
    const { corruptions, leaks } = checkImage(state);
    assertEquals([corruptions, leaks], [0, 0]);
    assert(file.size <= emptySize + 4 * disk.allocationSize, `${file.size} bytes are left, ${emptySize} at first`);
    // It goes on as any other image.
    disk.writeAt(MIB, filled(MIB, 9));
    disk.close();
    using again = Qcow2File.open(copyOf(file), { backing });
    assertEquals(readBytes(again, MIB, MIB), filled(MIB, 9));
    assertEquals(again.check().corruptions, 0);
  });
}

Deno.test("Qcow2File.revertToBacking() gives refcount blocks back that describe nothing any more", () => {
  const file = new MemoryBlockFile();
  const disk = Qcow2File.create(file, { size: 64 * MIB, clusterSize: 512, refcountBits: 64 });
  const { size } = file;
  disk.writeAt(0, filled(20 * MIB, 1));
  disk.flush();
  assert(disk.refcountTable.filter((offset) => offset !== 0).length > 100);
  disk.revertToBacking();
  disk.close();
  // The refcount table has grown and stays where it is.
  const left = copyOf(file);
  using again = Qcow2File.open(left);
  const { refcountTableOffset, refcountTableClusterCount } = again.header;
  assert(left.size <= Math.max(size, refcountTableOffset + refcountTableClusterCount * 512), `${left.size}`);
  assert(again.refcountTable.filter((offset) => offset !== 0).length < 5);
  const { corruptions, leaks } = again.check();
  assertEquals([corruptions, leaks], [0, 0]);
});

Deno.test("Qcow2File.revertToBacking() frees refcount blocks that stand among clusters of another block", () => {
  const file = emptyImage({ size: MIB, clusterSize: 512, refcountBits: 64 });
  const { refcountTableOffset, clusterBits } = decodeHeader(file.toBytes());
  const block = file.size - file.size % 512 + 512;
  file.truncate(block + 512);
  // The second block describes nothing; the first one says that it is in use.
  setUint64(file, refcountTableOffset + 8, BigInt(block));
  const firstBlock = Number(getUint64(file, refcountTableOffset));
  setUint64(file, firstBlock + block / 2 ** clusterBits * 8, 1n);
  assertEquals(checkImage(copyOf(file)).leaks, 0);
  using disk = Qcow2File.open(file, { write: true });
  disk.revertToBacking();
  assertEquals(disk.refcountTable[1], 0);
  assertEquals(disk.refcountAt(block), 0);
  const { corruptions, leaks } = disk.check();
  assertEquals([corruptions, leaks], [0, 0]);
});

Deno.test("Qcow2File.revertToBacking() leaves snapshots what they hold", () => {
  const file = new MemoryBlockFile();
  const disk = Qcow2File.create(file, { ...OVER, size: 3 * MIB, clusterSize: 4096 });
  disk.writeAt(0, filled(MIB, 1));
  disk.createSnapshot("one");
  disk.writeAt(512 * KIB, filled(MIB, 2));
  disk.revertToBacking();
  assertEquals(readBytes(disk, 0, 3 * MIB), CONTENT);
  assertEquals(readBytes(disk.openSnapshot("one"), 0, MIB), filled(MIB, 1));
  disk.applySnapshot("one");
  assertEquals(readBytes(disk, 0, MIB), filled(MIB, 1));
  const { corruptions, leaks } = disk.check();
  assertEquals([corruptions, leaks], [0, 0]);
  disk.close();
});

Deno.test("Qcow2File.revertToBacking() tells the bitmaps, unless the content stays", () => {
  for (const contentStays of [false, true]) {
    using disk = Qcow2File.create(new MemoryBlockFile(), { size: GIB });
    disk.writeAt(0, filled(MIB, 1));
    disk.addBitmap("backup");
    disk.revertToBacking({ contentStays });
    const marked = [...disk.dirtyExtents("backup")].reduce((sum, { length }) => sum + length, 0);
    assertEquals(marked, contentStays ? 0 : GIB);
  }
});

Deno.test("Qcow2File.revertToBacking() empties the entries for a data file, and refuses a raw one", () => {
  const create = (dataFileRaw: boolean) =>
    Qcow2File.create(new MemoryBlockFile(), {
      size: MIB,
      dataFile: "data",
      dataFileRaw,
      openDataFile: () => new MemoryBlockFile(),
    });
  using disk = create(false);
  disk.writeAt(0, filled(MIB, 1));
  disk.revertToBacking();
  assertEquals(disk.seekData(0), null);
  // What the data file held there before must not come back.
  disk.writeAt(1000, filled(10, 2));
  assertEquals(readBytes(disk, 0, 1000), filled(1000, 0));
  disk.close();
  using raw = create(true);
  assertCode("unsupported", () => raw.revertToBacking());
});
