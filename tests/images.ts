/**
 * Images for tests: empty ones in memory, changes of single fields, a file beneath that records and fails, and QEMU's opinion.
 *
 * @module
 */

import { assertEquals, assertThrows } from "@std/assert";
import {
  type BlockFile,
  type DataExtent,
  type Disk,
  type LayoutOptions,
  Qcow2Error,
  type Qcow2ErrorCode,
} from "../mod.ts";
import { createLayout } from "../lib/format/mod.ts";
import { MemoryBlockFile, type MemoryBlockFileOptions } from "../lib/storage/mod.ts";
import { run } from "./qemu.ts";

/** A kibibyte. */
export const KIB = 1024;
/** A mebibyte. */
export const MIB = 1024 * KIB;
/** A gibibyte. */
export const GIB = 1024 * MIB;
/** A tebibyte. */
export const TIB = 1024 * GIB;

/** An empty image in memory. */
export function emptyImage(options: LayoutOptions, fileOptions: MemoryBlockFileOptions = {}): MemoryBlockFile {
  const layout = createLayout(options);
  const file = new MemoryBlockFile(fileOptions);
  file.truncate(layout.fileSize);
  file.writeAt(layout.header.refcountTableOffset, layout.refcountTable);
  file.writeAt(layout.refcountBlocksOffset, layout.refcountBlocks);
  file.writeAt(0, layout.headerCluster);
  return file;
}

/** A copy of a file in memory, open again where that was closed. */
export function copyOf(file: MemoryBlockFile, options: MemoryBlockFileOptions = {}): MemoryBlockFile {
  return MemoryBlockFile.from(file.toBytes(), options);
}

/** Asserts that a function throws a `Qcow2Error` with one of some codes. */
export function assertCode(codes: Qcow2ErrorCode | readonly Qcow2ErrorCode[], fn: () => unknown): Qcow2Error {
  const error = assertThrows(fn, Qcow2Error);
  const expected = [codes].flat();
  if (!expected.includes(error.code)) {
    throw new Error(`Error has code "${error.code}", expected ${expected.join(" or ")}: ${error.message}`, {
      cause: error,
    });
  }
  return error;
}

/** Reads a 64-bit field of a file. */
export function getUint64(file: BlockFile, offset: number): bigint {
  const bytes = new Uint8Array(8);
  file.readAt(offset, bytes);
  return new DataView(bytes.buffer).getBigUint64(0);
}

/** Writes a 64-bit field of a file. */
export function setUint64(file: BlockFile, offset: number, value: bigint): void {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value);
  file.writeAt(offset, bytes);
}

/** Reads a 32-bit field of a file. */
export function getUint32(file: BlockFile, offset: number): number {
  const bytes = new Uint8Array(4);
  file.readAt(offset, bytes);
  return new DataView(bytes.buffer).getUint32(0);
}

/** Writes a 32-bit field of a file. */
export function setUint32(file: BlockFile, offset: number, value: number): void {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value);
  file.writeAt(offset, bytes);
}

/** Bytes of a disk. */
export function readBytes(disk: Pick<Disk, "readAt">, offset: number, length: number): Uint8Array<ArrayBuffer> {
  // What a read leaves alone must not look like zeroes.
  const bytes = new Uint8Array(length).fill(0xa5);
  disk.readAt(offset, bytes);
  return bytes;
}

/** Bytes that are all the same. */
export function filled(length: number, value: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(length).fill(value);
}

/** Calls a function with the path of an empty folder, and removes the folder afterwards. */
export async function withFolder(fn: (path: string) => void | Promise<void>): Promise<void> {
  const path = Deno.makeTempDirSync({ prefix: "qcow2-test-" });
  try {
    await fn(path);
  } finally {
    Deno.removeSync(path, { recursive: true });
  }
}

/** Runs `qemu-img` and expects it to succeed. */
export function qemuImg(...args: string[]): string {
  const { code, stdout, stderr } = run("qemu-img", args);
  if (code !== 0) throw new Error(`qemu-img ${args.join(" ")} ended with ${code}: ${stdout}${stderr}`);
  return stdout;
}

