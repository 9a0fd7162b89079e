/**
 * Changes what an image was created with.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { COMPATIBLE, INCOMPATIBLE } from "../format/feature_bits.ts";
import { alignUp } from "../format/geometry.ts";
import { EXTENSION } from "../format/header_extensions.ts";
import {
  encodeHeader,
  extensionText,
  hasLazyRefcounts,
  type Header,
  HEADER_LENGTH_V3,
  MIN_HEADER_LENGTH_V3,
} from "../format/header.ts";
import { extensionsForVersion } from "../format/layout.ts";
import { COMPRESSED_FLAG, entryOffset, ZERO_FLAG } from "../format/table_entries.ts";
import { viewOf } from "../format/uint64.ts";
import type { ImageMetadata } from "../metadata/image_metadata.ts";
import { ClusterKind, MappedRun } from "../metadata/mapping.ts";
import { PointerTable } from "../metadata/pointer_table.ts";
import { changeRefcountWidth } from "../metadata/refcount_width.ts";
import { readSnapshotTable } from "../metadata/snapshots.ts";
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
  /** Name of the backing file. Only the one that the image has is taken: changing it needs the disk's content. */
  readonly backingFile?: string;
  /** Format of the backing file. Only the one that the image has is taken. */
  readonly backingFormat?: string;
}

/** What is amended: parts of an image, which are new ones after {@linkcode AmendTarget.reopen}. */
export interface AmendTarget extends ResizeTarget {
  /** What unallocated clusters read as, if anything. */
  readonly backing: Disk | undefined;
  /** Reads the metadata anew, after the header was rewritten. */
  reopen(): void;
}

/**
 * Changes what an image was created with: upgrade first, then refcounts and size, downgrade last, as QEMU does it. What
 * cannot be done is found before anything is changed, but for what only the tables tell.
 *
 * @param target The image.
 * @param options What to change.
 * @throws {Qcow2Error} With code `invalid-argument`, `unsupported`, `refcount-overflow`, `no-space`, `corrupt` or `io`.
 */
export function amendImage(target: AmendTarget, options: AmendOptions): void {
  const { header } = target.metadata;
  const version = options.version ?? header.version;
  checkOptions(target, options, version);
  if (version > header.version) upgrade(target);
  const { refcountBits, lazyRefcounts, size, shrink } = options;
  if (refcountBits !== undefined && refcountBits !== target.metadata.geometry.refcountBits) {
    target.metadata.flush();
    changeRefcountWidth(target.metadata, refcountBits);
    target.reopen();
  }
  if (lazyRefcounts !== undefined) setLazyRefcounts(target.metadata, lazyRefcounts);
  if (size !== undefined) {
    resizeImage(target, size, shrink === undefined ? {} : { shrink });
  }
  if (version < header.version) downgrade(target);
}

