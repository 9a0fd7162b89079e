/**
 * A bounded cache of slices of L2 tables or refcount blocks, with write-back.
 *
 * @module
 */

import { viewOf } from "../format/uint64.ts";
import type { OrderedFile } from "./ordered_file.ts";

/** A slice of a table in memory, as the bytes that stand in the file. */
export class TableSlice {
  /** The bytes. Whoever changes them calls {@linkcode TableCache.markDirty} at once. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The same bytes for reading and writing fields. */
  readonly view: DataView;
  /** Where the slice stands in the file, in bytes. */
  hostOffset = -1;
  /** Whether memory is ahead of the file. */
  dirty = false;
  /** Neighbour in the order of use that was used later. */
  newer: TableSlice | undefined;
  /** Neighbour in the order of use that was used earlier. */
  older: TableSlice | undefined;

  /** @param size The size in bytes. */
  constructor(size: number) {
    this.bytes = new Uint8Array(size);
    this.view = viewOf(this.bytes);
  }
}

/** What a {@linkcode TableCache} is made of. */
export interface TableCacheOptions {
  /** Bytes in a slice; tables are a multiple of it. */
  readonly sliceSize: number;
  /** The most bytes of slices to keep; room for four slices at least is taken. */
  readonly maxSize: number;
  /** Called when a dirty slice has to go: it must be clean on return. */
  readonly writeBack: (slice: TableSlice) => void;
}

/** How {@linkcode TableCache.writeDirty} writes. */
export interface WriteDirtyOptions {
  /** Which slices; all without it. */
  readonly chosen?: (slice: TableSlice) => boolean;
  /** Whether their loss in a crash would cost nothing but space, so that they ask for no sync. */
  readonly lazily?: boolean;
}

/** How a cache was used, for benchmarks and tests. */
export interface TableCacheStatistics {
  /** Slices that were found in memory. */
  hits: number;
  /** Slices that were read from the file. */
  misses: number;
  /** Slices that made room for others. */
  evictions: number;
}

/** The fewest slices a cache holds: the users of a cache hold on to two at a time. */
const MIN_SLICE_COUNT = 4;
/** How far a cache may outgrow its size where the file cannot be written. */
const MAX_EXTRA_SLICES = 4;
/** How much is written at once at most when neighbouring slices are dirty, in bytes. */
const MAX_WRITE_LENGTH = 256 * 1024;

/**
 * Slices by their place in the file, the least recently used one evicted first. A hit allocates nothing.
 *
 * Memory is bounded by `maxSize` alone; buffers are taken as they are needed and reused.
 */
export class TableCache {
  /** How the cache was used so far. */
  readonly statistics: TableCacheStatistics = { hits: 0, misses: 0, evictions: 0 };
  /** Bytes in a slice. */
  readonly sliceSize: number;
  readonly #file: OrderedFile;
  readonly #capacity: number;
  readonly #writeBack: (slice: TableSlice) => void;
  /** Keyed by the index of the slice in the file, which stays a small integer where an offset would not. */
  readonly #slices = new Map<number, TableSlice>();
  readonly #dirty = new Set<TableSlice>();
  #newest: TableSlice | undefined;
  #oldest: TableSlice | undefined;
  /** Slices of the table that was made last which nobody has asked for yet. */
  readonly #blankSlices = new Set<number>();
  /** Buffers of slices that were dropped. */
  readonly #spare: TableSlice[] = [];
  #scratch: Uint8Array<ArrayBuffer> | undefined;

  /**
   * @param file The file that holds the tables.
   * @param options Size and write-back.
   */
  constructor(file: OrderedFile, options: TableCacheOptions) {
    this.#file = file;
    this.sliceSize = options.sliceSize;
    this.#capacity = Math.max(MIN_SLICE_COUNT, Math.floor(options.maxSize / options.sliceSize));
    this.#writeBack = options.writeBack;
  }

  /** Whether any slice is ahead of the file. */
  get hasDirty(): boolean {
    return this.#dirty.size > 0;
  }

