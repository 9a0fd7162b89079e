/**
 * The locks by which QEMU keeps two programs from using an image in ways that do not go together.
 *
 * A program declares what it does with a file, and what it lets others do, by readers' locks on single bytes: one byte for
 * each permission that it has, another for each that it does not share. It takes them first and looks afterwards whether
 * somebody else's contradict, so that of two who come at the same time at least one sees the other.
 *
 * @module
 */

import type { ByteLocks } from "./native_host.ts";

/** What {@linkcode QemuLock.change} can be asked for: nothing, what a reader needs, what a writer needs. */
export type QemuLockKind = "none" | "shared" | "exclusive";

/** The first of the bytes that say which permissions somebody has. */
const HELD_BASE = 100;
/** The first of the bytes that say which permissions somebody does not share. */
const UNSHARED_BASE = 200;

/** The permissions that matter here, by their place among the bytes. */
const CONSISTENT_READ = 0;
const WRITE = 1;
const RESIZE = 3;

/** Which permissions each kind has. */
const HELD: Readonly<Record<QemuLockKind, readonly number[]>> = {
  none: [],
  shared: [CONSISTENT_READ],
  exclusive: [CONSISTENT_READ, WRITE, RESIZE],
};

/** Which permissions each kind leaves to nobody else: an image must not change under a reader either. */
const UNSHARED: Readonly<Record<QemuLockKind, readonly number[]>> = {
  none: [],
  shared: [WRITE, RESIZE],
  exclusive: [WRITE, RESIZE],
};

/** The bytes of one descriptor. */
export class QemuLock {
  readonly #locks: ByteLocks;
  readonly #descriptor: number;
  #taken: readonly number[] = [];

  /**
   * @param locks The host's locks on bytes.
   * @param descriptor The descriptor that they go with; closing it gives them up.
   */
  constructor(locks: ByteLocks, descriptor: number) {
    this.#locks = locks;
    this.#descriptor = descriptor;
  }

  /**
   * Changes what is declared.
   *
   * @param kind What to declare from now on.
   * @returns Whether it goes together with what others have declared; if not, what was declared before stands. A file system
   * without such locks answers true.
   */
  change(kind: QemuLockKind): boolean {
    const wanted = [
      ...HELD[kind].map((permission) => HELD_BASE + permission),
      ...UNSHARED[kind].map((permission) => UNSHARED_BASE + permission),
    ];
    const added: number[] = [];
    for (const byte of wanted) {
      if (this.#taken.includes(byte)) continue;
      const answer = this.#locks.take(this.#descriptor, byte);
      if (answer !== "had") {
        this.#release(added);
        return answer === "unsupported";
      }
      added.push(byte);
    }
    if (this.#isContradicted(kind)) {
      this.#release(added);
      return false;
    }
    this.#release(this.#taken.filter((byte) => !wanted.includes(byte)));
    this.#taken = wanted;
    return true;
  }

  #isContradicted(kind: QemuLockKind): boolean {
    const others = (byte: number) => this.#locks.isLockedByOthers(this.#descriptor, byte);
    return HELD[kind].some((permission) => others(UNSHARED_BASE + permission)) ||
      UNSHARED[kind].some((permission) => others(HELD_BASE + permission));
  }

  #release(bytes: readonly number[]): void {
    for (const byte of bytes) this.#locks.release(this.#descriptor, byte);
  }
}
