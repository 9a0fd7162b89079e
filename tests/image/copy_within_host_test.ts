import { assert, assertEquals } from "@std/assert";
import { checkImage, convert, type CreateOptions, type HostFile, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { assertCode, copyOf, filled, KIB, MIB, readBytes } from "../images.ts";
import { Random } from "../random.ts";

/** A file of a host that copies between files, though not always all that it is asked for. */
class CopyingFile extends MemoryBlockFile {
  copied = 0;
  readonly #most: () => number;

  constructor(most: () => number = () => Infinity) {
    super();
    this.#most = most;
  }

  copyFrom(source: HostFile, sourceOffset: number, offset: number, length: number): number {
    if (!(source instanceof CopyingFile)) return 0;
    const bytes = new Uint8Array(Math.min(length, this.#most()));
    const count = source.readAt(sourceOffset, bytes);
    this.writeAt(offset, bytes.subarray(0, count));
    this.copied += count;
    return count;
  }
}

const SIZE = 3 * MIB;

for (
  const options of [
    { clusterSize: 512 },
    { clusterSize: 4096, version: 2 },
    {},
    { extendedL2: true, clusterSize: 16384 },
    { clusterSize: 256 * KIB },
  ] satisfies Partial<CreateOptions>[]
) {
  Deno.test(`Qcow2File.copyAt() writes what it says that it has written: ${JSON.stringify(options)}`, () => {
    const random = new Random(`copy ${JSON.stringify(options)}`);
    const content = random.bytes(SIZE);
    const source = new CopyingFile();
    source.writeAt(0, content);
    const file = new CopyingFile(() => random.oneIn(3) ? random.below(20 * KIB) : Infinity);
    const disk = Qcow2File.create(file, { size: SIZE, ...options });
    const { allocationSize } = disk;
    const expected = new Uint8Array(SIZE);
    let copied = 0;
    for (let round = 0; round < 80; round++) {
      const isAligned = random.oneIn(2);
      const align = (offset: number): number => isAligned ? offset - offset % allocationSize : offset;
      const offset = align(random.below(SIZE));
      const length = Math.min(SIZE - offset, align(random.below(random.oneIn(3) ? SIZE + allocationSize : 700 * KIB)));
      switch (random.below(7)) {
        case 0:
          disk.writeZeroesAt(offset, length);
          expected.fill(0, offset, offset + length);
          break;
        case 1:
          disk.writeAt(offset, filled(length, round));
          expected.fill(round, offset, offset + length);
          break;
        case 2: {
          if (round % 4 === 0) disk.createSnapshot(`at ${round}`);
          const at = offset - offset % allocationSize;
          const cluster = filled(Math.min(allocationSize, SIZE - at), round);
          disk.writeCompressedAt(at, cluster);
          expected.set(cluster, at);
          break;
        }
        default: {
          const from = random.below(SIZE - length + 1);
          const count = disk.copyAt(offset, { file: source, offset: from, length });
          assert(count <= length, `${count} of ${length}`);
          expected.set(content.subarray(from, from + count), offset);
          copied += count;
        }
      }
      if (round % 10 === 0) assertEquals(readBytes(disk, 0, SIZE), expected);
    }
    assert(copied > 0);
    disk.close();
    using again = Qcow2File.open(copyOf(file));
    assertEquals(readBytes(again, 0, SIZE), expected);
    const { corruptions, leaks } = checkImage(copyOf(file));
    assertEquals([corruptions, leaks], [0, 0]);
  });
}

Deno.test("Qcow2File.copyAt() is recorded by bitmaps as any other write", () => {
  const source = new CopyingFile();
  source.writeAt(0, filled(MIB, 1));
  using disk = Qcow2File.create(new CopyingFile(), { size: MIB });
  disk.addBitmap("writes");
  assertEquals(disk.copyAt(128 * KIB, { file: source, offset: 0, length: 64 * KIB }), 64 * KIB);
  const dirty = [...disk.dirtyExtents("writes")];
  assertEquals(dirty.map(({ offset, length }) => [offset, length]), [[128 * KIB, 64 * KIB]]);
});

Deno.test("Nothing is copied to a disk that cannot be written or lies elsewhere", () => {
  const file = new CopyingFile();
  Qcow2File.create(copyOf(file), { size: MIB }).close();
  const image = new CopyingFile();
  Qcow2File.create(image, { size: MIB }).close();
  using disk = Qcow2File.open(copyOf(image));
  const bytes = { file, offset: 0, length: 65536 };
  assertCode("read-only", () => disk.copyAt(0, bytes));
  using raw = RawFile.create(new MemoryBlockFile(), { size: MIB });
  assertEquals(raw.copyAt(0, bytes), 0);
  assertCode("out-of-range", () => raw.copyAt(MIB, bytes));
});

Deno.test("Disk.hostBytesAt() tells of bytes that stand on the host as they are, and of no others", () => {
  const base = new CopyingFile();
  base.writeAt(0, filled(192 * KIB, 1));
  const file = new CopyingFile();
  using disk = Qcow2File.create(file, {
    size: MIB,
    backingFile: "base.raw",
    backingFormat: "raw",
    backing: () => RawFile.open(base),
  });
  disk.writeAt(64 * KIB, filled(64 * KIB, 2));
  disk.writeZeroesAt(256 * KIB, 64 * KIB);
  disk.writeCompressedAt(320 * KIB, filled(64 * KIB, 3));
  assertEquals(disk.hostBytesAt(1000, MIB - 1000), { file: base, offset: 1000, length: 64 * KIB - 1000 });
  const own = disk.hostBytesAt(64 * KIB + 5, MIB / 2);
  assertEquals([own?.file === file, own?.length], [true, 64 * KIB - 5]);
  const bytes = new Uint8Array(10);
  file.readAt(own?.offset ?? 0, bytes);
  assertEquals(bytes, filled(10, 2));
  assertEquals(disk.hostBytesAt(128 * KIB, MIB / 2)?.length, 64 * KIB);
  for (const offset of [192, 256, 320, 400]) assertEquals(disk.hostBytesAt(offset * KIB, 64 * KIB), undefined);
});

Deno.test("convert() lets the host copy where it can, and comes to the same", async () => {
  const random = new Random("convert within the host");
  let copied = 0;
  for (let round = 0; round < 12; round++) {
    const base = new CopyingFile();
    using backing = RawFile.create(base, { size: SIZE });
    const file = new CopyingFile();
    const source = Qcow2File.create(file, {
      size: SIZE + 512 * random.below(3),
      clusterSize: random.pick([512, 4096, 65536]),
      ...random.oneIn(2) ? { backingFile: "base.raw", backingFormat: "raw", backing: () => backing } : {},
    });
    for (let count = 0; count < 30; count++) {
      const offset = random.below(SIZE - 100 * KIB);
      const disk = random.pick([source, backing]);
      if (random.oneIn(4)) disk.writeZeroesAt(offset, random.below(100 * KIB), { unmap: true });
      else disk.writeAt(offset, random.bytes(random.below(100 * KIB)));
    }
    source.writeCompressedAt(0, filled(source.allocationSize, 9));
    const mostly = () => random.oneIn(5) ? random.below(30 * KIB) : Infinity;
    for (const format of ["raw", "qcow2"]) {
      const output = new CopyingFile(mostly);
      const { size } = source;
      using target = format === "raw" ? RawFile.create(output, { size }) : Qcow2File.create(output, { size });
      const { dataBytes, zeroBytes } = await convert(source, target, { targetIsZero: true, withinHost: true });
      copied += output.copied;
      assertEquals(dataBytes + zeroBytes, size);
      assertEquals(readBytes(target, 0, size), readBytes(source, 0, size));
      if (target instanceof Qcow2File) assertEquals([target.check().corruptions, target.check().leaks], [0, 0]);
    }
    source.close();
  }
  assert(copied > 0);
});
