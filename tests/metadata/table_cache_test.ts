import { assert, assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { OrderedFile } from "../../lib/metadata/ordered_file.ts";
import { TableCache, type TableSlice } from "../../lib/metadata/table_cache.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { RecordingFile } from "../images.ts";
import { Random } from "../random.ts";

const SLICE = 512;

/** A cache of some slices over a file whose slices hold their own number. */
function makeCache(
  slices: number,
  fileSlices = 1000,
): { cache: TableCache; file: RecordingFile; inner: MemoryBlockFile } {
  const inner = new MemoryBlockFile();
  const bytes = new Uint8Array(fileSlices * SLICE);
  const view = new DataView(bytes.buffer);
  for (let index = 0; index < fileSlices; index++) view.setUint32(index * SLICE, index);
  inner.writeAt(0, bytes);
  const file = new RecordingFile(inner);
  const ordered = new OrderedFile(file, "full");
  const cache: TableCache = new TableCache(ordered, {
    sliceSize: SLICE,
    maxSize: slices * SLICE,
    writeBack: () => cache.writeDirty(),
  });
  return { cache, file, inner };
}

function numberOf(slice: TableSlice): number {
  return slice.view.getUint32(0);
}

Deno.test("TableCache.get() reads a slice once and hands out the same one while it is there", () => {
  const { cache, file } = makeCache(8);
  const slice = cache.get(3 * SLICE);
  assertEquals([numberOf(slice), slice.hostOffset], [3, 3 * SLICE]);
  cache.get(4 * SLICE);
  assertStrictEquals(cache.get(3 * SLICE), slice);
  assertStrictEquals(cache.get(3 * SLICE), slice);
  assertEquals(file.count("read"), 2);
  assertEquals(cache.statistics, { hits: 2, misses: 2, evictions: 0 });
});

Deno.test("TableCache.get() fills what lies beyond the end of the file with zeroes", () => {
  const { cache, inner } = makeCache(4, 2);
  inner.truncate(SLICE + 100);
  // The buffers are used again, so that old bytes could show.
  for (let index = 0; index < 8; index++) cache.get(index % 2 * SLICE);
  const slice = cache.get(SLICE);
  assertEquals([...slice.bytes.subarray(100)], [...new Uint8Array(SLICE - 100)]);
  for (const offset of [2, 3, 4, 5, 6]) assertEquals([...cache.get(offset * SLICE).bytes], [...new Uint8Array(SLICE)]);
});

Deno.test("TableCache evicts the slice that was not used for longest", () => {
  const { cache, file } = makeCache(4);
  for (const index of [0, 1, 2, 3]) cache.get(index * SLICE);
  // 1 is the oldest now.
  cache.get(0);
  cache.get(4 * SLICE);
  file.calls.length = 0;
  for (const index of [0, 2, 3, 4]) cache.get(index * SLICE);
  assertEquals(file.count("read"), 0);
  cache.get(SLICE);
  assertEquals(file.calls, [{ call: "read", offset: SLICE, length: SLICE }]);
});

Deno.test("TableCache hits and misses are exactly those of a list in order of use", () => {
  const random = new Random("least recently used");
  const { cache, file } = makeCache(16);
  let order: number[] = [];
  for (let step = 0; step < 20000; step++) {
    const index = random.oneIn(2) ? random.below(12) : random.below(60);
    const hit = order.includes(index);
    file.calls.length = 0;
    assertEquals(numberOf(cache.get(index * SLICE)), index);
    assertEquals(file.count("read"), hit ? 0 : 1, `step ${step}`);
    order = [...order.filter((other) => other !== index), index].slice(-16);
  }
});

Deno.test("TableCache holds no more slices than it has room for, and takes no new buffers once it is full", () => {
  const { cache } = makeCache(16);
  const buffers = new Set<Uint8Array>();
  for (let index = 0; index < 1000; index++) buffers.add(cache.get(index * SLICE).bytes);
  for (let index = 0; index < 1000; index += 3) cache.drop(index * SLICE, SLICE);
  for (let index = 999; index >= 0; index--) buffers.add(cache.get(index * SLICE).bytes);
  cache.clear();
  for (let index = 0; index < 1000; index++) buffers.add(cache.get(index * SLICE).bytes);
  assert(buffers.size <= 16, `${buffers.size} buffers`);
});

Deno.test("TableCache has room for four slices, however little it was given", () => {
  const { cache, file } = makeCache(0);
  for (const index of [0, 1, 2, 3, 0, 1, 2, 3]) cache.get(index * SLICE);
  assertEquals(file.count("read"), 4);
});

Deno.test("TableCache.writeDirty() writes neighbours in one call, in ascending order, and only what is dirty", () => {
  const { cache, file, inner } = makeCache(64);
  for (const index of [9, 3, 20, 4, 5, 21, 40]) {
    const slice = cache.get(index * SLICE);
    slice.view.setUint32(4, 1000 + index);
    cache.markDirty(slice);
  }
  cache.get(6 * SLICE);
  file.calls.length = 0;
  assertEquals(cache.hasDirty, true);
  cache.writeDirty();
  assertEquals(
    file.calls.map(({ call, offset, length }) => [call, offset / SLICE, length / SLICE]),
    [["write", 3, 3], ["write", 9, 1], ["write", 20, 2], ["write", 40, 1]],
  );
  assertEquals(cache.hasDirty, false);
  const bytes = new Uint8Array(SLICE);
  for (const index of [3, 4, 5, 9, 20, 21, 40]) {
    inner.readAt(index * SLICE, bytes);
    assertEquals(new DataView(bytes.buffer).getUint32(4), 1000 + index);
  }
  file.calls.length = 0;
  cache.writeDirty();
  assertEquals(file.calls, []);
});

Deno.test("TableCache.writeDirty() writes long rows of neighbours in few calls, and right", () => {
  const { cache, file, inner } = makeCache(2000, 2000);
  for (let index = 0; index < 2000; index++) {
    const slice = cache.get(index * SLICE);
    slice.view.setUint32(4, index * 7);
    cache.markDirty(slice);
  }
  file.calls.length = 0;
  cache.writeDirty();
  assert(file.count("write") <= 5, `${file.count("write")} writes`);
  const bytes = inner.toBytes();
  const view = new DataView(bytes.buffer);
  for (let index = 0; index < 2000; index++) {
    assertEquals([view.getUint32(index * SLICE), view.getUint32(index * SLICE + 4)], [index, index * 7]);
  }
});

Deno.test("TableCache.writeDirty() writes chosen slices only, and the others stay dirty", () => {
  const { cache, file } = makeCache(8);
  for (const index of [0, 1, 2]) cache.markDirty(cache.get(index * SLICE));
  file.calls.length = 0;
  cache.writeDirty({ chosen: (slice) => slice.hostOffset === SLICE });
  assertEquals(file.calls.map(({ offset }) => offset), [SLICE]);
  assertEquals(cache.hasDirty, true);
  cache.writeDirty();
  assertEquals(file.calls.map(({ offset }) => offset), [SLICE, 0, 2 * SLICE]);
});

Deno.test("TableCache writes a dirty slice back before it gives its room away", () => {
  const { cache, inner } = makeCache(4);
  for (let index = 0; index < 200; index++) {
    const slice = cache.get(index * SLICE);
    slice.view.setUint32(4, 5000 + index);
    cache.markDirty(slice);
  }
  cache.writeDirty();
  const view = new DataView(inner.toBytes().buffer);
  for (let index = 0; index < 200; index++) assertEquals(view.getUint32(index * SLICE + 4), 5000 + index);
});

Deno.test("TableCache keeps dirty slices that could not be written, and goes on reading others", () => {
  const { cache, file, inner } = makeCache(4);
  for (const index of [0, 1, 2, 3]) {
    const slice = cache.get(index * SLICE);
    slice.view.setUint32(4, 77);
    cache.markDirty(slice);
  }
  file.onCall = ({ call }) => {
    if (call === "write") throw new Error("full");
  };
  for (let index = 4; index < 40; index++) assertEquals(numberOf(cache.get(index * SLICE)), index);
  file.onCall = undefined;
  assertEquals(numberOf(cache.get(9 * SLICE)), 9);
  cache.writeDirty();
  const view = new DataView(inner.toBytes().buffer);
  for (const index of [0, 1, 2, 3]) assertEquals(view.getUint32(index * SLICE + 4), 77);
});

Deno.test("TableCache does not grow without end where nothing can be written", () => {
  const { cache, file } = makeCache(4);
  file.onCall = ({ call }) => {
    if (call === "write") throw new Error("full");
  };
  let kept = 0;
  assertThrows(() => {
    for (; kept < 1000; kept++) cache.markDirty(cache.get(kept * SLICE));
  });
  assert(kept < 20);
});

Deno.test("TableCache does not hand out a slice whose reading failed", () => {
  const { cache, file } = makeCache(4);
  file.onCall = () => {
    throw new Error("bad sector");
  };
  let failed = false;
  try {
    cache.get(5 * SLICE);
  } catch {
    failed = true;
  }
  assert(failed);
  file.onCall = undefined;
  assertEquals(numberOf(cache.get(5 * SLICE)), 5);
});

Deno.test("TableCache.expectZeroes() lets each slice of a new table come without a read, once", () => {
  const { cache, file, inner } = makeCache(4);
  inner.writeAt(100 * SLICE, new Uint8Array(8 * SLICE));
  cache.expectZeroes(100 * SLICE, 8 * SLICE);
  const slice = cache.get(102 * SLICE);
  assertEquals([...slice.bytes], [...new Uint8Array(SLICE)]);
  assertEquals([file.calls.length, cache.hasDirty], [0, false]);
  slice.view.setUint32(0, 7);
  cache.markDirty(slice);
  // Others push it out; after that it is what was written.
  for (const index of [1, 2, 3, 4, 5]) assertEquals(numberOf(cache.get(index * SLICE)), index);
  assertEquals([file.count("read"), file.count("write")], [5, 1]);
  assertEquals(numberOf(cache.get(102 * SLICE)), 7);
  assertEquals(file.count("read"), 6);
  // What is no table any more, or not the last one made, is read.
  cache.get(103 * SLICE);
  assertEquals(file.count("read"), 6);
  cache.expectZeroes(200 * SLICE, 8 * SLICE);
  cache.get(104 * SLICE);
  assertEquals(file.count("read"), 7);
  cache.drop(200 * SLICE, 8 * SLICE);
  assertEquals(numberOf(cache.get(201 * SLICE)), 201);
});

Deno.test("TableCache.drop() forgets slices unwritten", () => {
  const { cache, file } = makeCache(8);
  for (const index of [2, 3]) {
    const slice = cache.get(index * SLICE);
    slice.bytes.fill(0);
    cache.markDirty(slice);
  }
  assertEquals(cache.hasDirty, true);
  cache.drop(2 * SLICE, 2 * SLICE);
  assertEquals(cache.hasDirty, false);
  cache.writeDirty();
  assertEquals(file.count("write"), 0);
  assertEquals(numberOf(cache.get(3 * SLICE)), 3);
});
