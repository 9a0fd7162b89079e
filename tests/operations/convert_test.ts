import { assert, assertEquals, assertRejects } from "@std/assert";
import { checkImage, convert, type Disk, type LayoutOptions, Qcow2Error, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import {
  assertQemuClean,
  copyOf,
  emptyImage,
  filled,
  GIB,
  KIB,
  MIB,
  qemuImg,
  readBytes,
  RecordingFile,
  withFolder,
} from "../images.ts";
import { qemuTest, run } from "../qemu.ts";
import { Random } from "../random.ts";

/** A raw disk with stretches of data between holes. */
function sparseDisk(size: number, random: Random): RawFile {
  const disk = RawFile.create(new MemoryBlockFile(), { size });
  for (let count = 0; count < 40; count++) {
    const length = random.between(1, 300 * KIB);
    disk.writeAt(random.below(Math.max(1, disk.size - length)), random.bytes(Math.min(length, disk.size)));
  }
  return disk;
}

/** Bytes that no compression makes fewer. */
function noise(length: number, random: Random): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length }, () => random.below(256));
}

function newImage(options: LayoutOptions): Qcow2File {
  return Qcow2File.open(emptyImage(options), { write: true });
}

async function assertRejectsWith(code: Qcow2Error["code"], fn: () => Promise<unknown>): Promise<void> {
  const error = await assertRejects(fn, Qcow2Error);
  assertEquals(error.code, code);
}

Deno.test("convert() copies raw to qcow2 and back, for sizes that are no multiple of anything", async () => {
  const random = new Random("convert");
  for (
    const [size, clusterSize] of [[0, 65536], [512, 65536], [1000, 512], [5 * MIB + 512, 4096], [9 * MIB, 2 * MIB]]
  ) {
    using source = sparseDisk(size ?? 0, random);
    using image = newImage({ size: source.size, clusterSize: clusterSize ?? 0 });
    const there = await convert(source, image, { targetIsZero: true });
    assertEquals(there.dataBytes + there.zeroBytes, source.size);
    using back = RawFile.create(new MemoryBlockFile(), { size: source.size });
    await convert(image, back, { targetIsZero: true });
    assertEquals(readBytes(back, 0, size ?? 0), readBytes(source, 0, size ?? 0));
    const { corruptions, leaks } = image.check();
    assertEquals([corruptions, leaks], [0, 0]);
  }
});

Deno.test("convert() of a file under four bytes keeps them", async () => {
  using source = RawFile.open(MemoryBlockFile.from(new Uint8Array([1, 2, 3])));
  using image = newImage({ size: source.size });
  await convert(source, image, { targetIsZero: true });
  assertEquals(readBytes(image, 0, 512), new Uint8Array([1, 2, 3, ...filled(509, 0)]));
});

Deno.test("convert() stores no zeroes", async () => {
  const raw = new MemoryBlockFile();
  using source = RawFile.create(raw, { size: 64 * MIB });
  // Written, so that only their content tells that they are zeroes.
  for (let offset = 0; offset < 64 * MIB; offset += MIB) source.writeAt(offset, filled(MIB, 0));
  source.writeAt(10 * MIB, filled(65536, 1));
  const file = emptyImage({ size: 64 * MIB });
  using image = Qcow2File.open(file, { write: true });
  assertEquals(await convert(source, image, { targetIsZero: true }), {
    dataBytes: 65536,
    zeroBytes: 64 * MIB - 65536,
  });
  image.flush();
  assert(file.size < MIB, `${file.size} bytes`);
  assertEquals([image.seekData(0), image.seekHole(10 * MIB)], [10 * MIB, 10 * MIB + 65536]);
});

Deno.test("convert() writes zeroes over what a target held before", async () => {
  const random = new Random("overwrite");
  using source = sparseDisk(8 * MIB, random);
  for (const target of [newImage({ size: 8 * MIB }), RawFile.create(new MemoryBlockFile(), { size: 8 * MIB })]) {
    using disk: Disk = target;
    disk.writeAt(0, random.bytes(8 * MIB));
    await convert(source, disk);
    assertEquals(readBytes(disk, 0, 8 * MIB), readBytes(source, 0, 8 * MIB));
  }
});

