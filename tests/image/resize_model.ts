/**
 * An image that is resized, written, snapshotted and watched by bitmaps at random, with a plain array that must hold the same.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { Buffer } from "node:buffer";
import type { CheckResult, Preallocation, Qcow2File } from "../../mod.ts";
import { readBytes } from "../images.ts";
import type { Random } from "../random.ts";

/** What the disk must hold, and what its snapshots and bitmaps must say. */
export interface ResizeModelOptions {
  /** Where the random numbers come from. */
  readonly random: Random;
  /** The size to begin with, in bytes. */
  readonly size: number;
  /** The largest size, in bytes. */
  readonly maxSize: number;
  /** Opens the image for writing. */
  readonly open: () => Qcow2File;
  /** Called with what the disk holds while nobody has the image open. */
  readonly examine?: (model: ResizeModel) => void;
  /** What the backing file holds. */
  readonly backing?: Uint8Array;
  /** Whether snapshots are taken. */
  readonly snapshots?: boolean;
  /** Whether bitmaps are added. */
  readonly bitmaps?: boolean;
  /** Whether clusters are compressed. */
  readonly compressed?: boolean;
  /** Whether discarding makes clusters read as zeroes: not in version 2 over a backing file. */
  readonly discards?: boolean;
}

/** What a bitmap must say. */
interface BitmapModel {
  readonly granularity: number;
  auto: boolean;
  readonly bits: Set<number>;
}

const MAX_SNAPSHOTS = 3;
const MAX_BITMAPS = 3;

/** The image and the array. */
export class ResizeModel {
  /** What the disk must hold. */
  content: Uint8Array;
  readonly #options: ResizeModelOptions;
  readonly #snapshots = new Map<string, Uint8Array>();
  readonly #bitmaps = new Map<string, BitmapModel>();
  #disk: Qcow2File;
  #counter = 0;
  /** The last steps, for messages. */
  readonly #log: string[] = [];

  /** @param options The image, and what may happen to it. */
  constructor(options: ResizeModelOptions) {
    this.#options = options;
    this.content = new Uint8Array(options.size);
    this.content.set((options.backing ?? new Uint8Array()).subarray(0, options.size));
    this.#disk = options.open();
  }

  /** Does random things to both. */
  run(steps: number): void {
    try {
      for (let step = 0; step < steps; step++) this.#step();
      this.#reopen();
      this.#disk.close();
    } catch (error) {
      throw new Error(`After ${this.#log.slice(-12).join("; ")}: ${error}`, { cause: error });
    }
  }

