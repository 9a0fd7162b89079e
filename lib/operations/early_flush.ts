/**
 * Lets the host write to its device while more is being written to it.
 *
 * @module
 */

import type { Disk } from "../disk.ts";

/** How much is written before the host is asked to begin, in bytes. */
const STEP_LENGTH = 64 * 1024 * 1024;

/** Asks a disk to begin making durable what was written, now and then: otherwise all of it would wait for the flush at the end. */
export class EarlyFlush {
  #length = 0;

  /**
   * Notes that something was written.
   *
   * @param disk The disk.
   * @param length How much, in bytes.
   */
  note(disk: Disk, length: number): void {
    this.#length += length;
    if (this.#length < STEP_LENGTH) return;
    this.#length = 0;
    disk.startFlush?.();
  }
}
