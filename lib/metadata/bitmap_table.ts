/**
 * The table of one bitmap, and the clusters of bits that it points to.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import type { BitmapEntry } from "../format/bitmap_directory.ts";
import { entryLower, entryOffset, entryUpper } from "../format/table_entries.ts";
import type { BitmapChunk } from "./bitmap_changes.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import { PointerTable } from "./pointer_table.ts";
import type { ClusterRun } from "./refcounts.ts";

/** Bits 1 to 8 and 56 to 63 of an entry are reserved; bit 0 is so where there is an offset. */
const RESERVED_UPPER_MASK = 0xff000000;
const RESERVED_LOWER_MASK = 0x1fe;
const ALL_ONES = 1;

/** A bitmap table as it stands in the file. */
export class BitmapTable {
  readonly #metadata: ImageMetadata;
  readonly #table: PointerTable;

  /**
   * Reads a table.
   *
   * @param metadata The image's metadata.
   * @param entry The bitmap's entry in the directory; its sizes are bounded.
   */
  constructor(metadata: ImageMetadata, entry: Pick<BitmapEntry, "tableOffset" | "tableEntryCount">) {
    this.#metadata = metadata;
    this.#table = PointerTable.read(metadata.file, entry.tableOffset, entry.tableEntryCount);
  }

  /** Number of entries. */
  get entryCount(): number {
    return this.#table.entryCount;
  }

