/**
 * Uses a disk on a recorder, and tells the oracle about it.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { type BlockFile, type Disk, Qcow2Error, type Qcow2ErrorCode, Qcow2File } from "../../mod.ts";
import { GuestIo } from "../../lib/image/guest_io.ts";
import { GuestZeroes } from "../../lib/image/guest_zeroes.ts";
import type { BreakableRule } from "../../lib/metadata/flush_order.ts";
import { ImageMetadata } from "../../lib/metadata/image_metadata.ts";
import type { Random } from "../random.ts";
import { check, type ExaminerCounts, type ExaminerOptions, type ExamineSamples, type Problem } from "./examine.ts";
import { Explorer, type Finding } from "./explorer.ts";
import { SECTOR_SIZE } from "./flat_file.ts";
import { Oracle } from "./oracle.ts";
import { Recorder } from "./recorder.ts";
import type { StateLimits } from "./states.ts";
import { noisyBytes, taggedBytes } from "./tags.ts";

/** What a sequence can do to a disk. */
export interface Subject {
  readAt(offset: number, into: Uint8Array): void;
  writeAt(offset: number, data: Uint8Array): void;
  writeCompressedAt(offset: number, data: Uint8Array): void;
  writeZeroesAt(offset: number, length: number, options: { readonly unmap: boolean }): void;
  discardAt(offset: number, length: number): void;
  flush(): void;
  close(): void;
}

/** How a session opens its image. */
export interface SubjectOptions {
  /** The most bytes of L2 tables to keep in memory. */
  readonly cacheSize?: number | undefined;
  /** What the image's backing file is; it is opened anew each time. */
  readonly backing?: (() => Disk) | undefined;
  /** Rules of the flush order to leave out. */
  readonly brokenRules?: ReadonlySet<BreakableRule> | undefined;
  /** Called with the metadata of a disk whose rules are broken. */
  readonly onMetadata?: ((metadata: ImageMetadata) => void) | undefined;
}

/** How a session works and how hard it looks for what a crash would leave. */
export interface SessionOptions extends SubjectOptions {
  /** Name of the sequence. */
  readonly name: string;
  /** The image at the start, durable. */
  readonly image: Uint8Array;
  /** Where random things come from. */
  readonly random: Random;
  /** How many states to build of each epoch. */
  readonly limits: StateLimits;
  /** How often the costly questions are asked. */
  readonly samples: ExamineSamples;
  /** After so many findings it stops looking. */
  readonly maxFindings: number;
  /** Whether the host can punch holes. */
  readonly canPunch: boolean;
  /** Further questions to each state. */
  readonly further?: ExaminerOptions["further"];
}

/** What a session found. */
export interface SessionReport {
  /** States that must not be. */
  readonly findings: readonly Finding[];
  /** How many states were judged, and how. */
  readonly counts: ExaminerCounts;
  /** Syncs, and what was left at the end. */
  readonly epochs: number;
}

/** A disk whose metadata is within reach, for leaving out rules. */
class OpenSubject implements Subject {
  readonly #metadata: ImageMetadata;
  readonly #io: GuestIo;
  readonly #zeroes: GuestZeroes;

  constructor(file: BlockFile, { cacheSize, backing, brokenRules, onMetadata }: SubjectOptions) {
    this.#metadata = ImageMetadata.open(file, {
      write: true,
      durability: "full",
      cacheSize,
      brokenRules: brokenRules ?? new Set(),
    });
    this.#metadata.prepareForWriting();
    const disk = backing?.();
    this.#io = new GuestIo(this.#metadata, disk);
    this.#zeroes = new GuestZeroes(this.#metadata, this.#io, disk);
    onMetadata?.(this.#metadata);
  }

  readAt(offset: number, into: Uint8Array): void {
    this.#io.read(offset, into);
  }

  writeAt(offset: number, data: Uint8Array): void {
    this.#io.write(offset, data);
  }

  writeCompressedAt(offset: number, data: Uint8Array): void {
    this.#io.writeCompressed(offset, data);
  }

  writeZeroesAt(offset: number, length: number, options: { readonly unmap: boolean }): void {
    this.#zeroes.write(offset, length, options);
  }

  discardAt(offset: number, length: number): void {
    this.#zeroes.discard(offset, length);
  }

  flush(): void {
    this.#metadata.flush();
  }

  close(): void {
    this.#metadata.flushForGood();
  }
}

