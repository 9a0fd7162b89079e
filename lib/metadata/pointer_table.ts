/**
 * A table of 64-bit entries that is kept in memory whole: an L1 table or the refcount table.
 *
 * @module
 */

import { viewOf } from "../format/uint64.ts";
import type { OrderedFile } from "./ordered_file.ts";

/** How much is written at once where an entry changed, in bytes: a host's page, whose write is one piece of work. */
const CHUNK_SIZE = 4096;
const CHUNK_ENTRY_COUNT = CHUNK_SIZE / 8;

/** A table of pointers as the bytes that stand in the file, with the parts that changed remembered. */
export class PointerTable {
  /** Host offset of the table in bytes. */
  readonly offset: number;
  /** Number of entries. */
  readonly entryCount: number;
  /** The bytes as they stand, or will stand, in the file. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  readonly #dirtyChunks = new Set<number>();

  /**
   * @param offset Host offset of the table in bytes.
   * @param bytes Its content; 8 bytes an entry.
   */
  constructor(offset: number, bytes: Uint8Array<ArrayBuffer>) {
    this.offset = offset;
    this.bytes = bytes;
    this.entryCount = bytes.length / 8;
    this.#view = viewOf(bytes);
  }

  /**
   * Reads a table from a file; what lies beyond the end of the file is zero.
   *
   * @param file The file.
   * @param offset Host offset of the table in bytes.
   * @param entryCount Number of entries; the caller has bounded it.
   * @returns The table.
   */
  static read(file: OrderedFile, offset: number, entryCount: number): PointerTable {
    const bytes = new Uint8Array(entryCount * 8);
    if (entryCount > 0) file.file.readAt(offset, bytes);
    return new PointerTable(offset, bytes);
  }

  /** Whether memory is ahead of the file. */
  get dirty(): boolean {
    return this.#dirtyChunks.size > 0;
  }

  /**
   * The upper half of an entry.
   *
   * @param index Index of the entry, 0 to `entryCount` - 1.
   * @returns The half as an unsigned number.
   */
  upper(index: number): number {
    return this.#view.getUint32(index * 8);
  }

  /**
   * The lower half of an entry.
   *
   * @param index Index of the entry, 0 to `entryCount` - 1.
   * @returns The half as an unsigned number.
   */
  lower(index: number): number {
    return this.#view.getUint32(index * 8 + 4);
  }

  /**
   * Changes an entry in memory.
   *
   * @param index Index of the entry, 0 to `entryCount` - 1.
   * @param upper Its upper half.
   * @param lower Its lower half.
   */
  set(index: number, upper: number, lower: number): void {
    this.#view.setUint32(index * 8, upper);
    this.#view.setUint32(index * 8 + 4, lower);
    this.#dirtyChunks.add(Math.floor(index / CHUNK_ENTRY_COUNT));
  }

  /** Says that nothing of the table stands in the file yet. */
  markAllDirty(): void {
    for (let chunk = 0; chunk * CHUNK_SIZE < this.bytes.length; chunk++) this.#dirtyChunks.add(chunk);
  }

  /**
   * Writes what changed, neighbouring parts in one write.
   *
   * @param file The file.
   */
  writeDirty(file: OrderedFile): void {
    const chunks = [...this.#dirtyChunks].sort((a, b) => a - b);
    for (let start = 0; start < chunks.length;) {
      const first = chunks[start] ?? 0;
      let count = 1;
      while (chunks[start + count] === first + count) count++;
      const from = first * CHUNK_SIZE;
      file.writeAt(this.offset + from, this.bytes.subarray(from, from + count * CHUNK_SIZE));
      for (let chunk = first; chunk < first + count; chunk++) this.#dirtyChunks.delete(chunk);
      start += count;
    }
  }
}
