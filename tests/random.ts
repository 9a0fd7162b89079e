/**
 * Random numbers for tests that can be had again: the seed is printed, and taken from `QCOW2_TEST_SEED` where that is set.
 *
 * @module
 */

/** The seed of this run. */
export const seed: number = givenSeed() ?? Math.floor(Math.random() * 2 ** 31);

console.log(`Random tests use QCOW2_TEST_SEED=${seed}`);

function givenSeed(): number | undefined {
  const text = Deno.env.get("QCOW2_TEST_SEED") ?? "";
  const value = Number(text);
  if (text === "") return undefined;
  if (!Number.isSafeInteger(value)) throw new Error(`QCOW2_TEST_SEED is "${text}", expected a whole number`);
  return value;
}

/** A generator of random numbers; the same seed and name give the same numbers, whatever other tests draw. */
export class Random {
  #state: number;

  /**
   * @param name Keeps the numbers of one test apart from those of another.
   * @param from What they depend on besides; the seed of this run without it.
   */
  constructor(name: string, from = seed) {
    let state = from | 0;
    for (const character of name) state = Math.imul(state ^ character.charCodeAt(0), 0x01000193);
    this.#state = state;
  }

  /** A whole number from 0 to 2^32 - 1. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return (mixed ^ (mixed >>> 14)) >>> 0;
  }

  /** A whole number from 0 to `limit` - 1; the limit may be anything up to 2^53. */
  below(limit: number): number {
    return (this.next() * 0x200000 + (this.next() >>> 11)) % limit;
  }

  /** A whole number from `from` to `to`, both included. */
  between(from: number, to: number): number {
    return from + this.below(to - from + 1);
  }

  /** True with a chance of one in `count`. */
  oneIn(count: number): boolean {
    return this.below(count) === 0;
  }

  /** One of the given values. */
  pick<T>(values: readonly T[]): T {
    const value = values[this.below(values.length)];
    if (value === undefined) throw new Error("There is nothing to pick from");
    return value;
  }

  /** 64 random bits. */
  bits64(): bigint {
    return (BigInt(this.next()) << 32n) | BigInt(this.next());
  }

  /** Random bytes, none of which is zero, so that they differ from what was never written. */
  bytes(length: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(length);
    let word = 0;
    for (let index = 0; index < length; index++) {
      if (index % 4 === 0) word = this.next() | 0x01010101;
      bytes[index] = word >>> (index % 4 * 8);
    }
    return bytes;
  }
}
