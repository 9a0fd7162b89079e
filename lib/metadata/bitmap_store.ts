/**
 * Changes to the bitmap directory of an image.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import {
  BITMAP_FLAG,
  BITMAP_FLAGS_POSITION,
  type BitmapEntry,
  encodeBitmapDirectory,
  encodeBitmapEntry,
  withBitmapFlags,
} from "../format/bitmap_directory.ts";
import { AUTOCLEAR } from "../format/feature_bits.ts";
import type { Header } from "../format/header.ts";
import { type BitmapsPointer, decodeBitmapsPointer, EXTENSION } from "../format/header_extensions.ts";
import { MAX_BITMAP_COUNT, MAX_BITMAP_DIRECTORY_LENGTH, MAX_BITMAP_LENGTH } from "../format/limits.ts";
import { viewOf, writeUint64 } from "../format/uint64.ts";
import { resizeBitmap, type ResizedBitmap } from "./bitmap_resize.ts";
import { BitmapTable, clustersOf, type FreshBitmapTable, releaseAll, writeBitmapTable } from "./bitmap_table.ts";
import {
  bitmapDefect,
  type BitmapDimensions,
  bitmapsAreConsistent,
  bitmapTableEntryCount,
  readBitmaps,
} from "./bitmaps.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import type { ClusterRun } from "./refcounts.ts";

/** What a new bitmap is like. */
export interface NewBitmap {
  /** The name. */
  readonly name: string;
  /** Base-2 logarithm of the bytes that one bit stands for. */
  readonly granularityBits: number;
  /** Whether it records writes. */
  readonly auto: boolean;
}

/** A bitmap that goes over to another table. */
export interface TableChange {
  /** Name of the bitmap. */
  readonly name: string;
  /** Its new table. */
  readonly table: FreshBitmapTable;
}

/** Changes the header of an image, with some fields that are given. */
export type SwitchHeader = (changes: Partial<Header>) => void;

/** How {@linkcode BitmapStore.resize} goes about it. */
export interface BitmapResizeOptions {
  /** Changes the size in the header; without it, nothing else changes there. */
  readonly switchHeader?: SwitchHeader;
  /**
   * Whether bitmaps that record writes mark everything, since the disk becomes another one.
   *
   * @default {false}
   */
  readonly marksAll?: boolean;
}

/**
 * The bitmap directory. A change of one field is made in place, in one sector of the host; one of the number of bitmaps by a
 * new directory, which the header points to when everything that it needs is durable.
 */
export class BitmapStore {
  readonly #metadata: ImageMetadata;

  /** @param metadata The image's metadata. */
  constructor(metadata: ImageMetadata) {
    this.#metadata = metadata;
  }

  /** Sizes of disk and clusters. */
  get dimensions(): BitmapDimensions {
    return { diskSize: this.#metadata.diskSize, clusterSize: this.#metadata.geometry.clusterSize };
  }

  /**
   * All bitmaps in their order. Where the autoclear bit does not vouch for them, all are inconsistent (in use), and a
   * directory that cannot be read counts as none.
   *
   * @returns The entries.
   * @throws {Qcow2Error} As `readBitmaps` does.
   */
  entries(): BitmapEntry[] {
    const { file, header } = this.#metadata;
    if (bitmapsAreConsistent(header)) return readBitmaps(file.file, header);
    try {
      return readBitmaps(file.file, header).map((entry) => withBitmapFlags(entry, entry.flags | BITMAP_FLAG.inUse));
    } catch (error) {
      if (error instanceof Qcow2Error) return [];
      throw error;
    }
  }

  /**
   * Finds a bitmap.
   *
   * @param name Its name.
   * @returns Its entry.
   * @throws {Qcow2Error} With code `not-found`.
   */
  find(name: string): BitmapEntry {
    const entry = this.entries().find((candidate) => candidate.name === name);
    if (entry === undefined) throw new Qcow2Error("not-found", `Bitmap "${name}" not found`, { found: name });
    return entry;
  }

  /**
   * Finds a bitmap whose bits can be trusted.
   *
   * @param name Its name.
   * @param isOwn Whether it is in use by this session.
   * @returns Its entry.
   * @throws {Qcow2Error} With code `not-found`, or `unsupported` where it is inconsistent or cannot be used.
   */
  findUsable(name: string, isOwn = false): BitmapEntry {
    const entry = this.find(name);
    this.#assertUsable(entry, this.entries(), isOwn);
    return entry;
  }

  #assertUsable(entry: BitmapEntry, entries: readonly BitmapEntry[], isOwn = false): void {
    const { name } = entry;
    if (entry.inUse && !isOwn) {
      throw new Qcow2Error("unsupported", `Bitmap "${name}" is inconsistent and can only be removed`, {
        found: "in-use",
      });
    }
    const defect = this.defectOf(entry, entries);
    if (defect === undefined) return;
    throw new Qcow2Error("unsupported", `Bitmap "${name}" has ${defect} and can only be removed`, { found: defect });
  }

