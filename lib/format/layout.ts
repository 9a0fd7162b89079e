/**
 * Where everything stands in a fresh, empty image.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { AUTOCLEAR, COMPATIBLE, encodeFeatureNames, FEATURE_NAMES, INCOMPATIBLE } from "./feature_bits.ts";
import { type Geometry, geometryOf, l1EntryCountFor } from "./geometry.ts";
import { EXTENSION, type HeaderExtension } from "./header_extensions.ts";
import { type CompressionType, encodeHeader, type Header, HEADER_LENGTH_V3, MIN_HEADER_LENGTH_V3 } from "./header.ts";
import { MAX_L1_TABLE_LENGTH, MIN_CLUSTER_BITS_EXTENDED_L2 } from "./limits.ts";
import { setRefcount } from "./refcount_entries.ts";
import { viewOf, writeUint64 } from "./uint64.ts";

/** What a fresh image shall be like. */
export interface LayoutOptions {
  /** Virtual size in bytes, rounded up to a multiple of 512. */
  readonly size: number;
  /**
   * Format version; 2 is what QEMU calls `compat=0.10`, 3 `compat=1.1`.
   *
   * @default {3}
   */
  readonly version?: 2 | 3;
  /**
   * Cluster size in bytes, a power of two from 512 to 2 MiB.
   *
   * @default {65536}
   */
  readonly clusterSize?: number;
  /**
   * Refcount width in bits: 1, 2, 4, 8, 16, 32 or 64; version 2 knows 16 only.
   *
   * @default {16}
   */
  readonly refcountBits?: number;
  /**
   * Whether writers may delay refcounts; version 3 only.
   *
   * @default {false}
   */
  readonly lazyRefcounts?: boolean;
  /**
   * How compressed clusters will be compressed; version 2 knows zlib only.
   *
   * @default {"zlib"}
   */
  readonly compressionType?: CompressionType;
  /** Name of the backing file, at most 1023 bytes in UTF-8. */
  readonly backingFile?: string;
  /** Format of the backing file, such as `qcow2`. */
  readonly backingFormat?: string;
  /**
   * Whether each cluster has 32 subclusters, so that small writes into a disk with a backing file copy less; version 3 with
   * clusters of at least 16 KiB only.
   *
   * @default {false}
   */
  readonly extendedL2?: boolean;
  /**
   * Whether the refcount table has room for the refcounts of the whole disk from the start, for a disk that is going to be
   * allocated whole: a table that grows leaves clusters behind.
   *
   * @default {false}
   */
  readonly wholeRefcountTable?: boolean;
  /** Name of the external data file that the guest's clusters stand in; version 3 only. */
  readonly dataFile?: string;
  /**
   * Whether the external data file is a raw image of the disk as well; not with a backing file.
   *
   * @default {false}
   */
  readonly dataFileRaw?: boolean;
}

/** A fresh image: the header, and the bytes of its few clusters. Between and behind them everything is zero. */
export interface Layout {
  /** The header. */
  readonly header: Header;
  /** The geometry. */
  readonly geometry: Geometry;
  /** Content of the first cluster, from offset 0 on. */
  readonly headerCluster: Uint8Array<ArrayBuffer>;
  /** Content of the refcount table, from `header.refcountTableOffset` on. */
  readonly refcountTable: Uint8Array<ArrayBuffer>;
  /** Content of all refcount blocks, which stand in a row. */
  readonly refcountBlocks: Uint8Array<ArrayBuffer>;
  /** Host offset of the first refcount block in bytes. */
  readonly refcountBlocksOffset: number;
  /** Length of the file in bytes: where the L1 table ends. */
  readonly fileSize: number;
}

const SECTOR_SIZE = 512;
/** Small clusters leave the room behind the header to what must stand there; QEMU writes the names from here on too. */
const MIN_CLUSTER_SIZE_FOR_NAMES = 8192;

/**
 * Plans a fresh image in the order header, refcount table, refcount blocks, L1 table, as QEMU writes it. Its refcounts
 * describe themselves.
 *
 * @param options What the image shall be like.
 * @returns The header and the content of its clusters.
 * @throws {Qcow2Error} With code `invalid-argument` where options contradict each other or the format.
 *
 * @example Usage
 * ```ts
 * import { createLayout } from "@disk/qcow2/format";
 * import { assertEquals } from "@std/assert";
 *
 * const layout = createLayout({ size: 1024 ** 3 });
 * assertEquals(layout.header.l1TableOffset, 0x30000);
 * assertEquals(layout.fileSize, 196624);
 * ```
 */
