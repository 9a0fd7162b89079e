/**
 * Tells what an image is, without reading its content.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { type BitmapEntry, decodeBitmapDirectory } from "../format/bitmap_directory.ts";
import { AUTOCLEAR, COMPATIBLE, INCOMPATIBLE } from "../format/feature_bits.ts";
import { type CompressionType, extensionText, hasDataFile, type Header } from "../format/header.ts";
import { decodeBitmapsPointer, decodeEncryptionPointer, EXTENSION } from "../format/header_extensions.ts";
import { MAX_BITMAP_COUNT, MAX_BITMAP_DIRECTORY_LENGTH } from "../format/limits.ts";
import type { Snapshot } from "../format/snapshot_table.ts";
import { type ImageType, imageTypeOf } from "../image/detect.ts";
import { acquireFile, type FileSource } from "../image/host_file.ts";
import { readHeader } from "../metadata/image_metadata.ts";
import { readSnapshotTable } from "../metadata/snapshots.ts";
import type { BlockFile } from "../storage/block_file.ts";
import { decodeLuksHeader, LUKS_HEADER_LENGTH, type LuksInfo, type LuksSlot } from "./luks_info.ts";

export type { LuksInfo, LuksSlot };

/** How {@linkcode imageInfo} looks at an image. */
export interface ImageInfoOptions {
  /** The format. Without it, the first bytes decide, as `detectImageType` does. */
  readonly format?: ImageType;
  /**
   * Whether to lock the file.
   *
   * @default {true}
   */
  readonly lock?: boolean;
  /**
   * Called with what is wrong with the list of snapshots or bitmaps, which is left out then. Without it, that is thrown.
   */
  readonly onDamage?: (damage: Qcow2Error) => void;
}

/** A persistent bitmap, as {@linkcode imageInfo} tells of it. */
export interface BitmapInfo {
  /** The name, unique. */
  readonly name: string;
  /** How many bytes of the disk one bit stands for. */
  readonly granularity: number;
  /** Whether a writer has not brought it up to date, so that it must not be used. */
  readonly inUse: boolean;
  /** Whether writes to the disk must be recorded in it. */
  readonly auto: boolean;
}

/** How an image is encrypted. */
export type EncryptionInfo = { readonly format: "aes" } | ({ readonly format: "luks" } & LuksInfo);

/** What only qcow2 images have. */
export interface Qcow2Info {
  /** Format version. */
  readonly version: 2 | 3;
  /** Cluster size in bytes. */
  readonly clusterSize: number;
  /** How compressed clusters are compressed. */
  readonly compressionType: CompressionType;
  /** Whether writers may delay refcounts. */
  readonly lazyRefcounts: boolean;
  /** Refcount width in bits. */
  readonly refcountBits: number;
  /** Whether L2 entries have subclusters. */
  readonly extendedL2: boolean;
  /** Whether the image is marked as corrupt. */
  readonly corrupt: boolean;
  /** Whether the last writer did not get to the end, so that refcounts may be stale. */
  readonly dirty: boolean;
  /** Name of the backing file, as it stands in the image. */
  readonly backingFile?: string;
  /** Format of the backing file, as it stands in the image. */
  readonly backingFormat?: string;
  /** Name of the external data file, as it stands in the image. */
  readonly dataFile?: string;
  /** Whether the external data file can be read as a raw image. */
  readonly dataFileRaw: boolean;
  /** How the image is encrypted. */
  readonly encryption?: EncryptionInfo;
  /** The internal snapshots; none where there is an external data file, with which entries of the table are a mistake. */
  readonly snapshots: readonly Snapshot[];
  /** The persistent bitmaps; none where a writer that knew no bitmaps has touched the image since. */
  readonly bitmaps: readonly BitmapInfo[];
}

/** What an image is. */
export interface ImageInfo {
  /** The format. */
  readonly format: ImageType;
  /** The virtual size in bytes. */
  readonly virtualSize: number;
  /** How much room the file takes on the host, in bytes, where the host can tell. */
  readonly actualSize?: number;
  /** What only qcow2 images have. */
  readonly qcow2?: Qcow2Info;
}

const SECTOR_SIZE = 512;

/**
 * Tells what an image is. Nothing but the named file is opened, and it need not be an image whose content can be read here:
 * one with a backing file, an external data file or encryption will do.
 *
 * @param source Path of the image, or a file that was opened; it is closed at the end.
 * @param options The format, where it is known.
 * @returns What the image is.
 * @throws {Qcow2Error} With code `not-found`, `permission-denied`, `locked` or `io` where the file cannot be had, with the
 * codes of a broken header where it is no sound image.
 *
 * @example Usage
 * ```ts
 * import { imageInfo, Qcow2File } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * Qcow2File.create(path, { size: 1 << 30 }).close();
 * const info = imageInfo(path);
 * assertEquals(info.format, "qcow2");
 * assertEquals(info.virtualSize, 1 << 30);
 * assertEquals(info.qcow2?.clusterSize, 65536);
 * Deno.removeSync(path);
 * ```
 */
