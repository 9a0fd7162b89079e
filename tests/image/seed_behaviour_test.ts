import { assert, assertEquals } from "@std/assert";
import { checkImage, Qcow2File } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import {
  assertCode,
  copyOf,
  emptyImage,
  filled,
  getUint64,
  GIB,
  KIB,
  MIB,
  readBytes,
  setUint32,
  setUint64,
} from "../images.ts";
import { Random } from "../random.ts";

/** Writes at the cursor. */
function writeAtCursor(disk: Qcow2File, offset: number, data: Uint8Array): void {
  assertEquals(disk.seekSync(offset, Deno.SeekMode.Start), offset);
  assertEquals(disk.writeSync(data), data.length);
}

/** Reads at the cursor. */
function readAtCursor(disk: Qcow2File, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length).fill(0xa5);
  assertEquals(disk.seekSync(offset, Deno.SeekMode.Start), offset);
  assertEquals(disk.readSync(bytes), length);
  return bytes;
}

function assertClean(file: MemoryBlockFile): void {
  const { corruptions, leaks } = checkImage(copyOf(file));
  assertEquals([corruptions, leaks], [0, 0]);
}

Deno.test("A default header of version 2 and of version 3 opens again with what it was made from", () => {
  for (const version of [2, 3] as const) {
    const file = new MemoryBlockFile();
    Qcow2File.create(file, { size: 0x10_0000, version }).close();
    using disk = Qcow2File.open(copyOf(file));
    assertEquals([disk.header.version, disk.header.size, disk.size], [version, 0x10_0000, 0x10_0000]);
    assertEquals([disk.header.clusterBits, disk.header.refcountOrder], [16, 4]);
    assertEquals([disk.header.backingFile, disk.header.snapshotCount], [undefined, 0]);
    assertEquals(disk.header.incompatibleFeatures, 0n);
  }
});

Deno.test("An image that consists of a header alone is an empty disk of the size that the header says", () => {
  // Tables behind the end of the file are zeroes.
  const file = new MemoryBlockFile();
  file.writeAt(0, emptyImage({ size: 0x20_0000_0000 }).toBytes().subarray(0, 65536));
  using disk = Qcow2File.open(file);
  assertEquals(disk.size, 0x20_0000_0000);
  assertEquals(readBytes(disk, 0x1f_ffff_0000, 65536), filled(65536, 0));
});

Deno.test("What is written at the start is read there", () => {
  const file = emptyImage({ size: 0x20_0000_0000 });
  using disk = Qcow2File.open(file, { write: true });
  writeAtCursor(disk, 0, new TextEncoder().encode("test first bytes"));
  assertEquals(new TextDecoder().decode(readAtCursor(disk, 0, 16)), "test first bytes");
  assertEquals(disk.seekSync(0, Deno.SeekMode.Current), 16);
});

Deno.test("What is written at an offset is read there, across two clusters", () => {
  const file = emptyImage({ size: 0x20_0000_0000 });
  using disk = Qcow2File.open(file, { write: true });
  const data = filled(16, 0x55);
  const offset = 0x1_ffff_f8;
  writeAtCursor(disk, offset, data);
  assertEquals(readAtCursor(disk, offset, 16), data);
  assertEquals(readAtCursor(disk, offset - 8, 32), new Uint8Array([...filled(8, 0), ...data, ...filled(8, 0)]));
});

Deno.test("Zeroes written over a part of a cluster are read there, and the rest stays", () => {
  const file = emptyImage({ size: GIB });
  using disk = Qcow2File.open(file, { write: true });
  writeAtCursor(disk, 0xffff_f0, filled(64, 0x55));
  disk.writeZeroesAt(0xffff_f8, 16);
  assertEquals(
    readAtCursor(disk, 0xffff_f0, 64),
    new Uint8Array([...filled(8, 0x55), ...filled(16, 0), ...filled(40, 0x55)]),
  );
  disk.close();
  assertClean(file);
});

