/**
 * Makes the empty images of `create` and `convert` from what stood behind `-o`.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import type { ImageType } from "../image/detect.ts";
import type { CreateOptions, Durability } from "../image/options.ts";
import type { Preallocation } from "../image/preallocation.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { RawFile } from "../image/raw_file.ts";
import { CACHE_SIZE } from "./cache_size.ts";
import { causedBy, CliError, explainCreateError, notSupported } from "./errors.ts";
import type { ImageOptions } from "./image_options.ts";
import type { NewDataFile } from "./new_data_file.ts";

/** The modes of preallocation by their names. */
export const PREALLOCATION_MODES: readonly Preallocation[] = ["off", "metadata", "falloc", "full"];
const VERSIONS: Readonly<Record<string, 2 | 3>> = { "0.10": 2, v2: 2, "1.1": 3, v3: 3 };
const MAX_INT64 = 2n ** 63n - 1n;
const SECTOR_SIZE = 512n;

/**
 * Refuses encryption, which is missing here.
 *
 * @param format Format of the image.
 * @param options Its options.
 * @throws {CliError} Where the image is to be encrypted.
 */
export function refuseEncryption(format: ImageType, options: ImageOptions): void {
  if (format !== "qcow2") return;
  const encrypted = ["format", "key-secret", "cipher-alg", "cipher-mode", "ivgen-alg", "hash-alg", "iter-time"];
  if (options.isOn("encryption") || encrypted.some((name) => options.text(`encrypt.${name}`) !== undefined)) {
    throw notSupported("Encryption");
  }
}

/** What {@linkcode createImage} makes. */
export interface NewImage {
  /** Path of the file. */
  readonly path: string;
  /** The path that messages name. */
  readonly shownPath: string;
  /** Format of the image. */
  readonly format: ImageType;
  /** Virtual size in bytes. */
  readonly size: bigint;
  /** Its options. */
  readonly options: ImageOptions;
  /** Whether to refuse where the file exists. */
  readonly createNew: boolean;
  /** The disk that the image's backing file holds, where it is used; it is closed with the image. */
  readonly backing?: Disk | undefined;
  /** Where the image's data file is made, should it have one. */
  readonly dataFile: NewDataFile;
  /** When the image is made durable; when it is closed without it. */
  readonly durability?: Durability;
}

/**
 * Makes an empty image. Whatever can be wrong with the options is found before the file is touched.
 *
 * @param image What to make.
 * @param onTouch Called once there may be a file, be the image complete or not.
 * @returns The image, open for writing.
 * @throws {CliError} Where that is not possible.
 */
export function createImage(image: NewImage, onTouch: () => void = () => {}): Disk {
  const { path, shownPath, format, createNew, durability = "none" } = image;
  const layout = format === "qcow2" ? qcow2Options(image.options) : undefined;
  checkRawOptions(image, onTouch);
  if (layout !== undefined && image.size > MAX_INT64 - SECTOR_SIZE) {
    throw new CliError("Could not resize image: Image size cannot be negative");
  }
  const size = Number(image.size);
  try {
    const disk = layout === undefined
      ? RawFile.create(path, { size, createNew, durability, preallocation: preallocationOf(image.options) })
      : Qcow2File.create(path, {
        ...layout,
        size,
        createNew,
        durability,
        cacheSize: CACHE_SIZE,
        backing: () => image.backing,
        openDataFile: image.dataFile.open,
      });
    onTouch();
    return disk;
  } catch (error) {
    // Where the file was to be new and exists, it is somebody else's.
    if (!(error instanceof Qcow2Error) || error.code !== "already-exists") onTouch();
    throw causedBy(error, isTooLarge(error) ? tooLargeMessage(format) : explainCreateError(error, shownPath));
  }
}

function checkRawOptions({ format, options, path, createNew }: NewImage, onTouch: () => void): void {
  const preallocation = options.text("preallocation") ?? "off";
  if (format !== "raw") return;
  if (!PREALLOCATION_MODES.some((mode) => mode === preallocation)) {
    throw new CliError(`invalid parameter value: ${preallocation}`);
  }
  if (preallocation !== "metadata") return;
  // As qemu-img does, which finds out only once the file is there.
  RawFile.create(path, { size: 0, createNew }).close();
  onTouch();
  throw new CliError("Unsupported preallocation mode: metadata");
}

