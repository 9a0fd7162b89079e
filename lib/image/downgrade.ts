/**
 * What becomes of an image in version 2: what it cannot say, and how zero clusters are told there.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { INCOMPATIBLE } from "../format/feature_bits.ts";
import { alignUp } from "../format/geometry.ts";
import { EXTENSION } from "../format/header_extensions.ts";
import { hasDataFile } from "../format/header.ts";
import { COMPRESSED_FLAG } from "../format/table_entries.ts";
import { viewOf } from "../format/uint64.ts";
import type { ImageMetadata } from "../metadata/image_metadata.ts";
import { ClusterKind, MappedRun } from "../metadata/mapping.ts";
import type { PointerTable } from "../metadata/pointer_table.ts";
import { readL1 } from "../metadata/snapshot_changes.ts";
import { readSnapshotTable } from "../metadata/snapshots.ts";
import { expandSnapshotZeroes } from "../metadata/snapshot_zeroes.ts";
import type { Progress, Steps } from "../metadata/steps.ts";
import { TableTree } from "../metadata/table_tree.ts";
import type { GuestIo } from "./guest_io.ts";

const MAX_UINT32 = 0xffffffff;

/**
 * Refuses what version 2 cannot say.
 *
 * @param metadata The image, with nothing dirty in memory.
 * @param size The virtual size that it has then, in bytes.
 * @param refcountBits The refcount width that it has then.
 * @throws {Qcow2Error} With code `invalid-argument` or `unsupported`.
 */
export function checkDowngrade(metadata: ImageMetadata, size: number, refcountBits: number): void {
  const { header, file } = metadata;
  const diskSize = alignUp(size, 512);
  if (refcountBits !== 16) {
    throw new Qcow2Error("invalid-argument", "compat=0.10 requires refcount_bits=16", { found: refcountBits });
  }
  if (hasDataFile(header)) throw unsupported("Cannot downgrade an image with a data file", "a data file");
  for (const snapshot of readSnapshotTable(file.file, header).snapshots) {
    if (snapshot.vmStateSize > MAX_UINT32 || (snapshot.diskSize ?? diskSize) !== diskSize) {
      throw unsupported("Internal snapshots prevent downgrade of image", snapshot.name);
    }
  }
  const features = header.incompatibleFeatures & ~(INCOMPATIBLE.dirty | INCOMPATIBLE.compressionType);
  if (features !== 0n) {
    const found = `0x${features.toString(16)}`;
    throw unsupported(`Cannot downgrade an image with incompatible features ${found} set`, found);
  }
  if (header.unknownFields.some((byte) => byte !== 0)) {
    throw unsupported("Cannot downgrade an image with header fields that are not known here", "unknown fields");
  }
  if (header.extensions.some(({ type }) => type === EXTENSION.bitmaps)) {
    throw unsupported("Cannot downgrade an image with bitmaps", "bitmaps");
  }
  if (header.compressionType !== "zlib" && hasCompressedClusters(metadata)) {
    throw unsupported(
      `Cannot downgrade an image with ${header.compressionType} compression type and existing compressed clusters`,
      header.compressionType,
    );
  }
}

function unsupported(message: string, found: string): Qcow2Error {
  return new Qcow2Error("unsupported", message, { found });
}

/** Looks for compressed clusters in the disk and in every snapshot. */
function hasCompressedClusters(metadata: ImageMetadata): boolean {
  const { header, file, mapping, geometry } = metadata;
  const tree = new TableTree(metadata);
  const view = viewOf(tree.bytes);
  const done = new Set<number>([0]);
  const isCompressed = (l1: PointerTable): boolean => {
    for (let index = 0; index < l1.entryCount; index++) {
      const offset = tree.tableOffset(l1, index);
      if (done.has(offset)) continue;
      done.add(offset);
      tree.read(offset);
      for (let position = 0; position < geometry.clusterSize; position += geometry.l2EntrySize) {
        if ((view.getUint32(position) & COMPRESSED_FLAG) !== 0) return true;
      }
    }
    return false;
  };
  return isCompressed(mapping.l1) ||
    readSnapshotTable(file.file, header).snapshots.some((snapshot) => isCompressed(readL1(metadata, snapshot)));
}

/**
 * Gives zero clusters of the disk and of its snapshots zeroes of their own where a backing file would be seen instead, and
 * makes all others unallocated. The disk and its snapshots read as before at every moment.
 *
 * @param metadata The image, ready for writing.
 * @param io Its guest's bytes.
 * @param backing What unallocated clusters read as, if anything.
 * @returns Steps, which tell of the entries of all L1 tables.
 * @throws {Qcow2Error} With code `no-space`, `corrupt` or `io`.
 */
export function* expandZeroClusters(
  metadata: ImageMetadata,
  io: GuestIo,
  backing: Disk | undefined,
): Steps<Progress, void> {
  const { mapping, file, header } = metadata;
  const backingSize = backing?.size ?? 0;
  let total = mapping.l1.entryCount;
  for (const { l1EntryCount } of readSnapshotTable(file.file, header).snapshots) total += l1EntryCount;
  let done = 0;
  for (let l1Index = 0; l1Index < mapping.l1.entryCount; l1Index++) {
    expandActiveZeroes(metadata, io, backingSize, l1Index);
    yield { done: ++done, total };
  }
  metadata.flush();
  for (const entryCount of expandSnapshotZeroes(metadata, backingSize)) {
    done += entryCount;
    yield { done, total };
  }
}

/** Expands what an entry of the active L1 table leads to. */
function expandActiveZeroes(
  { geometry, mapping }: ImageMetadata,
  io: GuestIo,
  backingSize: number,
  l1Index: number,
): void {
  const { clusterSize } = geometry;
  const run = new MappedRun();
  const zeroes = new Uint8Array(clusterSize);
  const backingEnd = alignUp(backingSize, clusterSize);
  const start = l1Index * geometry.l2TableSpan;
  const end = start + geometry.l2TableSpan;
  for (let position = start; position < end;) {
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
