/**
 * Reading while the caller goes on, from files and disks that can do it and from those that cannot.
 *
 * @module
 */

import type { Decompressor, Disk } from "../disk.ts";
import type { BlockFile } from "../storage/block_file.ts";

/** Shorter reads than this, in bytes, are over before another thread has begun: whoever reads ahead reads them on the spot. */
export const MIN_AHEAD_LENGTH = 512 * 1024;

/**
 * Fills a buffer from a file. What lies behind its end reads as zeroes. The read has begun when the call returns, and is over then
 * where the file knows no other way.
 *
 * @param file The file.
 * @param offset Where to begin, in bytes.
 * @param into What to fill; to be left alone until the promise is settled.
 */
export async function readFileAhead(file: BlockFile, offset: number, into: Uint8Array): Promise<void> {
  const length = file.readAhead === undefined ? file.readAt(offset, into) : await file.readAhead(offset, into);
  if (length < into.length) into.fill(0, length);
}

/**
 * Fills a buffer from a disk. The read has begun when the call returns, and is over then where the disk knows no other way.
 *
 * @param disk The disk.
 * @param offset Where to begin, in bytes.
 * @param into What to fill; to be left alone until the promise is settled.
 * @param decompressor Who decompresses clusters; the thread of the caller without it.
 */
export async function readDiskAhead(
  disk: Disk,
  offset: number,
  into: Uint8Array,
  decompressor?: Decompressor,
): Promise<void> {
  if (disk.readAhead === undefined) disk.readAt(offset, into);
  else await disk.readAhead(offset, into, decompressor);
}

/**
 * Waits until all reads are over, also where one of them fails: the buffers are in use until then.
 *
 * @param reads What was begun.
 * @throws {unknown} What the first of them was rejected with.
 */
export async function allRead(reads: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(reads)) {
    if (result.status === "rejected") throw result.reason;
  }
}