Deno.test("Zeroes written over a whole cluster are read there, and the neighbours stay", () => {
  for (const unmap of [false, true]) {
    const file = emptyImage({ size: GIB });
    using disk = Qcow2File.open(file, { write: true });
    writeAtCursor(disk, 0, filled(3 * 65536, 0x55));
    disk.writeZeroesAt(65536, 65536, { unmap });
    assertEquals(readAtCursor(disk, 0, 65536), filled(65536, 0x55));
    assertEquals(readAtCursor(disk, 65536, 65536), filled(65536, 0));
    assertEquals(readAtCursor(disk, 2 * 65536, 65536), filled(65536, 0x55));
    disk.close();
    assertClean(file);
  }
});

Deno.test("A small buffer is read from the middle of a cluster", () => {
  const file = emptyImage({ size: 0x20_0000_0000 });
  using disk = Qcow2File.open(file, { write: true });
  assertEquals(readAtCursor(disk, 1000, 5), filled(5, 0));
  writeAtCursor(disk, 998, new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8, 9]));
  assertEquals(readAtCursor(disk, 1000, 5), new Uint8Array([3, 4, 5, 6, 7]));
});

/** One transfer of the making of a file system. */
interface Transfer {
  readonly kind: "read" | "write" | "zero";
  readonly offset: number;
  readonly length: number;
}

/** Reads and writes as `mkfs.ext4` makes them on a disk: probing, group descriptors, inode tables, journal, superblocks. */
function ext4Transfers(size: number): Transfer[] {
  const block = 4 * KIB;
  const groupSize = 128 * MIB;
  const groups = Math.ceil(size / groupSize);
  const transfers: Transfer[] = [];
  const read = (offset: number, length: number): number => transfers.push({ kind: "read", offset, length });
  const write = (offset: number, length: number): number => transfers.push({ kind: "write", offset, length });
  const zero = (offset: number, length: number): number => transfers.push({ kind: "zero", offset, length });
  // Other file systems and partition tables are looked for first, at both ends and in odd places.
  for (const offset of [0, 512, KIB, block, 8 * KIB, 32 * KIB, 64 * KIB, MIB]) read(offset, KIB);
  for (const back of [512, KIB, block, 64 * KIB, 128 * KIB, MIB]) read(size - back, 512);
  zero(0, 64 * KIB);
  zero(size - 64 * KIB, 64 * KIB);
  for (let group = 0; group < groups; group++) {
    const start = group * groupSize;
    const isBackup = [1, 3, 5, 7, 9, 25, 27].includes(group);
    write(start + 129 * block + group * block, block);
    write(start + 145 * block + group * block, block);
    zero(start + 161 * block, Math.min(512 * block, size - start - 161 * block));
    write(start + 161 * block, 2 * block);
    read(start + 161 * block, block);
    if (isBackup) {
      write(start, KIB);
      write(start + block, block);
      zero(start + 2 * block, 127 * block);
    }
  }
  // The root directory, lost+found, and the journal with its superblock.
  for (let index = 0; index < 6; index++) write(673 * block + index * block, block);
  zero(256 * MIB, 4096 * block);
  write(256 * MIB, KIB);
  // Superblock and descriptors come last, and are read back.
  write(KIB, KIB);
  write(block, block);
  read(KIB, KIB);
  read(block, block);
  write(KIB, 58);
  return transfers;
}

