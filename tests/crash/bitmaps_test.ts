import { assertEquals } from "@std/assert";
import { createLayout, encodeHeader, EXTENSION } from "../../lib/format/mod.ts";
import type { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { type HeaderExtension, type LayoutOptions, Qcow2Error, Qcow2File } from "../../mod.ts";
import { copyOf, emptyImage, filled, KIB } from "../images.ts";
import { Random } from "../random.ts";
import { check } from "./examine.ts";
import { ScratchFile } from "./flat_file.ts";
import { Recorder } from "./recorder.ts";
import { buildState, crashStates, describeState, type StateLimits } from "./states.ts";

const DISK_SIZE = 512 * KIB + 3584;
const LIMITS: StateLimits = { listed: 10, subsets: 6, torn: 10 };
const WRITE = 4096;

/** Does many things with bitmaps and looks at every state that a crash in between could leave. */
function explore(name: string, layout: LayoutOptions, steps: number, prepare?: (disk: Qcow2File) => void): number {
  const random = new Random(name);
  const file = emptyImage(layout);
  const start = Qcow2File.open(file, { write: true, lock: false });
  start.addBitmap("watched", { granularity: 4096 });
  prepare?.(start);
  start.close();
  const recorder = new Recorder(file.toBytes());
  const scratch = new ScratchFile(recorder.durable);
  recorder.onCommit = (from, to) => scratch.touch(from, to);
  let states = 0;
  recorder.onSync = () => {
    for (const state of crashStates(recorder.changes, random, LIMITS)) {
      buildState(scratch, recorder.changes, state);
      try {
        examine(scratch, ++states % 7 === 0);
      } catch (error) {
        throw new Error(`Step ${step}, state ${states} ${describeState(state)}: ${error}`, { cause: error });
      } finally {
        scratch.restore();
      }
    }
  };
  let step = 0;
  for (; step < steps; step++) {
    const disk = Qcow2File.open(recorder, { write: true, lock: false });
    for (let turn = random.below(6); turn >= 0; turn--) act(disk, random, step);
    disk.close();
  }
  return states;
}

function act(disk: Qcow2File, random: Random, step: number): void {
  const names = disk.bitmaps.map(({ name }) => name).filter((name) => name !== "watched");
  const offset = random.below(Math.floor(DISK_SIZE / WRITE)) * WRITE;
  switch (random.below(9)) {
    case 0:
      return disk.addBitmap(`${step} ${random.next()}`, { granularity: 512, disabled: random.oneIn(2) });
    case 1:
      return names.length === 0 ? undefined : disk.removeBitmap(random.pick(names));
    case 2:
      return names.length === 0 ? undefined : disk.mergeBitmap("watched", random.pick(names));
    case 3:
      return names.length === 0 ? undefined : disk.clearBitmap(random.pick(names));
    case 4:
      return names.length === 0 ? undefined : disk.disableBitmap(random.pick(names));
    case 5:
      return disk.writeZeroesAt(offset, Math.min(random.between(1, 40000), DISK_SIZE - offset), {
        unmap: random.oneIn(2),
      });
    case 6:
      return disk.flush();
    default:
      return disk.writeAt(offset, random.bytes(WRITE));
  }
}

/** The disk was empty when "watched" was added: whatever is not zero now, it must know, unless it is marked. */
function examine(file: ScratchFile, thoroughly: boolean): void {
  const { problem } = check(file);
  if (problem !== undefined) throw new Error(problem.message);
  const disk = Qcow2File.open(file, { lock: false });
  const content = new Uint8Array(DISK_SIZE);
  disk.readAt(0, content);
  for (const { name, inconsistent } of disk.bitmaps) {
    if (inconsistent) continue;
    const extents = [...disk.dirtyExtents(name)];
    if (name !== "watched") continue;
    for (const { offset, length } of extents) content.fill(0, offset, offset + length);
    const missed = content.findIndex((byte) => byte !== 0);
    if (missed >= 0) throw new Error(`Bitmap "${name}" is clean and lacks the write at ${missed}`);
  }
  if (!thoroughly) return;
  // Going on from here harms nothing, and every bitmap can be removed.
  const written = Qcow2File.open(file, { write: true, lock: false });
  written.writeAt(0, new Uint8Array(WRITE).fill(9));
  written.addBitmap("added afterwards");
  for (const { name } of written.bitmaps) written.removeBitmap(name);
  written.close();
  const after = check(file);
  if (after.problem !== undefined) throw new Error(`After going on: ${after.problem.message}`);
  assertEquals(Qcow2File.open(file, { lock: false }).header.extensions.some(({ type }) => type === 0x23852875), false);
}

for (
  const [what, layout] of [
    ["clusters of 512 bytes and 64-bit refcounts", { clusterSize: 512, refcountBits: 64 }],
    ["clusters of 4 KiB", { clusterSize: 4096, refcountBits: 16 }],
    ["clusters of 64 KiB", { clusterSize: 65536 }],
  ] as const
) {
  Deno.test(`No crash leaves a bitmap that lacks a write and looks clean, with ${what}`, () => {
    const states = explore(`crash ${what}`, { size: DISK_SIZE, ...layout }, 8);
    assertEquals(states > 300, true);
  });
}

Deno.test("The exploration of crashes notices a bitmap that is not marked in time", () => {
  const recorder = (() => {
    const file = emptyImage({ size: DISK_SIZE, clusterSize: 4096 });
    const disk = Qcow2File.open(file, { write: true, lock: false });
    disk.writeAt(0, new Uint8Array(WRITE).fill(1));
    disk.addBitmap("watched", { granularity: 4096 });
    disk.close();
    return new Recorder(file.toBytes());
  })();
  let message = "";
  try {
    examine(new ScratchFile(recorder.durable), false);
  } catch (error) {
    message = String(error);
  }
  assertEquals(message, 'Error: Bitmap "watched" is clean and lacks the write at 0');
});

/** Adds and removes bitmaps in an image with other extensions, and looks at every state that a crash could leave. */
function exploreExtensions(file: MemoryBlockFile, base: MemoryBlockFile, names: readonly string[]): number {
  const backing = () => Qcow2File.open(copyOf(base), { lock: false });
  const recorder = new Recorder(file.toBytes());
  const scratch = new ScratchFile(recorder.durable);
  recorder.onCommit = (from, to) => scratch.touch(from, to);
  const random = new Random("extensions");
  const disk = Qcow2File.open(recorder, { write: true, lock: false, backing });
  const { backingFile } = disk.header;
  const others = unknownOf(disk);
  let states = 0;
  recorder.onSync = () => {
    for (const state of crashStates(recorder.changes, random, LIMITS)) {
      buildState(scratch, recorder.changes, state);
      states++;
      const crashed = Qcow2File.open(scratch, { lock: false, backing });
      assertEquals(crashed.header.backingFile, backingFile);
      assertEquals(unknownOf(crashed), others);
      const known = crashed.bitmaps.filter(({ inconsistent }) => !inconsistent).map(({ name }) => name);
      assertEquals(known.every((name) => names.includes(name)), true, known.join());
      assertEquals(check(scratch).problem, undefined);
      scratch.restore();
    }
  };
  for (const name of names) if (!disk.bitmaps.some((bitmap) => bitmap.name === name)) disk.addBitmap(name);
  for (const name of names) disk.removeBitmap(name);
  disk.addBitmap("a");
  disk.close();
  const after = Qcow2File.open(recorder, { lock: false, backing });
  assertEquals([unknownOf(after), after.bitmaps.map(({ name }) => name)], [others, ["a"]]);
  return states;
}

/** The extensions that are not of bitmaps, in their order. */
function unknownOf(disk: Qcow2File): HeaderExtension[] {
  return disk.header.extensions.filter(({ type }) => type !== EXTENSION.bitmaps && type !== 0x76616374);
}

Deno.test("A crash while header extensions are rewritten leaves them whole, and the name of the backing file", () => {
  const base = emptyImage({ size: DISK_SIZE, clusterSize: 4096 });
  // The name of the backing file stands where the extension goes, and crosses a sector.
  const layout = createLayout({ size: DISK_SIZE, clusterSize: 4096, backingFormat: "raw" });
  for (const length of [0, 8, 60, 90, 104, 400]) {
    for (const bitmapsFirst of [false, true]) {
      const unknown = { type: 0x12345678, data: filled(length, 7) };
      const header = { ...layout.header, backingFile: "b".repeat(700) };
      const file = emptyImage({ size: DISK_SIZE, clusterSize: 4096 });
      file.writeAt(0, encodeHeader({ ...header, extensions: [...layout.header.extensions, unknown] }));
      if (bitmapsFirst) {
        const backing = () => Qcow2File.open(copyOf(base), { lock: false });
        const disk = Qcow2File.open(file, { write: true, lock: false, backing });
        disk.addBitmap("a");
        const { extensions } = disk.header;
        const bytes = encodeHeader({
          ...disk.header,
          extensions: [...extensions.slice(-1), ...extensions.slice(0, -1)],
        });
        disk.close();
        const reordered = copyOf(file);
        reordered.writeAt(0, bytes);
        assertEquals(exploreExtensions(reordered, base, ["a", "b"]) > 20, true);
      } else {
        assertEquals(exploreExtensions(file, base, ["a", "b"]) > 20, true);
      }
    }
  }
});

Deno.test("A write fails where the bitmaps cannot be marked, and reaches nothing", () => {
  const file = emptyImage({ size: DISK_SIZE });
  const start = Qcow2File.open(file, { write: true, lock: false });
  start.addBitmap("watched");
  start.close();
  const recorder = new Recorder(file.toBytes());
  const disk = Qcow2File.open(recorder, { write: true, lock: false });
  recorder.onCall = (call) => {
    if (call === "sync") throw new Qcow2Error("io", "no sync");
  };
  let code = "";
  try {
    disk.writeAt(0, new Uint8Array(WRITE).fill(1));
  } catch (error) {
    if (error instanceof Qcow2Error) code = error.code;
  }
  assertEquals(code, "io");
  const content = new Uint8Array(WRITE);
  disk.readAt(0, content);
  assertEquals(content, new Uint8Array(WRITE));
});
