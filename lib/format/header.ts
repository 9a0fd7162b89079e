/**
 * The qcow2 header, versions 2 and 3, with its extensions and the name of the backing file.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import { AUTOCLEAR, COMPATIBLE, decodeFeatureNames, describeUnknownFeatures, INCOMPATIBLE } from "./feature_bits.ts";
import { type Geometry, geometryOf, l1EntryCountFor } from "./geometry.ts";
import {
  decodeHeaderExtensions,
  encodeHeaderExtensions,
  EXTENSION,
  type HeaderExtension,
} from "./header_extensions.ts";
import {
  MAX_BACKING_FILE_NAME_LENGTH,
  MAX_L1_TABLE_LENGTH,
  MAX_REFCOUNT_TABLE_LENGTH,
  MAX_SNAPSHOT_COUNT,
  MAX_TABLE_HOST_OFFSET,
} from "./limits.ts";
import { readUint64, viewOf, writeUint64 } from "./uint64.ts";

/** The first four bytes of every image: `QFI` and 0xFB. */
export const MAGIC = 0x514649fb;
/** Length in bytes of a version 2 header. */
export const HEADER_LENGTH_V2 = 72;
/** The shortest version 3 header in bytes. */
export const MIN_HEADER_LENGTH_V3 = 104;
/** Length in bytes of the version 3 header that is written into new images. */
export const HEADER_LENGTH_V3 = 112;

/** How compressed clusters are compressed. */
export type CompressionType = "zlib" | "zstd";
/** How guest clusters are encrypted. */
export type EncryptionMethod = "none" | "aes" | "luks";

const ENCRYPTION_METHODS: readonly EncryptionMethod[] = ["none", "aes", "luks"];
const COMPRESSION_TYPES: readonly CompressionType[] = ["zlib", "zstd"];

/** The header of an image, with everything that its first cluster says. */
export interface Header {
  /** Format version. */
  readonly version: 2 | 3;
  /** Base-2 logarithm of the cluster size. */
  readonly clusterBits: number;
  /** Virtual size in bytes. */
  readonly size: number;
  /** How guest clusters are encrypted. */
  readonly encryption: EncryptionMethod;
  /** Number of entries in the active L1 table. */
  readonly l1EntryCount: number;
  /** Host offset of the active L1 table in bytes. */
  readonly l1TableOffset: number;
  /** Host offset of the refcount table in bytes. */
  readonly refcountTableOffset: number;
  /** Number of clusters that the refcount table fills. */
  readonly refcountTableClusterCount: number;
  /** Number of internal snapshots. */
  readonly snapshotCount: number;
  /** Host offset of the snapshot table in bytes. */
  readonly snapshotTableOffset: number;
  /** Incompatible feature bits. */
  readonly incompatibleFeatures: bigint;
  /** Compatible feature bits. */
  readonly compatibleFeatures: bigint;
  /** Autoclear feature bits. */
  readonly autoclearFeatures: bigint;
  /** Base-2 logarithm of the refcount width in bits. */
  readonly refcountOrder: number;
  /** How compressed clusters are compressed. */
  readonly compressionType: CompressionType;
  /** Bytes of the header beyond the fields that are known here, kept as they are. */
  readonly unknownFields: Uint8Array;
  /** Header extensions in their order. */
  readonly extensions: readonly HeaderExtension[];
  /** Name of the backing file, or `undefined` where there is none. */
  readonly backingFile: string | undefined;
}

/**
 * How many bytes of a file are needed to decode its header: the first cluster.
 *
 * @param start The first bytes of the file, at least 24.
 * @returns The cluster size in bytes.
 * @throws {Qcow2Error} With code `not-qcow2`, `unsupported-version` or `unsupported`.
 */
