/**
 * Gives an image refcounts of another width.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { type Geometry, geometryOf } from "../format/geometry.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import { placeRefcountsAtEnd, type RefcountSource, STEP_CLUSTER_COUNT, writeRefcounts } from "./refcount_rebuild.ts";
import type { Progress, Steps } from "./steps.ts";

/** Refcounts are looked at three times: to see whether they fit, to find places for new ones, and to write these. */
const WALK_COUNT = 3;

/**
 * Writes all refcounts in another width behind everything in use, and switches over with one write of the header: a crash
 * leaves the old refcounts or the new ones. The new ones say that the old structures are free. The caller opens the image
 * anew, since its geometry is another one.
 *
 * @param metadata The image, with nothing dirty in memory, version 3.
 * @param refcountBits The new width in bits.
 * @returns Steps, which tell of three walks over the refcount table. Where they are given up, the image is as before.
 * @throws {Qcow2Error} With code `refcount-overflow` where a refcount does not fit, `no-space` or `io`; the image is as before
 * then.
 */
export function* changeRefcountWidth(metadata: ImageMetadata, refcountBits: number): Steps<Progress, void> {
  const refcountOrder = Math.log2(refcountBits);
  const { clusterBits } = metadata.geometry;
  const extendedL2 = metadata.geometry.l2EntrySize === 16;
  const geometry = geometryOf({ clusterBits, refcountOrder, extendedL2 });
  const source = currentRefcounts(metadata);
  const oldSize = metadata.file.file.size;
  let isGivenUp = true;
  try {
    yield* walking(metadata, 0, findOverflow(metadata, geometry, source));
    const placement = yield* walking(metadata, 1, placeRefcountsAtEnd(metadata, geometry, source));
    const written = yield* walking(metadata, 2, writeRefcounts(metadata, geometry, source, placement));
    isGivenUp = false;
    metadata.updateHeader({
      refcountOrder,
      refcountTableOffset: written.table.offset,
      refcountTableClusterCount: written.tableClusterCount,
    });
  } catch (error) {
    isGivenUp = false;
    throw error;
  } finally {
    // Nothing points to what was written already.
    if (isGivenUp) metadata.file.truncate(oldSize);
  }
}

/** Tells of a work that goes over all clusters as one of three walks over the refcount table. */
function* walking<Result>(
  { refcounts, geometry }: ImageMetadata,
  walk: number,
  steps: Steps<number, Result>,
): Steps<Progress, Result> {
  const { entryCount } = refcounts.table;
  const total = WALK_COUNT * entryCount;
  let entry = 0;
  for (;;) {
    const step = steps.next();
    // New structures describe themselves, which the old table has no entries for.
    const reached = step.done === true ? entryCount : step.value / geometry.refcountBlockEntryCount;
    for (; entry < entryCount && entry <= reached; entry++) yield { done: walk * entryCount + entry, total };
    if (step.done !== true) continue;
    yield { done: (walk + 1) * entryCount, total };
    return step.value;
  }
}

/** Makes sure that all refcounts fit, before anything is written. */
function* findOverflow(
  { refcounts }: ImageMetadata,
  { maxRefcount, refcountBits, clusterSize }: Geometry,
  source: RefcountSource,
): Steps<number, void> {
  let stepEnd = STEP_CLUSTER_COUNT;
  for (const cluster of source.clusters()) {
    const refcount = source.get(cluster);
    if (refcount > maxRefcount) {
      // How far it has come is told first.
      yield cluster;
      const offset = cluster * clusterSize;
      throw new Qcow2Error(
        "refcount-overflow",
        `Cannot decrease refcount entry width to ${refcountBits} bits: Cluster at offset 0x${
          offset.toString(16)
        } has a refcount of ${refcounts.textOf(cluster)}`,
        { offset, found: refcount, expected: `at most ${maxRefcount}` },
      );
    }
    if (cluster < stepEnd) continue;
    yield cluster;
    stepEnd = cluster + STEP_CLUSTER_COUNT;
  }
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
