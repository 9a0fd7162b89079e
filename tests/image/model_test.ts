import { assert, assertEquals } from "@std/assert";
import { checkImage, type LayoutOptions, type OpenOptions, Qcow2File } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { emptyImage, GIB, KIB, MIB, readBytes } from "../images.ts";
import { Random } from "../random.ts";

/** A disk, and a plain array that must hold the same. */
class Twins {
  #file: MemoryBlockFile;
  #disk: Qcow2File;
  readonly #model: Uint8Array;
  readonly #random: Random;
  readonly #options: OpenOptions;
  /** Where on the disk the random range begins, so that a small one may lie far up. */
  readonly #base: number;

  constructor(layout: LayoutOptions, options: OpenOptions, window: number, random: Random) {
    this.#file = emptyImage(layout);
    this.#options = { ...options, write: true };
    this.#disk = Qcow2File.open(this.#file, this.#options);
    this.#model = new Uint8Array(Math.min(window, this.#disk.size));
    this.#base = this.#disk.size - this.#model.length;
    this.#random = random;
  }

  /** Does one random thing to both. */
  step(): void {
    const random = this.#random;
    const offset = this.#offset();
    const length = this.#length(offset);
    switch (random.below(16)) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
      case 5:
        this.#write(offset, length);
        break;
      case 6:
      case 7:
        this.#disk.writeZeroesAt(this.#base + offset, length, { unmap: random.oneIn(2) });
        this.#model.fill(0, offset, offset + length);
        break;
      case 8:
      case 9:
        this.#discard(offset, length);
        break;
      case 10:
      case 11:
      case 12:
        assertEquals(readBytes(this.#disk, this.#base + offset, length), this.#model.slice(offset, offset + length));
        break;
      case 13:
        this.#disk.flush();
        break;
      case 14:
        if (random.oneIn(20)) this.#reopen();
        break;
      case 15:
        if (random.oneIn(20)) this.assertClean();
        break;
    }
  }

  /** Asserts that the check finds nothing, with the image as it is. */
  assertClean(): void {
    const { corruptions, leaks } = this.#disk.check();
    assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
  }

  /** Asserts that all of the disk is as it should be, that its map says so, and that the closed image is clean. */
  finish(): void {
    assertEquals(readBytes(this.#disk, this.#base, this.#model.length), this.#model);
    for (const { kind, offset, length } of this.#disk.extents(this.#base, this.#model.length)) {
      if (kind === "data") continue;
      const from = offset - this.#base;
      assert(this.#model.subarray(from, from + length).every((byte) => byte === 0), `${kind} at ${offset} holds data`);
    }
    this.#reopen();
    assertEquals(readBytes(this.#disk, this.#base, this.#model.length), this.#model);
    this.#disk.close();
    const { corruptions, leaks } = checkImage(MemoryBlockFile.from(this.#file.toBytes()));
    assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
  }

  #offset(): number {
    const random = this.#random;
    const offset = random.below(this.#model.length);
    // Every other request begins where clusters, sectors and tables begin.
    const unit = random.pick([1, 1, 512, 4 * KIB, this.#disk.allocationSize]);
    return offset - offset % unit;
  }

  #length(offset: number): number {
    const cluster = this.#disk.allocationSize;
    const random = this.#random;
    const longest = random.pick([1, 512, cluster, 3 * cluster, 40 * cluster]);
    const length = random.oneIn(2) ? longest : random.between(0, longest);
    return Math.min(length, this.#model.length - offset);
  }

  #write(offset: number, length: number): void {
    const data = this.#random.bytes(length);
    this.#disk.writeAt(this.#base + offset, data);
    this.#model.set(data, offset);
  }

  #discard(offset: number, length: number): void {
    this.#disk.discardAt(this.#base + offset, length);
    const cluster = this.#disk.allocationSize;
    const start = this.#base + offset;
    const end = start + length;
    const first = Math.ceil(start / cluster) * cluster;
    // A last cluster that the disk cuts short is whole where its end is reached.
    const last = end === this.#disk.size ? end : Math.floor(end / cluster) * cluster;
    if (first < last) this.#model.fill(0, first - this.#base, last - this.#base);
  }

  #reopen(): void {
    this.#disk.close();
    this.#file = MemoryBlockFile.from(this.#file.toBytes());
    this.#disk = Qcow2File.open(this.#file, this.#options);
  }
}

interface Case {
  readonly name: string;
  readonly layout: LayoutOptions;
  readonly options?: OpenOptions;
  readonly window: number;
  readonly steps: number;
}

const CASES: readonly Case[] = [
  {
    name: "512-byte clusters and a cache of four slices",
    layout: { size: 3 * MIB + 1536, clusterSize: 512 },
    options: { cacheSize: 1 },
    window: 512 * KIB,
    steps: 20000,
  },
  {
    name: "512-byte clusters and 64-bit refcounts, whose table has to grow",
    layout: { size: 64 * MIB, clusterSize: 512, refcountBits: 64 },
    options: { cacheSize: 4 * KIB },
    window: 2 * MIB,
    steps: 30000,
  },
  {
    name: "1 KiB clusters and 1-bit refcounts",
    layout: { size: 700 * KIB + 512, clusterSize: 1024, refcountBits: 1 },
    options: { cacheSize: 1 },
    window: MIB,
    steps: 20000,
  },
  {
    name: "4 KiB clusters and 2-bit refcounts",
    layout: { size: 2 * MIB, clusterSize: 4096, refcountBits: 2 },
    window: 2 * MIB,
    steps: 30000,
  },
  {
    name: "4 KiB clusters in version 2",
    layout: { size: 2 * MIB + 512, clusterSize: 4096, version: 2 },
    options: { cacheSize: 1 },
    window: 2 * MIB,
    steps: 30000,
  },
  {
    name: "64 KiB clusters at the end of a disk of 1 TiB",
    layout: { size: 1024 * GIB + 512 },
    window: 8 * MIB,
    steps: 3000,
  },
  {
    name: "64 KiB clusters without durability",
    layout: { size: 8 * MIB - 512, refcountBits: 8 },
    options: { durability: "none" },
    window: 8 * MIB,
    steps: 3000,
  },
  {
    name: "2 MiB clusters and 32-bit refcounts",
    layout: { size: 20 * MIB + 512, clusterSize: 2 * MIB, refcountBits: 32 },
    window: 21 * MIB,
    steps: 150,
  },
  {
    name: "subclusters of 512 bytes and a cache of four slices",
    layout: { size: 3 * MIB + 1536, clusterSize: 16 * KIB, extendedL2: true },
    options: { cacheSize: 1 },
    window: 2 * MIB,
    steps: 10000,
  },
  {
    name: "subclusters of 2 KiB at the end of a disk of 1 TiB",
    layout: { size: 1024 * GIB + 512, extendedL2: true },
    window: 8 * MIB,
    steps: 3000,
  },
  {
    name: "subclusters of 64 KiB and 1-bit refcounts",
    layout: { size: 20 * MIB + 512, clusterSize: 2 * MIB, extendedL2: true, refcountBits: 1 },
    window: 21 * MIB,
    steps: 150,
  },
];

for (const { name, layout, options = {}, window, steps } of CASES) {
  Deno.test(`Qcow2File does what a plain array does, with ${name}`, () => {
    const twins = new Twins(layout, options, window, new Random(name));
    for (let step = 0; step < steps; step++) twins.step();
    twins.assertClean();
    twins.finish();
  });
}