  /**
   * Says why a bitmap cannot be used.
   *
   * @param entry The bitmap.
   * @param entries All bitmaps.
   * @returns The reason, or `undefined` where it can be used.
   */
  defectOf(entry: BitmapEntry, entries: readonly BitmapEntry[] = this.entries()): string | undefined {
    if (entries.filter(({ name }) => name === entry.name).length > 1) return "the name of another bitmap";
    return bitmapDefect(entry, this.dimensions);
  }

  /**
   * Adds an empty bitmap.
   *
   * @param bitmap What it is like.
   * @throws {Qcow2Error} With code `unsupported`, `already-exists`, `invalid-argument`, `limit-exceeded` or `no-space`.
   */
  add({ name, granularityBits, auto }: NewBitmap): void {
    if (this.#metadata.header.version === 2) {
      throw new Qcow2Error("unsupported", "Version 2 images hold no bitmaps, expected version 3", {
        found: 2,
        expected: 3,
      });
    }
    const entries = this.entries();
    if (entries.some((entry) => entry.name === name)) {
      throw new Qcow2Error("already-exists", `Bitmap "${name}" already exists`, { found: name });
    }
    const flags = auto ? BITMAP_FLAG.auto : 0;
    const tableEntryCount = bitmapTableEntryCount(this.dimensions, granularityBits);
    const fields = { name, flags, granularityBits, tableEntryCount };
    // The name is checked before anything is allocated.
    const added = encodeBitmapEntry({ ...fields, tableOffset: 0 });
    const length = tableEntryCount * this.dimensions.clusterSize;
    if (length > MAX_BITMAP_LENGTH) {
      throw new Qcow2Error(
        "invalid-argument",
        `Bitmap "${name}" would take ${length} bytes; use a larger granularity`,
        {
          found: length,
          expected: `at most ${MAX_BITMAP_LENGTH}`,
        },
      );
    }
    const directoryLength = encodeBitmapDirectory([...entries, added]).length;
    if (entries.length >= MAX_BITMAP_COUNT || directoryLength > MAX_BITMAP_DIRECTORY_LENGTH) {
      throw new Qcow2Error("limit-exceeded", `There are too many bitmaps: ${entries.length + 1}`, {
        found: entries.length + 1,
        expected: `at most ${MAX_BITMAP_COUNT}`,
      });
    }
    const table = writeBitmapTable(this.#metadata, tableEntryCount, undefined, () => undefined);
    this.#replaceDirectory(
      [...entries, encodeBitmapEntry({ ...fields, tableOffset: table.offset })],
      table.allocated,
      [],
    );
  }

  /**
   * Removes a bitmap, whatever is wrong with it, and gives its clusters back as far as they can be told.
   *
   * @param name Its name.
   * @throws {Qcow2Error} With code `not-found`.
   */
  remove(name: string): void {
    const entry = this.find(name);
    const entries = this.entries();
    const rest = entries.toSpliced(entries.findIndex((candidate) => candidate.name === name), 1);
    this.#replaceDirectory(rest, [], this.#clustersOf(entry));
  }