Deno.test("convert() leaves what a larger target has behind the source's end", async () => {
  using source = RawFile.create(new MemoryBlockFile(), { size: MIB });
  source.writeAt(0, filled(MIB, 1));
  using target = newImage({ size: 2 * MIB });
  target.writeAt(MIB, filled(MIB, 2));
  await convert(source, target);
  assertEquals(readBytes(target, MIB - 10, 20), new Uint8Array([...filled(10, 1), ...filled(10, 2)]));
});

Deno.test("convert() that leaves out what a backing file holds writes zeroes where the source has none", async () => {
  const base = () => RawFile.open(MemoryBlockFile.from(filled(MIB, 7), { writable: false }));
  const over = { backingFile: "base.raw", backingFormat: "raw", backing: base };
  for (const hasBacking of [false, true]) {
    using source = Qcow2File.create(new MemoryBlockFile(), { size: 2 * MIB, ...hasBacking ? over : {} });
    source.writeAt(64 * KIB, filled(64 * KIB, 1));
    source.writeZeroesAt(256 * KIB, 64 * KIB);
    using target = Qcow2File.create(new MemoryBlockFile(), { size: 2 * MIB, ...over });
    await convert(source, target, { skipBacking: true });
    assertEquals(readBytes(target, 0, 2 * MIB), readBytes(source, 0, 2 * MIB));
    // What both have from the same backing file is not written.
    assertEquals([...target.extents()].some(({ depth }) => depth === 1), hasBacking);
  }
});

Deno.test("convert() with a sparse size of 0 allocates everything", async () => {
  using source = RawFile.create(new MemoryBlockFile(), { size: 4 * MIB + 512 });
  source.writeAt(MIB, filled(1000, 1));
  using target = newImage({ size: source.size });
  assertEquals(await convert(source, target, { sparseSize: 0, targetIsZero: true }), {
    dataBytes: source.size,
    zeroBytes: 0,
  });
  assertEquals(target.seekHole(0), target.size);
  assertEquals(readBytes(target, MIB, 1001), new Uint8Array([...filled(1000, 1), 0]));
});

Deno.test("convert() refuses a target that is too small and sparse sizes that make no sense", async () => {
  using source = RawFile.create(new MemoryBlockFile(), { size: 2 * MIB });
  using small = newImage({ size: 2 * MIB - 512 });
  await assertRejectsWith("invalid-argument", () => convert(source, small));
  using target = newImage({ size: 2 * MIB });
  for (const sparseSize of [-512, 1, 100, 513, NaN, 0.5]) {
    await assertRejectsWith("invalid-argument", () => convert(source, target, { sparseSize }));
  }
});

Deno.test("convert() passes on what reading and writing throw", async () => {
  using source = RawFile.create(new MemoryBlockFile(), { size: 8 * MIB });
  source.writeAt(0, filled(8 * MIB, 1));
  using full = Qcow2File.open(emptyImage({ size: 8 * MIB }, { maxSize: 2 * MIB }), { write: true });
  await assertRejectsWith("no-space", () => convert(source, full));
  using reader = Qcow2File.open(emptyImage({ size: 8 * MIB }));
  await assertRejectsWith("read-only", () => convert(source, reader));
});

Deno.test("convert() tells how far it is, ends with all, and stops when it is aborted", async () => {
  using source = RawFile.create(new MemoryBlockFile(), { size: 256 * MIB });
  for (let offset = 0; offset < 256 * MIB; offset += 16 * MIB) source.writeAt(offset, filled(16 * MIB, 1));
  {
    using target = newImage({ size: source.size });
    const seen: number[] = [];
    await convert(source, target, {
      onProgress: ({ done, total }) => {
        assertEquals(total, source.size);
        seen.push(done);
      },
    });
    assertEquals(seen.at(-1), source.size);
    assertEquals(seen, seen.toSorted((a, b) => a - b));
  }
  using target = newImage({ size: source.size });
  await assertRejectsWith("aborted", () => convert(source, target, { signal: AbortSignal.abort() }));
  const controller = new AbortController();
  // Whether there is a first report depends on the machine; where there is one, it ends the work.
  let reports = 0;
  const work = convert(source, target, {
    signal: controller.signal,
    onProgress: ({ done, total }) => {
      if (done < total) {
        reports++;
        controller.abort();
      }
    },
  });
  const code = await work.then(() => undefined, (error) => error instanceof Qcow2Error ? error.code : String(error));
  assertEquals(code, reports > 0 ? "aborted" : undefined);
});