export function headerClusterSize(start: Uint8Array): number {
  const view = viewOf(start);
  if (start.length < 4 || view.getUint32(0) !== MAGIC) {
    const found = start.length < 4 ? `${start.length} bytes` : hex(view.getUint32(0));
    throw new Qcow2Error("not-qcow2", `Image is not in qcow2 format: found ${found}, expected magic ${hex(MAGIC)}`, {
      offset: 0,
      found,
      expected: hex(MAGIC),
    });
  }
  if (start.length < HEADER_LENGTH_V2) {
    throw new Qcow2Error("invalid-header", `File is ${start.length} bytes long, expected a header of at least 72`, {
      offset: start.length,
      found: start.length,
      expected: HEADER_LENGTH_V2,
    });
  }
  const version = view.getUint32(4);
  if (version !== 2 && version !== 3) {
    throw new Qcow2Error("unsupported-version", `Unsupported qcow2 version ${version}, expected 2 or 3`, {
      offset: 4,
      found: version,
      expected: "2 or 3",
    });
  }
  return geometryOf({ clusterBits: view.getUint32(20), refcountOrder: 4 }).clusterSize;
}

/** How {@linkcode decodeHeader} decodes. */
export interface DecodeHeaderOptions {
  /**
   * Whether to pass over what a repair can mend: a refcount table without clusters, and a snapshot table that cannot be one.
   *
   * @default {false}
   */
  readonly tolerant?: boolean;
}

/**
 * Decodes and checks a header. Everything that can be said from the first cluster alone is checked here; whether the
 * tables lie inside the file is not.
 *
 * @param bytes The first cluster, or as much of it as the file has.
 * @param options How to decode.
 * @returns The header.
 * @throws {Qcow2Error} With code `not-qcow2`, `unsupported-version`, `unknown-feature`, `unsupported`, `invalid-header` or
 * `limit-exceeded`.
 *
 * @example Usage
 * ```ts
 * import { createLayout, decodeHeader } from "@disk/qcow2/format";
 * import { assertEquals } from "@std/assert";
 *
 * const layout = createLayout({ size: 1 << 30 });
 * assertEquals(decodeHeader(layout.headerCluster).size, 1 << 30);
 * ```
 */
export function decodeHeader(bytes: Uint8Array, options: DecodeHeaderOptions = {}): Header {
  const clusterSize = headerClusterSize(bytes);
  const cluster = bytes.length > clusterSize ? bytes.subarray(0, clusterSize) : bytes;
  const view = viewOf(cluster);
  const version = view.getUint32(4) === 2 ? 2 : 3;
  const headerLength = decodeHeaderLength(view, version, clusterSize);
  const v3 = version === 3;

  const incompatibleFeatures = v3 ? view.getBigUint64(72) : 0n;
  const backingFileOffset = readUint64(view, 8, "Backing file name offset");
  const backingFileSize = view.getUint32(16);
  if (backingFileOffset > clusterSize || (backingFileOffset !== 0 && backingFileOffset < headerLength)) {
    throw invalid("Backing file name offset", 8, hex(backingFileOffset), `${hex(headerLength)} to ${hex(clusterSize)}`);
  }
  const extensionsEnd = backingFileOffset === 0 ? cluster.length : Math.min(backingFileOffset, cluster.length);
  const extensions = decodeHeaderExtensions(cluster.subarray(headerLength, extensionsEnd), headerLength);

  const names = extensions.find((extension) => extension.type === EXTENSION.featureNames);
  const unknown = describeUnknownFeatures(incompatibleFeatures, decodeFeatureNames(names?.data ?? new Uint8Array()));
  if (unknown !== "") {
    throw new Qcow2Error("unknown-feature", `Unsupported qcow2 feature(s): ${unknown}`, {
      offset: 72,
      found: unknown,
      expected: "features that are known here",
    });
  }

  const encryption = ENCRYPTION_METHODS[view.getUint32(32)];
  if (encryption === undefined) {
    throw new Qcow2Error("unsupported", `Unsupported encryption method ${view.getUint32(32)}, expected 0 to 2`, {
      offset: 32,
      found: view.getUint32(32),
      expected: "0 to 2",
    });
  }

  const header: Header = {
    version,
    clusterBits: view.getUint32(20),
    size: readUint64(view, 24, "Virtual size"),
    encryption,
    l1EntryCount: view.getUint32(36),
    l1TableOffset: readUint64(view, 40, "L1 table offset"),
    refcountTableOffset: readUint64(view, 48, "Refcount table offset"),
    refcountTableClusterCount: view.getUint32(56),
    snapshotCount: view.getUint32(60),
    snapshotTableOffset: readUint64(view, 64, "Snapshot table offset"),
    incompatibleFeatures,
    compatibleFeatures: v3 ? view.getBigUint64(80) : 0n,
    autoclearFeatures: v3 ? view.getBigUint64(88) : 0n,
    refcountOrder: v3 ? view.getUint32(96) : 4,
    compressionType: decodeCompressionType(view, headerLength, incompatibleFeatures),
    unknownFields: headerLength > MIN_HEADER_LENGTH_V3
      ? cluster.slice(MIN_HEADER_LENGTH_V3 + 1, headerLength)
      : new Uint8Array(),
    extensions,
    backingFile: backingFileOffset === 0 || backingFileSize === 0
      ? undefined
      : decodeBackingFile(cluster, backingFileOffset, backingFileSize, clusterSize),
  };
  checkTables(header, geometryOfHeader(header));
  if (options.tolerant !== true) checkMendable(header);
  return header;
}

