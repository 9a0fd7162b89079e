/**
 * Keeps an operation from writing faster than it may.
 *
 * @module
 */

/** How long to wait at most before looking whether the operation is to end, in milliseconds. */
const MAX_WAIT_MILLISECONDS = 100;

/** A limit on how many bytes are written in a second. */
export class RateLimit {
  readonly #bytesPerMillisecond: number;
  readonly #start = performance.now();

  /** @param bytesPerSecond How many bytes may be written in a second, at least 1. */
  constructor(bytesPerSecond: number) {
    this.#bytesPerMillisecond = bytesPerSecond / 1000;
  }

  /**
   * Waits until so much may have been written, or for a part of that time.
   *
   * @param bytes How much was written since the beginning.
   * @returns Whether there is more to wait for.
   */
  async wait(bytes: number): Promise<boolean> {
    const rest = bytes / this.#bytesPerMillisecond - (performance.now() - this.#start);
    if (rest <= 0) return false;
    await new Promise((resolve) => setTimeout(resolve, Math.min(rest, MAX_WAIT_MILLISECONDS)));
    return rest > MAX_WAIT_MILLISECONDS;
  }
}
