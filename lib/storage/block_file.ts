/**
 * What stands beneath an image: the {@linkcode BlockFile} interface.
 *
 * @module
 */

import type { HostFile } from "../disk.ts";

/** A stretch of a file that holds data, as the host knows it. */
export interface DataExtent {
  /** Where it begins, in bytes. */
  readonly offset: number;
  /** How long it is, in bytes. */
  readonly length: number;
}

/**
 * A file that holds an image, read and written at byte offsets.
 *
 * Everything that an image does to its host goes through these calls, so that a file system, memory, or a test that counts
 * and breaks things can stand beneath it.
 */
export interface BlockFile extends Disposable {
  /** The name for messages, such as the path. */
  readonly name: string;
  /** Whether the file may be written. */
  readonly writable: boolean;
  /** The length in bytes. Kept in memory: asking costs no call to the host. */
  readonly size: number;
  /** How much room the file takes on the host, in bytes, where that can be told. */
  readonly allocatedSize?: number | undefined;
  /**
   * Reads from a position until the buffer is full or the file ends.
   *
   * @param offset Where to begin, in bytes.
   * @param into What to fill.
   * @returns How many bytes were read: all, or fewer where the file ends. The rest of the buffer is left as it was.
   * @throws {Qcow2Error} With code `io` where the host fails.
   */
  readAt(offset: number, into: Uint8Array): number;
  /**
   * Reads as {@linkcode BlockFile.readAt} does, while the caller goes on. A file that has no way to do that lacks this call.
   *
   * @param offset Where to begin, in bytes.
   * @param into What to fill. Until the promise is settled it must be left alone, and the file not be closed.
   * @returns How many bytes were read.
   */
  readAhead?(offset: number, into: Uint8Array): Promise<number>;
  /**
   * Writes all bytes at a position, growing the file where they reach beyond its end.
   *
   * @param offset Where to begin, in bytes.
   * @param data What to write.
   * @throws {Qcow2Error} With code `no-space` or `io` where the host fails; a part may have been written.
   */
  writeAt(offset: number, data: Uint8Array): void;
  /**
   * Copies bytes of another file within the host, or lets both files share their space. Grows the file where they reach beyond its
   * end. A file whose host cannot do that lacks this call.
   *
   * @param source The other file.
   * @param sourceOffset Where to begin there, in bytes.
   * @param offset Where to begin here, in bytes.
   * @param length How far, in bytes.
   * @returns How many bytes were copied, from the first one on: not all where the host could not do it.
   */
  copyFrom?(source: HostFile, sourceOffset: number, offset: number, length: number): number;
  /**
   * Sets the length. A longer file reads as zeroes in what was added.
   *
   * @param size The new length in bytes.
   */
  truncate(size: number): void;
  /** Makes everything that was written durable, with the metadata needed to read it back. */
  sync(): void;
  /**
   * Asks the host to begin making durable what was written, so that the next sync takes less time. Promises nothing, and does not wait.
   * A file whose host cannot do that lacks this call.
   */
  startSync?(): void;
  /**
   * Gives the space of a range back to the host; it reads as zeroes afterwards and the length stays.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes.
   * @returns Whether the host did it; if not, nothing has changed.
   */
  punchHole(offset: number, length: number): boolean;
  /**
   * Reserves space for a range, growing the file where it reaches beyond the end.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes.
   * @returns Whether the host did it; if not, nothing has changed.
   * @throws {Qcow2Error} With code `no-space` where the host has no room.
   */
  preallocate(offset: number, length: number): boolean;
  /**
   * The stretches of a range that may hold anything but zeroes. A host that cannot tell answers with the whole range.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes; what lies beyond the end of the file is left out.
   * @returns The stretches in ascending order.
   */
  dataExtents(offset: number, length: number): Iterable<DataExtent>;
  /**
   * Keeps others away from the file until it is closed.
   *
   * @param exclusive Whether to keep readers away as well.
   * @returns Whether the lock was had; a host that knows no locks answers true.
   */
  tryLock(exclusive: boolean): boolean;
  /** Closes the file. Closing twice is fine. */
  close(): void;
}
