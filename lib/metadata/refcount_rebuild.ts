/**
 * Builds new refcount structures from scratch, beside the old ones.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { alignUp, type Geometry } from "../format/geometry.ts";
import { MAX_REFCOUNT_TABLE_LENGTH } from "../format/limits.ts";
import { setRefcount } from "../format/refcount_entries.ts";
import { entryLower, entryUpper } from "../format/table_entries.ts";
import { viewOf } from "../format/uint64.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import { PointerTable } from "./pointer_table.ts";
import type { ReferenceCounts } from "./reference_counts.ts";
import { allAtOnce, type Steps } from "./steps.ts";

/** The refcounts that {@linkcode writeRefcounts} writes. */
export interface RefcountSource {
  /** The clusters that may have a refcount above zero. */
  clusters(): Iterable<number>;
  /**
   * The refcount of a cluster.
   *
   * @param cluster Index of the cluster in the host file.
   * @returns The refcount.
   */
  get(cluster: number): number;
}

/** What {@linkcode writeRefcounts} wrote. */
export interface RefcountStructures {
  /** The refcount table. */
  readonly table: PointerTable;
  /** How many clusters it fills. */
  readonly tableClusterCount: number;
}

/** A step deals with the refcounts of so many clusters. */
export const STEP_CLUSTER_COUNT = 65536;

/** Where new refcount structures stand, in clusters. */
export interface RefcountPlacement {
  /** The clusters of the blocks, by what the blocks describe. */
  readonly blocks: ReadonlyMap<number, number>;
  /** The first cluster of the table. */
  readonly tableStart: number;
  /** How many clusters the table fills. */
  readonly tableClusterCount: number;
}

/**
 * Builds refcount structures that say exactly what was counted, and points the header to them last: until then the old ones
 * are untouched, and a crash changes nothing. The old ones are nobody's afterwards, with the refcounts that were counted for
 * them.
 *
 * @param metadata The image.
 * @param references What was counted.
 * @param inGaps Whether they may stand where nothing was counted, rather than behind the end of the file.
 * @returns Steps, each of which tells a cluster whose refcount was written.
 * @throws {Qcow2Error} With code `no-space` where the refcount table would be too long.
 */
export function* rebuildRefcounts(
  metadata: ImageMetadata,
  references: ReferenceCounts,
  inGaps: boolean,
): Steps<number, void> {
  const { geometry } = metadata;
  const placement = inGaps
    ? placeInGaps(geometry, references)
    : allAtOnce(placeRefcountsAtEnd(metadata, geometry, references));
  const { table, tableClusterCount } = yield* writeRefcounts(metadata, geometry, references, placement);
  metadata.updateHeader({ refcountTableOffset: table.offset, refcountTableClusterCount: tableClusterCount });
  metadata.refcounts.adopt(table);
  metadata.reset();
}

/**
 * Finds places for refcount structures in a row behind the end of the file and everything in use: blocks first, then the table.
 *
 * @param metadata The image.
 * @param geometry The geometry that the image has once the header points to them.
 * @param references The refcounts, without those of the old refcount structures.
 * @returns Steps, each of which tells to which cluster it has come; then the places.
 * @throws {Qcow2Error} With code `no-space` where the refcount table would be too long.
 */
export function* placeRefcountsAtEnd(
  { file, geometry: { clusterSize } }: ImageMetadata,
  geometry: Geometry,
  references: RefcountSource,
): Steps<number, RefcountPlacement> {
  const { refcountBlockEntryCount: perBlock } = geometry;
  const indexes = new Set<number>();
  // An entry may refer to a cluster right behind the end of the file, which reads as zeroes.
  let start = alignUp(file.file.size, clusterSize) / clusterSize;
  let stepEnd = STEP_CLUSTER_COUNT;
  for (const cluster of references.clusters()) {
    indexes.add(Math.floor(cluster / perBlock));
    start = Math.max(start, cluster + 1);
    if (cluster < stepEnd) continue;
    yield cluster;
    stepEnd = cluster + STEP_CLUSTER_COUNT;
  }
  let tableClusterCount = 0;
  for (let settled = false; !settled;) {
    const end = start + indexes.size + tableClusterCount;
    const before = indexes.size + tableClusterCount;
    for (let index = Math.floor(start / perBlock); index * perBlock < end; index++) indexes.add(index);
    tableClusterCount = tableClusterCountFor(geometry, indexes);
    settled = indexes.size + tableClusterCount === before;
  }
  const ascending = [...indexes].sort((a, b) => a - b);
  return {
    blocks: new Map(ascending.map((index, position) => [index, start + position])),
    tableStart: start + indexes.size,
    tableClusterCount,
  };
}

