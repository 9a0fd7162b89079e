/**
 * Changes what an image was created with.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { AUTOCLEAR, COMPATIBLE } from "../format/feature_bits.ts";
import { EXTENSION } from "../format/header_extensions.ts";
import {
  encodeHeader,
  extensionText,
  hasDataFile,
  hasLazyRefcounts,
  type Header,
  HEADER_LENGTH_V3,
  MIN_HEADER_LENGTH_V3,
} from "../format/header.ts";
import { extensionsForVersion } from "../format/layout.ts";
import type { ImageMetadata } from "../metadata/image_metadata.ts";
import { changeRefcountWidth } from "../metadata/refcount_width.ts";
import { completeSnapshotTable } from "../metadata/snapshot_changes.ts";
import type { Progress, Steps } from "../metadata/steps.ts";
import { withDataFileName } from "./data_file.ts";
import { checkDowngrade, expandZeroClusters } from "./downgrade.ts";
import { resizeImage, type ResizeTarget } from "./resize.ts";

/** What {@linkcode Qcow2File.amend} changes; what is not given stays as it is. */
export interface AmendOptions {
  /** Format version; 2 is what QEMU calls `compat=0.10`, 3 `compat=1.1`. */
  readonly version?: 2 | 3;
  /** Whether writers may delay refcounts; version 3 only. */
  readonly lazyRefcounts?: boolean;
  /** Refcount width in bits: 1, 2, 4, 8, 16, 32 or 64; version 2 knows 16 only. */
  readonly refcountBits?: number;
  /** Virtual size in bytes, rounded up to a multiple of 512. */
  readonly size?: number;
  /**
   * Whether the disk may become shorter. What stands behind its new end is lost.
   *
   * @default {false}
   */
  readonly shrink?: boolean;
  /**
   * Name of the external data file from the next opening on, for an image that has one; an empty one takes the name away.
   * Nothing is copied, and the file is not looked at: it must hold what the present one holds. A relative name begins in the
   * folder of the image.
   */
  readonly dataFile?: string;
  /** Whether the external data file is kept a raw image of the disk. That can be given up, but not begun. */
  readonly dataFileRaw?: boolean;
  /** Name of the backing file. Only the one that the image has is taken: changing it needs the disk's content. */
  readonly backingFile?: string;
  /** Format of the backing file. Only the one that the image has is taken. */
  readonly backingFormat?: string;
}

/** How far amending an image has come. */
export interface AmendProgress extends Progress {
  /** Which of the options is being put into effect; what is done and what there is count for this one alone. */
  readonly change: "version" | "refcountBits" | "size";
  /** How much is done: in bytes of the disk for its size, in entries of tables otherwise. */
  readonly done: number;
}

/** What is amended: parts of an image, which are new ones after {@linkcode AmendTarget.reopen}. */
export interface AmendTarget extends ResizeTarget {
  /** Path of the image, or another name where it has none. */
  readonly path: string;
  /** Reads the metadata anew, after the header was rewritten. */
  reopen(): void;
}

/**
 * Changes what an image was created with: upgrade first, then refcounts and size, downgrade last, as QEMU does it. What
 * cannot be done is found before anything is changed, but for what only the tables tell. Where it is given up, what is done stays done,
 * and of the change that is being made the image shows nothing.
 *
 * @param target The image.
 * @param options What to change.
 * @returns Steps.
 * @throws {Qcow2Error} With code `invalid-argument`, `unsupported`, `refcount-overflow`, `no-space`, `corrupt` or `io`.
 */
export function* amendImage(target: AmendTarget, options: AmendOptions): Steps<AmendProgress, void> {
  const { header } = target.metadata;
  const version = options.version ?? header.version;
  target.metadata.flush();
  checkOptions(target, options, version);
  if (version > header.version) yield* telling("version", upgrade(target));
  const { refcountBits, lazyRefcounts, size, shrink } = options;
  if (refcountBits !== undefined && refcountBits !== target.metadata.geometry.refcountBits) {
    target.metadata.flush();
    yield* telling("refcountBits", changeRefcountWidth(target.metadata, refcountBits));
    target.reopen();
  }
  setDataFile(target, options);
  if (lazyRefcounts !== undefined) setLazyRefcounts(target.metadata, lazyRefcounts);
  if (size !== undefined) {
    yield* telling("size", resizeImage(target, size, shrink === undefined ? {} : { shrink }));
  }
  if (version < header.version) yield* telling("version", downgrade(target));
}

function* telling(change: AmendProgress["change"], steps: Steps<Progress, void>): Steps<AmendProgress, void> {
  for (const { done, total } of steps) yield { change, done, total };
}

