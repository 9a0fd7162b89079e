/**
 * Tells how large an image would be.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { bitmapEntryLength } from "../format/bitmap_directory.ts";
import { alignDown, alignUp, type Geometry, l1EntryCountFor } from "../format/geometry.ts";
import { layoutGeometry, type LayoutOptions, refcountClusters } from "../format/layout.ts";
import { MAX_L1_TABLE_LENGTH } from "../format/limits.ts";
import type { ImageType } from "../image/detect.ts";
import { checkedPreallocation, type Preallocation } from "../image/preallocation.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { bitmapsAreConsistent } from "../metadata/bitmaps.ts";
import type { Progress } from "../metadata/steps.ts";
import { isZeroExtent } from "./chain.ts";
import { SECTOR_SIZE } from "./sector_comparison.ts";
import { TimeSlice } from "./time_slice.ts";

/** What the image would be like that {@linkcode measure} is to measure. */
export interface MeasureOptions extends Pick<LayoutOptions, "version" | "clusterSize" | "refcountBits" | "extendedL2"> {
  /**
   * Its format; most of the other options mean something for `qcow2` only.
   *
   * @default {"qcow2"}
   */
  readonly format?: ImageType;
  /**
   * What would be allocated ahead of use.
   *
   * @default {"off"}
   */
  readonly preallocation?: Preallocation;
  /**
   * Whether it would have a backing file. How much of the content stands there is not known, so all of it counts.
   *
   * @default {false}
   */
  readonly hasBackingFile?: boolean;
  /** An image whose bitmaps would be copied as well, where that is not the source itself. */
  readonly bitmapsOf?: Qcow2File;
  /** Called while it goes on, some tens of times a second at most, and at the end. */
  readonly onProgress?: (progress: Progress) => void;
  /** Ends the operation early when it is aborted. */
  readonly signal?: AbortSignal;
}

/** How large an image would be. */
export interface Measurement {
  /** Bytes of the file that the content needs: at most, since metadata counts as if everything were allocated. */
  readonly required: number;
  /** Bytes of the file once every cluster of the disk is allocated. */
  readonly fullyAllocated: number;
  /** Bytes that the bitmaps would need besides; only where the source has the version for them, and the image as well. */
  readonly bitmaps?: number;
}

/**
 * Tells how large an image would be that holds the content of a disk, without making it. The content is not read, only where
 * there is any.
 *
 * @param source A disk, or the size in bytes of an empty one.
 * @param options What the image would be like.
 * @returns Its sizes, the same as those of `qemu-img measure`.
 * @throws {Qcow2Error} With code `invalid-argument` where there can be no such image; `aborted` where the signal says so; and
 * whatever the source throws.
 *
 * @example Usage
 * ```ts
 * import { measure, Qcow2File } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * using disk = Qcow2File.create(path, { size: 1024 ** 3 });
 * disk.writeAt(0, new Uint8Array(65536).fill(7));
 * const { required, fullyAllocated } = await measure(disk, { clusterSize: 65536 });
 * assertEquals([required, fullyAllocated], [458752, 1074135040]);
 * assertEquals((await measure(1000, { format: "raw" })).required, 1024);
 * disk.close();
 * Deno.removeSync(path);
 * ```
 */
export async function measure(source: Disk | number, options: MeasureOptions = {}): Promise<Measurement> {
  const size = typeof source === "number" ? alignUp(checkedSize(source), SECTOR_SIZE) : source.size;
  if (options.format === "raw") return { required: size, fullyAllocated: size };
  const geometry = checkedGeometry(options);
  const virtualSize = alignUp(size, geometry.clusterSize);
  if (typeof source === "number") checkL1(geometry, virtualSize);
  const metadata = metadataSize(geometry, virtualSize);
  const content = await contentSize(source, virtualSize, geometry, options);
  const image = options.bitmapsOf ?? (source instanceof Qcow2File ? source : undefined);
  return {
    required: metadata + content,
    fullyAllocated: metadata + virtualSize,
    ...(image?.header.version === 3 && options.version !== 2 ? { bitmaps: bitmapsSize(image, geometry) } : {}),
  };
}

