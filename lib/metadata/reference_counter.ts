/**
 * Counts references to stretches of the host file.
 *
 * @module
 */

import { hex } from "../errors.ts";
import { alignDown, alignUp } from "../format/geometry.ts";
import { type ByteRange, coverageOf } from "./coverage.ts";
import type { Report } from "./findings.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import type { MetadataKind } from "./metadata_regions.ts";
import { ReferenceCounts } from "./reference_counts.ts";

/** What a stretch of the host file is used for. What only snapshots use is `inactive`. */
export type HostUse =
  | MetadataKind
  | "encryption header"
  | "inactive L2 table"
  | "bitmap table"
  | "bitmap data"
  | "data"
  | "compressed data"
  | "inactive data"
  | "inactive compressed data";

/**
 * Called with what something refers to, in bytes of the host file, at least once for each use. What it throws ends the walk.
 *
 * A table is told of before what it refers to.
 */
export type OnReference = (use: HostUse, offset: number, length: number) => void;

/** QEMU counts the length of a file in these, in bytes. */
const SECTOR_SIZE = 512;
const OVERFLOW_HINT =
  "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy " +
  "if the image cannot be opened for writing";

/** Whom a {@linkcode ReferenceCounter} tells. */
export interface ReferenceCounterOptions {
  /** Called with what lies outside of the file. */
  readonly onOutside: Report;
  /** Called with references that no refcount can count. */
  readonly onOverflow: Report;
  /** Called with what is referred to. */
  readonly onReference: OnReference | undefined;
}

/** How often each host cluster is referred to, up to what a refcount can say. */
export class ReferenceCounter {
  /** The counts. */
  readonly references = new ReferenceCounts();
  readonly #metadata: ImageMetadata;
  readonly #options: ReferenceCounterOptions;
  /** What was left out since it does not lie in the file: what of it does is in use all the same. */
  readonly leftOut = new Set<HostUse>();
  #fileSize = 0;
  #clusterCount = 0;

  /**
   * @param metadata The image.
   * @param options Whom to tell.
   */
  constructor(metadata: ImageMetadata, options: ReferenceCounterOptions) {
    this.#metadata = metadata;
    this.#options = options;
    this.noteFileSize();
  }

  /** How many clusters the file has, those included that something refers to and that begin at its end. */
  get clusterCount(): number {
    return this.#clusterCount;
  }

  /** The offset from which on nothing is in the file; QEMU allows the last cluster to be cut short by the end. */
  get fileEnd(): number {
    return this.#fileSize + this.#metadata.geometry.clusterSize;
  }

  /** Looks how long the file is now. */
  noteFileSize(): void {
    this.#fileSize = alignUp(this.#metadata.file.file.size, SECTOR_SIZE);
    this.#clusterCount = Math.max(
      this.#clusterCount,
      Math.ceil(this.#fileSize / this.#metadata.geometry.clusterSize),
    );
  }

  /**
   * Counts references to each cluster of a range.
   *
   * @param use What the range is used for.
   * @param offset Where it begins, in bytes.
   * @param length Its length in bytes.
   * @param referrer Where what refers to it stands, in bytes.
   * @param times How many ways lead there.
   * @returns Whether it lies inside the file, and all of it could be counted.
   */
  count(use: HostUse, offset: number, length: number, referrer: number, times = 1): boolean {
    if (length <= 0) return true;
    if (!this.#isInside(use, { offset, length }, referrer, times)) return false;
    this.#options.onReference?.(use, offset, length);
    return this.#addClusters(offset, length, times);
  }

  /**
   * Counts references to each cluster of several ranges, what they share at once.
   *
   * @param use What the ranges are used for.
   * @param ranges The ranges.
   * @param referrer Where what refers to them stands, in bytes.
   */
  countRanges(use: HostUse, ranges: readonly ByteRange[], referrer: number): void {
    const { clusterSize } = this.#metadata.geometry;
    const inside = ranges.filter(({ offset, length }) =>
      length > 0 && this.#isInside(use, { offset, length }, referrer, 1)
    );
    for (const { offset, length } of coverageOf(inside)) this.#options.onReference?.(use, offset, length);
    const wholeClusters = inside.map((range) => inWholeClusters(range, clusterSize));
    for (const { offset, length, times } of coverageOf(wholeClusters)) this.#addClusters(offset, length, times);
  }

  /**
   * Counts references to the clusters of data that stand in a row.
   *
   * @param use What they are used for.
   * @param offset Where the first of them begins, in bytes.
   * @param count How many.
   * @param times How many ways lead there.
   * @returns Whether all of them lie in the file; otherwise nothing is counted.
   */
  countRun(use: HostUse, offset: number, count: number, times: number): boolean {
    const { clusterSize, maxRefcount } = this.#metadata.geometry;
    const length = count * clusterSize;
    if (offset + length > this.#fileSize) return false;
    this.#options.onReference?.(use, offset, length);
    if (this.references.addRun(offset / clusterSize, count, times) > maxRefcount) this.#limit(offset, length);
    return true;
  }

  #isInside(use: HostUse, { offset, length }: ByteRange, referrer: number, times: number): boolean {
    if (offset + length < this.fileEnd) return true;
    const message =
      `ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset ${
        prefixed(offset)
      } size ${prefixed(length)}`;
    this.leftOut.add(use);
    this.#options.onOutside({ message, hostOffset: referrer }, times);
    return false;
  }

  #addClusters(offset: number, length: number, times: number): boolean {
    const { clusterSize, maxRefcount } = this.#metadata.geometry;
    const range = inWholeClusters({ offset, length }, clusterSize);
    const first = range.offset / clusterSize;
    const count = range.length / clusterSize;
    this.#clusterCount = Math.max(this.#clusterCount, first + count);
    if (this.references.addRun(first, count, times) <= maxRefcount) return true;
    this.#limit(range.offset, range.length);
    return false;
  }

  /** Takes back what no refcount can count. */
  #limit(offset: number, length: number): void {
    const { clusterSize, maxRefcount } = this.#metadata.geometry;
    for (let position = offset; position < offset + length; position += clusterSize) {
      const excess = this.references.get(position / clusterSize) - maxRefcount;
      if (excess <= 0) continue;
      this.references.add(position / clusterSize, -excess);
      const message = `ERROR: overflow cluster offset=${prefixed(position)}`;
      this.#options.onOverflow({ message, hostOffset: position, hint: OVERFLOW_HINT }, excess);
    }
  }
}

/**
 * The clusters that a range touches.
 *
 * @param range The range.
 * @param clusterSize Bytes in a cluster.
 * @returns A range of whole clusters.
 */
export function inWholeClusters({ offset, length }: ByteRange, clusterSize: number): ByteRange {
  const first = alignDown(offset, clusterSize);
  return { offset: first, length: alignUp(offset + length, clusterSize) - first };
}

/** As C writes it where the prefix is a part of the text. */
function prefixed(value: number): string {
  return value === 0 ? "0x0" : hex(value);
}
