/**
 * What can be done with the persistent bitmaps of an image.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { BITMAP_FLAG, type BitmapEntry } from "../format/bitmap_directory.ts";
import { MAX_BITMAP_GRANULARITY_BITS, MIN_BITMAP_GRANULARITY_BITS } from "../format/limits.ts";
import { BitmapChanges, type DirtyExtent, extentsOfChunks, uniteChunks } from "../metadata/bitmap_changes.ts";
import { BitmapRecorder } from "../metadata/bitmap_recorder.ts";
import { type BitmapResizeOptions, BitmapStore } from "../metadata/bitmap_store.ts";
import { BitmapTable, writeBitmapTable } from "../metadata/bitmap_table.ts";
import { bitmapsAreConsistent } from "../metadata/bitmaps.ts";
import type { ImageMetadata } from "../metadata/image_metadata.ts";

export type { DirtyExtent };

/** A persistent bitmap: it tells which parts of the disk were written since it was added or cleared. */
export interface Bitmap {
  /** The name, unique. */
  readonly name: string;
  /** How many bytes of the disk one bit stands for. */
  readonly granularity: number;
  /** Whether a writer has not brought it up to date: the flag `in-use` of `qemu-img info`. */
  readonly inUse: boolean;
  /** Whether it records writes: the flag `auto` of `qemu-img info`. */
  readonly auto: boolean;
  /** Whether its bits may lack writes, so that it can only be removed: it is in use, or nothing vouches for any bitmap. */
  readonly inconsistent: boolean;
  /** Why this package cannot use it, so that it can only be removed; `undefined` where it can. */
  readonly unusable: string | undefined;
}

/** How {@linkcode Qcow2File.addBitmap} makes a bitmap. */
export interface AddBitmapOptions {
  /**
   * How many bytes of the disk one bit stands for: a power of two from 512 to 2 GiB. By default the cluster size, but at least
   * 4 KiB and at most 64 KiB.
   */
  readonly granularity?: number;
  /**
   * Whether the bitmap is added switched off, so that it does not record writes.
   *
   * @default {false}
   */
  readonly disabled?: boolean;
}

const MIN_DEFAULT_GRANULARITY = 4096;
const MAX_DEFAULT_GRANULARITY = 65536;

/** The bitmaps of one open image. The caller has checked that it may be written. */
export class Bitmaps {
  readonly #metadata: ImageMetadata;
  readonly #store: BitmapStore;
  readonly #recorder: BitmapRecorder;

  /** @param metadata The image's metadata. */
  constructor(metadata: ImageMetadata) {
    this.#metadata = metadata;
    this.#store = new BitmapStore(metadata);
    this.#recorder = new BitmapRecorder(metadata, this.#store);
  }

  /** All bitmaps in their order. */
  list(): Bitmap[] {
    const entries = this.#store.entries();
    const trusted = bitmapsAreConsistent(this.#metadata.header);
    return entries.map((entry) => {
      const inUse = entry.inUse && this.#recorder.changesOf(entry.name) === undefined;
      return {
        name: entry.name,
        granularity: 2 ** entry.granularityBits,
        inUse,
        auto: entry.auto,
        inconsistent: inUse || !trusted,
        unusable: this.#store.defectOf(entry, entries),
      };
    });
  }

  /** Notes that a range of the disk is about to change. */
  record(offset: number, length: number): void {
    this.#recorder.record(offset, length);
  }

  /** Brings what was recorded to the file. */
  save(): void {
    this.#recorder.store();
  }

  /** Brings all bitmaps up to date before the disk gets another size, and refuses one that not all of them can have. */
  prepareResize(diskSize: number): void {
    this.#recorder.store();
    this.#store.checkResize(diskSize);
  }

  /** Changes the size of the disk, and with it all bitmaps, which were prepared for it. */
  resize(diskSize: number, options: BitmapResizeOptions = {}): void {
    this.#store.resize(diskSize, options);
  }

  /** Adds an empty bitmap. */
  add(name: string, options: AddBitmapOptions): void {
    const granularity = options.granularity ?? this.#defaultGranularity();
    const granularityBits = Math.log2(granularity);
    if (
      !Number.isInteger(granularityBits) || granularityBits < MIN_BITMAP_GRANULARITY_BITS ||
      granularityBits > MAX_BITMAP_GRANULARITY_BITS
    ) {
      throw new Qcow2Error(
        "invalid-argument",
        `Granularity is ${granularity}, expected a power of two from 512 to 2 GiB`,
        {
          found: granularity,
          expected: "a power of two from 512 to 2 GiB",
        },
      );
    }
    this.#recorder.store();
    this.#store.add({ name, granularityBits, auto: !(options.disabled ?? false) });
  }

  /** Removes a bitmap. */
  remove(name: string): void {
    this.#recorder.store();
    this.#store.remove(name);
  }

  /** Clears all bits of a bitmap. */
  clear(name: string): void {
    this.#recorder.store();
    const old = this.#tableOf(this.#store.findUsable(name));
    this.#store.changeTables([{ name, table: writeBitmapTable(this.#metadata, old.entryCount, old, () => "none") }]);
  }

  /** Makes a bitmap record writes, or no longer. */
  setAuto(name: string, auto: boolean): void {
    this.#recorder.store();
    this.#store.findUsable(name);
    this.#store.changeFlags(
      new Set([name]),
      (flags) => auto ? flags | BITMAP_FLAG.auto : (flags & ~BITMAP_FLAG.auto) >>> 0,
    );
  }

  /** Sets in one bitmap all bits that are set in another one, which may be another image's and have another granularity. */
  merge(from: Bitmaps, source: string, target: string): void {
    this.#recorder.store();
    const entry = this.#store.findUsable(target);
    const { diskSize } = this.#store.dimensions;
    const sourceSize = from.#store.dimensions.diskSize;
    // The source is looked for first, so that what is missing is told before what does not fit.
    const extents = from.dirtyExtents(source);
    if (sourceSize !== diskSize) {
      throw new Qcow2Error(
        "invalid-argument",
        `Bitmaps are of different sizes (destination size is ${diskSize}, source size is ${sourceSize}) and can't be merged`,
        { found: sourceSize, expected: diskSize },
      );
    }
    const added = new BitmapChanges(this.#store.dimensions, entry.granularityBits);
    for (const { offset, length } of extents) added.mark(offset, length);
    const old = this.#tableOf(entry);
    const table = writeBitmapTable(this.#metadata, old.entryCount, old, (index) => {
      const chunk = added.chunk(index);
      return chunk === "none" ? undefined : uniteChunks(old.read(index), chunk);
    });
    this.#store.changeTables([{ name: target, table }]);
  }

  /** The stretches of the disk that a bitmap marks. */
  dirtyExtents(name: string): Iterable<DirtyExtent> {
    const changes = this.#recorder.changesOf(name);
    const entry = this.#store.findUsable(name, changes !== undefined);
    const table = this.#tableOf(entry);
    return extentsOfChunks(
      this.#store.dimensions,
      entry.granularityBits,
      (index) => uniteChunks(table.read(index), changes?.chunk(index) ?? "none"),
    );
  }

  #tableOf(entry: BitmapEntry): BitmapTable {
    return new BitmapTable(this.#metadata, entry).validated();
  }

  #defaultGranularity(): number {
    const { clusterSize } = this.#store.dimensions;
    return Math.min(MAX_DEFAULT_GRANULARITY, Math.max(MIN_DEFAULT_GRANULARITY, clusterSize));
  }
}