export function imageInfo(source: FileSource, options: ImageInfoOptions = {}): ImageInfo {
  using file = acquireFile(source, { write: false, lock: options.lock ?? true });
  return infoOfFile(file, options);
}

/**
 * Does what {@linkcode imageInfo} does, with a file that stays open.
 *
 * @param file The file, locked where it shall be.
 * @param options The format, where it is known.
 * @returns What the image is.
 * @throws {Qcow2Error} As {@linkcode imageInfo} does.
 */
export function infoOfFile(file: BlockFile, options: Omit<ImageInfoOptions, "lock">): ImageInfo {
  const format = options.format ?? imageTypeOf(file);
  const { allocatedSize } = file;
  const actual = allocatedSize === undefined ? {} : { actualSize: allocatedSize };
  if (format === "raw") return { format, virtualSize: Math.ceil(file.size / SECTOR_SIZE) * SECTOR_SIZE, ...actual };
  const header = readHeader(file);
  return {
    format,
    virtualSize: header.size - header.size % SECTOR_SIZE,
    ...actual,
    qcow2: qcow2Info(file, header, options.onDamage),
  };
}

function qcow2Info(file: BlockFile, header: Header, onDamage: ImageInfoOptions["onDamage"]): Qcow2Info {
  const { incompatibleFeatures, backingFile } = header;
  const backingFormat = extensionText(header, EXTENSION.backingFormat);
  const dataFile = hasDataFile(header) ? extensionText(header, EXTENSION.dataFile) : undefined;
  const encryption = encryptionInfo(file, header);
  return {
    version: header.version,
    clusterSize: 2 ** header.clusterBits,
    compressionType: header.compressionType,
    lazyRefcounts: (header.compatibleFeatures & COMPATIBLE.lazyRefcounts) !== 0n,
    refcountBits: 2 ** header.refcountOrder,
    extendedL2: (incompatibleFeatures & INCOMPATIBLE.extendedL2) !== 0n,
    corrupt: (incompatibleFeatures & INCOMPATIBLE.corrupt) !== 0n,
    dirty: (incompatibleFeatures & INCOMPATIBLE.dirty) !== 0n,
    ...(backingFile === undefined ? {} : { backingFile }),
    ...(backingFile === undefined || backingFormat === undefined ? {} : { backingFormat }),
    ...(dataFile === undefined ? {} : { dataFile }),
    dataFileRaw: (header.autoclearFeatures & AUTOCLEAR.rawDataFile) !== 0n,
    ...(encryption === undefined ? {} : { encryption }),
    snapshots: hasDataFile(header) ? [] : listUnlessDamaged(() => readSnapshotTable(file, header).snapshots, onDamage),
    bitmaps: listUnlessDamaged(() => readBitmaps(file, header), onDamage),
  };
}

function listUnlessDamaged<T>(read: () => readonly T[], onDamage: ImageInfoOptions["onDamage"]): readonly T[] {
  try {
    return read();
  } catch (error) {
    if (!(error instanceof Qcow2Error) || onDamage === undefined || error.code === "io") throw error;
    onDamage(error);
    return [];
  }
}

function encryptionInfo(file: BlockFile, header: Header): EncryptionInfo | undefined {
  if (header.encryption === "none") return undefined;
  if (header.encryption === "aes") return { format: "aes" };
  const pointer = header.extensions.find(({ type }) => type === EXTENSION.fullDiskEncryption);
  if (pointer === undefined) {
    throw new Qcow2Error("invalid-header", "Image is encrypted with LUKS, expected an extension that says where");
  }
  const bytes = new Uint8Array(LUKS_HEADER_LENGTH);
  const length = file.readAt(decodeEncryptionPointer(pointer.data).offset, bytes);
  return { format: "luks", ...decodeLuksHeader(bytes.subarray(0, length)) };
}

function readBitmaps(file: BlockFile, header: Header): BitmapInfo[] {
  const extension = header.extensions.find(({ type }) => type === EXTENSION.bitmaps);
  // Without the bit, the bitmaps tell of an older content.
  if (extension === undefined || (header.autoclearFeatures & AUTOCLEAR.bitmaps) === 0n) return [];
  const { count, directorySize, directoryOffset } = decodeBitmapsPointer(extension.data);
  if (count > MAX_BITMAP_COUNT || directorySize > Math.min(MAX_BITMAP_DIRECTORY_LENGTH, file.size)) {
    throw new Qcow2Error("limit-exceeded", `Bitmap directory too large: ${count} bitmaps in ${directorySize} bytes`, {
      offset: directoryOffset,
      found: directorySize,
    });
  }
  const directory = new Uint8Array(directorySize);
  file.readAt(directoryOffset, directory);
  return decodeBitmapDirectory(directory, count, directoryOffset).map(bitmapInfo);
}

function bitmapInfo({ name, granularityBits, inUse, auto }: BitmapEntry): BitmapInfo {
  return { name, granularity: 2 ** granularityBits, inUse, auto };
}
