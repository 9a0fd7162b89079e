/**
 * A file that remembers, sync by sync, what a power cut could take back.
 *
 * @module
 */

import { type BlockFile, type DataExtent, Qcow2Error } from "../../mod.ts";
import { FlatBytes, SECTOR_SIZE } from "./flat_file.ts";

/** The calls that change a file. */
export type ChangeKind = "write" | "truncate" | "punch";

/** Something that was done to the file and that no sync has covered yet. */
export interface Change {
  /** Which call. */
  readonly kind: ChangeKind;
  /** Index of the first sector that it changed. */
  readonly firstSector: number;
  /** Those sectors as they were afterwards: what was written to them before is in there, as it is in a host's memory. */
  readonly content: Uint8Array<ArrayBuffer>;
  /** What a write makes the file reach to at least, or the new length after a truncate. 0 for a punch. */
  readonly end: number;
  /** Whether a sync has passed that should have covered it (see {@linkcode RecorderMutations.late}). */
  readonly carried: boolean;
}

/** The calls that can be made to fail. */
export type FaultyCall = "read" | "write" | "truncate" | "sync" | "punch";

/** Defects that a recorder plays, to show that the explorer would notice. */
export interface RecorderMutations {
  /** Changes that the next sync does not cover, only the one after it. */
  late?: (change: Change) => boolean;
  /** Changes bytes on their way into the file. */
  mangle?: (offset: number, data: Uint8Array) => Uint8Array;
  /** Writes that are lost without a word. */
  lose?: (offset: number, data: Uint8Array) => boolean;
  /** Whether syncs come to nothing, until {@linkcode Recorder.syncForGood}. */
  mergeSyncs?: boolean;
}

/** How often each call was made. */
export type CallCounts = Record<FaultyCall, number>;

/** The file beneath an image under test. */
export class Recorder implements BlockFile {
  readonly name: string = "recorder";
  readonly writable: boolean = true;
  /** What is on stable storage. */
  readonly durable: FlatBytes;
  /** What was done since the last sync, in order. */
  changes: Change[] = [];
  /** How often each call was made. */
  readonly counts: CallCounts = { read: 0, write: 0, truncate: 0, sync: 0, punch: 0 };
  /** Called before the changes become durable. */
  onSync: (() => void) | undefined;
  /** Called for each stretch of the durable bytes that has changed. */
  onCommit: ((start: number, end: number) => void) | undefined;
  /** Called before each call, with how many of its kind there were before and where it ends; throws to make it fail. */
  onCall: ((call: FaultyCall, count: number, end: number) => void) | undefined;
  /** How much of what it should write a write that fails has written all the same: nothing, about half of its sectors, or all. */
  failedWrites: "nothing" | "half" | "all" = "nothing";
  /** Whether the host can punch holes. */
  canPunch = true;
  /** Defects to play. */
  readonly mutations: RecorderMutations = {};
  readonly #live: FlatBytes;

  /** @param content What is on stable storage at the start. */
  constructor(content: Uint8Array) {
    this.durable = new FlatBytes(content);
    this.#live = new FlatBytes(content);
  }

  get size(): number {
    return this.#live.size;
  }

  /** What a reader of the file sees now. */
  content(): Uint8Array<ArrayBuffer> {
    return this.#live.content();
  }

  readAt(offset: number, into: Uint8Array): number {
    this.#call("read", offset + into.length);
    const length = Math.max(0, Math.min(into.length, this.#live.size - offset));
    if (length > 0) into.set(this.#live.bytes.subarray(offset, offset + length));
    return length;
  }

  writeAt(offset: number, data: Uint8Array): void {
    try {
      this.#call("write", offset + data.length);
    } catch (error) {
      const middle = offset + data.length / 2;
      const half = Math.max(0, middle - middle % SECTOR_SIZE - offset);
      const written = { nothing: 0, half, all: data.length }[this.failedWrites];
      if (written > 0) this.#write(offset, data.subarray(0, written));
      throw error;
    }
    if (this.mutations.lose?.(offset, data) ?? false) return;
    this.#write(offset, this.mutations.mangle?.(offset, data) ?? data);
  }

  truncate(size: number): void {
    this.#call("truncate", size);
    const before = this.#live.size;
    this.#live.truncate(size);
    // The sectors that were cut off are zero from now on; a longer file changes none.
    this.#record("truncate", Math.min(size, before), before, size);
  }

  sync(): void {
    this.#call("sync", 0);
    if (this.mutations.mergeSyncs !== true) this.syncForGood();
  }

  /** Makes everything durable, whatever the mutations say. */
  syncForGood(): void {
    this.onSync?.();
    const carried: Change[] = [];
    for (const change of this.changes) {
      if (!change.carried && (this.mutations.late?.(change) ?? false)) carried.push({ ...change, carried: true });
      else this.#commit(change);
    }
    this.changes = carried;
  }

  punchHole(offset: number, length: number): boolean {
    this.#call("punch", offset + length);
    if (!this.canPunch) return false;
    const end = Math.min(offset + length, this.#live.size);
    if (end <= offset) return true;
    this.#live.bytes.fill(0, offset, end);
    this.#record("punch", offset, end, 0);
    return true;
  }

  preallocate(_offset: number, _length: number): boolean {
    return false;
  }

  dataExtents(offset: number, length: number): Iterable<DataExtent> {
    const end = Math.min(offset + length, this.#live.size);
    return end > offset ? [{ offset, length: end - offset }] : [];
  }

  tryLock(_exclusive: boolean): boolean {
    return true;
  }

  close(): void {}

  [Symbol.dispose](): void {}

  #call(call: FaultyCall, end: number): void {
    const count = this.counts[call]++;
    this.onCall?.(call, count, end);
  }

  #write(offset: number, data: Uint8Array): void {
    this.#live.write(offset, data);
    // A sector that reaches the disk does so whole, as far as the file went in the host's memory by then.
    const end = Math.ceil((offset + data.length) / SECTOR_SIZE) * SECTOR_SIZE;
    this.#record("write", offset, offset + data.length, Math.min(end, this.#live.size));
  }

  #record(kind: ChangeKind, start: number, end: number, sizeEnd: number): void {
    const firstSector = Math.floor(start / SECTOR_SIZE);
    const contentEnd = Math.max(firstSector * SECTOR_SIZE, Math.ceil(end / SECTOR_SIZE) * SECTOR_SIZE);
    this.#live.ensure(contentEnd);
    const content = this.#live.bytes.slice(firstSector * SECTOR_SIZE, contentEnd);
    this.changes.push({ kind, firstSector, content, end: sizeEnd, carried: false });
  }

  #commit(change: Change): void {
    const { kind, firstSector, content, end } = change;
    const start = firstSector * SECTOR_SIZE;
    this.durable.ensure(Math.max(start + content.length, end));
    this.durable.bytes.set(content, start);
    this.durable.size = sizeAfter(kind, this.durable.size, end);
    this.onCommit?.(start, start + content.length);
  }
}

/** The length of a file after a change. */
export function sizeAfter(kind: ChangeKind, size: number, end: number): number {
  return kind === "truncate" ? end : Math.max(size, end);
}

/** An error as a host would give it. */
export function hostFault(code: "io" | "no-space", call: FaultyCall): Qcow2Error {
  return new Qcow2Error(code, code === "io" ? `Input/output error (${call})` : `No space left on device (${call})`);
}