Deno.test("convert() reads the next piece while one is written, and comes to rest where either fails", async () => {
  const content = new Random("read ahead").bytes(16 * MIB);
  let underWay = 0;
  let most = 0;
  class SlowFile extends RecordingFile {
    async readAhead(offset: number, into: Uint8Array): Promise<number> {
      most = Math.max(most, ++underWay);
      await new Promise((resolve) => setTimeout(resolve, 1));
      underWay--;
      if (offset >= 12 * MIB) throw new Qcow2Error("io", "broken");
      return this.readAt(offset, into);
    }
  }
  using source = RawFile.open(new SlowFile(MemoryBlockFile.from(content)));
  const target = new MemoryBlockFile();
  using whole = RawFile.create(target, { size: 16 * MIB });
  await assertRejectsWith("io", () => convert(source, whole, { targetIsZero: true }));
  assertEquals(underWay, 0);
  assert(most > 1);
  assertEquals(target.toBytes().subarray(0, 12 * MIB), content.subarray(0, 12 * MIB));
  using full = Qcow2File.open(emptyImage({ size: 16 * MIB }, { maxSize: 2 * MIB }), { write: true });
  await assertRejectsWith("no-space", () => convert(source, full, { targetIsZero: true }));
  assertEquals(underWay, 0);
});

Deno.test("convert() reads nothing of what was only allocated, in the image or in its backing file", async () => {
  const file = new RecordingFile(new MemoryBlockFile());
  using base = Qcow2File.create(file, { size: 32 * MIB, preallocation: "metadata" });
  base.writeAt(20 * MIB, filled(MIB, 1));
  using source = Qcow2File.create(new MemoryBlockFile(), {
    size: 64 * MIB,
    backingFile: "base.qcow2",
    backingFormat: "qcow2",
    backing: () => base,
  });
  source.writeAt(32 * MIB, filled(MIB, 2));
  source.writeAt(64 * MIB - 512, filled(512, 3));
  source.flush();
  const extents = [...source.extents(0, 64 * MIB, { hostHoles: true })];
  assertEquals(
    extents.filter(({ kind, hole }) => kind === "data" && hole !== true).map(({ offset, length }) => [offset, length]),
    [
      [20 * MIB, MIB],
      [32 * MIB, MIB],
      [64 * MIB - 65536, 65536],
    ],
  );
  file.calls.length = 0;
  using target = newImage({ size: 64 * MIB });
  const { dataBytes } = await convert(source, target, { targetIsZero: true });
  assertEquals(dataBytes, 2 * MIB + 65536);
  const bytesRead = file.calls.filter(({ call }) => call === "read").reduce((sum, { length }) => sum + length, 0);
  assert(bytesRead < 1.5 * MIB, `${bytesRead} bytes`);
  assertEquals(readBytes(target, 0, 64 * MIB), readBytes(source, 0, 64 * MIB));
});