Deno.test("The transfers that make a file system leave exactly what they wrote", () => {
  const size = 2 * GIB + 512 * MIB;
  const transfers = ext4Transfers(size);
  assert(transfers.length > 100, `${transfers.length} transfers`);
  const random = new Random("ext4");
  for (const options of [{}, { clusterSize: 4 * KIB }, { version: 2 }] as const) {
    const file = emptyImage({ size, ...options });
    const twin = new MemoryBlockFile();
    twin.truncate(size);
    const disk = Qcow2File.open(file, { write: true });
    for (const { kind, offset, length } of transfers) {
      if (kind === "write") {
        const data = random.bytes(length);
        writeAtCursor(disk, offset, data);
        twin.writeAt(offset, data);
      } else if (kind === "zero") {
        disk.writeZeroesAt(offset, length);
        twin.punchHole(offset, length);
      }
      const expected = new Uint8Array(length);
      twin.readAt(offset, expected);
      assertEquals(readAtCursor(disk, offset, length), expected);
    }
    disk.close();
    using again = Qcow2File.open(copyOf(file));
    for (const { offset, length } of transfers) {
      const expected = new Uint8Array(length);
      twin.readAt(offset, expected);
      assertEquals(readBytes(again, offset, length), expected);
    }
    assertClean(file);
  }
});

Deno.test("Hundreds of blocks beyond 4 GiB that cross clusters are read as written, before and after reopening", () => {
  const blockCount = 555;
  const blockSize = 0x10000;
  const start = 0x1_0000_0020;
  const file = emptyImage({ size: 256 * GIB });
  const blockOf = (index: number): Uint8Array => filled(blockSize, 1 + index % 255);
  {
    using disk = Qcow2File.open(file, { write: true });
    for (let index = 0; index < blockCount; index++) writeAtCursor(disk, start + index * blockSize, blockOf(index));
    for (let index = 0; index < blockCount; index++) {
      assertEquals(readAtCursor(disk, start + index * blockSize, blockSize), blockOf(index));
    }
    assertEquals(readAtCursor(disk, 0, blockSize), filled(blockSize, 0));
    writeAtCursor(disk, 0, filled(blockSize, 0x77));
    assertEquals(readAtCursor(disk, start, blockSize), blockOf(0));
  }
  using disk = Qcow2File.open(copyOf(file));
  assertEquals(readBytes(disk, 0, blockSize), filled(blockSize, 0x77));
  for (let index = 0; index < blockCount; index++) {
    assertEquals(readBytes(disk, start + index * blockSize, blockSize), blockOf(index));
  }
  assertEquals(readBytes(disk, start - 32, 32), filled(32, 0));
  assertEquals(readBytes(disk, start + blockCount * blockSize, 32), filled(32, 0));
  assertClean(file);
});

Deno.test("seekData() finds the next data from an offset on, and null where there is none", () => {
  const file = emptyImage({ size: 3 * 65536 * 8192 });
  using disk = Qcow2File.open(file, { write: true });
  assertEquals([disk.seekData(0), disk.seekData(0x10000), disk.seekData(disk.size)], [null, null, null]);
  disk.writeAt(0x10000, filled(0x10000, 0x55));
  assertEquals([disk.seekData(0), disk.seekData(0xffff)], [0x10000, 0x10000]);
  assertEquals([disk.seekData(0x10000), disk.seekData(0x10001), disk.seekData(0x1ffff)], [0x10000, 0x10001, 0x1ffff]);
  assertEquals(disk.seekData(0x20000), null);
  // The next data is two L2 tables further on.
  disk.writeAt(disk.size - 65536, filled(1, 1));
  assertEquals(disk.seekData(0x20000), disk.size - 65536);
  disk.writeZeroesAt(0x10000, 0x10000);
  assertEquals(disk.seekData(0), disk.size - 65536);
});

Deno.test("seekHole() finds the next hole from an offset on, and the end of the disk where there is none", () => {
  const file = emptyImage({ size: 0x40000 });
  using disk = Qcow2File.open(file, { write: true });
  assertEquals([disk.seekHole(0), disk.seekHole(0x1234), disk.seekHole(disk.size)], [0, 0x1234, 0x40000]);
  disk.writeAt(0x10000, filled(0x20000, 0x55));
  assertEquals([disk.seekHole(0), disk.seekHole(0x10000), disk.seekHole(0x2ffff)], [0, 0x30000, 0x30000]);
  disk.writeAt(0x30000, filled(0x10000, 0x55));
  assertEquals([disk.seekHole(0x10000), disk.seekHole(0x3ffff)], [0x40000, 0x40000]);
  disk.punchHole(0x20000, 0x10000);
  assertEquals([disk.seekHole(0x10000), disk.seekData(0x20000)], [0x20000, 0x30000]);
  assertCode("out-of-range", () => disk.seekHole(0x40001));
  assertCode("out-of-range", () => disk.seekData(-1));
});

