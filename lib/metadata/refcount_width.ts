/**
 * Gives an image refcounts of another width.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { geometryOf } from "../format/geometry.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import { type RefcountSource, writeRefcountStructures } from "./refcount_rebuild.ts";
import { allAtOnce } from "./steps.ts";

/**
 * Writes all refcounts in another width behind everything in use, and switches over with one write of the header: a crash
 * leaves the old refcounts or the new ones. The new ones say that the old structures are free. The caller opens the image
 * anew, since its geometry is another one.
 *
 * @param metadata The image, with nothing dirty in memory, version 3.
 * @param refcountBits The new width in bits.
 * @throws {Qcow2Error} With code `refcount-overflow` where a refcount does not fit, `no-space` or `io`; the image is as before
 * then.
 */
export function changeRefcountWidth(metadata: ImageMetadata, refcountBits: number): void {
  const refcountOrder = Math.log2(refcountBits);
  const { clusterBits, clusterSize } = metadata.geometry;
  const extendedL2 = metadata.geometry.l2EntrySize === 16;
  const geometry = geometryOf({ clusterBits, refcountOrder, extendedL2 });
  const source = currentRefcounts(metadata);
  for (const cluster of source.clusters()) {
    const refcount = source.get(cluster);
    if (refcount <= geometry.maxRefcount) continue;
    const offset = cluster * clusterSize;
    throw new Qcow2Error(
      "refcount-overflow",
      `Cannot decrease refcount entry width to ${refcountBits} bits: Cluster at offset 0x${
        offset.toString(16)
      } has a refcount of ${metadata.refcounts.textOf(cluster)}`,
      { offset, found: refcount, expected: `at most ${geometry.maxRefcount}` },
    );
  }
  const { table, tableClusterCount } = allAtOnce(writeRefcountStructures(metadata, geometry, source));
  metadata.updateHeader({
    refcountOrder,
    refcountTableOffset: table.offset,
    refcountTableClusterCount: tableClusterCount,
  });
}

/** The refcounts as they are, without the references of the structures that hold them. */
function currentRefcounts({ refcounts, geometry }: ImageMetadata): RefcountSource {
  const { table } = refcounts;
  const { clusterSize } = geometry;
  const structures = new Set<number>();
  for (let position = 0; position < table.bytes.length; position += clusterSize) {
    structures.add((table.offset + position) / clusterSize);
  }
  for (let block = 0; block < table.entryCount; block++) {
    const offset = refcounts.blockOffset(block);
    if (offset !== 0) structures.add(offset / clusterSize);
  }
  const get = (cluster: number): number => refcounts.get(cluster) - (structures.has(cluster) ? 1 : 0);
  return {
    get,
    *clusters() {
      for (let block = 0; block < table.entryCount; block++) {
        if (refcounts.blockOffset(block) === 0) continue;
        for (const [first, end] of refcounts.usedStretches(block, Infinity)) {
          for (let cluster = first; cluster < end; cluster++) {
            if (get(cluster) > 0) yield cluster;
          }
        }
      }
    },
  };
}