/** Runs `qemu-io` with some commands on a qcow2 image and expects all of them to succeed. */
export function qemuIo(path: string, commands: readonly string[], format = "qcow2"): string {
  // One process takes thousands of commands, as long as they fit into its arguments.
  const { code, stdout, stderr } = run("qemu-io", ["-f", format, ...commands.flatMap((line) => ["-c", line]), path]);
  const failed = /failed|error|invalid|non-numeric|unaligned/i.exec(stdout + stderr);
  if (code !== 0 || failed !== null) throw new Error(`qemu-io ended with ${code}: ${stdout}${stderr}`);
  return stdout;
}

/** What `qemu-img check` says in JSON. */
export interface QemuCheck {
  /** Its exit code. */
  readonly code: number;
  /** Contradictions that endanger data. */
  readonly corruptions: number;
  /** Clusters that nobody uses. */
  readonly leaks: number;
  /** What could not be checked. */
  readonly checkErrors: number;
  /** Everything that it printed. */
  readonly report: Readonly<Record<string, unknown>>;
}

/** Asks `qemu-img check`. */
export function qemuCheck(path: string): QemuCheck {
  const { code, stdout, stderr } = run("qemu-img", ["check", "--output=json", "-f", "qcow2", path]);
  if (!stdout.trimStart().startsWith("{")) throw new Error(`qemu-img check ended with ${code}: ${stdout}${stderr}`);
  const report: Record<string, unknown> = JSON.parse(stdout);
  const count = (key: string): number => typeof report[key] === "number" ? report[key] : 0;
  return {
    code,
    corruptions: count("corruptions"),
    leaks: count("leaks"),
    checkErrors: count("check-errors"),
    report,
  };
}

/** Asserts that `qemu-img check` has nothing to say against an image. */
export function assertQemuClean(path: string): void {
  const { code, stdout, stderr } = run("qemu-img", ["check", "-f", "qcow2", path]);
  assertEquals(code, 0, `qemu-img check: ${stdout}${stderr}`);
}

/** What was asked of a {@linkcode RecordingFile}. */
export interface RecordedCall {
  /** Which call. */
  readonly call: "read" | "write" | "truncate" | "sync" | "punch" | "preallocate";
  /** Where, in bytes; 0 for a sync. */
  readonly offset: number;
  /** How much, in bytes; 0 for a sync. */
  readonly length: number;
}

/** A file that records what is asked of it, and fails where it is told to. */
export class RecordingFile implements BlockFile {
  /** Every call so far. */
  readonly calls: RecordedCall[] = [];
  /** Called before a call that changes the file, or reads it; throws to make it fail. */
  onCall: ((call: RecordedCall) => void) | undefined;
  readonly #inner: BlockFile;

  constructor(inner: BlockFile) {
    this.#inner = inner;
  }

  get name(): string {
    return this.#inner.name;
  }

  get writable(): boolean {
    return this.#inner.writable;
  }

  get size(): number {
    return this.#inner.size;
  }

  get allocatedSize(): number | undefined {
    return this.#inner.allocatedSize;
  }

  /** How often a call was made since the start or the last `calls.length = 0`. */
  count(call: RecordedCall["call"]): number {
    return this.calls.filter((recorded) => recorded.call === call).length;
  }

  readAt(offset: number, into: Uint8Array): number {
    this.#record("read", offset, into.length);
    return this.#inner.readAt(offset, into);
  }

  writeAt(offset: number, data: Uint8Array): void {
    this.#record("write", offset, data.length);
    this.#inner.writeAt(offset, data);
  }

  truncate(size: number): void {
    this.#record("truncate", size, 0);
    this.#inner.truncate(size);
  }

  sync(): void {
    this.#record("sync", 0, 0);
    this.#inner.sync();
  }

  punchHole(offset: number, length: number): boolean {
    this.#record("punch", offset, length);
    return this.#inner.punchHole(offset, length);
  }

  preallocate(offset: number, length: number): boolean {
    this.#record("preallocate", offset, length);
    return this.#inner.preallocate(offset, length);
  }

  dataExtents(offset: number, length: number): Iterable<DataExtent> {
    return this.#inner.dataExtents(offset, length);
  }

  tryLock(exclusive: boolean): boolean {
    return this.#inner.tryLock(exclusive);
  }

  close(): void {
    this.#inner.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #record(call: RecordedCall["call"], offset: number, length: number): void {
    const recorded = { call, offset, length };
    this.calls.push(recorded);
    this.onCall?.(recorded);
  }
}
