/**
 * What the suites share: a folder that goes away with the process, and buffers of bytes that are no zeroes.
 *
 * @module
 */

import { type BlockFile, FsBlockFile, MemoryBlockFile } from "../lib/storage/mod.ts";

/** A mebibyte. */
export const MIB = 1024 * 1024;
/** A gibibyte. */
export const GIB = 1024 * MIB;

const folder = Deno.makeTempDirSync({ prefix: "qcow2_bench_" });
addEventListener("unload", () => Deno.removeSync(folder, { recursive: true }));

/**
 * A path in the folder of this run.
 *
 * @param name Name of the file.
 * @returns The path.
 */
export function pathOf(name: string): string {
  return `${folder}/${name}`;
}

/**
 * Bytes that no zero detection takes for a hole.
 *
 * @param length How many.
 * @returns The bytes, the same in each run.
 */
export function dataOf(length: number): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length }, (_, index) => index * 31 % 251 + 1);
}

/**
 * Offsets in an order that no cache or read-ahead can guess, the same in each run.
 *
 * @param count How many.
 * @param blockSize Their unit in bytes.
 * @param size The size of the disk in bytes.
 * @returns The offsets.
 */
export function scatteredOffsets(count: number, blockSize: number, size: number): number[] {
  const blocks = Math.floor(size / blockSize);
  let state = 0x9e3779b9;
  return Array.from({ length: count }, () => {
    state = Math.imul(state ^ state >>> 15, 0x2c1b3c6d) + 0x9e3779b9 >>> 0;
    return state % blocks * blockSize;
  });
}

/**
 * Creates and opens a plain file, the reference of most groups.
 *
 * @param name Name of the file.
 * @returns The file, empty, for reading and writing.
 */
export function plainFile(name: string): Deno.FsFile {
  return Deno.openSync(pathOf(name), { read: true, write: true, create: true, truncate: true });
}

/**
 * A file that forgets the guest's data, so that what is left is the cost of the metadata. Whole clusters reach the file in
 * the buffer that the guest wrote them from, which tells them apart.
 */
export class MetadataOnlyFile implements BlockFile {
  readonly #file: BlockFile;
  readonly #forgotten: ArrayBuffer;

  /**
   * @param data What the guest writes, in whole clusters.
   * @param path Where to keep the metadata; in memory without it.
   */
  constructor(data: Uint8Array<ArrayBuffer>, path?: string) {
    this.#file = path === undefined ? new MemoryBlockFile() : FsBlockFile.create(path);
    this.#forgotten = data.buffer;
  }

  get name(): string {
    return this.#file.name;
  }

  get writable(): boolean {
    return true;
  }

  get size(): number {
    return this.#file.size;
  }

  readAt(offset: number, into: Uint8Array): number {
    return this.#file.readAt(offset, into);
  }

  writeAt(offset: number, data: Uint8Array): void {
    if (data.buffer !== this.#forgotten) this.#file.writeAt(offset, data);
    else if (offset + data.length > this.#file.size) this.#file.truncate(offset + data.length);
  }

  truncate(size: number): void {
    this.#file.truncate(size);
  }

  sync(): void {
    this.#file.sync();
  }

  punchHole(offset: number, length: number): boolean {
    return this.#file.punchHole(offset, length);
  }

  preallocate(offset: number, length: number): boolean {
    return this.#file.preallocate(offset, length);
  }

  dataExtents(offset: number, length: number): Iterable<{ offset: number; length: number }> {
    return this.#file.dataExtents(offset, length);
  }

  tryLock(exclusive: boolean): boolean {
    return this.#file.tryLock(exclusive);
  }

  close(): void {
    this.#file.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