function decodeHeaderLength(view: DataView, version: 2 | 3, clusterSize: number): number {
  if (version === 2) return HEADER_LENGTH_V2;
  if (view.byteLength < MIN_HEADER_LENGTH_V3) {
    throw invalid("File length", view.byteLength, view.byteLength, "at least 104");
  }
  const length = view.getUint32(100);
  if (length < MIN_HEADER_LENGTH_V3) throw invalid("Header length", 100, length, "at least 104");
  if (length > clusterSize) throw invalid("Header length", 100, length, `at most the cluster size ${clusterSize}`);
  if (length > view.byteLength) throw invalid("Header length", 100, length, `at most the file's ${view.byteLength}`);
  return length;
}

function decodeCompressionType(view: DataView, headerLength: number, incompatible: bigint): CompressionType {
  const field = headerLength > MIN_HEADER_LENGTH_V3 ? view.getUint8(MIN_HEADER_LENGTH_V3) : 0;
  const type = COMPRESSION_TYPES[field];
  if (type === undefined) {
    throw new Qcow2Error("unsupported", `Unknown compression type ${field}, expected 0 or 1`, {
      offset: MIN_HEADER_LENGTH_V3,
      found: field,
      expected: "0 or 1",
    });
  }
  const flagged = (incompatible & INCOMPATIBLE.compressionType) !== 0n;
  if (flagged !== (type !== "zlib")) {
    throw invalid(
      "Compression type",
      MIN_HEADER_LENGTH_V3,
      `${type} with the feature bit ${flagged ? "set" : "clear"}`,
      "agreement",
    );
  }
  return type;
}

function decodeBackingFile(cluster: Uint8Array, offset: number, size: number, clusterSize: number): string {
  if (size > MAX_BACKING_FILE_NAME_LENGTH || size > clusterSize - offset || offset + size > cluster.length) {
    throw invalid("Backing file name length", 16, size, `at most ${Math.min(1023, clusterSize - offset)}`);
  }
  return new TextDecoder().decode(cluster.subarray(offset, offset + size));
}

/** Checks the places and sizes of the tables against the format's limits (format: header; QEMU's maximum table sizes). */
function checkTables(header: Header, geometry: Geometry): void {
  const { clusterSize } = geometry;
  const refcountTableLength = header.refcountTableClusterCount * clusterSize;
  if (refcountTableLength > MAX_REFCOUNT_TABLE_LENGTH) {
    throw tooLarge("Refcount table", 56, refcountTableLength, MAX_REFCOUNT_TABLE_LENGTH);
  }
  if (header.refcountTableClusterCount > 0) {
    checkOffset("Refcount table offset", 48, header.refcountTableOffset, clusterSize);
  }
  const l1Length = header.l1EntryCount * 8;
  if (l1Length > MAX_L1_TABLE_LENGTH) {
    throw tooLarge("Active L1 table", 36, l1Length, MAX_L1_TABLE_LENGTH);
  }
  if (header.l1EntryCount > 0) checkOffset("L1 table offset", 40, header.l1TableOffset, clusterSize);
  const needed = l1EntryCountFor(geometry, header.size);
  if (header.l1EntryCount < needed) {
    throw invalid("L1 table size", 36, `${header.l1EntryCount} entries`, `at least ${needed} for the virtual size`);
  }
  if ((header.autoclearFeatures & AUTOCLEAR.rawDataFile) !== 0n) {
    const found = "raw external data";
    if (!hasDataFile(header)) throw invalid("Autoclear feature field", 88, found, "it only with an external data file");
    if (header.backingFile !== undefined) {
      throw invalid("Autoclear feature field", 88, found, "no backing file with it");
    }
  }
}