function checkOptions({ metadata, path }: AmendTarget, options: AmendOptions, version: 2 | 3): void {
  const { header, geometry } = metadata;
  const { refcountBits = geometry.refcountBits, lazyRefcounts, dataFile, dataFileRaw } = options;
  if (version !== 2 && version !== 3) throw argument(`Unknown version ${version}, expected 2 or 3`);
  if (dataFile !== undefined && !hasDataFile(header)) {
    throw argument("data-file can only be set for images that use an external data file");
  }
  if (dataFileRaw === true && !metadata.hasRawDataFile) {
    throw argument("data-file-raw cannot be set on existing images");
  }
  const order = Math.log2(refcountBits);
  if (!Number.isInteger(order) || order < 0 || order > 6) {
    throw argument("Refcount width must be a power of two and may not exceed 64 bits");
  }
  const { backingFile = header.backingFile, backingFormat = extensionText(header, EXTENSION.backingFormat) } = options;
  if (backingFile !== header.backingFile || backingFormat !== extensionText(header, EXTENSION.backingFormat)) {
    throw new Qcow2Error("unsupported", "Cannot amend the backing file", { found: backingFile ?? "none" });
  }
  if (version === 2) {
    if (refcountBits !== geometry.refcountBits && refcountBits !== 16) {
      throw argument(
        "Refcount widths other than 16 bits require compatibility level 1.1 or above (use version 3 or greater)",
      );
    }
    if (lazyRefcounts === true && !hasLazyRefcounts(header)) {
      throw argument(
        "Lazy refcounts only supported with compatibility level 1.1 and above (use version 3 or greater)",
      );
    }
  }
  if (version < header.version) checkDowngrade(metadata, options.size ?? metadata.diskSize, refcountBits);
  // Whether it fits into the first cluster is known before anything is changed.
  const named = { ...header, ...dataFileFields(header, path, options) };
  encodeHeader({ ...named, ...versionFields(named, version) });
}

function argument(message: string): Qcow2Error {
  return new Qcow2Error("invalid-argument", message);
}

/** The fields that go with a version. */
function versionFields(header: Header, version: 2 | 3): Partial<Header> {
  if (version === header.version) return {};
  return {
    version,
    compressionType: "zlib",
    incompatibleFeatures: 0n,
    compatibleFeatures: 0n,
    autoclearFeatures: 0n,
    unknownFields: version === 2 ? new Uint8Array() : new Uint8Array(HEADER_LENGTH_V3 - MIN_HEADER_LENGTH_V3 - 1),
    extensions: extensionsForVersion(header.extensions, version, 2 ** header.clusterBits),
  };
}

/** First the snapshot table, then the header. */
function* upgrade(target: AmendTarget): Steps<Progress, void> {
  const { metadata } = target;
  yield { done: 0, total: 2 };
  completeSnapshotTable(metadata);
  metadata.flush();
  yield { done: 1, total: 2 };
  metadata.rewriteHeader(versionFields(metadata.header, 3));
  target.reopen();
  yield { done: 2, total: 2 };
}

/** The fields that tell of the data file. */
function dataFileFields(header: Header, path: string, { dataFile, dataFileRaw }: AmendOptions): Partial<Header> {
  return {
    ...(dataFile === undefined ? {} : { extensions: withDataFileName(header, dataFile, path) }),
    ...(dataFileRaw === false && (header.autoclearFeatures & AUTOCLEAR.rawDataFile) !== 0n
      ? { autoclearFeatures: header.autoclearFeatures & ~AUTOCLEAR.rawDataFile }
      : {}),
  };
}

function setDataFile({ metadata, path }: AmendTarget, options: AmendOptions): void {
  const fields = dataFileFields(metadata.header, path, options);
  if (fields.extensions !== undefined) metadata.rewriteHeader(fields);
  else if (fields.autoclearFeatures !== undefined) metadata.updateHeader(fields);
}

function setLazyRefcounts(metadata: ImageMetadata, on: boolean): void {
  const { compatibleFeatures } = metadata.header;
  const changed = on ? compatibleFeatures | COMPATIBLE.lazyRefcounts : compatibleFeatures & ~COMPATIBLE.lazyRefcounts;
  if (changed !== compatibleFeatures) metadata.updateHeader({ compatibleFeatures: changed });
}

function* downgrade(target: AmendTarget): Steps<Progress, void> {
  const { metadata, io, backing } = target;
  metadata.flush();
  yield* expandZeroClusters(metadata, io, backing);
  metadata.rewriteHeader(versionFields(metadata.header, 2));
  target.reopen();
}
