/**
 * A second descriptor of a file, for what the runtime's own file object does not offer.
 *
 * @module
 */

import { closedError } from "../_checks.ts";
import type { DataExtent } from "../block_file.ts";
import { nativeHost } from "./host.ts";
import type { HoleFinder, NativeHost, PreallocateOutcome } from "./native_host.ts";
import { QemuLock, type QemuLockKind } from "./qemu_lock.ts";

/** A descriptor of a file that stands open as a `Deno.FsFile` as well, which does not tell its own. */
export class NativeFile {
  readonly #host: NativeHost;
  readonly #path: string;
  readonly #qemuLock: QemuLock | undefined;
  #descriptor: number;
  /** Opened at the first need; null where that failed. */
  #holes: HoleFinder | null | undefined;

  private constructor(host: NativeHost, path: string, descriptor: number) {
    this.#host = host;
    this.#path = path;
    this.#descriptor = descriptor;
    this.#qemuLock = host.byteLocks === undefined ? undefined : new QemuLock(host.byteLocks, descriptor);
  }

  /**
   * Opens a second descriptor.
   *
   * @param path Where the file was when it was opened. What stands there now may be another file, which is left alone.
   * @param file The file.
   * @param writable Whether it may be written.
   * @returns The descriptor, or undefined where there cannot be one.
   */
  static open(path: string, file: Deno.FsFile, writable: boolean): NativeFile | undefined {
    const host = nativeHost();
    if (host === undefined) return undefined;
    const descriptor = host.open(path, writable);
    if (descriptor < 0) return undefined;
    try {
      if (host.isFile(descriptor, file.statSync())) return new NativeFile(host, path, descriptor);
    } catch {
      // Whatever it is, it is not known to be the same file.
    }
    host.close(descriptor);
    return undefined;
  }

  /**
   * Gives the space of a range back.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes, at least 1.
   * @returns Whether the host did it.
   */
  punchHole(offset: number, length: number): boolean {
    return this.#host.punchHole(this.#descriptor, offset, length);
  }

  /**
   * Reserves a range.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes, at least 1.
   * @param size How long the file is, in bytes.
   * @returns How it ended; the file is as long as the range needs where it was done.
   */
  preallocate(offset: number, length: number, size: number): PreallocateOutcome {
    return this.#host.preallocate(this.#descriptor, offset, length, size);
  }

  /**
   * Copies bytes of another file within the host.
   *
   * @param source The other file.
   * @param sourceOffset Where to begin there, in bytes.
   * @param offset Where to begin here, in bytes.
   * @param length How far, in bytes.
   * @returns How many bytes were copied, from the first one on.
   */
  copyFrom(source: NativeFile, sourceOffset: number, offset: number, length: number): number {
    const { copyRange } = this.#host;
    let done = 0;
    while (copyRange !== undefined && done < length) {
      const count = copyRange(source.#descriptor, sourceOffset + done, this.#descriptor, offset + done, length - done);
      if (count <= 0) break;
      done += count;
    }
    return done;
  }

  /** Begins to make durable what was written, where the host can, without waiting for it. */
  startSync(): void {
    this.#host.startSync?.(this.#descriptor);
  }

  /**
   * The stretches of a range that hold data, found while they are asked for.
   *
   * @param offset Where to begin, in bytes.
   * @param end Where to end, in bytes; not beyond the end of the file.
   * @returns The stretches in ascending order; all the rest as one where the file system cannot tell.
   * @throws {Qcow2Error} With code `closed` where the file was closed meanwhile.
   */
  *dataExtents(offset: number, end: number): Generator<DataExtent, void, undefined> {
    for (let isData = false;; isData = true) {
      const hole = this.#holeFinder()?.seekHole(offset) ?? -1;
      // Where the file system cannot tell, or somebody is punching holes, it is safe to call all of it data.
      if (hole < offset || (isData && hole === offset)) {
        yield { offset, length: end - offset };
        return;
      }
      if (hole > offset) yield { offset, length: Math.min(hole, end) - offset };
      if (hole >= end) return;
      offset = this.#holeFinder()?.seekData(hole) ?? -1;
      if (offset < hole || offset >= end) return;
    }
  }

  #holeFinder(): HoleFinder | undefined {
    // The number of a closed descriptor may be another file's by now.
    if (this.#descriptor < 0) throw closedError(this.#path);
    if (this.#holes === undefined) this.#holes = this.#host.openHoleFinder(this.#descriptor) ?? null;
    return this.#holes ?? undefined;
  }

  /**
   * Tries to take the lock of the whole file, or to change it into the other kind.
   *
   * @param exclusive Whether to keep readers away as well.
   * @returns False where somebody else has it.
   */
  tryLock(exclusive: boolean): boolean {
    return this.#host.flock(this.#descriptor, exclusive ? "exclusive" : "shared");
  }

  /** Gives the lock of the whole file up. */
  unlock(): void {
    this.#host.flock(this.#descriptor, "none");
  }

  /**
   * Declares to QEMU what is done with the file, where there is a way to.
   *
   * @param kind What is done.
   * @returns False where it does not go together with what somebody else does; what was declared before stands then.
   */
  tryQemuLock(kind: QemuLockKind): boolean {
    return this.#qemuLock?.change(kind) ?? true;
  }

  /** Closes the descriptor and gives up its locks. */
  close(): void {
    this.#holes?.close();
    this.#holes = null;
    this.#host.close(this.#descriptor);
    this.#descriptor = -1;
  }
}