export function createLayout(options: LayoutOptions): Layout {
  const { version = 3, clusterSize = 65536, refcountBits = 16, lazyRefcounts = false, compressionType = "zlib" } =
    options;
  if (version !== 2 && version !== 3) throw argument(`Unsupported version ${version}, expected 2 or 3`);
  if (version === 2 && refcountBits !== 16) {
    throw argument(
      "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version 3 or greater)",
    );
  }
  if (version === 2 && lazyRefcounts) {
    throw argument("Lazy refcounts only supported with compatibility level 1.1 and above (use version 3 or greater)");
  }
  if (version === 2 && compressionType !== "zlib") {
    throw argument(
      "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version 3 or greater)",
    );
  }
  checkDataFile(options, version);
  const extendedL2 = options.extendedL2 ?? false;
  if (version === 2 && extendedL2) {
    throw argument(
      "Extended L2 entries are only supported with compatibility level 1.1 and above (use version 3 or greater)",
    );
  }
  const geometry = layoutGeometry(clusterSize, refcountBits, extendedL2);
  if (!Number.isSafeInteger(options.size) || options.size < 0) {
    throw argument(`Virtual size is ${options.size}, expected a whole number of bytes from 0 to 2^53 - 1`);
  }
  const size = Math.ceil(options.size / SECTOR_SIZE) * SECTOR_SIZE;
  const l1EntryCount = l1EntryCountFor(geometry, size);
  if (!Number.isSafeInteger(size) || l1EntryCount * 8 > MAX_L1_TABLE_LENGTH) {
    const limit = geometry.l2TableSpan * MAX_L1_TABLE_LENGTH / 8;
    throw argument(
      `The image size is too large for file format 'qcow2' with clusters of ${clusterSize} bytes: found ${options.size}, ` +
        `expected at most ${limit}`,
    );
  }

  const l1ClusterCount = Math.ceil(l1EntryCount * 8 / clusterSize);
  const others = 1 + l1ClusterCount;
  const { tableClusterCount, blockCount, clusterCount } = refcountClusters(
    geometry,
    others,
    options.wholeRefcountTable === true ? wholeTableClusterCount(geometry, size, others) : 1,
  );
  const refcountBlocksOffset = (1 + tableClusterCount) * clusterSize;
  const refcountTable = new Uint8Array(tableClusterCount * clusterSize);
  for (let index = 0; index < blockCount; index++) {
    writeUint64(viewOf(refcountTable), index * 8, refcountBlocksOffset + index * clusterSize);
  }
  const refcountBlocks = new Uint8Array(blockCount * clusterSize);
  const blocksView = viewOf(refcountBlocks);
  for (let cluster = 0; cluster < clusterCount; cluster++) setRefcount(blocksView, cluster, geometry.refcountOrder, 1);

  const metadataEnd = refcountBlocksOffset + blockCount * clusterSize;
  const l1TableOffset = l1EntryCount === 0 ? 0 : metadataEnd;
  const header: Header = {
    version,
    clusterBits: geometry.clusterBits,
    size,
    encryption: "none",
    l1EntryCount,
    l1TableOffset,
    refcountTableOffset: clusterSize,
    refcountTableClusterCount: tableClusterCount,
    snapshotCount: 0,
    snapshotTableOffset: 0,
    incompatibleFeatures: (compressionType === "zlib" ? 0n : INCOMPATIBLE.compressionType) |
      (options.dataFile === undefined ? 0n : INCOMPATIBLE.dataFile) | (extendedL2 ? INCOMPATIBLE.extendedL2 : 0n),
    compatibleFeatures: lazyRefcounts ? COMPATIBLE.lazyRefcounts : 0n,
    autoclearFeatures: options.dataFileRaw === true ? AUTOCLEAR.rawDataFile : 0n,
    refcountOrder: geometry.refcountOrder,
    compressionType,
    unknownFields: version === 2 ? new Uint8Array() : new Uint8Array(HEADER_LENGTH_V3 - MIN_HEADER_LENGTH_V3 - 1),
    extensions: extensionsFor(version, clusterSize, options),
    backingFile: options.backingFile,
  };
  return {
    header,
    geometry,
    headerCluster: encodeHeader(header),
    refcountTable,
    refcountBlocks,
    refcountBlocksOffset,
    fileSize: metadataEnd + l1EntryCount * 8,
  };
}

/**
 * The extensions that an image keeps when its version changes: the feature name table belongs to version 3, all others stay
 * byte for byte.
 *
 * @param extensions What the image has.
 * @param version The version that it gets.
 * @param clusterSize Its cluster size in bytes.
 * @returns What it has then.
 */
export function extensionsForVersion(
  extensions: readonly HeaderExtension[],
  version: 2 | 3,
  clusterSize: number,
): readonly HeaderExtension[] {
  const hasNames = extensions.some(({ type }) => type === EXTENSION.featureNames);
  if (version === 2) return extensions.filter(({ type }) => type !== EXTENSION.featureNames);
  if (hasNames || clusterSize < MIN_CLUSTER_SIZE_FOR_NAMES) return extensions;
  return [...extensions, { type: EXTENSION.featureNames, data: encodeFeatureNames(FEATURE_NAMES) }];
}