function preallocationOf(options: ImageOptions): Preallocation {
  return PREALLOCATION_MODES.find((mode) => mode === options.text("preallocation")) ?? "off";
}

/** Checks the options of a qcow2 image in QEMU's order, so that of several mistakes the same one is told. */
function qcow2Options(options: ImageOptions): Omit<CreateOptions, "size"> {
  const compat = options.text("compat") ?? "1.1";
  const version = Object.hasOwn(VERSIONS, compat) ? VERSIONS[compat] : undefined;
  if (version === undefined) throw new CliError(`Parameter 'version' does not accept value '${compat}'`);
  const preallocation = options.text("preallocation") ?? "off";
  if (!PREALLOCATION_MODES.some((mode) => mode === preallocation)) {
    throw new CliError(`Parameter 'preallocation' does not accept value '${preallocation}'`);
  }
  const compressionType = options.text("compression_type") ?? "zlib";
  if (compressionType !== "zlib" && compressionType !== "zstd") {
    throw new CliError(`Parameter 'compression-type' does not accept value '${compressionType}'`);
  }
  const extendedL2 = options.isOn("extended_l2");
  if (version === 2 && extendedL2) throw needsVersion3("Extended L2 entries are only supported with");
  const clusterSize = clusterSizeOf(options);
  const backingFile = options.text("backing_file");
  const backingFormat = options.text("backing_fmt");
  if (backingFile !== undefined && preallocation !== "off" && !extendedL2) {
    throw new CliError("Backing file and preallocation can only be used at the same time if extended_l2 is on");
  }
  const lazyRefcounts = options.isOn("lazy_refcounts");
  if (version === 2 && lazyRefcounts) throw needsVersion3("Lazy refcounts only supported with");
  const refcountBits = Number(options.number("refcount_bits"));
  if (!isPowerOfTwo(refcountBits) || refcountBits > 64) {
    throw new CliError("Refcount width must be a power of two and may not exceed 64 bits");
  }
  if (version === 2 && refcountBits !== 16) {
    throw new CliError(
      "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
    );
  }
  const dataFile = options.text("data_file");
  const dataFileRaw = options.isOn("data_file_raw");
  if (dataFileRaw && dataFile === undefined) throw new CliError("data-file-raw requires data-file");
  if (dataFileRaw && backingFile !== undefined) {
    throw new CliError("Backing file and data-file-raw cannot be used at the same time");
  }
  if (version === 2 && dataFile !== undefined) throw needsVersion3("External data files are only supported with");
  if (version === 2 && compressionType !== "zlib") {
    throw needsVersion3("Non-zlib compression type is only supported with");
  }
  return {
    version,
    compressionType,
    clusterSize,
    lazyRefcounts,
    refcountBits,
    preallocation: preallocationOf(options),
    ...(backingFile === undefined ? {} : { backingFile }),
    ...(backingFormat === undefined ? {} : { backingFormat }),
    extendedL2,
    dataFileRaw,
    ...(dataFile === undefined ? {} : { dataFile }),
  };
}

/**
 * The cluster size that options ask for.
 *
 * @param options Options of a qcow2 image.
 * @returns The size in bytes.
 * @throws {CliError} Where there are no such clusters, or none that can have subclusters as the options want it.
 */
export function clusterSizeOf(options: ImageOptions): number {
  const clusterSize = Number(options.number("cluster_size"));
  if (!isPowerOfTwo(clusterSize) || clusterSize < 512 || clusterSize > 2 ** 21) {
    throw new CliError("Cluster size must be a power of two between 512 and 2048k");
  }
  if (options.isOn("extended_l2") && clusterSize < 16384) {
    throw new CliError("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes");
  }
  return clusterSize;
}

function needsVersion3(what: string): CliError {
  return new CliError(`${what} compatibility level 1.1 and above (use version=v3 or greater)`);
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isInteger(Math.log2(value));
}

/** Every other argument was checked before, so that a wrong one can only be the size. */
function isTooLarge(error: unknown): boolean {
  if (!(error instanceof Qcow2Error)) return false;
  return error.code === "invalid-argument" || /file too large|os error 27\b/i.test(error.message);
}

function tooLargeMessage(format: ImageType): string {
  const advice = format === "qcow2" ? " (try using a larger cluster size)" : "";
  return `The image size is too large for file format '${format}'${advice}`;
}
