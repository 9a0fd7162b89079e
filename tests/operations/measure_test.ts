import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  convert,
  type CreateOptions,
  measure,
  type MeasureOptions,
  Qcow2Error,
  Qcow2File,
  RawFile,
} from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { filled, GIB, KIB, MIB, RecordingFile, TIB } from "../images.ts";
import { Random } from "../random.ts";

Deno.test("measure() tells of a raw image its size in whole sectors", async () => {
  assertEquals(await measure(1001, { format: "raw" }), { required: 1024, fullyAllocated: 1024 });
  using disk = RawFile.create(new MemoryBlockFile(), { size: 5 * MIB });
  assertEquals(await measure(disk, { format: "raw" }), { required: 5 * MIB, fullyAllocated: 5 * MIB });
});

Deno.test("measure() promises as much as a fully allocated image takes, and no less than a conversion needs", async () => {
  const random = new Random("measure");
  for (let round = 0; round < 12; round++) {
    const options: Partial<CreateOptions> & MeasureOptions = {
      clusterSize: 2 ** random.between(9, 16),
      refcountBits: 2 ** random.between(0, 6),
    };
    using source = RawFile.create(new MemoryBlockFile(), { size: random.between(1, 6000) * 512 });
    for (let count = 0; count < 5; count++) {
      const offset = random.below(source.size);
      source.writeAt(offset, random.bytes(Math.min(source.size - offset, random.between(1, 100 * KIB))));
    }
    const file = new MemoryBlockFile();
    const target = Qcow2File.create(file, { size: source.size, ...options });
    await convert(source, target, { targetIsZero: true });
    target.close();
    const { required, fullyAllocated } = await measure(source, options);
    assert(file.size <= required && required <= fullyAllocated, `${file.size}, ${required}, ${fullyAllocated}`);

    const full = new MemoryBlockFile();
    Qcow2File.create(full, { size: source.size, preallocation: "full", ...options }).close();
    assert(full.size <= fullyAllocated, `${full.size} bytes, ${fullyAllocated} were promised`);
    assertEquals((await measure(source, { ...options, preallocation: "full" })).required, fullyAllocated);
    assertEquals((await measure(source, { ...options, hasBackingFile: true })).required, fullyAllocated);
  }
});

Deno.test("measure() promises what full preallocation takes, also where the refcount table has several clusters", async () => {
  for (const size of [2 * MIB, 4 * MIB, 10 * MIB]) {
    const options = { clusterSize: 512, refcountBits: 64 };
    const full = new MemoryBlockFile();
    Qcow2File.create(full, { size, preallocation: "full", ...options }).close();
    assert(full.size <= (await measure(size, options)).fullyAllocated);
  }
});

Deno.test("measure() counts a cluster once, however many stretches of it hold data", async () => {
  using source = Qcow2File.create(new MemoryBlockFile(), { size: MIB, clusterSize: 512 });
  for (const offset of [0, 1024, 5000, 65000, 130_000]) source.writeAt(offset, filled(1, 1));
  const sizes = async (options: MeasureOptions) => {
    const [empty, full] = [await measure(MIB, options), await measure(source, options)];
    return full.required - empty.required;
  };
  assertEquals(await sizes({ clusterSize: 512 }), 5 * 512);
  assertEquals(await sizes({ clusterSize: 4096 }), 4 * 4096);
  assertEquals(await sizes({ clusterSize: 65536 }), 2 * 65536);
  assertEquals(await sizes({ clusterSize: MIB }), MIB);
});

Deno.test("measure() tells what the bitmaps need where both images can have them", async () => {
  using source = Qcow2File.create(new MemoryBlockFile(), { size: GIB });
  assertEquals((await measure(source)).bitmaps, 0);
  source.addBitmap("fine", { granularity: 512 });
  source.addBitmap("coarse", { granularity: MIB });
  // 4 and 1 clusters of bits, a cluster of table for each, and one for the directory.
  assertEquals((await measure(source)).bitmaps, 8 * 65536);
  assertEquals((await measure(source, { version: 2 })).bitmaps, undefined);
  assertEquals((await measure(source.size)).bitmaps, undefined);
  assertEquals((await measure(source.size, { bitmapsOf: source })).bitmaps, 8 * 65536);
  using old = Qcow2File.create(new MemoryBlockFile(), { size: GIB, version: 2 });
  assertEquals((await measure(old)).bitmaps, undefined);
});

Deno.test("measure() reads none of the content", async () => {
  const file = new RecordingFile(new MemoryBlockFile());
  using source = Qcow2File.create(file, { size: TIB });
  for (let count = 0; count < 20; count++) source.writeAt(count * 50 * GIB, filled(MIB, 1));
  source.flush();
  file.calls.length = 0;
  await measure(source);
  assert(file.calls.every(({ call, length }) => call === "read" && length <= 65536));
});

Deno.test("measure() refuses images that cannot be", async () => {
  const cases: readonly (readonly [number, MeasureOptions, string])[] = [
    [GIB, { clusterSize: 1000 }, "Cluster size must be a power of two"],
    [GIB, { clusterSize: 8192, extendedL2: true }, "Extended L2 entries"],
    [GIB, { refcountBits: 3 }, "Refcount width"],
    [GIB, { refcountBits: 8, version: 2 }, "Different refcount widths"],
    [TIB, { clusterSize: 512 }, "The image size is too large"],
    [-1, {}, "Virtual size is -1"],
    [0.5, { format: "raw" }, "Virtual size is 0.5"],
  ];
  for (const [size, options, message] of cases) {
    const error = await assertRejects(() => measure(size, options), Qcow2Error, message);
    assertEquals(error.code, "invalid-argument");
  }
});

Deno.test("measure() tells when it is done, and ends when its signal says so", async () => {
  using source = Qcow2File.create(new MemoryBlockFile(), { size: GIB });
  const told: unknown[] = [];
  await measure(source, { onProgress: (progress) => told.push(progress) });
  assertEquals(told.at(-1), { done: GIB, total: GIB });
  const error = await assertRejects(() => measure(source, { signal: AbortSignal.abort() }), Qcow2Error);
  assertEquals(error.code, "aborted");
});
