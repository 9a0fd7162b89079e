/**
 * The 64-bit entries of L1 tables, L2 tables and refcount tables, as two 32-bit halves.
 *
 * An entry is never turned into one number as a whole: JavaScript's numbers hold 53 bits and its bit operators 32. `upper` and
 * `lower` are what `DataView.getUint32` gives for the two halves.
 *
 * @module
 */

import { TWO_TO_32 } from "./uint64.ts";

/** Upper half: the cluster's refcount is exactly one (L1 and L2 entries, bit 63). */
export const COPIED_FLAG = 0x80000000;
/** Upper half: the L2 entry is a compressed cluster descriptor (bit 62). */
export const COMPRESSED_FLAG = 0x40000000;
/** Lower half: the cluster reads as zeroes (standard L2 entries of version 3, bit 0). */
export const ZERO_FLAG = 1;

/** Upper half: bits 32 to 55 of a host offset. */
const OFFSET_UPPER_MASK = 0x00ffffff;
/** Lower half: bits 9 to 31 of a host offset. */
const OFFSET_LOWER_MASK = 0xfffffe00;
/** Upper half: bits 56 to 62, reserved in L1 entries. */
const L1_RESERVED_UPPER_MASK = 0x7f000000;
/** Lower half: bits 0 to 8, reserved in L1 and refcount table entries. */
const L1_RESERVED_LOWER_MASK = 0x000001ff;
/** Upper half: bits 56 to 61, reserved in standard L2 entries. */
const L2_RESERVED_UPPER_MASK = 0x3f000000;
/** Lower half: bits 1 to 8, reserved in standard L2 entries. */
const L2_RESERVED_LOWER_MASK = 0x000001fe;

/** A unit in which compressed data is counted on the host, whatever the host's own sectors are. */
export const COMPRESSED_SECTOR_SIZE = 512;

/**
 * The host offset in an L1 entry, a standard L2 entry (bits 9 to 55).
 *
 * @param upper Upper half of the entry.
 * @param lower Lower half of the entry.
 * @returns The offset in bytes; 0 where nothing is referred to. It may be beyond 2^53 in a damaged image.
 */
export function entryOffset(upper: number, lower: number): number {
  return (upper & OFFSET_UPPER_MASK) * TWO_TO_32 + ((lower & OFFSET_LOWER_MASK) >>> 0);
}

/**
 * The host offset in a refcount table entry (bits 9 to 63).
 *
 * @param upper Upper half of the entry.
 * @param lower Lower half of the entry.
 * @returns The offset in bytes; 0 where the refcount block is absent.
 */
export function refcountTableEntryOffset(upper: number, lower: number): number {
  return upper * TWO_TO_32 + ((lower & OFFSET_LOWER_MASK) >>> 0);
}

/**
 * The upper half of an entry for a host offset.
 *
 * @param offset The host offset in bytes.
 * @param flags Flags of the upper half, such as {@linkcode COPIED_FLAG}.
 * @returns The upper half as an unsigned number.
 */
export function entryUpper(offset: number, flags: number): number {
  return (Math.floor(offset / TWO_TO_32) | flags) >>> 0;
}

/**
 * The lower half of an entry for a host offset.
 *
 * @param offset The host offset in bytes.
 * @param flags Flags of the lower half, such as {@linkcode ZERO_FLAG}.
 * @returns The lower half as an unsigned number.
 */
export function entryLower(offset: number, flags = 0): number {
  return (offset % TWO_TO_32 | flags) >>> 0;
}

/**
 * Whether reserved bits are set in an L1 entry.
 *
 * @param upper Upper half of the entry.
 * @param lower Lower half of the entry.
 * @returns Whether one of the bits 0 to 8 or 56 to 62 is set.
 */
export function hasReservedL1Bits(upper: number, lower: number): boolean {
  return (upper & L1_RESERVED_UPPER_MASK) !== 0 || (lower & L1_RESERVED_LOWER_MASK) !== 0;
}