  /**
   * Changes the flags of bitmaps in place and makes that durable.
   *
   * @param names The bitmaps.
   * @param change Makes the new flags of the old ones.
   */
  changeFlags(names: ReadonlySet<string>, change: (flags: number) => number): void {
    let changed = false;
    this.#eachPlace(names, (entry, offset) => {
      const flags = change(entry.flags);
      if (flags === entry.flags) return;
      const bytes = new Uint8Array(4);
      viewOf(bytes).setUint32(0, flags);
      this.#metadata.file.writeAt(offset + BITMAP_FLAGS_POSITION, bytes);
      changed = true;
    });
    if (changed) this.#metadata.file.sync();
  }

  /**
   * Points bitmaps to new tables, each at once, and gives the old ones back.
   *
   * @param changes The bitmaps and their tables, written but not yet durable.
   */
  changeTables(changes: readonly TableChange[]): void {
    const { file, allocator } = this.#metadata;
    this.#makeDurable(changes.flatMap(({ table }) => table.allocated));
    const tables = new Map(changes.map(({ name, table }) => [name, table]));
    this.#eachPlace(new Set(tables.keys()), (entry, offset) => {
      const bytes = new Uint8Array(8);
      writeUint64(viewOf(bytes), 0, tables.get(entry.name)?.offset ?? entry.tableOffset);
      file.writeAt(offset, bytes);
    });
    file.sync();
    for (const { table } of changes) table.replaced.forEach((offset) => allocator.freeLater(offset));
    this.#metadata.flush();
  }

  /**
   * Refuses a size of the disk to which not all bitmaps can be brought.
   *
   * @param diskSize The size in bytes.
   * @throws {Qcow2Error} With code `unsupported` where a bitmap is inconsistent, cannot be used or would be too large, `corrupt`
   * where its table is broken.
   */
  checkResize(diskSize: number): void {
    if (!bitmapsAreConsistent(this.#metadata.header)) return;
    const entries = this.entries();
    for (const entry of entries) {
      this.#assertUsable(entry, entries);
      const count = bitmapTableEntryCount({ ...this.dimensions, diskSize }, entry.granularityBits);
      const length = count * this.dimensions.clusterSize;
      if (length > MAX_BITMAP_LENGTH) {
        throw new Qcow2Error("unsupported", `Bitmap "${entry.name}" would take ${length} bytes; remove it first`, {
          found: length,
          expected: `at most ${MAX_BITMAP_LENGTH}`,
        });
      }
      new BitmapTable(this.#metadata, entry).validated();
    }
  }

  /**
   * Changes the size of the disk, and with it all bitmaps. Where the header has told the new size and does not point to the new
   * directory yet, it says that bitmaps are inconsistent.
   *
   * @param diskSize The size in bytes, one that {@linkcode BitmapStore.checkResize} lets pass.
   * @param options How the size changes in the header; whether bitmaps that record writes mark everything then.
   * @throws {Qcow2Error} With code `no-space` or `io` where the host fails, or as the change of the header does.
   */
  resize(diskSize: number, { switchHeader, marksAll = false }: BitmapResizeOptions = {}): void {
    const change = switchHeader ?? ((changes) => this.#metadata.updateHeader({ size: diskSize, ...changes }));
    const entries = bitmapsAreConsistent(this.#metadata.header) ? this.entries() : [];
    const resized: ResizedBitmap[] = [];
    const fresh = () => resized.flatMap(({ table }) => table?.allocated ?? []);
    try {
      const to = { ...this.dimensions, diskSize };
      for (const entry of entries) {
        resized.push(resizeBitmap(this.#metadata, entry, this.dimensions, to, marksAll && entry.auto));
      }
    } catch (error) {
      releaseAll(this.#metadata, fresh());
      throw error;
    }
    if (resized.every(({ table }) => table === undefined)) {
      change({});
      return;
    }
    const replaced = resized.flatMap(({ table }) => table?.replaced ?? []);
    this.#replaceDirectory(resized.map(({ entry }) => entry), fresh(), replaced, change);
  }

  get #pointer(): BitmapsPointer | undefined {
    const extension = this.#metadata.header.extensions.find(({ type }) => type === EXTENSION.bitmaps);
    return extension === undefined ? undefined : decodeBitmapsPointer(extension.data);
  }

  /** Calls back with the place of each entry of some bitmaps. Entries begin at multiples of 8 bytes, as directories do. */
  #eachPlace(names: ReadonlySet<string>, visit: (entry: BitmapEntry, hostOffset: number) => void): void {
    let position = this.#pointer?.directoryOffset ?? 0;
    for (const entry of this.entries()) {
      if (names.has(entry.name)) visit(entry, position);
      position += entry.bytes.length;
    }
  }

  /** What a bitmap uses. Of one that is damaged, clusters that are surely not in use are left out. */
  #clustersOf(entry: BitmapEntry): number[] {
    const { geometry, refcounts, file } = this.#metadata;
    const { clusterSize } = geometry;
    const length = entry.tableEntryCount * 8;
    if (entry.tableOffset === 0 || entry.tableOffset % clusterSize !== 0) return [];
    if (entry.tableOffset + length > file.file.size + clusterSize) return [];
    const clusters = new BitmapTable(this.#metadata, entry).clusters();
    return [...new Set(clusters)].filter((offset) => refcounts.get(offset / clusterSize) > 0);
  }

  /**
   * Goes over to a new directory: `fresh` clusters are in use from then on, `unused` ones no longer. Where the header changes
   * besides, it says of bitmaps that they are inconsistent until it points to the directory.
   */
  #replaceDirectory(
    entries: readonly BitmapEntry[],
    fresh: readonly ClusterRun[],
    unused: readonly number[],
    switchHeader?: SwitchHeader,
  ): void {
    const { allocator, file } = this.#metadata;
    const { clusterSize } = this.dimensions;
    const old = this.#directoryClusters();
    const allocated = [...fresh];
    let pointer: BitmapsPointer | undefined;
    try {
      if (entries.length > 0) {
        const directory = encodeBitmapDirectory(entries);
        const run = allocator.allocateContiguous(Math.ceil(directory.length / clusterSize));
        allocated.push(run);
        const bytes = new Uint8Array(run.count * clusterSize);
        bytes.set(directory);
        file.writeAt(run.offset, bytes);
        pointer = { count: entries.length, directorySize: directory.length, directoryOffset: run.offset };
      }
    } catch (error) {
      releaseAll(this.#metadata, allocated);
      throw error;
    }
    this.#makeDurable(allocated);
    if (switchHeader !== undefined) {
      const { autoclearFeatures } = this.#metadata.header;
      try {
        switchHeader({ autoclearFeatures: autoclearFeatures & ~AUTOCLEAR.bitmaps });
      } catch (error) {
        releaseAll(this.#metadata, allocated);
        throw error;
      }
    }
    this.#metadata.setBitmapsPointer(pointer);
    for (const offset of [...old, ...unused]) allocator.freeLater(offset);
    this.#metadata.flush();
  }

  #directoryClusters(): number[] {
    const pointer = this.#pointer;
    const { file, header } = this.#metadata;
    if (pointer === undefined) return [];
    if (!bitmapsAreConsistent(header)) {
      try {
        readBitmaps(file.file, header);
      } catch (error) {
        // What cannot be read is no directory, whatever stands there.
        if (error instanceof Qcow2Error) return [];
        throw error;
      }
    }
    const { clusterSize } = this.dimensions;
    const count = Math.ceil(pointer.directorySize / clusterSize);
    return [...clustersOf({ offset: pointer.directoryOffset, count }, clusterSize)];
  }

  /** Makes clusters and their refcounts durable before anything points to them. */
  #makeDurable(allocated: readonly ClusterRun[]): void {
    try {
      this.#metadata.flush();
    } catch (error) {
      releaseAll(this.#metadata, allocated);
      throw error;
    }
  }
}