  /** The clusters that the table itself fills. */
  get run(): ClusterRun {
    const { clusterSize } = this.#metadata.geometry;
    return { offset: this.#table.offset, count: Math.ceil(this.#table.bytes.length / clusterSize) };
  }

  /**
   * The upper and lower half of an entry.
   *
   * @param index Index of the entry.
   * @returns Both halves.
   */
  halves(index: number): readonly [upper: number, lower: number] {
    return [this.#table.upper(index), this.#table.lower(index)];
  }

  /**
   * Checks all entries.
   *
   * @returns The table.
   * @throws {Qcow2Error} With code `corrupt` where an entry contradicts the format.
   */
  validated(): this {
    for (let index = 0; index < this.entryCount; index++) {
      if (this.isSound(index)) continue;
      throw new Qcow2Error("corrupt", `Entry ${index} of the bitmap table at ${hex(this.#table.offset)} is broken`, {
        offset: this.#table.offset + index * 8,
      });
    }
    return this;
  }

  /**
   * Whether an entry says what the format allows, and points into the file.
   *
   * @param index Index of the entry.
   * @returns Whether it does.
   */
  isSound(index: number): boolean {
    const [upper, lower] = this.halves(index);
    const offset = entryOffset(upper, lower);
    if ((upper & RESERVED_UPPER_MASK) !== 0 || (lower & RESERVED_LOWER_MASK) !== 0) return false;
    if (offset === 0) return true;
    const { geometry, file } = this.#metadata;
    return (lower & ALL_ONES) === 0 && offset % geometry.clusterSize === 0 && offset < file.file.size;
  }

  /**
   * Where a cluster of bits stands.
   *
   * @param index Index of its entry.
   * @returns Host offset in bytes, 0 where the entry alone says what the bits are.
   */
  clusterOffset(index: number): number {
    return entryOffset(...this.halves(index));
  }

  /**
   * Reads a cluster of bits.
   *
   * @param index Index of its entry.
   * @returns The bits, for the caller to keep.
   */
  read(index: number): BitmapChunk {
    const offset = this.clusterOffset(index);
    if (offset === 0) return (this.halves(index)[1] & ALL_ONES) === 0 ? "none" : "all";
    const bytes = new Uint8Array(this.#metadata.geometry.clusterSize);
    this.#metadata.file.file.readAt(offset, bytes);
    return bytes;
  }

  /** The clusters of table and bits, as far as entries are sound: what is given back with the bitmap. */
  *clusters(): Generator<number> {
    yield* clustersOf(this.run, this.#metadata.geometry.clusterSize);
    for (let index = 0; index < this.entryCount; index++) {
      const offset = this.clusterOffset(index);
      if (offset !== 0 && this.isSound(index)) yield offset;
    }
  }
}

/**
 * The clusters of a run.
 *
 * @param run The run.
 * @param clusterSize Bytes in a cluster.
 * @returns The host offset of each in bytes.
 */
export function* clustersOf(run: ClusterRun, clusterSize: number): Generator<number> {
  for (let index = 0; index < run.count; index++) yield run.offset + index * clusterSize;
}

/** A table that was written to fresh clusters and that nothing points to yet. */
export interface FreshBitmapTable {
  /** Host offset of the table in bytes. */
  readonly offset: number;
  /** Everything that was allocated for it, to release where it is not wanted after all. */
  readonly allocated: readonly ClusterRun[];
  /** Clusters of the old table that the new one has no use for, to free once nothing points to it any more. */
  readonly replaced: readonly number[];
}

/**
 * Writes a table to fresh clusters. Clusters of bits that stay as they are belong to the old and the new table until one of
 * the two is given up.
 *
 * @param metadata The image's metadata.
 * @param entryCount Number of entries; where the old table has fewer, all bits are clear in what is added.
 * @param old The table to begin with; without it all bits are clear.
 * @param chunkOf The bits by the index of their entry, `undefined` where they are those of the old table.
 * @returns The table, not yet durable.
 */
export function writeBitmapTable(
  metadata: ImageMetadata,
  entryCount: number,
  old: BitmapTable | undefined,
  chunkOf: (index: number) => BitmapChunk | undefined,
): FreshBitmapTable {
  const { allocator, file, geometry } = metadata;
  const { clusterSize } = geometry;
  const allocated: ClusterRun[] = [];
  const replaced: number[] = old === undefined ? [] : [...clustersOf(old.run, clusterSize)];
  const allocate = (count: number): number => {
    const run = allocator.allocateContiguous(count);
    allocated.push(run);
    return run.offset;
  };
  try {
    const tableClusters = Math.ceil(entryCount * 8 / clusterSize);
    // Full clusters, so that nothing stale stands behind the table.
    const bytes = new Uint8Array(tableClusters * clusterSize);
    const table = new PointerTable(allocate(tableClusters), bytes);
    const oldCount = old?.entryCount ?? 0;
    for (let index = 0; index < Math.max(entryCount, oldCount); index++) {
      const chunk = index < entryCount ? chunkOf(index) : "none";
      if (chunk === undefined && old !== undefined && index < oldCount) {
        table.set(index, ...old.halves(index));
        continue;
      }
      const oldOffset = old === undefined || index >= oldCount ? 0 : old.clusterOffset(index);
      if (oldOffset !== 0) replaced.push(oldOffset);
      const content = chunk === undefined ? "none" : simplify(chunk);
      if (content === "none") continue;
      const offset = content === "all" ? 0 : allocate(1);
      if (content !== "all") file.writeAt(offset, content);
      table.set(index, entryUpper(offset, 0), entryLower(offset, content === "all" ? ALL_ONES : 0));
    }
    file.writeAt(table.offset, bytes);
    return { offset: table.offset, allocated, replaced };
  } catch (error) {
    releaseAll(metadata, allocated);
    throw error;
  }
}

/**
 * Takes back clusters that nothing in the file has ever pointed to.
 *
 * @param metadata The image's metadata.
 * @param runs The clusters.
 */
export function releaseAll(metadata: ImageMetadata, runs: readonly ClusterRun[]): void {
  // After a failed sync nobody knows what the file says.
  if (metadata.file.failure !== undefined) return;
  for (const run of runs) metadata.allocator.release(run);
}

/** Clusters of bits that are all the same need no room. */
function simplify(chunk: BitmapChunk): BitmapChunk {
  if (typeof chunk === "string") return chunk;
  const first = chunk[0];
  if ((first !== 0 && first !== 0xff) || chunk.some((byte) => byte !== first)) return chunk;
  return first === 0 ? "none" : "all";
}