function checkOptions({ metadata }: AmendTarget, options: AmendOptions, version: 2 | 3): void {
  const { header, geometry } = metadata;
  const { refcountBits = geometry.refcountBits, lazyRefcounts } = options;
  if (version !== 2 && version !== 3) throw argument(`Unknown version ${version}, expected 2 or 3`);
  const order = Math.log2(refcountBits);
  if (!Number.isInteger(order) || order < 0 || order > 6) {
    throw argument("Refcount width must be a power of two and may not exceed 64 bits");
  }
  const { backingFile = header.backingFile, backingFormat = extensionText(header, EXTENSION.backingFormat) } = options;
  if (backingFile !== header.backingFile || backingFormat !== extensionText(header, EXTENSION.backingFormat)) {
    throw new Qcow2Error("unsupported", "Cannot amend the backing file", { found: backingFile ?? "none" });
  }
  if (version === 2) {
    if (options.refcountBits !== undefined && options.refcountBits !== geometry.refcountBits) {
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
  if (version < header.version) checkDowngrade(metadata, options.size ?? metadata.diskSize);
  // Whether it fits into the first cluster is known before anything is changed.
  encodeHeader({ ...header, ...versionFields(header, version) });
}

function argument(message: string): Qcow2Error {
  return new Qcow2Error("invalid-argument", message);
}

/** The fields that go with a version. */
function versionFields(header: Header, version: 2 | 3): Partial<Header> {
  if (version === header.version) return {};
  return {
    version,
    incompatibleFeatures: 0n,
    compatibleFeatures: 0n,
    autoclearFeatures: 0n,
    unknownFields: version === 2 ? new Uint8Array() : new Uint8Array(HEADER_LENGTH_V3 - MIN_HEADER_LENGTH_V3 - 1),
    extensions: extensionsForVersion(header.extensions, version, 2 ** header.clusterBits),
  };
}

function upgrade(target: AmendTarget): void {
  const { metadata } = target;
  metadata.flush();
  metadata.rewriteHeader(versionFields(metadata.header, 3));
  target.reopen();
}

function setLazyRefcounts(metadata: ImageMetadata, on: boolean): void {
  const { compatibleFeatures } = metadata.header;
  const changed = on ? compatibleFeatures | COMPATIBLE.lazyRefcounts : compatibleFeatures & ~COMPATIBLE.lazyRefcounts;
  if (changed !== compatibleFeatures) metadata.updateHeader({ compatibleFeatures: changed });
}

/** What version 2 cannot say. */
function checkDowngrade({ header, geometry, file }: ImageMetadata, size: number): void {
  const diskSize = alignUp(size, 512);
  if (geometry.refcountBits !== 16) throw argument("compat=0.10 requires refcount_bits=16");
  if ((header.incompatibleFeatures & ~INCOMPATIBLE.dirty) !== 0n) {
    throw new Qcow2Error("unsupported", "Cannot downgrade an image with incompatible features set", {
      offset: 72,
      found: header.incompatibleFeatures.toString(16),
      expected: "0",
    });
  }
  if (header.unknownFields.some((byte) => byte !== 0)) {
    throw new Qcow2Error("unsupported", "Cannot downgrade an image with header fields that are not known here");
  }
  if (header.extensions.some(({ type }) => type === EXTENSION.bitmaps)) {
    throw new Qcow2Error("unsupported", "Cannot downgrade an image with bitmaps", { found: "bitmaps" });
  }
  const { snapshots } = readSnapshotTable(file.file, header);
  for (const snapshot of snapshots) {
    if (snapshot.vmStateSize > 0xffffffff || (snapshot.diskSize ?? diskSize) !== diskSize) {
      throw new Qcow2Error("unsupported", "Internal snapshots prevent downgrade of image", { found: snapshot.name });
    }
  }
}

function downgrade(target: AmendTarget): void {
  const { metadata } = target;
  metadata.flush();
  refuseZeroClustersOfSnapshots(metadata);
  expandZeroClusters(target);
  metadata.flush();
  metadata.rewriteHeader(versionFields(metadata.header, 2));
  target.reopen();
}

/** Gives zero clusters zeroes of their own where a backing file would be seen instead, and frees all others. */
function expandZeroClusters({ metadata, io, backing }: AmendTarget): void {
  const { geometry, mapping } = metadata;
  const { clusterSize } = geometry;
  const run = new MappedRun();
  const zeroes = new Uint8Array(clusterSize);
  const backingEnd = alignUp(backing?.size ?? 0, clusterSize);
  const end = mapping.l1.entryCount * geometry.l2TableSpan;
  for (let position = 0; position < end;) {
    const inSlice = mapping.sliceSpan - position % mapping.sliceSpan;
    mapping.find(position, Math.min(end - position, inSlice), run);
    const { kind, length } = run;
    if (kind === ClusterKind.zero || kind === ClusterKind.zeroAllocated) {
      const next = position + length;
      for (; position < Math.min(next, backingEnd); position += clusterSize) io.write(position, zeroes);
      if (position < next) {
        mapping.unlink(mapping.prepareSlice(position), position, next - position, false);
      }
      position = next;
    } else {
      position += length;
    }
  }
}

/** Tables that only snapshots have are not changed here, so none of their clusters may say zero. */
function refuseZeroClustersOfSnapshots({ header, file, geometry }: ImageMetadata): void {
  const table = new Uint8Array(geometry.clusterSize);
  const view = viewOf(table);
  for (const { name, l1TableOffset, l1EntryCount } of readSnapshotTable(file.file, header).snapshots) {
    const l1 = PointerTable.read(file, l1TableOffset, l1EntryCount);
    for (let index = 0; index < l1EntryCount; index++) {
      const offset = entryOffset(l1.upper(index), l1.lower(index));
      if (offset === 0) continue;
      table.fill(0, file.file.readAt(offset, table));
      for (let at = 0; at < table.length; at += geometry.l2EntrySize) {
        if ((view.getUint32(at) & COMPRESSED_FLAG) !== 0 || (view.getUint32(at + 4) & ZERO_FLAG) === 0) continue;
        throw new Qcow2Error("unsupported", `Zero clusters of snapshot "${name}" prevent downgrade of image`, {
          offset: offset + at,
          found: name,
        });
      }
    }
  }
}