/** Opens a disk for a session: as everybody does, or with rules left out. */
export function openSubject(file: BlockFile, options: SubjectOptions): Subject {
  if (options.brokenRules !== undefined || options.onMetadata !== undefined) return new OpenSubject(file, options);
  const { cacheSize, backing } = options;
  return Qcow2File.open(file, {
    write: true,
    lock: false,
    ...(cacheSize === undefined ? {} : { cacheSize }),
    ...(backing === undefined ? {} : { backing }),
  });
}

/** The codes that a failing host may lead to. */
const HOST_CODES: readonly Qcow2ErrorCode[] = ["io", "no-space", "failed"];

/** A disk in use, watched. */
export class Session {
  /** What a guest may read. */
  readonly oracle: Oracle;
  /** Where random things come from. */
  readonly random: Random;
  /** The size of the disk in bytes. */
  readonly size: number;
  /** The cluster size in bytes. */
  readonly clusterSize: number;
  /** The file beneath; a crash brings another one. */
  recorder: Recorder;
  /** Whether the image may have leaks without anybody being to blame, since there was a crash or a fault. */
  mayLeak = false;
  readonly #options: SessionOptions;
  #explorer: Explorer;
  #disk: Subject;
  #writes = 0;
  /** Version 2 has no way to hide a backing file, so discards leave everything as it is. */
  readonly #discardsNothing: boolean;
  readonly #findings: Finding[] = [];
  readonly #counts: ExaminerCounts = { states: 0, repairs: 0, overwrites: 0, qemuChecks: 0 };
  #epochs = 0;

  /** @param options The image, and how to use it. */
  constructor(options: SessionOptions) {
    this.#options = options;
    this.random = options.random;
    this.recorder = this.#newRecorder(options.image);
    const fresh = Qcow2File.open(this.recorder, { lock: false, backing: options.backing ?? "refuse" });
    this.size = fresh.size;
    this.#discardsNothing = options.backing !== undefined && fresh.header.version === 2;
    this.clusterSize = fresh.allocationSize;
    this.oracle = new Oracle(this.size);
    fresh.readAt(0, this.oracle.model);
    this.oracle.adopt(this.oracle.model.slice());
    this.#explorer = this.#newExplorer();
    this.#disk = openSubject(this.recorder, options);
  }

  /** The disk. */
  get disk(): Subject {
    return this.#disk;
  }

  /** Whether enough was found to stop. */
  get isOver(): boolean {
    return this.#findings.length + this.#explorer.findings.length >= this.#options.maxFindings;
  }

  /** Whether to leave epochs out, since others have explored them. */
  set paused(paused: boolean) {
    this.#explorer.paused = paused;
  }