  #step(): void {
    const { random, bitmaps = false, snapshots = false, compressed = false } = this.#options;
    switch (random.below(18)) {
      case 0:
      case 1:
      case 2:
        return this.#resize();
      case 3:
      case 4:
        return this.#zero(random.oneIn(2));
      case 5:
        return this.#discard();
      case 6:
        return this.#compare();
      case 7:
        return this.#reopen();
      case 8:
        this.#log.push("flush");
        return this.#disk.flush();
      case 9:
      case 10:
        return snapshots ? this.#snapshot() : undefined;
      case 11:
      case 12:
        return bitmaps ? this.#bitmap() : undefined;
      case 13:
        return compressed ? this.#writeCompressed() : undefined;
      default:
        return this.#write();
    }
  }

  /** A random size near or far, and what is preallocated on the way. */
  #newSize(): { size: number; preallocation: Preallocation } {
    const { random, maxSize } = this.#options;
    const cluster = this.#disk.allocationSize;
    const unit = random.pick([512, 512, cluster, cluster, 4 * cluster]);
    const old = this.content.length;
    const near = random.oneIn(3) ? Math.max(512, old + random.pick([-1, 1]) * random.below(3 * cluster)) : undefined;
    const size = Math.min(maxSize, Math.ceil((near ?? random.between(512, maxSize)) / unit) * unit);
    return {
      size,
      preallocation: size > old ? random.pick(["off", "off", "metadata", "falloc", "full"] as const) : "off",
    };
  }

  #resize(): void {
    const { size, preallocation } = this.#newSize();
    const old = this.content.length;
    this.#log.push(`resize ${old} to ${size} ${preallocation}`);
    this.#disk.resize(size, { shrink: true, preallocation });
    this.#setSize(size);
  }

  #setSize(size: number): void {
    const resized = new Uint8Array(size);
    resized.set(this.content.subarray(0, size));
    this.content = resized;
    for (const { bits, granularity } of this.#bitmaps.values()) {
      for (const bit of bits) if (bit * granularity >= size) bits.delete(bit);
    }
  }

  #write(): void {
    const { offset, length } = this.#range();
    this.#log.push(`write ${length} at ${offset}`);
    const data = this.#options.random.bytes(length);
    this.#disk.writeAt(offset, data);
    this.content.set(data, offset);
    this.#mark(offset, length);
  }

  #writeCompressed(): void {
    const { random } = this.#options;
    const cluster = this.#disk.allocationSize;
    const count = Math.ceil(this.content.length / cluster);
    if (count === 0) return;
    const offset = random.below(count) * cluster;
    const length = Math.min(cluster, this.content.length - offset);
    this.#log.push(`compress ${length} at ${offset}`);
    const data = new Uint8Array(length).fill(random.between(1, 255));
    this.#disk.writeCompressedAt(offset, data);
    this.content.set(data, offset);
    this.#mark(offset, length);
  }

  #zero(unmap: boolean): void {
    const { offset, length } = this.#range();
    this.#log.push(`zero ${length} at ${offset} ${unmap ? "unmap" : ""}`);
    this.#disk.writeZeroesAt(offset, length, { unmap });
    this.content.fill(0, offset, offset + length);
    this.#mark(offset, length);
  }

  #discard(): void {
    const { offset, length } = this.#range();
    const cluster = this.#disk.allocationSize;
    this.#log.push(`discard ${length} at ${offset}`);
    this.#disk.discardAt(offset, length);
    const end = offset + length;
    const first = Math.ceil(offset / cluster) * cluster;
    const last = end === this.content.length ? end : Math.floor(end / cluster) * cluster;
    if (first < last && this.#options.discards !== false) this.content.fill(0, first, last);
    this.#mark(offset, length);
  }

  #snapshot(): void {
    const { random } = this.#options;
    const names = [...this.#snapshots.keys()];
    if (names.length === 0 || (names.length < MAX_SNAPSHOTS && random.oneIn(2))) {
      const name = `s${++this.#counter}`;
      this.#log.push(`snapshot ${name}`);
      this.#disk.createSnapshot(name);
      this.#snapshots.set(name, this.content.slice());
      return;
    }
    const name = random.pick(names);
    if (random.oneIn(2)) {
      this.#log.push(`delete ${name}`);
      this.#disk.deleteSnapshot(name);
      this.#snapshots.delete(name);
      return;
    }
    const content = this.#snapshots.get(name) ?? new Uint8Array();
    this.#log.push(`apply ${name}`);
    this.#disk.applySnapshot(name);
    this.#setSize(content.length);
    this.content = content.slice();
    this.#mark(0, content.length);
  }

  #bitmap(): void {
    const { random } = this.#options;
    const names = [...this.#bitmaps.keys()];
    if (names.length === 0 || (names.length < MAX_BITMAPS && random.oneIn(2))) {
      const name = `b${++this.#counter}`;
      const granularity = random.pick([512, 4096, 65536]);
      const disabled = random.oneIn(3);
      this.#log.push(`add bitmap ${name} of ${granularity}`);
      this.#disk.addBitmap(name, { granularity, disabled });
      this.#bitmaps.set(name, { granularity, auto: !disabled, bits: new Set() });
      return;
    }
    const name = random.pick(names);
    const model = this.#bitmaps.get(name);
    if (model === undefined) return;
    switch (random.below(4)) {
      case 0:
        this.#log.push(`remove bitmap ${name}`);
        this.#disk.removeBitmap(name);
        this.#bitmaps.delete(name);
        break;
      case 1:
        this.#log.push(`clear bitmap ${name}`);
        this.#disk.clearBitmap(name);
        model.bits.clear();
        break;
      default:
        this.#log.push(`switch bitmap ${name}`);
        model.auto = !model.auto;
        if (model.auto) this.#disk.enableBitmap(name);
        else this.#disk.disableBitmap(name);
    }
  }

  #mark(offset: number, length: number): void {
    if (length === 0) return;
    for (const { auto, bits, granularity } of this.#bitmaps.values()) {
      const last = Math.floor((offset + length - 1) / granularity);
      for (let bit = Math.floor(offset / granularity); auto && bit <= last; bit++) bits.add(bit);
    }
  }

  #compare(): void {
    this.#log.push("compare");
    const disk = this.#disk;
    assertEquals(disk.size, this.content.length);
    assertSameBytes(readBytes(disk, 0, disk.size), this.content, "the disk");
    for (const { kind, offset, length, depth } of disk.extents()) {
      if (depth > 0 || kind === "data" || kind === "compressed") continue;
      assertSameBytes(new Uint8Array(length), this.content.subarray(offset, offset + length), `${kind} at ${offset}`);
    }
    for (const [name, content] of this.#snapshots) {
      const snapshot = disk.openSnapshot(name);
      assertEquals(snapshot.size, content.length);
      assertSameBytes(readBytes(snapshot, 0, snapshot.size), content, `snapshot ${name}`);
      snapshot.close();
    }
    for (const [name, { bits, granularity }] of this.#bitmaps) {
      const found = new Set<number>();
      for (const { offset, length } of disk.dirtyExtents(name)) {
        for (let at = offset; at < offset + length; at += granularity) found.add(at / granularity);
      }
      assertEquals([...found], [...bits].sort((a, b) => a - b), `bitmap ${name}`);
    }
    const { corruptions, leaks }: CheckResult = disk.check();
    assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
  }

  #reopen(): void {
    this.#compare();
    this.#log.push("reopen");
    this.#disk.close();
    this.#options.examine?.(this);
    this.#disk = this.#options.open();
    this.#compare();
  }

  /** A random range of the disk; it may be empty. */
  #range(): { offset: number; length: number } {
    const { random } = this.#options;
    const size = this.content.length;
    const cluster = this.#disk.allocationSize;
    if (size === 0) return { offset: 0, length: 0 };
    // What stands at the end of the disk is what resizing may harm.
    const anywhere = random.oneIn(3) ? Math.max(0, size - 1 - random.below(2 * cluster)) : random.below(size);
    const offset = anywhere - anywhere % random.pick([1, 512, 512, Math.max(512, cluster / 32), cluster]);
    const longest = random.pick([512, cluster / 32, cluster, 4 * cluster]);
    const length = random.oneIn(5) ? size - offset : Math.min(size - offset, random.between(0, longest));
    return { offset, length };
  }
}

function assertSameBytes(actual: Uint8Array, expected: Uint8Array, what: string): void {
  if (Buffer.compare(actual, expected) === 0) return;
  const different = actual.findIndex((byte, index) => byte !== expected[index]);
  throw new Error(
    `${what} differs at ${different}: found ${actual[different]} of ${actual.length}, ` +
      `expected ${expected[different]} of ${expected.length}`,
  );
}
