/**
 * What a disk consists of, as its guest sees it, in a bounded number of bins.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { hex, Qcow2Error } from "../errors.ts";
import { alignDown } from "../format/geometry.ts";
import { entryOffset } from "../format/table_entries.ts";
import type { ImageMetadata } from "../metadata/image_metadata.ts";
import { ClusterKind, MappedRun } from "../metadata/mapping.ts";
import { type BinnedMap, MapBuilder } from "./binned_map.ts";

/**
 * What a part of a disk is.
 *
 * - `data`: bytes stand in the image's file, or in its data file.
 * - `compressed`: bytes stand there as compressed clusters.
 * - `zero`: reads as zeroes, and the image says so.
 * - `backing`: bytes come from a backing file, or may where that was not opened.
 * - `unallocated`: nobody holds anything; reads as zeroes.
 * - `damaged`: the tables contradict the format, so that it cannot be read.
 * - `unknown`: was not looked at, since the tables are larger than the limit, or too much of them is damaged.
 */
export type GuestKind = "data" | "compressed" | "zero" | "backing" | "unallocated" | "damaged" | "unknown";

/** All kinds, from the one that matters most down. */
export const GUEST_KINDS: readonly GuestKind[] = [
  "damaged",
  "data",
  "compressed",
  "backing",
  "zero",
  "unknown",
  "unallocated",
];

/** In how many pieces the data of a disk stands on the host. */
export interface Fragmentation {
  /** Stretches of data that stand in one piece on the host, met when the disk is read from its start to its end. */
  readonly pieces: number;
  /** Bytes in all of them. Compressed clusters are not among them. */
  readonly dataLength: number;
  /** Bytes in the longest of them. */
  readonly longestPiece: number;
}

/** A disk as its guest sees it. */
export interface GuestMap {
  /** What it consists of. */
  readonly map: BinnedMap<GuestKind>;
  /** In how many pieces its data stands. */
  readonly fragmentation: Fragmentation;
  /** What was passed over since it is damaged, and what was not looked at. */
  readonly problems: readonly string[];
}

/** To find out where a disk goes on behind damage takes time, of which a stranger's image could cost any amount. */
const MAX_DAMAGE_COUNT = 10_000;

/** What unallocated clusters read from. */
type BackingDisk = Disk | "unopened" | undefined;

/**
 * Maps a disk of a qcow2 image. What is damaged is passed over.
 *
 * @param metadata The image.
 * @param backing The disk that unallocated clusters read from; `unopened` where it could not be had, `undefined` where there is
 * none.
 * @param maxTableLength How many bytes of L2 tables to look at, at most.
 * @returns The map.
 */
export function mapGuest(metadata: ImageMetadata, backing: BackingDisk, maxTableLength: number): GuestMap {
  const { geometry, mapping, diskSize } = metadata;
  const builder = new GuestMapBuilder(diskSize, geometry.subclusterSize);
  const run = new MappedRun();
  let tableLength = 0;
  let damageCount = 0;
  const problems: string[] = [];
  for (let position = 0; position < diskSize;) {
    // One L2 table at a time, so that what is looked at can be counted.
    const tableStart = alignDown(position, geometry.l2TableSpan);
    const end = Math.min(diskSize, tableStart + geometry.l2TableSpan);
    try {
      if (position === tableStart && mapping.hasTable(position)) {
        if (tableLength >= maxTableLength) {
          problems.push(`Tables of the disk are longer than ${maxTableLength} bytes in all`);
          break;
        }
        tableLength += geometry.clusterSize;
        assertTableInFile(metadata, tableStart / geometry.l2TableSpan);
      }
      mapping.find(position, end - position, run);
      addRun(builder, backing, position, run);
      position += run.length;
    } catch (error) {
      if (!(error instanceof Qcow2Error) || error.code !== "corrupt") throw error;
      if (damageCount++ === 0) problems.push(error.message);
      // A broken L1 entry hides all that its table would map, a broken L2 entry one cluster.
      const next = error.offset !== undefined && isWithin(error.offset, mapping.l1.offset, mapping.l1.bytes.length)
        ? end
        : Math.min(end, alignDown(position, geometry.clusterSize) + geometry.clusterSize);
      builder.add("damaged", position, next - position);
      position = next;
      if (damageCount === MAX_DAMAGE_COUNT) {
        problems.push(`The disk is damaged in ${damageCount} places and more`);
        break;
      }
    }
  }
  return { ...builder.build("unknown"), problems };
}