Deno.test("Refcounts that a crashed session left behind are built anew at the next writable opening", () => {
  const file = emptyImage({ size: GIB });
  {
    using disk = Qcow2File.open(file, { write: true });
    for (let index = 0; index < 20; index++) disk.writeAt(index * 40 * MIB, filled(65536, index + 1));
  }
  const image = copyOf(file);
  const block = Number(getUint64(image, 0x10000));
  image.writeAt(block, filled(65536, 0));
  // The dirty bit says that it may be so.
  setUint64(image, 72, 1n);
  setUint32(image, 84, 1);
  {
    using disk = Qcow2File.open(image, { write: true });
    assertEquals(disk.header.incompatibleFeatures, 0n);
    assertEquals(disk.header.compatibleFeatures, 1n);
    disk.writeAt(30 * MIB, filled(MIB, 0xee));
  }
  assertClean(image);
  using disk = Qcow2File.open(copyOf(image));
  for (let index = 0; index < 20; index++) {
    assertEquals(readBytes(disk, index * 40 * MIB, 65536), filled(65536, index + 1));
  }
  assertEquals(readBytes(disk, 30 * MIB, MIB), filled(MIB, 0xee));
});

Deno.test("Lazy refcounts alone do not make a session look for what a dirty one would leave behind", () => {
  const file = emptyImage({ size: GIB, lazyRefcounts: true });
  // A leak, which a repair would find and give back.
  file.writeAt(0x20000 + 4 * 2, new Uint8Array([0, 1]));
  file.truncate(0x50000);
  const before = file.toBytes();
  {
    using disk = Qcow2File.open(file, { write: true });
    assertEquals(disk.header.compatibleFeatures, 1n);
    assertEquals(disk.check().leaks, 1);
  }
  assertEquals(file.toBytes(), before);
});

Deno.test("The inspection calls tell where tables and clusters stand", () => {
  const file = emptyImage({ size: GIB });
  using disk = Qcow2File.open(file, { write: true });
  assertEquals(disk.firstZeroRefcount(), 0x40000);
  assertEquals(disk.l1Table.map(({ hostOffset }) => hostOffset), [0, 0]);
  assertEquals(disk.l2Table(0), undefined);
  disk.writeAt(65536, filled(65536, 1));
  disk.writeAt(3 * 65536, filled(65536, 1));
  disk.writeZeroesAt(3 * 65536, 65536);
  disk.flush();
  assertEquals(disk.l1Table[0], { hostOffset: 0x40000, copied: true, compressed: false, zero: false });
  assertEquals(disk.l2Table(0)?.slice(0, 4).map(({ hostOffset, copied, zero }) => [hostOffset, copied, zero]), [
    [0, false, false],
    [0x50000, true, false],
    [0, false, false],
    [0x60000, true, true],
  ]);
  assertEquals(disk.refcountTable.slice(0, 2), [0x20000, 0]);
  assertEquals(disk.refcountBlock(0)?.slice(0, 8), [1, 1, 1, 1, 1, 1, 1, 0]);
  assertEquals(disk.refcountBlock(1), undefined);
  assertEquals([disk.refcountAt(0x60000), disk.refcountAt(0x70000), disk.firstZeroRefcount()], [1, 0, 0x70000]);
  assertCode("out-of-range", () => disk.l2Table(2));
  assertCode("out-of-range", () => disk.refcountBlock(8192));
});
