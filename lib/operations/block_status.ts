/**
 * What a disk and its backing disks say of each stretch, in the terms and in the pieces of QEMU.
 *
 * @module
 */

import type { Disk, Extent, ExtentKind, ExtentOptions } from "../disk.ts";
import { alignUp } from "../format/geometry.ts";
import { hasExtendedL2 } from "../format/header.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { isZeroExtent } from "./chain.ts";

/** What is known of a stretch of a disk without reading it. */
export interface BlockStatus extends Pick<Extent, "kind" | "depth"> {
  /** Where it begins on the disk, in bytes. */
  readonly offset: number;
  /** How long it is, in bytes. */
  readonly length: number;
  /** Whether it is data, be it in a hole of the host's file. */
  readonly data: boolean;
  /** Whether it reads as zeroes; otherwise it may hold anything. */
  readonly zero: boolean;
  /** Whether one of the images says so, rather than none of them saying anything. */
  readonly allocated: boolean;
  /** Whether it stands in a host file, as it is or kept in reserve. */
  readonly placed: boolean;
  /** Whether the image ends with it. */
  readonly last: boolean;
}

/** One image of a backing chain. */
interface Layer {
  readonly size: number;
  readonly allocationSize: number;
  /** Bytes of the disk that a slice of an L2 table maps; infinite for images without such tables. */
  readonly sliceSpan: number;
}

/** QEMU keeps up to this many bytes of L2 tables in memory; it looks at whole tables where those of the disk are no more. */
const L2_CACHE_SIZE = 32 * 1024 * 1024;
/** Otherwise it looks at slices of this size, or of a cluster where that is smaller. */
const SLICE_SIZE = 4096;
/** The most bytes that a qcow2 image tells of at once. */
const MAX_PIECE_LENGTH = 2 ** 31 - 1;

/**
 * Walks over a disk in the pieces in which QEMU is told of it: they end with the L2 table, or slice of one, of each image that had to
 * be asked, and with each compressed cluster. So what goes by pieces, such as progress, goes as it does in QEMU.
 *
 * @param disk The disk.
 * @param start Where to begin, in bytes of the disk.
 * @param length How far, in bytes.
 * @param options What to look at.
 * @returns The pieces in order, without gaps.
 * @throws {Qcow2Error} Whatever `extents` throws.
 */
export function* blockStatus(
  disk: Disk,
  start = 0,
  length: number = disk.size - start,
  options: ExtentOptions = {},
): Generator<BlockStatus, void, undefined> {
  const layers = layersOf(disk);
  for (const extent of disk.extents(start, length, options)) {
    const end = extent.offset + extent.length;
    const asked = layers.slice(0, extent.depth + 1);
    for (let offset = extent.offset; offset < end;) {
      const next = Math.min(end, nextCut(asked, extent.kind, offset));
      yield statusOf(layers, extent, offset, next);
      offset = next;
    }
  }
}

function layersOf(disk: Disk): Layer[] {
  const layers: Layer[] = [];
  for (let layer: Disk | undefined = disk; layer !== undefined;) {
    const { size, allocationSize } = layer;
    layers.push({ size, allocationSize, sliceSpan: l2SliceSpan(layer) });
    layer = layer instanceof Qcow2File ? layer.backing : undefined;
  }
  return layers;
}

/**
 * How much of a disk QEMU looks at once: what one L2 table maps, or a slice of one where the tables of the disk are many.
 *
 * @param disk The disk.
 * @returns The length in bytes; infinite for a disk without such tables.
 */
export function l2SliceSpan(disk: Disk): number {
  if (!(disk instanceof Qcow2File)) return Infinity;
  const { size, allocationSize: clusterSize } = disk;
  const entrySize = hasExtendedL2(disk.header) ? 16 : 8;
  const tablesLength = alignUp(Math.ceil(size / clusterSize) * entrySize, clusterSize);
  const sliceSize = tablesLength > L2_CACHE_SIZE ? Math.min(SLICE_SIZE, clusterSize) : clusterSize;
  return sliceSize / entrySize * clusterSize;
}

/** Where the piece that begins at an offset ends at the latest. */
function nextCut(asked: readonly Layer[], kind: ExtentKind, offset: number): number {
  const units = asked.map(({ sliceSpan }) => sliceSpan).filter((span) => span !== Infinity);
  if (units.length === 0) return Infinity;
  if (kind === "compressed") units.push(asked.at(-1)?.allocationSize ?? 1);
  return Math.min(offset + MAX_PIECE_LENGTH, ...units.map((unit) => (Math.floor(offset / unit) + 1) * unit));
}

function statusOf(layers: readonly Layer[], extent: Extent, offset: number, end: number): BlockStatus {
  const { kind, depth, hostOffset } = extent;
  const isUnknown = kind === "unallocated";
  const isLowest = depth === layers.length - 1;
  return {
    offset,
    length: end - offset,
    kind,
    depth,
    data: kind === "data" || kind === "compressed",
    zero: isZeroExtent(extent),
    // Where an image is longer than the one beneath, that one says by its end that there are zeroes.
    allocated: !isUnknown || !isLowest,
    placed: hostOffset !== undefined,
    last: end === layers[0]?.size || (isUnknown && isLowest && end === layers[depth]?.size),
  };
}
