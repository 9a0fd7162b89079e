/**
 * What a guest may read after a power cut.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { SECTOR_SIZE } from "./flat_file.ts";
import { describeSector } from "./tags.ts";

/** How much is compared at once, in bytes. */
const CHUNK_SIZE = 4096;

/** A sector that reads as it must not. */
export interface OracleViolation {
  /** Index of the sector on the disk. */
  readonly sector: number;
  /** What it holds and what it may hold. */
  readonly message: string;
}

/**
 * Knows for each sector of the disk what a reader may find: what the last completed flush made durable, or what any change
 * since then has made of it. Stricter than "old, new or zero": zero counts only where the sector was zero before or was made
 * so.
 */
export class Oracle {
  /** What the disk reads as while nothing goes wrong. */
  readonly model: Uint8Array<ArrayBuffer>;
  readonly #flushed: Buffer;
  /** What a sector has been since the last flush, for each that was changed. */
  readonly #versions = new Map<number, Uint8Array[]>();

  /** @param size Of the disk in bytes, a multiple of the sector. */
  constructor(size: number) {
    this.model = new Uint8Array(size);
    this.#flushed = Buffer.alloc(size);
  }

  /** Notes that a range is about to become something else. */
  noteWrite(offset: number, data: Uint8Array): void {
    if (data.length === 0) return;
    this.model.set(data, offset);
    this.#noteVersions(offset, offset + data.length);
  }

  /** Notes that a range is about to become zero. */
  noteZeroes(offset: number, length: number): void {
    if (length <= 0) return;
    this.model.fill(0, offset, offset + length);
    this.#noteVersions(offset, offset + length);
  }

  /** Notes that a flush has completed. */
  noteFlushed(): void {
    for (const sector of this.#versions.keys()) {
      const start = sector * SECTOR_SIZE;
      this.#flushed.set(this.model.subarray(start, start + SECTOR_SIZE), start);
    }
    this.#versions.clear();
  }

  /** Takes what was read for what the disk holds, on stable storage: after a crash, once it was verified. */
  adopt(disk: Uint8Array): void {
    this.model.set(disk);
    this.#flushed.set(disk);
    this.#versions.clear();
  }

  /** Takes what was read for what the disk holds until a flush: after a failure, once it was verified. */
  adoptUnflushed(disk: Uint8Array): void {
    this.model.set(disk);
  }

  /**
   * Judges what a reader found.
   *
   * @param disk The bytes of the whole disk.
   * @returns The first sector that is wrong, or `undefined`.
   */
  verify(disk: Buffer): OracleViolation | undefined {
    for (let start = 0; start < disk.length; start += CHUNK_SIZE) {
      const end = Math.min(disk.length, start + CHUNK_SIZE);
      if (this.#flushed.compare(disk, start, end, start, end) === 0) continue;
      for (let position = start; position < end; position += SECTOR_SIZE) {
        const violation = this.#verifySector(disk, position);
        if (violation !== undefined) return violation;
      }
    }
    return undefined;
  }

  #noteVersions(start: number, end: number): void {
    for (let sector = Math.floor(start / SECTOR_SIZE); sector * SECTOR_SIZE < end; sector++) {
      const position = sector * SECTOR_SIZE;
      const version = this.model.slice(position, position + SECTOR_SIZE);
      const versions = this.#versions.get(sector);
      if (versions === undefined) this.#versions.set(sector, [version]);
      else versions.push(version);
    }
  }

  #verifySector(disk: Buffer, start: number): OracleViolation | undefined {
    const end = start + SECTOR_SIZE;
    if (this.#flushed.compare(disk, start, end, start, end) === 0) return undefined;
    const sector = start / SECTOR_SIZE;
    const versions = this.#versions.get(sector) ?? [];
    if (versions.some((version) => disk.compare(version, 0, SECTOR_SIZE, start, end) === 0)) return undefined;
    const allowed = [this.#flushed.subarray(start, end), ...versions].map(describeSector);
    return {
      sector,
      message: `Sector ${sector} of the disk holds ${describeSector(disk.subarray(start, end))}; expected ${
        [...new Set(allowed)].join(", or ")
      }`,
    };
  }
}
