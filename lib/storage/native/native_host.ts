/**
 * What the native part needs of an operating system.
 *
 * @module
 */

/** How a request for space ended: `no-space` is the host's word, `unsupported` means that nothing has changed. */
export type PreallocateOutcome = "done" | "unsupported" | "no-space";

/** A byte-range lock of a descriptor, in the manner of QEMU: readers' locks only, and a look at whether others have any. */
export interface ByteLocks {
  /** Takes a reader's lock on a byte; `unsupported` where the file system has no such locks. */
  take(descriptor: number, byte: number): "had" | "refused" | "unsupported";
  /** Gives the lock on a byte up. */
  release(descriptor: number, byte: number): void;
  /** Whether another descriptor has any lock on a byte. */
  isLockedByOthers(descriptor: number, byte: number): boolean;
}

/** Finds the holes of a file. A resource of the process until it is closed, which comes before the descriptor is. */
export interface HoleFinder {
  /** The first byte of data at or after an offset; negative where there is none. */
  readonly seekData: (offset: number) => number;
  /** The first byte of a hole at or after an offset; negative where the file system cannot tell. */
  readonly seekHole: (offset: number) => number;
  /** Ends it. */
  readonly close: () => void;
}

/** System calls on descriptors. None of them throws. */
export interface NativeHost {
  /** Opens a file that exists. Answers with a negative number where that fails. */
  open(path: string, writable: boolean): number;
  /** Closes a descriptor. */
  close(descriptor: number): void;
  /** Whether a descriptor is of the file that a stat is of. */
  isFile(descriptor: number, info: Deno.FileInfo): boolean;
  /** Begins to look for the holes of a file; undefined where that is not possible. */
  openHoleFinder(descriptor: number): HoleFinder | undefined;
  /** Gives the space of a range back. */
  punchHole(descriptor: number, offset: number, length: number): boolean;
  /** Reserves a range of a file that is `size` bytes long. */
  preallocate(descriptor: number, offset: number, length: number, size: number): PreallocateOutcome;
  /** Copies bytes from one descriptor to another. Answers with how many it did in one go; not above 0 where that fails. */
  readonly copyRange:
    | ((source: number, sourceOffset: number, target: number, offset: number, length: number) => number)
    | undefined;
  /** Begins to write to the device what the host has of a file in memory, and does not wait for that. */
  readonly startSync: ((descriptor: number) => void) | undefined;
  /** Tries to take the lock of the whole file, or to give it up. Answers false only where somebody else has it. */
  flock(descriptor: number, kind: "none" | "shared" | "exclusive"): boolean;
  /** Locks on single bytes, where QEMU uses them on this system. */
  readonly byteLocks: ByteLocks | undefined;
}
