import { assert, assertEquals } from "@std/assert";
import { Buffer } from "node:buffer";
import { checkImage, type CreateOptions, type DirtyExtent, type Preallocation, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { filled, KIB, MIB, readBytes } from "../images.ts";
import { Random } from "../random.ts";
import { everyCrash, everyCrashOfPair } from "./every_crash.ts";
import type { ScratchFile } from "./flat_file.ts";
import type { Recorder } from "./recorder.ts";

const BACKING = filled(2 * MIB, 5);
const backing = () => RawFile.open(MemoryBlockFile.from(BACKING));

interface Case {
  readonly name: string;
  readonly created: Omit<CreateOptions, "size">;
  readonly from: number;
  readonly to: number;
  /** What is preallocated of what is added. */
  readonly preallocation?: Preallocation;
  /** Whether a bitmap watches. */
  readonly bitmap?: boolean;
  /** Whether a snapshot keeps what the disk loses. */
  readonly snapshot?: boolean;
}

const OVER: Omit<CreateOptions, "size"> = { backingFile: "b", backingFormat: "raw", backing };
const SMALL: Omit<CreateOptions, "size"> = { clusterSize: 512, refcountBits: 64 };
const SUBCLUSTERS: Omit<CreateOptions, "size"> = { clusterSize: 16 * KIB, extendedL2: true };
const DATA_FILE: Omit<CreateOptions, "size"> = { clusterSize: 4096, dataFile: "data" };

const CASES: readonly Case[] = [
  { name: "growing with small clusters and a longer L1 table", created: SMALL, from: 300 * KIB, to: 8 * MIB },
  { name: "growing with 1-bit refcounts", created: { ...SMALL, refcountBits: 1 }, from: 300 * KIB, to: 3 * MIB },
  {
    name: "growing with preallocation",
    created: { clusterSize: 4096 },
    from: 301 * KIB,
    to: 3 * MIB,
    preallocation: "metadata",
  },
  { name: "shrinking small clusters", created: SMALL, from: 900 * KIB, to: 100 * KIB + 512 },
  { name: "shrinking", created: { clusterSize: 4096 }, from: 9 * MIB, to: 301 * KIB },
  { name: "growing over a backing file", created: { clusterSize: 512, ...OVER }, from: 300 * KIB, to: MIB },
  { name: "growing beneath a bitmap", created: SMALL, from: 300 * KIB, to: 5 * MIB, bitmap: true },
  { name: "growing a little beneath a bitmap", created: {}, from: 300 * KIB, to: 5 * MIB, bitmap: true },
  { name: "shrinking beneath a bitmap", created: SMALL, from: 5 * MIB, to: 2 * MIB + 512, bitmap: true },
  {
    name: "shrinking beneath a bitmap beside a snapshot",
    created: { clusterSize: 4096 },
    from: 900 * KIB,
    to: 200 * KIB + 512,
    bitmap: true,
    snapshot: true,
  },
  { name: "growing with subclusters", created: SUBCLUSTERS, from: 300 * KIB + 512, to: MIB, bitmap: true },
  {
    name: "growing with reserved subclusters over a backing file",
    created: { ...SUBCLUSTERS, ...OVER, preallocation: "metadata" },
    from: 300 * KIB + 512,
    to: MIB,
    preallocation: "metadata",
    bitmap: true,
  },
  {
    name: "growing with allocated subclusters over a backing file",
    created: { ...SUBCLUSTERS, ...OVER },
    from: 300 * KIB + 512,
    to: MIB,
    preallocation: "full",
  },
  { name: "shrinking with subclusters", created: SUBCLUSTERS, from: MIB, to: 100 * KIB + 512, bitmap: true },
  { name: "growing a data file", created: DATA_FILE, from: 300 * KIB + 512, to: MIB, bitmap: true },
  {
    name: "growing and filling a data file",
    created: { ...DATA_FILE, ...OVER },
    from: 300 * KIB + 512,
    to: MIB,
    preallocation: "full",
  },
  {
    name: "growing a raw data file",
    created: { ...DATA_FILE, dataFileRaw: true },
    from: 300 * KIB + 512,
    to: MIB,
    bitmap: true,
  },
  { name: "shrinking a data file", created: DATA_FILE, from: MIB, to: 100 * KIB + 512, bitmap: true },
  {
    name: "shrinking a raw data file with subclusters",
    created: { ...DATA_FILE, ...SUBCLUSTERS, dataFileRaw: true },
    from: MIB,
    to: 100 * KIB + 512,
    bitmap: true,
  },
];

for (const { name, created, from, to, preallocation = "off", bitmap = false, snapshot = false } of CASES) {
  Deno.test(`A crash leaves the old size or the new one and everything that was flushed: ${name}`, () => {
    const random = new Random(name);
    const over = created.backingFile === undefined ? {} : { backing };
    const image = new MemoryBlockFile();
    const data = new MemoryBlockFile();
    const content = random.bytes(Math.min(from, 200 * KIB));
    {
      using disk = Qcow2File.create(image, { ...created, size: from, openDataFile: () => data });
      if (bitmap) disk.addBitmap("watched", { granularity: 512 });
      disk.writeAt(from - content.length, content);
      disk.writeAt(0, filled(50 * KIB, 3));
      if (snapshot) disk.createSnapshot("before");
    }
    const model = new Uint8Array(Math.max(from, to)).fill(created.backingFile === undefined ? 0 : 5, 0, from);
    model.set(content, from - content.length);
    model.fill(3, 0, 50 * KIB);
    const written = [{ offset: 0, length: 50 * KIB }, { offset: from - content.length, length: content.length }];
    const grows = to > from;
    const resize = (file: Recorder, dataFile: Recorder) => {
      using disk = Qcow2File.open(file, { write: true, dataFile: () => dataFile, ...over });
      disk.resize(to, { shrink: true, preallocation: grows ? preallocation : "off" });
    };
    let count = 0;
    const judge = (state: ScratchFile, dataState: ScratchFile, what: string) => {
      assertEquals(checkImage(state).corruptions, 0, what);
      using disk = Qcow2File.open(state, { write: true, dataFile: () => dataState, ...over });
      assert(disk.size === from || disk.size === to, `${disk.size} bytes after ${what}`);
      assertSame(readBytes(disk, 0, disk.size), model.slice(0, disk.size), what);
      if (created.dataFileRaw === true) {
        const raw = new Uint8Array(disk.size);
        dataState.readAt(0, raw);
        assertSame(raw, model.slice(0, disk.size), what);
      }
      for (const { name, inconsistent } of disk.bitmaps) {
        if (!inconsistent) assertEquals([...disk.dirtyExtents(name)], cut(written, disk.size), what);
        else disk.removeBitmap(name);
      }
      if (snapshot) assertSame(readBytes(disk.openSnapshot("before"), 0, from), model.slice(0, from), what);
      if (count++ % 5 > 0) return;
      // What is left is as good as any image: it grows, and nothing that was lost comes to light.
      const { size } = disk;
      disk.resize(size + 200 * KIB, count % 2 === 0 ? { preallocation: "metadata" } : {});
      assertSame(readBytes(disk, size, 200 * KIB), new Uint8Array(200 * KIB), `Growing after ${what}`);
      disk.writeAt(size - 512, filled(1024, 9));
      disk.flush();
      assertEquals(disk.check().corruptions, 0, `Growing after ${what}`);
    };
    const states = created.dataFile === undefined
      ? everyCrash(
        image.toBytes(),
        random,
        (recorder) => resize(recorder, recorder),
        (state, what) => judge(state, state, what),
      )
      : everyCrashOfPair(
        [image.toBytes(), data.toBytes()],
        random,
        (recorders) => resize(...recorders),
        (pair, what) => judge(...pair, what),
      );
    assert(states > 10, `${states} states`);
  });
}

for (const [clusterSize, from, to] of [[512, 3 * MIB, 100 * KIB + 512], [4096, 100 * KIB, 900 * KIB]] as const) {
  Deno.test(`A crash while a snapshot of ${to} bytes is applied to ${from} bytes leaves one of both, and no bitmap that lacks a change`, () => {
    const random = new Random(`apply ${to}`);
    const file = new MemoryBlockFile();
    const [before, after] = [random.bytes(from), random.bytes(to)];
    const written = { offset: 4096, length: 8192 };
    {
      using disk = Qcow2File.create(file, { size: to, clusterSize, refcountBits: 64 });
      disk.writeAt(0, after);
      disk.createSnapshot("other");
      disk.resize(from, { shrink: true });
      disk.writeAt(0, before);
      disk.addBitmap("auto", { granularity: 512 });
      disk.writeAt(written.offset, before.subarray(written.offset, written.offset + written.length));
      disk.addBitmap("still", { granularity: 512, disabled: true });
      disk.mergeBitmap("auto", "still");
    }
    let applied = 0;
    const states = everyCrash(file.toBytes(), random, (recorder) => {
      using disk = Qcow2File.open(recorder, { write: true });
      disk.applySnapshot("other");
    }, (state, what) => {
      assertEquals(checkImage(state).corruptions, 0, what);
      using disk = Qcow2File.open(state, { write: true });
      const isApplied = disk.size === to;
      assertSame(readBytes(disk, 0, disk.size), isApplied ? after : before, what);
      for (const { name, inconsistent } of disk.bitmaps) {
        if (inconsistent) continue;
        const marked = isApplied && name === "auto" ? [{ offset: 0, length: to }] : [written];
        assertEquals([...disk.dirtyExtents(name)], marked, `${name} after ${what}`);
        if (isApplied) applied++;
      }
    });
    assert(states > 20 && applied > 0, `${states} states`);
  });
}

/** The stretches as far as a disk of a size has them. */
function cut(extents: readonly DirtyExtent[], size: number): DirtyExtent[] {
  return extents.filter(({ offset }) => offset < size).map(({ offset, length }) => {
    return { offset, length: Math.min(length, size - offset) };
  });
}

function assertSame(actual: Uint8Array, expected: Uint8Array, what: string): void {
  if (Buffer.compare(actual, expected) === 0) return;
  assertEquals(actual.findIndex((byte, index) => byte !== expected[index]), -1, what);
  assertEquals(actual.length, expected.length, what);
}

Deno.test("everyCrash() notices where syncs come to nothing", () => {
  for (const [clusterSize, from, to] of [[512, 300 * KIB, 8 * MIB], [512, 900 * KIB, 100 * KIB]] as const) {
    const file = new MemoryBlockFile();
    let image = new Uint8Array();
    {
      using disk = Qcow2File.create(file, { size: from, clusterSize, refcountBits: 64 });
      disk.writeAt(0, filled(from, 1));
      disk.flush();
      image = file.toBytes();
    }
    let broken = 0;
    everyCrash(image, new Random("merged"), (recorder) => {
      using disk = Qcow2File.open(recorder, { write: true });
      disk.resize(to, { shrink: true });
    }, (state) => {
      try {
        if (checkImage(state).corruptions > 0) broken++;
      } catch {
        broken++;
      }
    }, { mergeSyncs: true });
    assert(broken > 0, `${clusterSize}: ${from} to ${to}`);
  }
});
