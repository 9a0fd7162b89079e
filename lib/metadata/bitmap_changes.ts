/**
 * The bits of a bitmap in memory, in chunks that are made where a bit is set.
 *
 * @module
 */

import type { BitmapDimensions } from "./bitmaps.ts";

/** The bits of one cluster of a bitmap: none set, all set, or the bytes that hold them, the lowest bit first. */
export type BitmapChunk = "none" | "all" | Uint8Array;

const ALL_BITS = 0xff;

/** Bits that were set and that no table holds yet. They take no more memory than the bitmap takes room in the file. */
export class BitmapChanges {
  readonly #granularity: number;
  readonly #chunkSize: number;
  readonly #bitCount: number;
  readonly #chunks = new Map<number, "all" | Uint8Array>();

  /**
   * @param dimensions Sizes of disk and clusters.
   * @param granularityBits Base-2 logarithm of the bytes that one bit stands for.
   */
  constructor(dimensions: BitmapDimensions, granularityBits: number) {
    this.#granularity = 2 ** granularityBits;
    this.#chunkSize = dimensions.clusterSize;
    this.#bitCount = Math.ceil(dimensions.diskSize / this.#granularity);
  }

  /**
   * Sets the bits of every part of the disk that a range touches.
   *
   * @param offset Where the range begins on the disk, in bytes.
   * @param length How far it goes, in bytes, at least 1; not beyond the end of the disk.
   */
  mark(offset: number, length: number): void {
    const chunkBits = this.#chunkSize * 8;
    const end = Math.min(this.#bitCount, Math.floor((offset + length - 1) / this.#granularity) + 1);
    for (let bit = Math.floor(offset / this.#granularity); bit < end;) {
      const index = Math.floor(bit / chunkBits);
      const chunkStart = index * chunkBits;
      const chunkEnd = Math.min(end, chunkStart + chunkBits);
      if (chunkEnd - bit === chunkBits) {
        this.#chunks.set(index, "all");
      } else {
        const chunk = this.#chunks.get(index) ?? new Uint8Array(this.#chunkSize);
        if (chunk !== "all") setBits(chunk, bit - chunkStart, chunkEnd - chunkStart);
        this.#chunks.set(index, chunk);
      }
      bit = chunkEnd;
    }
  }

  /**
   * The bits of one cluster of the bitmap.
   *
   * @param index Index of the cluster's entry in the bitmap table.
   * @returns The bits; not to be changed.
   */
  chunk(index: number): BitmapChunk {
    return this.#chunks.get(index) ?? "none";
  }
}

function setBits(bytes: Uint8Array, first: number, end: number): void {
  const firstByte = first >>> 3;
  const lastByte = (end - 1) >>> 3;
  const head = (ALL_BITS << (first & 7)) & ALL_BITS;
  const tail = ALL_BITS >>> (7 - ((end - 1) & 7));
  if (firstByte === lastByte) {
    bytes[firstByte] = (bytes[firstByte] ?? 0) | (head & tail);
    return;
  }
  bytes[firstByte] = (bytes[firstByte] ?? 0) | head;
  bytes.fill(ALL_BITS, firstByte + 1, lastByte);
  bytes[lastByte] = (bytes[lastByte] ?? 0) | tail;
}

/**
 * The bits that are set in one of two chunks.
 *
 * @param first One chunk.
 * @param second Another one.
 * @returns One of the two where the other adds nothing, or a new chunk.
 */
export function uniteChunks(first: BitmapChunk, second: BitmapChunk): BitmapChunk {
  if (first === "all" || second === "none") return first;
  if (second === "all" || first === "none") return second;
  let grown = false;
  const united = first.map((byte, index) => {
    const both = byte | (second[index] ?? 0);
    grown ||= both !== byte;
    return both;
  });
  return grown ? united : first;
}

/** A stretch of the disk that a bitmap marks. */
export interface DirtyExtent {
  /** Where it begins on the disk, in bytes. */
  readonly offset: number;
  /** How long it is, in bytes. */
  readonly length: number;
}

/**
 * The stretches of the disk whose bits are set.
 *
 * @param dimensions Sizes of disk and clusters.
 * @param granularityBits Base-2 logarithm of the bytes that one bit stands for.
 * @param chunkOf The bits by the index of their cluster.
 * @returns The stretches in order, each as long as it can be.
 */
export function* extentsOfChunks(
  { diskSize, clusterSize }: BitmapDimensions,
  granularityBits: number,
  chunkOf: (index: number) => BitmapChunk,
): Generator<DirtyExtent> {
  const granularity = 2 ** granularityBits;
  const bitCount = Math.ceil(diskSize / granularity);
  let open = -1;
  for (const [bit, isSet] of bitEdges(bitCount, clusterSize * 8, chunkOf)) {
    if (isSet) {
      open = bit;
      continue;
    }
    yield { offset: open * granularity, length: Math.min(bit * granularity, diskSize) - open * granularity };
  }
}

/** Where runs of set bits begin (`true`) and end (`false`), in order. */
function* bitEdges(
  bitCount: number,
  chunkBits: number,
  chunkOf: (index: number) => BitmapChunk,
): Generator<[bit: number, isSet: boolean]> {
  let inside: boolean = false;
  for (let start = 0; start < bitCount; start += chunkBits) {
    const chunk = chunkOf(start / chunkBits);
    const end = Math.min(bitCount - start, chunkBits);
    for (let bit = 0; bit < end;) {
      const byte: number = chunk === "none" ? 0 : chunk === "all" ? ALL_BITS : chunk[bit >>> 3] ?? 0;
      // Whole bytes, and whole chunks, that change nothing are passed over.
      if (byte === (inside ? ALL_BITS : 0) && (bit & 7) === 0) {
        bit += typeof chunk === "string" ? end : 8;
        continue;
      }
      const isSet: boolean = (byte & (1 << (bit & 7))) !== 0;
      if (isSet !== inside) {
        inside = isSet;
        yield [start + bit, isSet];
      }
      bit++;
    }
  }
  if (inside) yield [bitCount, false];
}
