/**
 * What is done to images while the power may be cut.
 *
 * @module
 */

import { assertNotEquals } from "@std/assert";
import { type Disk, type LayoutOptions, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { emptyImage, getUint64, KIB, MIB } from "../images.ts";
import type { Random } from "../random.ts";
import { FlatBytes, ScratchFile } from "./flat_file.ts";
import type { Session } from "./session.ts";
import { poison, taggedBytes } from "./tags.ts";

/** A sequence of operations on one image. */
export interface Sequence {
  /** Its name, which is also the name of its random numbers. */
  readonly name: string;
  /** The image at the start. */
  readonly image: () => Uint8Array;
  /** The most bytes of L2 tables to keep in memory. */
  readonly cacheSize?: number;
  /** What the image's backing file is. */
  readonly backing?: () => Disk;
  /** Whether the host can punch holes; it cannot without it, so that reused clusters hold stale bytes. */
  readonly canPunch?: boolean;
  /** What to do. It may end early when the session is over. */
  readonly run: (session: Session) => void;
}

/** The number of the writes that were there before; no sequence is as long. */
const PREPARED_WRITE = 0x40000000;

/** How an image is made ready. */
export interface ImageOptions extends LayoutOptions {
  /** How many bytes that were never written stand behind its end. */
  readonly poisonLength?: number;
  /** Stretches of the disk that hold data. */
  readonly filled?: readonly (readonly [offset: number, length: number])[];
}

/** An image with data, and with poison in what is free. */
export function preparedImage({ poisonLength = 0, filled = [], ...layout }: ImageOptions): Uint8Array {
  const file = emptyImage(layout);
  if (filled.length > 0) {
    const disk = Qcow2File.open(file, { write: true, lock: false });
    for (const [offset, length] of filled) disk.writeAt(offset, taggedBytes(PREPARED_WRITE, offset, length));
    disk.close();
  }
  const content = file.toBytes();
  const withPoison = MemoryBlockFile.from(content);
  withPoison.writeAt(content.length, poison(poisonLength));
  return withPoison.toBytes();
}

/** The image formats that most sequences go through. */
const LAYOUTS: readonly { readonly name: string; readonly layout: ImageOptions }[] = [
  { name: "512-byte clusters", layout: { size: 96 * KIB, clusterSize: 512, poisonLength: 40 * KIB } },
  {
    name: "512-byte clusters and 1-bit refcounts",
    layout: { size: 80 * KIB + 512, clusterSize: 512, refcountBits: 1, poisonLength: 100 * KIB },
  },
  {
    name: "512-byte clusters and 64-bit refcounts",
    layout: { size: 64 * KIB, clusterSize: 512, refcountBits: 64, poisonLength: 20 * KIB },
  },
  {
    name: "4 KiB clusters and 2-bit refcounts",
    layout: { size: 256 * KIB + 1536, clusterSize: 4096, refcountBits: 2, poisonLength: 60 * KIB },
  },
  { name: "4 KiB clusters in version 2", layout: { size: 256 * KIB, clusterSize: 4096, version: 2 } },
  { name: "64 KiB clusters", layout: { size: MIB - 512, poisonLength: 300 * KIB } },
  { name: "64 KiB clusters and 32-bit refcounts", layout: { size: MIB, refcountBits: 32 } },
  {
    name: "subclusters of 512 bytes",
    layout: { size: MIB + 512, clusterSize: 16 * KIB, extendedL2: true, poisonLength: 200 * KIB },
  },
];

/** Calls back for pieces of a range until the session is over. */
function inPieces(session: Session, from: number, to: number, length: number, fn: (offset: number) => void): void {
  for (let offset = from; offset < to && !session.isOver; offset += length) fn(offset);
}

function firstFill(session: Session): void {
  const { clusterSize, size } = session;
  let piece = 0;
  inPieces(session, 0, size, 3 * clusterSize, (offset) => {
    session.write(offset, Math.min(3 * clusterSize, size - offset));
    if (++piece % 4 === 0) session.flush();
  });
  session.close();
}

function overwrite(session: Session): void {
  const { clusterSize, size, random } = session;
  session.write(0, size);
  session.flush();
  for (let turn = 0; turn < 10 && !session.isOver; turn++) {
    const offset = random.below(size - 2 * clusterSize);
    session.write(offset - offset % 512, 512 * random.between(1, 2 * clusterSize / 512));
    if (turn % 3 === 2) session.flush();
  }
  session.close();
}

function partialWrites(session: Session): void {
  const { clusterSize, size, random } = session;
  for (let turn = 0; turn < 24 && !session.isOver; turn++) {
    const offset = random.below(size - 2 * clusterSize);
    session.write(offset, random.between(1, random.pick([100, 512, clusterSize, 2 * clusterSize])));
    if (turn % 4 === 3) session.flush();
    if (turn % 10 === 9) session.reopen();
  }
  session.readBack();
  session.close();
}

function discardAndReuse(session: Session): void {
  const { clusterSize, size } = session;
  const half = Math.floor(size / clusterSize / 2) * clusterSize;
  const step = 5 * clusterSize;
  session.write(0, half);
  session.flush();
  let turn = 0;
  inPieces(session, 0, half - step, step, (offset) => {
    session.discard(offset, 3 * clusterSize);
    if (turn % 3 === 0) session.flush();
    session.write(half + offset, 2 * clusterSize);
    session.write(offset, clusterSize + 7);
    if (turn % 3 === 1) session.flush();
    if (turn % 5 === 4) session.reopen();
    turn++;
  });
  session.readBack();
  session.close();
}

function writeZeroes(session: Session): void {
  const { clusterSize, size, random } = session;
  const half = Math.floor(size / clusterSize / 2) * clusterSize;
  session.write(0, half);
  session.flush();
  for (let turn = 0; turn < 20 && !session.isOver; turn++) {
    const offset = random.below(half - 3 * clusterSize);
    session.writeZeroes(offset - offset % random.pick([1, 512, clusterSize]), 2 * clusterSize, turn % 2 === 0);
    // Into clusters kept in reserve, and others.
    if (turn % 3 !== 0) session.write(offset, random.pick([77, 512, clusterSize]));
    if (turn % 4 === 3) session.flush();
    if (turn % 10 === 9) session.reopen();
  }
  session.readBack();
  session.close();
}

function mixture(session: Session): void {
  const { clusterSize, size, random } = session;
  for (let turn = 0; turn < 40 && !session.isOver; turn++) {
    const offset = random.below(size - 4 * clusterSize);
    const aligned = offset - offset % clusterSize;
    switch (random.below(6)) {
      case 0:
        session.discard(aligned, 3 * clusterSize);
        break;
      case 1:
        session.writeZeroes(aligned, 2 * clusterSize, random.oneIn(2));
        break;
      case 2:
        session.flush();
        break;
      default:
        session.write(offset, random.between(1, 3 * clusterSize));
    }
  }
  session.close();
}

function compressed(session: Session): void {
  const { clusterSize, size, random } = session;
  for (let turn = 0; turn < 30 && !session.isOver; turn++) {
    const offset = random.below(size - 4 * clusterSize);
    const aligned = offset - offset % clusterSize;
    // Into clusters that are compressed already, and others.
    if (turn % 5 === 3) session.write(offset, random.pick([77, 512, clusterSize]));
    else if (turn % 7 === 5) session.discard(aligned, 3 * clusterSize);
    else session.writeCompressed(aligned, random.between(1, 4) * clusterSize);
    if (turn % 4 === 3) session.flush();
    if (turn % 13 === 12) session.reopen();
  }
  session.readBack();
  session.close();
}

/** What most sequences do, on any image. */
export const KINDS: Readonly<Record<string, (session: Session) => void>> = {
  "first fill": firstFill,
  "overwrite": overwrite,
  "partial writes": partialWrites,
  "discard and reuse": discardAndReuse,
  "write zeroes": writeZeroes,
  "a mixture": mixture,
  "compressed clusters": compressed,
};

/** Each kind of sequence with each image format. */
const COMMON: readonly Sequence[] = Object.entries(KINDS).flatMap(([kind, run]) =>
  LAYOUTS.map(({ name, layout }, index): Sequence => ({
    name: `${kind} with ${name}`,
    image: () => preparedImage(layout),
    cacheSize: index % 2 === 0 ? 1 : MIB,
    canPunch: index % 3 === 0,
    run,
  }))
);

const GROWING: ImageOptions = { size: 2 * MIB, clusterSize: 512, refcountBits: 64, filled: [[0, 1960 * KIB]] };

/** Where the refcount table stands, as the file says. */
function refcountTableOffset(session: Session): bigint {
  return getUint64(session.recorder, 48);
}

/** Sequences for what only certain images have. */
const SPECIAL: readonly Sequence[] = [
  {
    name: "growth of the refcount table",
    image: () => preparedImage(GROWING),
    cacheSize: 1,
    run(session) {
      const before = refcountTableOffset(session);
      inPieces(session, 1960 * KIB, session.size, 8 * KIB, (offset) => {
        session.write(offset, 8 * KIB);
        session.flush();
      });
      session.discard(0, 8 * KIB);
      session.flush();
      session.write(0, 4 * KIB);
      session.close();
      if (!session.isOver) assertNotEquals(refcountTableOffset(session), before);
    },
  },
  {
    name: "growth of the refcount table by an eviction",
    image: () => preparedImage({ ...GROWING, poisonLength: 128 * KIB }),
    cacheSize: 1,
    run(session) {
      const before = refcountTableOffset(session);
      inPieces(session, 1960 * KIB, session.size, 8 * KIB, (offset) => {
        session.write(offset, 8 * KIB);
        session.write(offset % (256 * KIB), 512);
      });
      session.flush();
      session.close();
      if (!session.isOver) assertNotEquals(refcountTableOffset(session), before);
    },
  },
  {
    name: "an L1 table over several clusters",
    image: () => preparedImage({ size: 5 * MIB, clusterSize: 512, poisonLength: 50 * KIB }),
    run(session) {
      for (let turn = 0; turn < 24 && !session.isOver; turn++) {
        session.write(turn % 4 * 1300 * KIB + turn * 32 * KIB, 700);
        if (turn % 6 === 5) session.flush();
      }
      session.close();
    },
  },
  {
    name: "evictions with 512-byte clusters",
    image: () => preparedImage({ size: 512 * KIB, clusterSize: 512, poisonLength: 200 * KIB }),
    cacheSize: 1,
    run: (session) => evictions(session, 50, 40),
  },
  {
    name: "evictions with 512-byte clusters and discards",
    image: () =>
      preparedImage({
        size: 512 * KIB,
        clusterSize: 512,
        refcountBits: 8,
        filled: [[0, 512 * KIB]],
        poisonLength: 512,
      }),
    cacheSize: 1,
    canPunch: true,
    run(session) {
      for (let turn = 0; turn < 40 && !session.isOver; turn++) {
        const offset = session.random.below(session.size / 512) * 512;
        if (turn % 2 === 0) session.discard(offset, Math.min(3 * 512, session.size - offset));
        else session.write(offset, 512);
        if (turn % 15 === 14) session.flush();
      }
      session.close();
    },
  },
  {
    name: "evictions with 4 KiB clusters",
    image: () => preparedImage({ size: 12 * MIB, clusterSize: 4096, refcountBits: 4, poisonLength: 64 * KIB }),
    cacheSize: 1,
    run: (session) => evictions(session, 16, 8),
  },
  {
    name: "evictions with 8 KiB clusters, whose tables have two slices",
    image: () => preparedImage({ size: 17 * MIB, clusterSize: 8192, poisonLength: 128 * KIB }),
    cacheSize: 1,
    run: (session) => evictions(session, 20, 20),
  },
];

function evictions(session: Session, turns: number, flushEvery: number): void {
  const { random, size } = session;
  for (let turn = 0; turn < turns && !session.isOver; turn++) {
    const offset = random.below(size - 2048);
    session.write(offset - offset % 512, 512 * random.between(1, 4));
    if (turn % flushEvery === flushEvery - 1) session.flush();
  }
  session.close();
}

/** The number of the write that filled the backing file; no sequence is as long. */
const BACKING_WRITE = 0x60000000;

/** Images over a backing file that ends within a cluster and before they do. */
const OVERLAYS: readonly Sequence[] = [
  { size: 64 * KIB, clusterSize: 512, poisonLength: 30 * KIB },
  { size: 200 * KIB, clusterSize: 4096, poisonLength: 90 * KIB },
  { size: 200 * KIB, clusterSize: 4096, version: 2 as const },
  { size: MIB, clusterSize: 65536, poisonLength: 200 * KIB },
  { size: MIB, clusterSize: 16 * KIB, extendedL2: true, poisonLength: 200 * KIB },
].flatMap((layout, index) => {
  const length = Math.floor(layout.size * 0.7 / 512) * 512;
  const file = new ScratchFile(new FlatBytes(taggedBytes(BACKING_WRITE, 0, length)));
  return (["partial writes", "discard and reuse", "write zeroes", "compressed clusters"] as const).map((kind) => ({
    name: `${kind} over a backing file ${index}`,
    image: () => preparedImage({ ...layout, backingFile: "base.raw", backingFormat: "raw" }),
    cacheSize: 1,
    backing: () => RawFile.open(file, { lock: false }),
    run: (session: Session) => KINDS[kind]?.(session),
  }));
});

/** The sequences that were written down. */
export const SCRIPTED: readonly Sequence[] = [...COMMON, ...SPECIAL, ...OVERLAYS];

/**
 * A random sequence on a random image, with crashes in between.
 *
 * @param name Its name.
 * @param random Where it comes from.
 */
export function randomSequence(name: string, random: Random): Sequence {
  const clusterSize = random.pick([512, 512, 512, 1024, 4096, 4096, 16 * KIB, 65536]);
  const version = random.oneIn(6) ? 2 : 3;
  const extendedL2 = version === 3 && clusterSize >= 16 * KIB && random.oneIn(2);
  const tables = clusterSize === 512 ? random.between(1, 8) : 1;
  const largest = clusterSize >= 16 * KIB ? MIB : Math.min(512 * KIB, tables * clusterSize * clusterSize / 8);
  const size = Math.max(8 * clusterSize, random.between(1, largest / 512) * 512);
  const layout: ImageOptions = {
    size,
    version,
    clusterSize,
    extendedL2,
    refcountBits: version === 2 ? 16 : 2 ** random.below(7),
    poisonLength: random.oneIn(3) ? 0 : random.below(4 * size),
    filled: random.oneIn(2) ? [] : [[0, random.between(1, size / 512) * 512]],
  };
  const steps = random.between(10, 60);
  const chances = { flush: random.between(3, 20), crash: random.pick([15, 40, 1000]), reopen: random.pick([20, 1000]) };
  return {
    name,
    image: () => preparedImage(layout),
    ...(random.oneIn(2) ? { cacheSize: 1 } : {}),
    canPunch: random.oneIn(2),
    run(session) {
      for (let step = 0; step < steps && !session.isOver; step++) {
        if (random.oneIn(chances.flush)) session.flush();
        else if (random.oneIn(chances.crash)) session.crash();
        else if (random.oneIn(chances.reopen)) session.reopen();
        else randomOperation(session, random);
      }
      session.readBack();
      session.close();
    },
  };
}

/** One random change of the disk. */
export function randomOperation(session: Session, random: Random): void {
  const { clusterSize, size } = session;
  const unit = random.pick([1, 512, clusterSize, clusterSize]);
  const start = random.below(size);
  const offset = start - start % unit;
  const longest = random.pick([512, clusterSize, 3 * clusterSize, 12 * clusterSize]);
  const length = Math.min(random.oneIn(2) ? longest : random.between(1, longest), size - offset);
  const kind = random.below(11);
  if (kind === 10) {
    const first = offset - offset % clusterSize;
    // Whole clusters, or up to the end of the disk.
    session.writeCompressed(first, Math.min(size - first, Math.ceil(length / clusterSize) * clusterSize));
  } else if (kind === 0) session.writeZeroes(offset, length, false);
  else if (kind === 1) session.writeZeroes(offset, length, true);
  else if (kind < 4) session.discard(offset, length);
  else session.write(offset, length);
}
