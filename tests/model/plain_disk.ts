/**
 * What a disk with snapshots and bitmaps must look like, said in the plainest way: no clusters, no tables, no files.
 *
 * @module
 */

import type { SparseBytes } from "./sparse_bytes.ts";

/** What a snapshot must hold. */
export interface PlainSnapshot {
  /** Its identifier. */
  readonly id: string;
  /** Its name. */
  readonly name: string;
  /** The disk as it was. */
  readonly content: SparseBytes;
}

/** A stretch of the disk in bytes. */
interface Stretch {
  readonly offset: number;
  readonly length: number;
}

/** What a bitmap must hold. */
export class PlainBitmap {
  /** Its name. */
  readonly name: string;
  /** How many bytes of the disk one bit stands for. */
  readonly granularity: number;
  /** Whether it records writes. */
  auto: boolean;
  /** First and last bit plus one of each row of bits that are set; in order and apart. */
  #rows: [number, number][] = [];

  /**
   * @param name Its name.
   * @param granularity How many bytes of the disk one bit stands for.
   * @param auto Whether it records writes.
   */
  constructor(name: string, granularity: number, auto: boolean) {
    this.name = name;
    this.granularity = granularity;
    this.auto = auto;
  }

  /** Sets the bits of a range of the disk. */
  mark(offset: number, length: number): void {
    if (length === 0) return;
    let first = Math.floor(offset / this.granularity);
    let last = Math.ceil((offset + length) / this.granularity);
    const apart = this.#rows.filter(([from, to]) => to < first || from > last);
    for (const [from, to] of this.#rows) {
      if (to < first || from > last) continue;
      first = Math.min(first, from);
      last = Math.max(last, to);
    }
    this.#rows = [...apart, [first, last] as [number, number]].sort(([a], [b]) => a - b);
  }

  /** Sets the bits that are set in another bitmap. */
  merge(other: PlainBitmap, diskSize: number): void {
    for (const { offset, length } of other.extents(diskSize)) this.mark(offset, length);
  }

  /** Clears all bits. */
  clear(): void {
    this.#rows = [];
  }

  /** Forgets the bits behind the end of the disk. */
  truncate(diskSize: number): void {
    const end = Math.ceil(diskSize / this.granularity);
    this.#rows = this.#rows.filter(([from]) => from < end).map(([from, to]) => [from, Math.min(to, end)]);
  }

  /** The stretches of the disk whose bits are set, each as long as it can be. */
  extents(diskSize: number): Stretch[] {
    return this.#rows.map(([from, to]) => {
      const offset = from * this.granularity;
      return { offset, length: Math.min(to * this.granularity, diskSize) - offset };
    });
  }
}

/** The disk. */
export class PlainDisk {
  /** What it holds. */
  content: SparseBytes;
  /** Its snapshots, in their order. */
  snapshots: PlainSnapshot[] = [];
  /** Its bitmaps, in their order. */
  bitmaps: PlainBitmap[] = [];

  /** @param content What it holds at first. */
  constructor(content: SparseBytes) {
    this.content = content;
  }

  /** How many bytes it has. */
  get size(): number {
    return this.content.size;
  }

  /** Writes bytes. */
  write(offset: number, data: Uint8Array): void {
    this.content.write(offset, data);
    this.record(offset, data.length);
  }

  /** Writes zeroes. */
  clear(offset: number, length: number): void {
    this.content.clear(offset, length);
    this.record(offset, length);
  }

  /**
   * Discards the whole clusters of a range.
   *
   * @param offset Where to begin.
   * @param length How far.
   * @param clusterSize How long a cluster is; a last one that the end of the disk cuts counts as whole.
   * @param takesEffect Whether anything becomes zero, not only dirty.
   */
  discard(offset: number, length: number, clusterSize: number, takesEffect: boolean): void {
    const end = offset + length;
    const first = Math.ceil(offset / clusterSize) * clusterSize;
    const last = end === this.size ? end : Math.floor(end / clusterSize) * clusterSize;
    if (takesEffect && first < last) this.content.clear(first, last - first);
    this.record(offset, length);
  }

  /** Takes a snapshot, under the identifier that it was given. */
  createSnapshot(id: string, name: string): void {
    this.snapshots.push({ id, name, content: this.content.clone() });
  }

  /** Becomes what it was when a snapshot was taken. */
  applySnapshot({ content }: PlainSnapshot): void {
    this.resize(content.size);
    this.content = content.clone();
    // It may have become another one anywhere.
    this.record(0, this.size);
  }

  /** Drops a snapshot. */
  deleteSnapshot(snapshot: PlainSnapshot): void {
    this.snapshots = this.snapshots.filter((other) => other !== snapshot);
  }

  /** Adds a bitmap without any bit set. */
  addBitmap(name: string, granularity: number, auto: boolean): void {
    this.bitmaps.push(new PlainBitmap(name, granularity, auto));
  }

  /** Drops a bitmap. */
  removeBitmap(bitmap: PlainBitmap): void {
    this.bitmaps = this.bitmaps.filter((other) => other !== bitmap);
  }

  /** Gets another size; what is added is zero. */
  resize(size: number): void {
    this.content.resize(size);
    for (const bitmap of this.bitmaps) bitmap.truncate(size);
  }

  /** Notes in the bitmaps that a range may have changed. */
  record(offset: number, length: number): void {
    for (const bitmap of this.bitmaps) {
      if (bitmap.auto) bitmap.mark(offset, length);
    }
  }
}