function checkDataFile({ dataFile, dataFileRaw, backingFile }: LayoutOptions, version: 2 | 3): void {
  if (dataFile === "") throw argument("Name of the data file is empty");
  if (dataFile !== undefined && version === 2) {
    throw argument(
      "External data files are only supported with compatibility level 1.1 and above (use version 3 or greater)",
    );
  }
  if (dataFileRaw !== true) return;
  if (dataFile === undefined) throw argument("A raw data file needs the name of a data file");
  if (backingFile !== undefined) throw argument("Backing file and raw data file cannot be used at the same time");
}

function extensionsFor(
  version: 2 | 3,
  clusterSize: number,
  { backingFormat, dataFile }: LayoutOptions,
): HeaderExtension[] {
  const extensions: HeaderExtension[] = [];
  if (backingFormat !== undefined) {
    extensions.push({ type: EXTENSION.backingFormat, data: new TextEncoder().encode(backingFormat) });
  }
  if (dataFile !== undefined) {
    extensions.push({ type: EXTENSION.dataFile, data: new TextEncoder().encode(dataFile) });
  }
  if (version >= 3 && clusterSize >= MIN_CLUSTER_SIZE_FOR_NAMES) {
    extensions.push({ type: EXTENSION.featureNames, data: encodeFeatureNames(FEATURE_NAMES) });
  }
  return extensions;
}

/**
 * The geometry that a new image shall have.
 *
 * @param clusterSize Cluster size in bytes.
 * @param refcountBits Refcount width in bits.
 * @param extendedL2 Whether clusters have subclusters.
 * @returns The geometry.
 * @throws {Qcow2Error} With code `invalid-argument` where the format knows no such sizes.
 */
export function layoutGeometry(clusterSize: number, refcountBits: number, extendedL2: boolean): Geometry {
  const clusterBits = Math.log2(clusterSize);
  if (!Number.isInteger(clusterBits) || clusterBits < 9 || clusterBits > 21) {
    throw argument(`Cluster size must be a power of two between 512 and 2048k, found ${clusterSize}`);
  }
  if (extendedL2 && clusterBits < MIN_CLUSTER_BITS_EXTENDED_L2) {
    throw argument(
      `Extended L2 entries are only supported with cluster sizes of at least 16384 bytes, found ${clusterSize}`,
    );
  }
  const refcountOrder = Math.log2(refcountBits);
  if (!Number.isInteger(refcountOrder) || refcountOrder < 0 || refcountOrder > 6) {
    throw argument(`Refcount width must be a power of two and may not exceed 64 bits, found ${refcountBits}`);
  }
  return geometryOf({ clusterBits, refcountOrder, extendedL2 });
}

/** How many clusters the refcounts of an image take, see {@linkcode refcountClusters}. */
export interface RefcountClusters {
  /** Clusters of the refcount table. */
  readonly tableClusterCount: number;
  /** Refcount blocks, which are a cluster each. */
  readonly blockCount: number;
  /** All clusters that are counted, those of the refcounts included. */
  readonly clusterCount: number;
}

/**
 * How many clusters the refcounts of an image take so that they describe themselves and others.
 *
 * @param geometry The image's geometry.
 * @param otherClusterCount How many other clusters there are.
 * @param minTableClusterCount How many clusters the refcount table has at least.
 * @returns The counts.
 */
export function refcountClusters(
  geometry: Geometry,
  otherClusterCount: number,
  minTableClusterCount = 1,
): RefcountClusters {
  let tableClusterCount = minTableClusterCount;
  let blockCount = 1;
  for (;;) {
    const clusterCount = otherClusterCount + tableClusterCount + blockCount;
    const neededBlocks = Math.ceil(clusterCount / geometry.refcountBlockEntryCount);
    const neededTable = Math.ceil(neededBlocks * 8 / geometry.clusterSize);
    if (neededBlocks <= blockCount && neededTable <= tableClusterCount) {
      return { tableClusterCount, blockCount, clusterCount };
    }
    blockCount = Math.max(blockCount, neededBlocks);
    tableClusterCount = Math.max(tableClusterCount, neededTable);
  }
}

/** Clusters of the refcount table once all clusters of the disk and its L2 tables are allocated beside others. */
function wholeTableClusterCount(geometry: Geometry, size: number, others: number): number {
  const dataClusterCount = Math.ceil(size / geometry.clusterSize);
  const l2TableCount = Math.ceil(dataClusterCount / geometry.l2EntryCount);
  return refcountClusters(geometry, others + l2TableCount + dataClusterCount).tableClusterCount;
}

function argument(message: string): Qcow2Error {
  return new Qcow2Error("invalid-argument", message);
}
