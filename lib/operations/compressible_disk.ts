/**
 * Disks that can be written compressed.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import type { CompressionType } from "../format/header.ts";

/** A disk that can be written compressed, as `Qcow2File` can. */
export interface CompressibleDisk extends Disk {
  /** How clusters are compressed. */
  readonly compressionType: CompressionType;
  /**
   * Writes whole clusters compressed.
   *
   * @param offset Where to begin on the disk, in bytes, a multiple of the allocation size.
   * @param data What to write: whole clusters, the last of which may be cut short by the end of the disk.
   * @param compressed What each of the clusters was compressed to already, and undefined for those that did not become smaller; they
   * are compressed here without it.
   */
  writeCompressedAt(offset: number, data: Uint8Array, compressed?: readonly (Uint8Array | undefined)[]): void;
}

/**
 * Whether a disk can be written compressed.
 *
 * @param disk A disk.
 * @returns Whether it has `writeCompressedAt`.
 */
export function isCompressible(disk: Disk): disk is CompressibleDisk {
  return "writeCompressedAt" in disk && typeof disk.writeCompressedAt === "function";
}