/** Checks what a repair can mend. */
function checkMendable(header: Header): void {
  if (header.refcountTableClusterCount === 0) {
    throw invalid("Refcount table size", 56, "0 clusters", "at least 1");
  }
  if (header.snapshotCount > MAX_SNAPSHOT_COUNT) {
    throw tooLarge("Snapshot count", 60, header.snapshotCount, MAX_SNAPSHOT_COUNT);
  }
  if (header.snapshotCount > 0) {
    checkOffset("Snapshot table offset", 64, header.snapshotTableOffset, 2 ** header.clusterBits);
  }
}

function checkOffset(name: string, position: number, offset: number, clusterSize: number): void {
  if (offset % clusterSize !== 0) {
    throw invalid(name, position, hex(offset), `a multiple of the cluster size ${clusterSize}`);
  }
  if (offset === 0) throw invalid(name, position, "0", "a place behind the header");
  if (offset >= MAX_TABLE_HOST_OFFSET) throw invalid(name, position, hex(offset), "less than 2^56");
}

function invalid(name: string, offset: number, found: string | number, expected: string | number): Qcow2Error {
  return new Qcow2Error("invalid-header", `${name} is ${found}, expected ${expected}`, { offset, found, expected });
}

function tooLarge(name: string, offset: number, found: number, limit: number): Qcow2Error {
  return new Qcow2Error("limit-exceeded", `${name} too large: found ${found}, expected at most ${limit}`, {
    offset,
    found,
    expected: `at most ${limit}`,
  });
}

/**
 * The geometry that a header states.
 *
 * @param header A header.
 * @returns The sizes that follow from it.
 * @throws {Qcow2Error} With code `unsupported` where a number is outside of what the format or QEMU allows.
 */
export function geometryOfHeader(header: Header): Geometry {
  return geometryOf({
    clusterBits: header.clusterBits,
    refcountOrder: header.refcountOrder,
    extendedL2: hasExtendedL2(header),
  });
}

/**
 * Whether guest clusters stand in an external data file.
 *
 * @param header A header.
 * @returns Whether the incompatible feature bit is set.
 */
export function hasDataFile(header: Header): boolean {
  return (header.incompatibleFeatures & INCOMPATIBLE.dataFile) !== 0n;
}

/**
 * Whether L2 entries are extended, so that clusters have subclusters.
 *
 * @param header A header.
 * @returns Whether the incompatible feature bit is set.
 */
export function hasExtendedL2(header: Header): boolean {
  return (header.incompatibleFeatures & INCOMPATIBLE.extendedL2) !== 0n;
}

/**
 * Whether writers may delay refcounts, according to the compatible feature bit.
 *
 * @param header A header.
 * @returns Whether the bit is set.
 */
export function hasLazyRefcounts(header: Header): boolean {
  return (header.compatibleFeatures & COMPATIBLE.lazyRefcounts) !== 0n;
}

/**
 * A text that a header extension holds, such as the format of the backing file.
 *
 * @param header A header.
 * @param type The extension's type.
 * @returns The text, of several the last one's, or `undefined` where there is no such extension.
 */
export function extensionText(header: Header, type: number): string | undefined {
  const extension = header.extensions.findLast((candidate) => candidate.type === type);
  return extension === undefined ? undefined : new TextDecoder().decode(extension.data);
}

/** Length in bytes of the fixed part of a header, unknown fields included. */
function headerLengthOf(header: Header): number {
  if (header.version === 2) return HEADER_LENGTH_V2;
  return header.unknownFields.length === 0 && header.compressionType === "zlib"
    ? MIN_HEADER_LENGTH_V3
    : MIN_HEADER_LENGTH_V3 + 1 + header.unknownFields.length;
}

