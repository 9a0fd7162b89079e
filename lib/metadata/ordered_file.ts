/**
 * The host file as the flush order sees it: it knows whether anything was written since the last sync.
 *
 * @module
 */

import type { HostBytes } from "../disk.ts";
import { fromHostError, Qcow2Error } from "../errors.ts";
import type { BlockFile } from "../storage/block_file.ts";

/**
 * How much a flush promises: `full` syncs where the flush order demands it, `none` only when the image is closed, `unsafe` never.
 */
export type Durability = "full" | "none" | "unsafe";

/** A {@linkcode BlockFile} that counts what is not yet on stable storage. */
export class OrderedFile {
  /** The file itself: reads and everything that needs no order go straight to it. */
  readonly file: BlockFile;
  readonly #durability: Durability;
  #unsynced = false;
  #failure: Qcow2Error | undefined;

  /**
   * @param file The file beneath.
   * @param durability Whether {@linkcode OrderedFile.sync} really syncs.
   */
  constructor(file: BlockFile, durability: Durability) {
    this.file = file;
    this.#durability = durability;
  }

  /** The length in bytes. */
  get size(): number {
    return this.file.size;
  }

  /** Whether something was written that the last sync did not cover. */
  get unsynced(): boolean {
    return this.#unsynced;
  }

  /** The failed sync that leaves it unknown what is on stable storage, if there was one. */
  get failure(): Qcow2Error | undefined {
    return this.#failure;
  }

  /** Says that the file was written before it was given here: the next sync covers that too. */
  markUnsynced(): void {
    this.#unsynced = true;
  }

  /**
   * Writes bytes; they are durable after the next {@linkcode OrderedFile.sync}.
   *
   * @param offset Host offset in bytes.
   * @param data What to write.
   */
  writeAt(offset: number, data: Uint8Array): void {
    if (this.#failure !== undefined) throw this.#refusal(this.#failure);
    this.#unsynced = true;
    this.file.writeAt(offset, data);
  }

  /**
   * Copies bytes of another file within the host; they are durable after the next {@linkcode OrderedFile.sync}.
   *
   * @param offset Host offset in bytes.
   * @param bytes What to write.
   * @returns How many bytes were copied, from the first one on: not all where the host could not do it.
   */
  copyAt(offset: number, bytes: HostBytes): number {
    if (this.#failure !== undefined) throw this.#refusal(this.#failure);
    this.#unsynced = true;
    return this.file.copyFrom?.(bytes.file, bytes.offset, offset, bytes.length) ?? 0;
  }

  /**
   * Writes bytes whose loss in a crash costs nothing but space, such as a refcount that fell: they do not ask for a sync.
   *
   * @param offset Host offset in bytes.
   * @param data What to write.
   */
  writeLazilyAt(offset: number, data: Uint8Array): void {
    if (this.#failure !== undefined) throw this.#refusal(this.#failure);
    this.file.writeAt(offset, data);
  }

  /**
   * Makes a range read as zeroes and belong to the file: what stands there is written over, what lies behind the end of the
   * file is added to it.
   *
   * @param offset Host offset in bytes.
   * @param length Length in bytes.
   */
  clearAt(offset: number, length: number): void {
    const end = offset + length;
    const inside = Math.min(end, this.file.size) - offset;
    if (inside > 0) this.writeAt(offset, new Uint8Array(inside));
    if (end <= this.file.size) return;
    this.truncate(end);
  }

  /**
   * Sets the length; a longer file reads as zeroes in what was added.
   *
   * @param size The new length in bytes.
   */
  truncate(size: number): void {
    if (this.#failure !== undefined) throw this.#refusal(this.#failure);
    this.#unsynced = true;
    this.file.truncate(size);
  }

  /**
   * Reserves space on the host, growing the file where the range reaches beyond its end.
   *
   * @param offset Host offset in bytes.
   * @param length Length in bytes.
   * @returns Whether the host did it; if not, nothing has changed.
   */
  preallocate(offset: number, length: number): boolean {
    if (this.#failure !== undefined) throw this.#refusal(this.#failure);
    this.#unsynced = true;
    return this.file.preallocate(offset, length);
  }

  /**
   * Gives the space of a range back to the host, where it can; the range reads as zeroes then.
   *
   * @param offset Host offset in bytes.
   * @param length Length in bytes.
   * @returns Whether the host did it; if not, nothing has changed.
   */
  punchHole(offset: number, length: number): boolean {
    if (this.#failure !== undefined) throw this.#refusal(this.#failure);
    const done = this.file.punchHole(offset, length);
    if (done) this.#unsynced = true;
    return done;
  }

  /** Begins to make durable what was written, without waiting for it, unless nobody ever will. */
  startSync(): void {
    if (this.#unsynced && this.#durability !== "unsafe") this.file.startSync?.();
  }

  /** Makes everything durable that was written; costs nothing where nothing was. */
  sync(): void {
    if (this.#durability === "full") this.syncForGood();
    else if (this.#failure !== undefined) throw this.#refusal(this.#failure);
  }

  /** Like {@linkcode OrderedFile.sync}, unless the durability is `unsafe`: for closing. */
  syncForGood(): void {
    if (this.#failure !== undefined) throw this.#refusal(this.#failure);
    if (!this.#unsynced || this.#durability === "unsafe") return;
    try {
      this.file.sync();
    } catch (error) {
      // The host may have dropped what it could not write and answer the next sync with success. Nobody knows what is on
      // stable storage from here on, so nothing more may be built upon it.
      this.#failure = fromHostError(error, `Cannot make "${this.file.name}" durable`);
      throw this.#failure;
    }
    this.#unsynced = false;
  }

  /**
   * Refuses all further writes: nobody knows what the file says.
   *
   * @param error What has failed.
   */
  fail(error: unknown): void {
    this.#failure ??= fromHostError(error, `Cannot write "${this.file.name}"`);
  }

  #refusal(cause: Qcow2Error): Qcow2Error {
    return new Qcow2Error(
      "failed",
      `"${this.file.name}" takes no more writes after a failed one; close it and check the image`,
      { cause },
    );
  }
}
