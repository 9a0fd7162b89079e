/**
 * {@linkcode Draft}: what random command lines are made up from.
 *
 * @module
 */

import { KIB, MIB } from "../images.ts";
import type { Random } from "../random.ts";
import type { ImageState, World } from "./world.ts";

/** Names of images; their formats change as they are made anew. */
const IMAGE_NAMES = ["a", "b", "c", "d", "e"];
const SNAPSHOT_NAMES = ["s", "t", "1", "2"];
const BITMAP_NAMES = ["one", "two", "three"];
const CACHE_MODES = ["none", "writeback", "writethrough", "directsync", "unsafe"];
const SECTOR_SIZE = 512;
const COMMON_SIZES = ["64k", "1M", "3M", "4M", "8M", "5000000", "1000", "512", "33M"];
/** Larger disks take long to compare. */
const LARGE_SIZES = ["34M", "48M"];

/** Makes up parts of command lines. */
export class Draft {
  /** Where everything comes from. */
  readonly random: Random;
  /** Which images there are. */
  readonly world: World;

  constructor(random: Random, world: World) {
    this.random = random;
    this.world = world;
  }

  /** Arguments with a chance of one in `count`, and otherwise none. */
  maybe(count: number, ...args: readonly string[]): readonly string[] {
    return this.random.oneIn(count) ? args : [];
  }

  /** An image that there is. */
  image(accept: (image: ImageState) => boolean = () => true): ImageState | undefined {
    const images = this.world.images.filter(accept);
    return images.length === 0 ? undefined : this.random.pick(images);
  }

  /** The name of an image that there is or, seldom, of none. */
  imageName(accept: (image: ImageState) => boolean = () => true): string {
    return this.random.oneIn(40) ? "nothing" : this.image(accept)?.name ?? "nothing";
  }

  /** The name of a target: mostly one that is free or nobody's backing file. */
  targetName(): string {
    const { random, world } = this;
    const backings = new Set(world.images.map(({ backing }) => backing));
    const harmless = IMAGE_NAMES.filter((name) => !backings.has(name));
    return random.pick(harmless.length === 0 || random.oneIn(20) ? IMAGE_NAMES : harmless);
  }

  /** The option `-f`, or none, or seldom one that does not fit. */
  formatOf(name: string, option = "-f"): readonly string[] {
    const format = this.world.find(name)?.format ?? "raw";
    if (this.random.oneIn(40)) return [option, this.random.pick(["qcow2", "nothing", ""])];
    return this.random.oneIn(2) ? [option, format] : [];
  }

  /** A cache mode, or seldom none that there is. */
  cacheMode(option: string): readonly string[] {
    return this.maybe(8, option, this.random.oneIn(20) ? "some" : this.random.pick(CACHE_MODES));
  }

  /** The way of output. */
  output(): readonly string[] {
    return this.random.pick([[], ["--output=json"], ["--output", "human"], ["--output=json"]]);
  }

  /** A virtual size. */
  size(): string {
    const { random } = this;
    if (random.oneIn(12)) return random.pick(LARGE_SIZES);
    return random.oneIn(3) ? String(this.sectors(8 * MIB)) : random.pick(COMMON_SIZES);
  }

  /** Whole sectors of at most some length, and at least one. */
  sectors(limit: number): number {
    return SECTOR_SIZE * this.random.between(1, Math.max(1, Math.floor(limit / SECTOR_SIZE)));
  }

  /** A part of a disk, mostly with ends at round places. */
  range(size: number): { offset: number; length: number } {
    const { random } = this;
    const unit = random.pick([SECTOR_SIZE, 4 * KIB, 64 * KIB, 1]);
    const offset = unit * random.below(Math.max(1, Math.floor(size / unit)));
    const most = Math.min(size - offset, random.pick([8 * KIB, 200 * KIB, 2 * MIB]));
    const length = Math.min(most, Math.max(unit, unit * random.below(Math.floor(most / unit) + 1)));
    return { offset, length: Math.max(1, length) };
  }

  /** A name for a snapshot, or one that there is. */
  snapshotName(image: ImageState | undefined): string {
    const known = image?.snapshots ?? [];
    return this.random.pick(known.length > 0 && !this.random.oneIn(5) ? known : SNAPSHOT_NAMES);
  }

  /** A name for a bitmap, or one that there is. */
  bitmapName(image: ImageState | undefined, known: boolean): string {
    const names = image?.bitmaps ?? [];
    return this.random.pick(known && names.length > 0 && !this.random.oneIn(5) ? names : BITMAP_NAMES);
  }

  /** The option `-o` with options for a new image, in one list or several. */
  creationOptions(format: string, target: string, { dataFile = true } = {}): readonly string[] {
    const list = format === "qcow2" ? this.#qcow2Options(target, dataFile) : this.#rawOptions();
    if (list.length === 0) return [];
    if (list.length > 1 && this.random.oneIn(4)) return list.flatMap((option) => ["-o", option]);
    return ["-o", list.join(",")];
  }

  #rawOptions(): string[] {
    return [...this.maybe(4, `preallocation=${this.random.pick(["off", "falloc", "full", "metadata"])}`)];
  }

  #qcow2Options(target: string, dataFile: boolean): string[] {
    const { random } = this;
    return [
      ...this.maybe(
        2,
        `cluster_size=${random.pick(["512", "1k", "2k", "4k", "16k", "64k", "128k", "2M", "1000", "4M"])}`,
      ),
      ...this.maybe(5, `compat=${random.pick(["0.10", "1.1", "v2", "v3", "2.0"])}`),
      ...this.maybe(5, `refcount_bits=${random.pick(["1", "2", "4", "8", "16", "32", "64", "3", "128"])}`),
      ...this.maybe(5, `extended_l2=${random.pick(["on", "on", "off"])}`),
      ...this.maybe(5, `lazy_refcounts=${random.pick(["on", "off"])}`),
      ...this.maybe(5, `compression_type=${random.pick(["zlib", "zstd", "lz4"])}`),
      ...this.maybe(6, `preallocation=${random.pick(["off", "metadata", "falloc", "full"])}`),
      ...(dataFile ? this.maybe(10, `data_file=${target}.data`) : []),
      ...(dataFile ? this.maybe(20, `data_file_raw=${random.pick(["on", "off"])}`) : []),
      ...this.maybe(60, `size=${this.size()}`),
      ...this.maybe(60, random.pick(["nothing=1", "", "nocow=on", "extent_size_hint=1M"])),
    ];
  }
}