/**
 * Encodes the first cluster's content: header, extensions, name of the backing file.
 *
 * @param header What to write.
 * @returns The bytes, no longer than a cluster.
 * @throws {Qcow2Error} With code `invalid-argument` where it does not fit into one cluster.
 *
 * @example Usage
 * ```ts
 * import { createLayout, decodeHeader, encodeHeader } from "@disk/qcow2/format";
 * import { assertEquals } from "@std/assert";
 *
 * const { header } = createLayout({ size: 1 << 20, version: 2 });
 * assertEquals(decodeHeader(encodeHeader(header)), header);
 * ```
 */
export function encodeHeader(header: Header): Uint8Array<ArrayBuffer> {
  const headerLength = headerLengthOf(header);
  const extensions = encodeHeaderExtensions(header.extensions);
  const backingFile = new TextEncoder().encode(header.backingFile ?? "");
  const backingFileOffset = headerLength + extensions.length;
  const length = backingFileOffset + backingFile.length;
  if (length > 2 ** header.clusterBits || backingFile.length > MAX_BACKING_FILE_NAME_LENGTH) {
    throw new Qcow2Error(
      "invalid-argument",
      `Header, extensions and backing file name take ${length} bytes, expected at most one cluster of ${
        2 ** header.clusterBits
      } with a name of at most ${MAX_BACKING_FILE_NAME_LENGTH}`,
      { found: length, expected: 2 ** header.clusterBits },
    );
  }
  const bytes = new Uint8Array(length);
  bytes.set(encodeHeaderFields(header));
  bytes.set(extensions, headerLength);
  bytes.set(backingFile, backingFileOffset);
  if (header.backingFile !== undefined) {
    const view = viewOf(bytes);
    writeUint64(view, 8, backingFileOffset);
    view.setUint32(16, backingFile.length);
  }
  return bytes;
}

/** Where the fields begin that change while an image is used, in bytes from the start of the file. */
export const MUTABLE_FIELDS_OFFSET = 24;

/**
 * Encodes the fields that change while an image is used: size, tables, snapshots, feature bits, refcount width. They stand in the first 512
 * bytes, so one write changes them all at once; everything else in the first cluster stays as it is.
 *
 * @param header What to write.
 * @returns The bytes to write at {@linkcode MUTABLE_FIELDS_OFFSET}.
 */
export function encodeMutableFields(header: Header): Uint8Array<ArrayBuffer> {
  return encodeHeaderFields(header).slice(MUTABLE_FIELDS_OFFSET, header.version === 2 ? HEADER_LENGTH_V2 : 100);
}

/** Encodes the fixed part of a header, without a backing file. */
function encodeHeaderFields(header: Header): Uint8Array<ArrayBuffer> {
  const headerLength = headerLengthOf(header);
  const bytes = new Uint8Array(headerLength);
  const view = viewOf(bytes);
  view.setUint32(0, MAGIC);
  view.setUint32(4, header.version);
  view.setUint32(20, header.clusterBits);
  writeUint64(view, 24, header.size);
  view.setUint32(32, ENCRYPTION_METHODS.indexOf(header.encryption));
  view.setUint32(36, header.l1EntryCount);
  writeUint64(view, 40, header.l1TableOffset);
  writeUint64(view, 48, header.refcountTableOffset);
  view.setUint32(56, header.refcountTableClusterCount);
  view.setUint32(60, header.snapshotCount);
  writeUint64(view, 64, header.snapshotTableOffset);
  if (header.version === 2) return bytes;
  view.setBigUint64(72, header.incompatibleFeatures);
  view.setBigUint64(80, header.compatibleFeatures);
  view.setBigUint64(88, header.autoclearFeatures);
  view.setUint32(96, header.refcountOrder);
  view.setUint32(100, headerLength);
  if (headerLength > MIN_HEADER_LENGTH_V3) {
    view.setUint8(MIN_HEADER_LENGTH_V3, COMPRESSION_TYPES.indexOf(header.compressionType));
    bytes.set(header.unknownFields, MIN_HEADER_LENGTH_V3 + 1);
  }
  return bytes;
}