/**
 * Maps any disk by its extents.
 *
 * @param disk The disk.
 * @returns The map.
 */
export function mapDisk(disk: Disk): GuestMap {
  const builder = new GuestMapBuilder(disk.size, Math.max(512, disk.allocationSize));
  for (const { offset, length, kind, hostOffset } of disk.extents(0, disk.size)) {
    builder.add(kind, offset, length, hostOffset);
  }
  return { ...builder.build("unallocated"), problems: [] };
}

class GuestMapBuilder {
  readonly #builder: MapBuilder<GuestKind>;
  #pieces = 0;
  #dataLength = 0;
  #longestPiece = 0;
  #pieceStart = 0;
  #hostEnd = -1;

  constructor(size: number, unit: number) {
    this.#builder = new MapBuilder(size, unit, GUEST_KINDS);
  }

  add(kind: GuestKind, offset: number, length: number, hostOffset?: number): void {
    this.#builder.add(kind, offset, length);
    if (kind !== "data" || hostOffset === undefined) return;
    if (hostOffset !== this.#hostEnd) {
      this.#pieces++;
      this.#pieceStart = hostOffset;
    }
    this.#hostEnd = hostOffset + length;
    this.#dataLength += length;
    this.#longestPiece = Math.max(this.#longestPiece, this.#hostEnd - this.#pieceStart);
  }

  build(rest: GuestKind): Pick<GuestMap, "map" | "fragmentation"> {
    const fragmentation = { pieces: this.#pieces, dataLength: this.#dataLength, longestPiece: this.#longestPiece };
    return { map: this.#builder.build(rest), fragmentation };
  }
}

const KIND_OF_RUN: Readonly<Record<ClusterKind, GuestKind>> = {
  [ClusterKind.unallocated]: "unallocated",
  [ClusterKind.reserved]: "unallocated",
  [ClusterKind.zero]: "zero",
  [ClusterKind.zeroAllocated]: "zero",
  [ClusterKind.data]: "data",
  [ClusterKind.compressed]: "compressed",
};

function addRun(builder: GuestMapBuilder, backing: BackingDisk, offset: number, run: MappedRun): void {
  const kind = KIND_OF_RUN[run.kind];
  if (kind !== "unallocated") {
    builder.add(kind, offset, run.length, run.hostOffset);
    return;
  }
  if (backing === "unopened") {
    builder.add("backing", offset, run.length);
    return;
  }
  const end = offset + run.length;
  const inBacking = Math.min(end, backing?.size ?? 0);
  if (backing !== undefined && inBacking > offset) {
    for (const extent of backing.extents(offset, inBacking - offset)) {
      const holdsData = extent.kind === "data" || extent.kind === "compressed";
      builder.add(holdsData ? "backing" : "unallocated", extent.offset, extent.length);
    }
  }
  const rest = Math.max(offset, inBacking);
  if (rest < end) builder.add("unallocated", rest, end - rest);
}

/** What stands behind the end of the file cannot even be asked for, where it is far enough. */
function assertTableInFile({ file, mapping: { l1 } }: ImageMetadata, index: number): void {
  const offset = entryOffset(l1.upper(index), l1.lower(index));
  if (offset < file.file.size) return;
  throw new Qcow2Error("corrupt", `L2 table at ${hex(offset)} is outside of the file (L1 index: ${hex(index)})`, {
    offset: l1.offset + index * 8,
    found: hex(offset),
    expected: `less than ${hex(file.file.size)}`,
  });
}

function isWithin(offset: number, start: number, length: number): boolean {
  return offset >= start && offset < start + length;
}