Deno.test("convert() compresses on several threads into the file that one thread makes, and reads it back", async () => {
  const random = new Random("compressed on threads");
  const incompressible = noise(200_000, random);
  for (const compressionType of ["zlib", "zstd"] as const) {
    using source = RawFile.create(new MemoryBlockFile(), { size: 40 * MIB + 1024 });
    for (let offset = 0; offset < source.size; offset += 200_000) {
      const length = Math.min(200_000, source.size - offset);
      const data = random.pick([
        filled(length, 0),
        filled(length, 1 + random.below(255)),
        incompressible.subarray(0, length),
      ]);
      source.writeAt(offset, data);
    }
    const there = emptyImage({ size: source.size, compressionType });
    const here = emptyImage({ size: source.size, compressionType });
    {
      using target = Qcow2File.open(there, { write: true });
      await convert(source, target, { targetIsZero: true, compress: true });
      using alone = Qcow2File.open(here, { write: true });
      for (let offset = 0; offset < source.size; offset += 65536) {
        const data = readBytes(source, offset, Math.min(65536, source.size - offset));
        if (data.some((byte) => byte !== 0)) alone.writeCompressedAt(offset, data);
      }
    }
    assertEquals(there.toBytes(), here.toBytes());
    using again = Qcow2File.open(copyOf(there));
    const kinds = new Set([...again.extents()].map(({ kind }) => kind));
    assertEquals([kinds.has("compressed"), kinds.has("data")], [true, true]);
    using back = RawFile.create(new MemoryBlockFile(), { size: source.size });
    await convert(again, back, { targetIsZero: true });
    assertEquals(readBytes(back, 0, source.size), readBytes(source, 0, source.size));
  }
});

Deno.test("convert() tells of a broken compressed cluster where it stands", async () => {
  const file = emptyImage({ size: 32 * MIB });
  using image = Qcow2File.open(file, { write: true });
  image.writeCompressedAt(0, filled(32 * MIB, 5));
  image.flush();
  // All clusters are compressed to as many bytes, and stand behind header, refcounts, L1 and L2 table.
  const offset = 5 * 65536 + Math.floor((file.size - 5 * 65536) * 300 / 512);
  file.writeAt(offset, filled(100, 0xff));
  using target = RawFile.create(new MemoryBlockFile(), { size: image.size });
  const error = await assertRejects(() => convert(image, target, { targetIsZero: true }), Qcow2Error);
  assertEquals(error.code, "corrupt");
  assert(Math.abs((error.offset ?? 0) - offset) < 500, `${error.offset} and ${offset}`);
});

Deno.test("convert() compresses whole clusters also where the source has holes in the middle of them", async () => {
  const random = new Random("holes in clusters");
  using source = newImage({ size: 4 * MIB + 512, clusterSize: 512 });
  for (let count = 0; count < 60; count++) {
    source.writeAt(random.below(4 * MIB - 3000), filled(random.between(1, 3000), 1 + count));
    source.writeZeroesAt(random.below(4 * MIB - 9000), random.between(1, 9000), { unmap: true });
  }
  using target = newImage({ size: source.size });
  const { dataBytes, zeroBytes } = await convert(source, target, { targetIsZero: true, compress: true });
  assertEquals(dataBytes + zeroBytes, source.size);
  assertEquals(readBytes(target, 0, source.size), readBytes(source, 0, source.size));
  assertEquals(new Set([...target.extents()].map(({ kind }) => kind)), new Set(["compressed", "unallocated"]));
});

Deno.test("convert() copies between images of different geometry", async () => {
  const random = new Random("geometry");
  const sizes = [512, 4096, 65536, 2 * MIB];
  for (let round = 0; round < 6; round++) {
    using source = newImage({ size: 6 * MIB, clusterSize: random.pick(sizes) });
    for (let count = 0; count < 20; count++) {
      const data = random.bytes(random.between(1, 200 * KIB));
      source.writeAt(random.below(6 * MIB - data.length), data);
      source.writeZeroesAt(random.below(5 * MIB), random.below(MIB), { unmap: random.oneIn(2) });
    }
    const file = emptyImage({ size: 6 * MIB, clusterSize: random.pick(sizes), version: random.pick([2, 3]) });
    using target = Qcow2File.open(file, { write: true });
    await convert(source, target, { targetIsZero: true, sparseSize: random.pick([512, 4096, 65536, MIB]) });
    target.close();
    using again = Qcow2File.open(copyOf(file));
    assertEquals(readBytes(again, 0, 6 * MIB), readBytes(source, 0, 6 * MIB));
    assertEquals(checkImage(copyOf(file)).corruptions, 0);
  }
});