function checkedSize(size: number): number {
  if (Number.isInteger(size) && size >= 0) return size;
  throw new Qcow2Error("invalid-argument", `Virtual size is ${size}, expected a whole number of bytes`, {
    found: size,
  });
}

function checkedGeometry(
  { version, refcountBits = 16, clusterSize = 65536, extendedL2 = false }: MeasureOptions,
): Geometry {
  const geometry = layoutGeometry(clusterSize, refcountBits, extendedL2);
  if (version !== 2 || refcountBits === 16) return geometry;
  throw new Qcow2Error(
    "invalid-argument",
    "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version 3 or greater)",
    { found: refcountBits, expected: 16 },
  );
}

function checkL1(geometry: Geometry, virtualSize: number): void {
  if (l1EntryCountFor(geometry, virtualSize) * 8 <= MAX_L1_TABLE_LENGTH) return;
  throw new Qcow2Error("invalid-argument", "The image size is too large (try using a larger cluster size)", {
    found: virtualSize,
    expected: `at most ${MAX_L1_TABLE_LENGTH / 8 * geometry.l2TableSpan}`,
  });
}

/** Bytes of everything but the guest's clusters, once all of those are allocated. */
function metadataSize(geometry: Geometry, virtualSize: number): number {
  const { clusterSize, l2EntryCount } = geometry;
  const dataClusterCount = virtualSize / clusterSize;
  const l2TableCount = Math.ceil(dataClusterCount / l2EntryCount);
  const l1ClusterCount = Math.ceil(l2TableCount * 8 / clusterSize);
  const others = 1 + l1ClusterCount + l2TableCount;
  const { tableClusterCount, blockCount } = refcountClusters(geometry, others + dataClusterCount);
  return (others + tableClusterCount + blockCount) * clusterSize;
}

/** Bytes of the guest's clusters that would be allocated. */
async function contentSize(
  source: Disk | number,
  virtualSize: number,
  { clusterSize }: Geometry,
  options: MeasureOptions,
): Promise<number> {
  const preallocation = checkedPreallocation(options.preallocation);
  if (preallocation === "falloc" || preallocation === "full") return virtualSize;
  if (typeof source === "number") return 0;
  if (options.hasBackingFile === true) return virtualSize;
  const slice = new TimeSlice(options.signal);
  const total = source.size;
  let size = 0;
  // The clusters in front of this offset are counted: one that holds several stretches of data counts once.
  let counted = 0;
  for (const extent of source.extents(0, total, { hostHoles: true })) {
    const { offset, length } = extent;
    const end = offset + length;
    if (!isZeroExtent(extent) && end > counted) {
      const start = Math.max(counted, alignDown(offset, clusterSize));
      counted = alignUp(end, clusterSize);
      size += counted - start;
    }
    if (slice.isOver()) {
      options.onProgress?.({ done: end, total });
      await slice.next();
    }
  }
  options.onProgress?.({ done: total, total });
  return size;
}

/** Bytes that the bitmaps of an image would need in another one, with all of their bits stored. */
function bitmapsSize(image: Qcow2File, { clusterSize }: Geometry): number {
  if (!bitmapsAreConsistent(image.header)) return 0;
  let size = 0;
  let directoryLength = 0;
  for (const { name, granularity } of image.bitmaps) {
    const clusterCount = Math.ceil(Math.ceil(image.size / granularity) / 8 / clusterSize);
    size += clusterCount * clusterSize + alignUp(clusterCount * 8, clusterSize);
    directoryLength += bitmapEntryLength(new TextEncoder().encode(name).length);
  }
  return size + alignUp(directoryLength, clusterSize);
}