  /**
   * The slice at a place in the file, read where it is not in memory.
   *
   * @param hostOffset Host offset in bytes, a multiple of the slice size. Bytes beyond the end of the file are zero.
   * @returns The slice; it stays valid until two other slices were asked for.
   */
  get(hostOffset: number): TableSlice {
    const newest = this.#newest;
    if (newest !== undefined && newest.hostOffset === hostOffset) {
      this.statistics.hits++;
      return newest;
    }
    const found = this.#slices.get(hostOffset / this.sliceSize);
    if (found !== undefined) {
      this.statistics.hits++;
      this.#unlink(found);
      this.#linkNewest(found);
      return found;
    }
    this.statistics.misses++;
    const slice = this.#takeFree();
    try {
      if (this.#blankSlices.delete(hostOffset)) slice.bytes.fill(0);
      else {
        const length = this.#file.file.readAt(hostOffset, slice.bytes);
        if (length < slice.bytes.length) slice.bytes.fill(0, length);
      }
    } catch (error) {
      this.#spare.push(slice);
      throw error;
    }
    this.#insert(slice, hostOffset);
    return slice;
  }

  /**
   * Says that a table was just made and is all zeroes in the file, so that its slices need not be read. What is not needed of it
   * before the next one is made is read nevertheless.
   *
   * @param hostOffset Host offset of the table in bytes.
   * @param length Length in bytes.
   */
  expectZeroes(hostOffset: number, length: number): void {
    this.#blankSlices.clear();
    for (let offset = hostOffset; offset < hostOffset + length; offset += this.sliceSize) this.#blankSlices.add(offset);
  }

  /**
   * Says that a slice's bytes were changed.
   *
   * @param slice The slice.
   */
  markDirty(slice: TableSlice): void {
    if (slice.dirty) return;
    slice.dirty = true;
    this.#dirty.add(slice);
  }

  /**
   * Writes dirty slices in ascending order, neighbours in one write.
   *
   * @param options Which slices, all by default, and whether their loss in a crash would cost nothing but space.
   */
  writeDirty(options: WriteDirtyOptions = {}): void {
    const { chosen, lazily = false } = options;
    if (this.#dirty.size === 0) return;
    const slices = chosen === undefined ? [...this.#dirty] : [...this.#dirty].filter(chosen);
    slices.sort((a, b) => a.hostOffset - b.hostOffset);
    const maxRun = MAX_WRITE_LENGTH / this.sliceSize;
    for (let start = 0; start < slices.length;) {
      let end = start + 1;
      while (end < slices.length && end - start < maxRun && this.#areNeighbours(slices[end - 1], slices[end])) end++;
      this.#writeRun(slices.slice(start, end), lazily);
      start = end;
    }
  }

  /**
   * Forgets the slices of a table that is no longer one, without writing them.
   *
   * @param hostOffset Host offset in bytes.
   * @param length Length in bytes.
   */
  drop(hostOffset: number, length: number): void {
    if (this.#blankSlices.size > 0) this.#blankSlices.clear();
    const first = hostOffset / this.sliceSize;
    for (let index = first; index < first + length / this.sliceSize; index++) {
      const slice = this.#slices.get(index);
      if (slice === undefined) continue;
      this.#forget(slice);
      this.#spare.push(slice);
    }
  }

  /** Forgets all slices without writing them. */
  clear(): void {
    this.#blankSlices.clear();
    for (const slice of [...this.#slices.values()]) {
      this.#forget(slice);
      this.#spare.push(slice);
    }
  }

  #areNeighbours(a: TableSlice | undefined, b: TableSlice | undefined): boolean {
    return a !== undefined && b !== undefined && a.hostOffset + this.sliceSize === b.hostOffset;
  }

  #writeRun(run: readonly TableSlice[], lazily: boolean): void {
    const first = run[0];
    if (first === undefined) return;
    let bytes = first.bytes;
    if (run.length > 1) {
      this.#scratch ??= new Uint8Array(MAX_WRITE_LENGTH);
      run.forEach((slice, index) => this.#scratch?.set(slice.bytes, index * this.sliceSize));
      bytes = this.#scratch.subarray(0, run.length * this.sliceSize);
    }
    if (lazily) this.#file.writeLazilyAt(first.hostOffset, bytes);
    else this.#file.writeAt(first.hostOffset, bytes);
    for (const slice of run) {
      slice.dirty = false;
      this.#dirty.delete(slice);
    }
  }

  /** A slice that is in nobody's use: a new one while there is room, otherwise the one that was not used for longest. */
  #takeFree(): TableSlice {
    const spare = this.#spare.pop();
    if (spare !== undefined) return spare;
    const oldest = this.#oldest;
    if (this.#slices.size < this.#capacity || oldest === undefined) return new TableSlice(this.sliceSize);
    const victim = this.#evictable(oldest);
    if (victim === undefined) return new TableSlice(this.sliceSize);
    this.statistics.evictions++;
    this.#forget(victim);
    return victim;
  }

  /**
   * The slice to evict. Where the file cannot be written, a clean one goes in the place of a dirty one, or none for a while, so
   * that reading goes on; writers hear of the failure when they flush.
   */
  #evictable(oldest: TableSlice): TableSlice | undefined {
    if (!oldest.dirty) return oldest;
    try {
      this.#writeBack(oldest);
      return oldest;
    } catch (error) {
      for (let slice = oldest.newer; slice !== undefined; slice = slice.newer) {
        if (!slice.dirty) return slice;
      }
      if (this.#slices.size >= this.#capacity + MAX_EXTRA_SLICES) throw error;
      return undefined;
    }
  }

  #insert(slice: TableSlice, hostOffset: number): TableSlice {
    slice.hostOffset = hostOffset;
    this.#slices.set(hostOffset / this.sliceSize, slice);
    this.#linkNewest(slice);
    return slice;
  }

  #forget(slice: TableSlice): void {
    this.#slices.delete(slice.hostOffset / this.sliceSize);
    this.#dirty.delete(slice);
    this.#unlink(slice);
    slice.dirty = false;
    slice.hostOffset = -1;
  }

  #linkNewest(slice: TableSlice): void {
    slice.older = this.#newest;
    slice.newer = undefined;
    if (this.#newest !== undefined) this.#newest.newer = slice;
    this.#newest = slice;
    this.#oldest ??= slice;
  }

  #unlink(slice: TableSlice): void {
    if (slice.newer === undefined) this.#newest = slice.older;
    else slice.newer.older = slice.older;
    if (slice.older === undefined) this.#oldest = slice.newer;
    else slice.older.newer = slice.newer;
  }
}