/**
 * Whether reserved bits are set in a standard L2 entry.
 *
 * @param upper Upper half of the entry.
 * @param lower Lower half of the entry.
 * @returns Whether one of the bits 1 to 8 or 56 to 61 is set.
 */
export function hasReservedL2Bits(upper: number, lower: number): boolean {
  return (upper & L2_RESERVED_UPPER_MASK) !== 0 || (lower & L2_RESERVED_LOWER_MASK) !== 0;
}

/**
 * How many standard L2 entries go on as the first of them begins: with the same flags, each one cluster further on the host.
 *
 * @param view A table.
 * @param index Index of the first entry.
 * @param end Index behind the last entry to look at.
 * @param clusterSize Bytes in a cluster.
 * @returns How many, at least 1.
 */
export function contiguousEntryCount(view: DataView, index: number, end: number, clusterSize: number): number {
  let upper = view.getUint32(index * 8);
  let lower = view.getUint32(index * 8 + 4);
  let next = index;
  do {
    next++;
    lower += clusterSize;
    if (lower >= TWO_TO_32) {
      lower -= TWO_TO_32;
      upper++;
    }
  } while (next < end && view.getUint32(next * 8 + 4) === lower && view.getUint32(next * 8) === upper);
  return next - index;
}

/**
 * Whether reserved bits are set in a refcount table entry.
 *
 * @param lower Lower half of the entry.
 * @returns Whether one of the bits 0 to 8 is set.
 */
export function hasReservedRefcountTableBits(lower: number): boolean {
  return (lower & L1_RESERVED_LOWER_MASK) !== 0;
}

/** Where the bytes of a compressed cluster stand on the host. */
export interface CompressedDescriptor {
  /** Where they begin, in bytes; any byte, not only sectors. */
  readonly hostOffset: number;
  /** How many bytes there are at most: up to the end of the last sector that the descriptor counts. */
  readonly length: number;
}

/**
 * Decodes the descriptor of a compressed cluster: the host offset in the lower `62 - (cluster_bits - 8)` bits, above it the
 * number of further 512-byte sectors.
 *
 * @param upper Upper half of the L2 entry.
 * @param lower Lower half of the L2 entry.
 * @param clusterBits Base-2 logarithm of the cluster size.
 * @returns Where the compressed bytes stand.
 */
export function decodeCompressedDescriptor(upper: number, lower: number, clusterBits: number): CompressedDescriptor {
  const upperOffsetBits = 62 - (clusterBits - 8) - 32;
  const descriptor = upper & 0x3fffffff;
  // 2 ** 29 and less: these bit operators never see more than 30 bits.
  const hostOffset = (descriptor & (2 ** upperOffsetBits - 1)) * TWO_TO_32 + lower;
  const furtherSectors = descriptor >>> upperOffsetBits;
  const length = (furtherSectors + 1) * COMPRESSED_SECTOR_SIZE - hostOffset % COMPRESSED_SECTOR_SIZE;
  return { hostOffset, length };
}

/**
 * Encodes the descriptor of a compressed cluster.
 *
 * @param hostOffset Where the compressed bytes begin, in bytes.
 * @param length How many there are, in bytes, at least 1.
 * @param clusterBits Base-2 logarithm of the cluster size.
 * @returns The halves of the L2 entry.
 */
export function encodeCompressedDescriptor(
  hostOffset: number,
  length: number,
  clusterBits: number,
): { upper: number; lower: number } {
  const upperOffsetBits = 62 - (clusterBits - 8) - 32;
  const firstSector = Math.floor(hostOffset / COMPRESSED_SECTOR_SIZE);
  const furtherSectors = Math.floor((hostOffset + length - 1) / COMPRESSED_SECTOR_SIZE) - firstSector;
  const upper = Math.floor(hostOffset / TWO_TO_32) + furtherSectors * 2 ** upperOffsetBits + COMPRESSED_FLAG;
  return { upper, lower: hostOffset % TWO_TO_32 };
}
