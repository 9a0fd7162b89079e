/**
 * Records writes in the bitmaps that ask for it.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { BITMAP_FLAG } from "../format/bitmap_directory.ts";
import { BitmapChanges, uniteChunks } from "./bitmap_changes.ts";
import type { BitmapStore, TableChange } from "./bitmap_store.ts";
import { BitmapTable, releaseAll, writeBitmapTable } from "./bitmap_table.ts";
import type { ImageMetadata } from "./image_metadata.ts";

/**
 * The session of a writer. Before its first write, the bitmaps that record writes are marked as in use, durably: from then
 * on nobody else trusts them. What is written is noted in memory; {@linkcode BitmapRecorder.store} brings it to the file and
 * takes the marks off last. A crash in between leaves the marks, so that no bitmap ever seems to know of all writes and does
 * not.
 */
export class BitmapRecorder {
  readonly #metadata: ImageMetadata;
  readonly #store: BitmapStore;
  /** The changes of each bitmap that is in use by this session; `undefined` before the first write. */
  #session: Map<string, BitmapChanges> | undefined;

  /**
   * @param metadata The image's metadata.
   * @param store Its bitmaps.
   */
  constructor(metadata: ImageMetadata, store: BitmapStore) {
    this.#metadata = metadata;
    this.#store = store;
  }

  /**
   * Notes that a range of the disk is about to change.
   *
   * @param offset Where the range begins on the disk, in bytes.
   * @param length How far it goes, in bytes.
   * @throws {Qcow2Error} Where the bitmaps cannot be read or marked: then nothing may be written.
   */
  record(offset: number, length: number): void {
    if (length === 0) return;
    this.#session ??= this.#begin();
    for (const changes of this.#session.values()) changes.mark(offset, length);
  }

  /**
   * The changes that the file does not know of yet.
   *
   * @param name Name of a bitmap.
   * @returns Its changes, or `undefined` where this session does not use it.
   */
  changesOf(name: string): BitmapChanges | undefined {
    return this.#session?.get(name);
  }

  /**
   * Brings all bitmaps up to date in the file and ends the session. The next write begins another one.
   *
   * @throws {Qcow2Error} Where the host fails: the bitmaps stay marked, and the next call tries again.
   */
  store(): void {
    const session = this.#session;
    if (session === undefined) return;
    if (session.size > 0) {
      const changes: TableChange[] = [];
      try {
        for (const [name, bits] of session) changes.push({ name, table: this.#writeTable(name, bits) });
      } catch (error) {
        releaseAll(this.#metadata, changes.flatMap(({ table }) => table.allocated));
        throw error;
      }
      this.#store.changeTables(changes);
      this.#store.changeFlags(new Set(session.keys()), (flags) => flags & ~BITMAP_FLAG.inUse);
    }
    this.#session = undefined;
  }

  #writeTable(name: string, changes: BitmapChanges): TableChange["table"] {
    const old = new BitmapTable(this.#metadata, this.#store.findUsable(name, true)).validated();
    return writeBitmapTable(this.#metadata, old.entryCount, old, (index) => {
      const changed = changes.chunk(index);
      if (changed === "none") return undefined;
      const before = old.read(index);
      const united = uniteChunks(before, changed);
      return united === before ? undefined : united;
    });
  }

  #begin(): Map<string, BitmapChanges> {
    const { dimensions } = this.#store;
    const entries = this.#store.entries();
    const auto = entries.filter((entry) => entry.auto && !entry.inUse);
    const session = new Map<string, BitmapChanges>();
    for (const entry of auto) {
      // What cannot be recorded in is left marked: it would not know of the writes to come.
      if (this.#store.defectOf(entry, entries) !== undefined || !this.#isReadable(entry)) continue;
      session.set(entry.name, new BitmapChanges(dimensions, entry.granularityBits));
    }
    this.#store.changeFlags(new Set(auto.map(({ name }) => name)), (flags) => flags | BITMAP_FLAG.inUse);
    return session;
  }

  #isReadable(entry: ConstructorParameters<typeof BitmapTable>[1]): boolean {
    try {
      new BitmapTable(this.#metadata, entry).validated();
      return true;
    } catch (error) {
      if (error instanceof Qcow2Error && error.code === "corrupt") return false;
      throw error;
    }
  }
}