  /** Writes tagged bytes. */
  write(offset: number, length: number): void {
    const data = taggedBytes(++this.#writes, offset, length);
    this.oracle.noteWrite(offset, data);
    this.#disk.writeAt(offset, data);
  }

  /** Writes tagged bytes, noisy ones among them, compressed: whole clusters. */
  writeCompressed(offset: number, length: number): void {
    const data = noisyBytes(++this.#writes, offset, length, this.random);
    this.oracle.noteWrite(offset, data);
    this.#disk.writeCompressedAt(offset, data);
  }

  /** Writes zeroes. */
  writeZeroes(offset: number, length: number, unmap: boolean): void {
    this.oracle.noteZeroes(offset, length);
    this.#disk.writeZeroesAt(offset, length, { unmap });
  }

  /** Discards the whole clusters of a range. */
  discard(offset: number, length: number): void {
    const end = offset + length;
    const first = Math.ceil(offset / this.clusterSize) * this.clusterSize;
    // A last cluster that the disk cuts short is whole where its end is reached.
    const last = end === this.size ? end : Math.floor(end / this.clusterSize) * this.clusterSize;
    if (!this.#discardsNothing) this.oracle.noteZeroes(first, last - first);
    this.#disk.discardAt(offset, length);
  }

  /** Flushes, and looks at the image as it is then. */
  flush(): void {
    this.#disk.flush();
    this.#flushed();
  }

  /** Closes the disk, and looks at the image as it is then. */
  close(): void {
    this.#disk.close();
    this.#flushed();
  }

  /** Closes the disk and opens it again. */
  reopen(): void {
    this.close();
    this.#disk = openSubject(this.recorder, this.#options);
  }

  /** Opens the disk again without closing it. */
  openAgain(): void {
    this.#disk = openSubject(this.recorder, this.#options);
  }

  /** Cuts the power, and goes on with one of the states that this could leave. */
  crash(): void {
    this.#explorer.explore();
    const { content, disk, problem } = this.#explorer.crash();
    if (problem !== undefined) return;
    this.oracle.adopt(disk);
    this.#collect();
    this.mayLeak = true;
    this.recorder = this.#newRecorder(content);
    this.#explorer = this.#newExplorer();
    this.#disk = openSubject(this.recorder, this.#options);
  }

  /** Asserts that a reader who is not cut off finds exactly what was written. */
  readBack(): void {
    const disk = this.readAll();
    for (let start = 0; start < disk.length; start += SECTOR_SIZE) {
      const found = disk.subarray(start, start + SECTOR_SIZE);
      const expected = this.oracle.model.subarray(start, start + SECTOR_SIZE);
      if (found.every((byte, index) => byte === expected[index])) continue;
      this.note("read back", { kind: "data", message: `Sector ${start / SECTOR_SIZE} does not hold what was written` });
      return;
    }
  }

  /** All of the disk. */
  readAll(): Uint8Array<ArrayBuffer> {
    const disk = new Uint8Array(this.size);
    this.#disk.readAt(0, disk);
    return disk;
  }

  /**
   * Does something on a host that may fail. Afterwards the disk must read as it was before or after, sector by sector.
   *
   * @param fn What to do.
   * @returns The code of the failure, or `undefined` where there was none.
   */
  attempt(fn: () => void): Qcow2ErrorCode | undefined {
    try {
      fn();
      return undefined;
    } catch (error) {
      if (!(error instanceof Qcow2Error) || !HOST_CODES.includes(error.code)) throw error;
      this.mayLeak = true;
      this.#adoptWhatIsThere();
      return error.code;
    }
  }

  /** Notes something that is wrong without a crash. */
  note(state: string, problem: Problem): void {
    this.#explorer.note(state, problem);
  }

  /** Explores what is left, and tells what was found. */
  finish(): SessionReport {
    this.#explorer.explore();
    this.#collect();
    return { findings: this.#findings, counts: this.#counts, epochs: this.#epochs };
  }

  #flushed(): void {
    if (this.recorder.mutations.mergeSyncs === true) this.recorder.syncForGood();
    this.oracle.noteFlushed();
    if (this.isOver) return;
    const { problem, leaks } = this.#undisturbed(() => check(this.recorder));
    if (problem !== undefined) this.note("after a flush", problem);
    else if (leaks > 0 && !this.mayLeak) {
      this.note("after a flush", { kind: "metadata", message: `check finds ${leaks} leaks` });
    }
  }

  #adoptWhatIsThere(): void {
    const disk = this.#undisturbed(() => this.readAll());
    const violation = this.oracle.verify(Buffer.from(disk.buffer));
    if (violation !== undefined) this.note("after a failure", { kind: "data", message: violation.message });
    this.oracle.adoptUnflushed(disk);
  }

  /** Does something without faults, and without counting its calls. */
  #undisturbed<T>(fn: () => T): T {
    const { onCall, counts } = this.recorder;
    const before = { ...counts };
    this.recorder.onCall = undefined;
    try {
      return fn();
    } finally {
      this.recorder.onCall = onCall;
      Object.assign(counts, before);
    }
  }

  #newRecorder(image: Uint8Array): Recorder {
    const recorder = new Recorder(image);
    recorder.canPunch = this.#options.canPunch;
    if (this.recorder !== undefined) Object.assign(recorder.mutations, this.recorder.mutations);
    return recorder;
  }

  #newExplorer(): Explorer {
    const { name, random, limits, samples, maxFindings, further, backing } = this.#options;
    return new Explorer(this.recorder, {
      name,
      random,
      limits,
      samples,
      maxFindings,
      oracle: this.oracle,
      ...(further === undefined ? {} : { further }),
      ...(backing === undefined ? {} : { backing }),
    });
  }

  #collect(): void {
    this.#findings.push(...this.#explorer.findings);
    this.#epochs += this.#explorer.epochs;
    const { counts } = this.#explorer.examiner;
    this.#counts.states += counts.states;
    this.#counts.repairs += counts.repairs;
    this.#counts.overwrites += counts.overwrites;
    this.#counts.qemuChecks += counts.qemuChecks;
  }
}
