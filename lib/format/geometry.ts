/**
 * The sizes and index splits that follow from a header: how a guest offset becomes table indexes.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { MAX_CLUSTER_BITS, MAX_REFCOUNT_ORDER, MIN_CLUSTER_BITS, MIN_CLUSTER_BITS_EXTENDED_L2 } from "./limits.ts";

/** The three numbers of a header from which every other size follows. */
export interface GeometryOptions {
  /** Base-2 logarithm of the cluster size, 9 to 21. */
  readonly clusterBits: number;
  /** Base-2 logarithm of the refcount width in bits, 0 to 6. */
  readonly refcountOrder: number;
  /** Whether L2 entries have subclusters (16 bytes each instead of 8). */
  readonly extendedL2?: boolean;
}

/** Subclusters in a cluster, where L2 entries are extended (format: 32 bits of each bitmap). */
export const SUBCLUSTER_COUNT = 32;

/** Sizes and counts that follow from the header. All sizes are in bytes. */
export interface Geometry {
  /** Base-2 logarithm of the cluster size. */
  readonly clusterBits: number;
  /** Bytes in a cluster. */
  readonly clusterSize: number;
  /** Bytes in the smallest part of a cluster that has a state of its own: a subcluster, or all of it without subclusters. */
  readonly subclusterSize: number;
  /** Bytes in an L2 entry: 8, or 16 with subclusters. */
  readonly l2EntrySize: number;
  /** Entries in an L2 table, which is one cluster. */
  readonly l2EntryCount: number;
  /** Bytes of the disk that one L2 table maps. */
  readonly l2TableSpan: number;
  /** Base-2 logarithm of the refcount width in bits. */
  readonly refcountOrder: number;
  /** The refcount width in bits. */
  readonly refcountBits: number;
  /** The largest refcount that fits, at most 2^53 - 1. */
  readonly maxRefcount: number;
  /** Refcounts in a refcount block, which is one cluster. */
  readonly refcountBlockEntryCount: number;
  /** Bytes of the host file that one refcount block describes. */
  readonly refcountBlockSpan: number;
}

/**
 * Derives the geometry.
 *
 * @param options Cluster bits, refcount order and the kind of L2 entries.
 * @returns The sizes that follow.
 * @throws {Qcow2Error} With code `unsupported` where a number is outside of what the format or QEMU allows.
 *
 * @example Usage
 * ```ts
 * import { geometryOf } from "@disk/qcow2/format";
 * import { assertEquals } from "@std/assert";
 *
 * const geometry = geometryOf({ clusterBits: 16, refcountOrder: 4 });
 * assertEquals(geometry.clusterSize, 65536);
 * assertEquals(geometry.l2TableSpan, 512 * 1024 * 1024);
 * ```
 */
export function geometryOf(options: GeometryOptions): Geometry {
  const { clusterBits, refcountOrder, extendedL2 = false } = options;
  if (!Number.isInteger(clusterBits) || clusterBits < MIN_CLUSTER_BITS || clusterBits > MAX_CLUSTER_BITS) {
    throw new Qcow2Error("unsupported", `Unsupported cluster size: 2^${clusterBits}, expected 2^9 to 2^21`, {
      offset: 20,
      found: clusterBits,
      expected: "9 to 21",
    });
  }
  if (extendedL2 && clusterBits < MIN_CLUSTER_BITS_EXTENDED_L2) {
    throw new Qcow2Error(
      "unsupported",
      `Extended L2 entries need clusters of at least 16 KiB, found 2^${clusterBits}`,
      {
        offset: 20,
        found: clusterBits,
        expected: "14 to 21",
      },
    );
  }
  if (!Number.isInteger(refcountOrder) || refcountOrder < 0 || refcountOrder > MAX_REFCOUNT_ORDER) {
    throw new Qcow2Error("unsupported", `Reference count width 2^${refcountOrder} bits exceeds 64 bits`, {
      offset: 96,
      found: refcountOrder,
      expected: "0 to 6",
    });
  }
  const clusterSize = 2 ** clusterBits;
  const l2EntrySize = extendedL2 ? 16 : 8;
  const l2EntryCount = clusterSize / l2EntrySize;
  const refcountBits = 2 ** refcountOrder;
  const refcountBlockEntryCount = clusterSize * 8 / refcountBits;
  return {
    clusterBits,
    clusterSize,
    subclusterSize: extendedL2 ? clusterSize / SUBCLUSTER_COUNT : clusterSize,
    l2EntrySize,
    l2EntryCount,
    l2TableSpan: clusterSize * l2EntryCount,
    refcountOrder,
    refcountBits,
    maxRefcount: refcountBits >= 53 ? Number.MAX_SAFE_INTEGER : 2 ** refcountBits - 1,
    refcountBlockEntryCount,
    refcountBlockSpan: clusterSize * refcountBlockEntryCount,
  };
}

/**
 * How many L1 entries a disk of a given size needs.
 *
 * @param geometry The image's geometry.
 * @param size The virtual size in bytes.
 * @returns The number of entries; 0 for an empty disk.
 */
export function l1EntryCountFor(geometry: Geometry, size: number): number {
  return Math.ceil(size / geometry.l2TableSpan);
}

/**
 * Rounds an offset or length down to a multiple of a power of two, exact up to 2^53.
 *
 * @param value A non-negative integer.
 * @param unit The power of two.
 * @returns The largest multiple of `unit` that is not above `value`.
 */
export function alignDown(value: number, unit: number): number {
  return value - value % unit;
}

/**
 * Rounds an offset or length up to a multiple of a power of two, exact up to 2^53.
 *
 * @param value A non-negative integer.
 * @param unit The power of two.
 * @returns The smallest multiple of `unit` that is not below `value`.
 */
export function alignUp(value: number, unit: number): number {
  const rest = value % unit;
  return rest === 0 ? value : value + unit - rest;
}
