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

/** What {@linkcode writeRefcountStructures} asks. */
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

/** What {@linkcode writeRefcountStructures} wrote. */
export interface RefcountStructures {
  /** The refcount table. */
  readonly table: PointerTable;
  /** How many clusters it fills. */
  readonly tableClusterCount: number;
  /** The cluster behind the last one that was written. */
  readonly endCluster: number;
}

/**
 * Builds refcount structures that say exactly what was counted, and points the header to them last: until then the old ones
 * are untouched, and a crash changes nothing. The old ones are free afterwards.
 *
 * @param metadata The image.
 * @param references What was counted, without the references of the old refcount structures.
 * @returns The last cluster in use.
 * @throws {Qcow2Error} With code `refcount-overflow` where a cluster is referred to more often than the refcounts can say,
 * `no-space` where the refcount table would be too long.
 */
export function rebuildRefcounts(metadata: ImageMetadata, references: ReferenceCounts): number {
  const { table, tableClusterCount, endCluster } = writeRefcountStructures(metadata, metadata.geometry, references);
  metadata.updateHeader({ refcountTableOffset: table.offset, refcountTableClusterCount: tableClusterCount });
  metadata.refcounts.adopt(table);
  metadata.reset();
  return endCluster - 1;
}

/**
 * Writes refcount blocks and a refcount table behind everything in use and makes them durable. Nothing points to them yet.
 *
 * @param metadata The image.
 * @param geometry The geometry that the image has once the header points to them.
 * @param references The refcounts, without those of the old refcount structures.
 * @returns What was written.
 * @throws {Qcow2Error} As {@linkcode rebuildRefcounts} does.
 */
export function writeRefcountStructures(
  metadata: ImageMetadata,
  geometry: Geometry,
  references: RefcountSource,
): RefcountStructures {
  const { file } = metadata;
  const { clusterSize, refcountBlockEntryCount: perBlock, refcountOrder } = geometry;
  const blocks = new Set<number>();
  // An entry may refer to a cluster right behind the end of the file, which reads as zeroes.
  let areaStart = alignUp(file.file.size, clusterSize) / clusterSize;
  for (const cluster of references.clusters()) {
    blocks.add(Math.floor(cluster / perBlock));
    areaStart = Math.max(areaStart, cluster + 1);
  }
  let tableClusters = 0;
  for (let settled = false; !settled;) {
    const areaEnd = areaStart + blocks.size + tableClusters;
    const before = blocks.size + tableClusters;
    for (let block = Math.floor(areaStart / perBlock); block * perBlock < areaEnd; block++) blocks.add(block);
    let last = 0;
    for (const block of blocks) last = Math.max(last, block);
    tableClusters = Math.ceil((last + 1) * 8 / clusterSize);
    settled = blocks.size + tableClusters === before;
  }
  if (tableClusters * clusterSize > MAX_REFCOUNT_TABLE_LENGTH) {
    throw new Qcow2Error("no-space", `Refcount table would need ${tableClusters * clusterSize} bytes`, {
      expected: `at most ${MAX_REFCOUNT_TABLE_LENGTH}`,
    });
  }

  const areaEnd = areaStart + blocks.size + tableClusters;
  const tableOffset = (areaStart + blocks.size) * clusterSize;
  const table = new PointerTable(tableOffset, new Uint8Array(tableClusters * clusterSize));
  const bytes = new Uint8Array(clusterSize);
  const view = viewOf(bytes);
  let next = areaStart;
  for (const block of [...blocks].sort((a, b) => a - b)) {
    bytes.fill(0);
    for (let index = 0; index < perBlock; index++) {
      const cluster = block * perBlock + index;
      const refcount = cluster >= areaStart && cluster < areaEnd ? 1 : references.get(cluster);
      if (refcount > geometry.maxRefcount) {
        throw new Qcow2Error("refcount-overflow", `Cluster ${cluster} has ${refcount} references`, {
          offset: cluster * clusterSize,
          found: refcount,
          expected: `at most ${geometry.maxRefcount}`,
        });
      }
      if (refcount > 0) setRefcount(view, index, refcountOrder, refcount);
    }
    file.writeAt(next * clusterSize, bytes);
    table.set(block, entryUpper(next * clusterSize, 0), entryLower(next * clusterSize));
    next++;
  }
  table.markAllDirty();
  table.writeDirty(file);
  file.sync();
  return { table, tableClusterCount: tableClusters, endCluster: areaEnd };
}