qemuTest(
  "convert() makes images that QEMU finds identical to the source, and reads those of QEMU",
  () =>
    withFolder(async (folder) => {
      const random = new Random("convert qemu");
      for (const size of [1000, 512 * KIB + 512, 20 * MIB]) {
        const raw = `${folder}/disk.raw`;
        const here = `${folder}/here.qcow2`;
        const there = `${folder}/there.qcow2`;
        const back = `${folder}/back.raw`;
        const bytes = new Uint8Array(size);
        for (let count = 0; count < 5; count++) bytes.set(random.bytes(Math.min(size, 700)), random.below(size - 699));
        Deno.writeFileSync(raw, bytes);
        {
          using source = RawFile.open(raw);
          using target = Qcow2File.create(here, { size: source.size, durability: "none" });
          await convert(source, target, { targetIsZero: true });
        }
        assertQemuClean(here);
        qemuImg("compare", "-f", "raw", "-F", "qcow2", raw, here);
        qemuImg("convert", "-f", "raw", "-O", "qcow2", raw, there);
        {
          using source = Qcow2File.open(there);
          using target = RawFile.create(back, { size: source.size });
          await convert(source, target, { targetIsZero: true });
        }
        assertEquals(Deno.readFileSync(back).subarray(0, size), bytes);
      }
    }),
);

const fileSystemTools = ["mkfs.ext4", "e2fsck"].every((command) => {
  try {
    return run(command, ["-V"]).code === 0;
  } catch {
    return false;
  }
});

Deno.test({
  name: "A file system survives the way to qcow2 and back, and is whole in between",
  ignore: !fileSystemTools && (Deno.env.get("QCOW2_REQUIRE_QEMU") ?? "") === "",
  fn: () =>
    withFolder(async (folder) => {
      assert(fileSystemTools, "QCOW2_REQUIRE_QEMU is set, but mkfs.ext4 and e2fsck are not both installed");
      const random = new Random("file system");
      const files = `${folder}/files`;
      Deno.mkdirSync(`${files}/folder/in a folder`, { recursive: true });
      for (let index = 0; index < 40; index++) {
        const name = index % 3 === 0 ? `folder/in a folder/${index}` : `${index}`;
        Deno.writeFileSync(`${files}/${name}`, random.bytes(random.below(300 * KIB)));
      }
      const raw = `${folder}/disk.raw`;
      const image = `${folder}/disk.qcow2`;
      const back = `${folder}/back.raw`;
      RawFile.create(raw, { size: 64 * MIB }).close();
      const made = run("mkfs.ext4", ["-q", "-F", "-d", files, raw]);
      assertEquals(made.code, 0, made.stderr);
      {
        using source = RawFile.open(raw);
        using target = Qcow2File.create(image, { size: source.size });
        await convert(source, target, { targetIsZero: true });
      }
      assert(Deno.statSync(image).size < 40 * MIB);
      {
        using source = Qcow2File.open(image);
        using target = RawFile.create(back, { size: source.size });
        await convert(source, target, { targetIsZero: true });
      }
      const checked = run("e2fsck", ["-f", "-n", back]);
      assertEquals(checked.code, 0, checked.stdout + checked.stderr);
      assertEquals(Deno.readFileSync(back), Deno.readFileSync(raw));
      const { corruptions, leaks } = checkImage(image);
      assertEquals([corruptions, leaks], [0, 0]);
    }),
});

Deno.test("convert() takes no memory for what is not there: a disk of 8 TiB with a few bytes is copied at once", async () => {
  using source = newImage({ size: 8192 * GIB });
  source.writeAt(5000 * GIB, filled(1000, 1));
  const file = emptyImage({ size: 8192 * GIB });
  using target = Qcow2File.open(file, { write: true });
  const { dataBytes } = await convert(source, target, { targetIsZero: true });
  assert(dataBytes <= 65536, `${dataBytes} bytes`);
  assertEquals(target.seekData(0), 5000 * GIB);
  assertEquals(readBytes(target, 5000 * GIB, 1000), filled(1000, 1));
});