/** Finds the first clusters that nothing refers to, as QEMU does. */
function placeInGaps(geometry: Geometry, references: RefcountSource): RefcountPlacement {
  const { refcountBlockEntryCount: perBlock } = geometry;
  const taken = new Set<number>();
  const blocks = new Map<number, number>();
  const isFree = (cluster: number): boolean => references.get(cluster) === 0 && !taken.has(cluster);
  let gap = 0;
  // A block that is placed may have to be described by one more.
  const placeBlocks = (wanted: Iterable<number>): void => {
    const pending = new Set([...wanted].filter((index) => !blocks.has(index)).sort((a, b) => a - b));
    for (const index of pending) {
      while (!isFree(gap)) gap++;
      taken.add(gap);
      blocks.set(index, gap);
      const describing = Math.floor(gap / perBlock);
      if (!blocks.has(describing)) pending.add(describing);
    }
  };
  const needed = new Set<number>();
  for (const cluster of references.clusters()) needed.add(Math.floor(cluster / perBlock));
  placeBlocks(needed);
  for (;;) {
    const tableClusterCount = tableClusterCountFor(geometry, blocks.keys());
    const tableStart = firstFreeRow(isFree, tableClusterCount);
    const row = Array.from({ length: tableClusterCount }, (_, index) => tableStart + index);
    for (const cluster of row) taken.add(cluster);
    placeBlocks(row.map((cluster) => Math.floor(cluster / perBlock)));
    if (tableClusterCountFor(geometry, blocks.keys()) === tableClusterCount) {
      return { blocks, tableStart, tableClusterCount };
    }
    for (const cluster of row) taken.delete(cluster);
  }
}

function firstFreeRow(isFree: (cluster: number) => boolean, count: number): number {
  let start = 0;
  for (let cluster = 0; cluster < start + count; cluster++) {
    if (!isFree(cluster)) start = cluster + 1;
  }
  return start;
}

function tableClusterCountFor({ clusterSize }: Geometry, blocks: Iterable<number>): number {
  let last = 0;
  for (const block of blocks) last = Math.max(last, block);
  const count = Math.ceil((last + 1) * 8 / clusterSize);
  if (count * clusterSize <= MAX_REFCOUNT_TABLE_LENGTH) return count;
  throw new Qcow2Error("no-space", `Refcount table would need ${count * clusterSize} bytes`, {
    expected: `at most ${MAX_REFCOUNT_TABLE_LENGTH}`,
  });
}

/**
 * Writes refcount blocks and a refcount table and makes them durable. Nothing points to them yet.
 *
 * @param metadata The image.
 * @param geometry The geometry that the image has once the header points to them.
 * @param references The refcounts, without those of the old refcount structures.
 * @param placement Where they shall stand.
 * @returns Steps, each of which tells a cluster whose refcount was written; then what was written.
 * @throws {Qcow2Error} With code `refcount-overflow` where a cluster is referred to more often than the refcounts can say.
 */
export function* writeRefcounts(
  { file }: ImageMetadata,
  geometry: Geometry,
  references: RefcountSource,
  { blocks, tableStart, tableClusterCount }: RefcountPlacement,
): Steps<number, RefcountStructures> {
  const { clusterSize, refcountBlockEntryCount: perBlock, refcountOrder } = geometry;
  const own = new Set(blocks.values());
  for (let index = 0; index < tableClusterCount; index++) own.add(tableStart + index);
  const table = new PointerTable(tableStart * clusterSize, new Uint8Array(tableClusterCount * clusterSize));
  const bytes = new Uint8Array(clusterSize);
  const view = viewOf(bytes);
  const fill = (first: number, start: number, end: number): void => {
    for (let index = start; index < end; index++) {
      const cluster = first + index;
      const refcount = own.has(cluster) ? 1 : references.get(cluster);
      if (refcount > geometry.maxRefcount) {
        throw new Qcow2Error("refcount-overflow", `Cluster ${cluster} has ${refcount} references`, {
          offset: cluster * clusterSize,
          found: refcount,
          expected: `at most ${geometry.maxRefcount}`,
        });
      }
      if (refcount > 0) setRefcount(view, index, refcountOrder, refcount);
    }
  };
  for (const [block, place] of blocks) {
    bytes.fill(0);
    for (let start = 0; start < perBlock; start += STEP_CLUSTER_COUNT) {
      fill(block * perBlock, start, Math.min(perBlock, start + STEP_CLUSTER_COUNT));
      yield block * perBlock + start;
    }
    file.writeAt(place * clusterSize, bytes);
    table.set(block, entryUpper(place * clusterSize, 0), entryLower(place * clusterSize));
  }
  table.markAllDirty();
  table.writeDirty(file);
  file.sync();
  return { table, tableClusterCount };
}
