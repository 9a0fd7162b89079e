/**
 * A run of changes without an end, the same for the one who makes them and the one who judges what is left.
 *
 * @module
 */

import { taggedBytes } from "./tags.ts";

/** What the run needs to know of the disk. */
export interface KillTarget {
  /** Bytes of the disk. */
  readonly size: number;
  /** Bytes in a cluster. */
  readonly clusterSize: number;
}

/** One step of the run. */
export interface KillStep {
  /** What to do. */
  readonly kind: "write" | "zero" | "discard" | "flush";
  /** Where on the disk, in bytes. */
  readonly offset: number;
  /** How far, in bytes. */
  readonly length: number;
  /** For zeroes, whether clusters may be given back. */
  readonly unmap: boolean;
}

/** Whoever makes, or expects, the changes. */
export interface KillHand {
  write(offset: number, data: Uint8Array): void;
  zero(offset: number, length: number, unmap: boolean): void;
  discard(offset: number, length: number): void;
  flush(): void;
}

/** Numbers that depend on nothing but a seed, a step and a purpose. */
function numberOf(seed: number, step: number, purpose: number): number {
  let mixed = Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(step + 1, 0xc2b2ae35) ^
    Math.imul(purpose, 0x27d4eb2f);
  mixed = Math.imul(mixed ^ (mixed >>> 15), 0x2c1b3c6d);
  mixed = Math.imul(mixed ^ (mixed >>> 12), 0x297a2d39);
  return (mixed ^ (mixed >>> 15)) >>> 0;
}

/**
 * A step of the run.
 *
 * @param seed Which run.
 * @param number Which step of it, from 1 on.
 * @param target The disk.
 */
export function killStep(seed: number, number: number, { size, clusterSize }: KillTarget): KillStep {
  const kindNumber = numberOf(seed, number, 1) % 32;
  const unit = kindNumber % 2 === 0 ? clusterSize : 512;
  const start = numberOf(seed, number, 2) % size;
  const offset = start - start % unit;
  const length = Math.min(size - offset, 512 * (1 + numberOf(seed, number, 3) % Math.ceil(4 * clusterSize / 512)));
  const kind = kindNumber === 0 ? "flush" : kindNumber < 4 ? "zero" : kindNumber < 8 ? "discard" : "write";
  return { kind, offset, length, unmap: numberOf(seed, number, 4) % 2 === 0 };
}

/** Has a step made. */
export function applyStep({ kind, offset, length, unmap }: KillStep, number: number, hand: KillHand): void {
  if (kind === "flush") hand.flush();
  else if (kind === "zero") hand.zero(offset, length, unmap);
  else if (kind === "discard") hand.discard(offset, length);
  else hand.write(offset, taggedBytes(number, offset, length));
}
