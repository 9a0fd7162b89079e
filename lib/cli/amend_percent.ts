/**
 * How far `amend` has come, as `qemu-img` reckons.
 *
 * @module
 */

import type { AmendOptions, AmendProgress } from "../image/amend.ts";
import { geometryOfHeader, type Header } from "../format/header.ts";

/**
 * Makes a percentage of what single changes tell. It is not known beforehand what a change takes: those that are still to come are taken
 * to be as much work as those until now were on average. So the percentage falls where one turns out to be more. A change of the size
 * does not count.
 */
export class AmendPercent {
  readonly #changeCount: number;
  #change: AmendProgress["change"] | undefined;
  #changesDone = 0;
  /** The work of the changes before this one. */
  #workDone = 0;
  /** The work of this one. */
  #work = 0;

  /**
   * @param header Header of the image.
   * @param options What is changed.
   */
  constructor(header: Header, { version = header.version, refcountBits }: AmendOptions) {
    const before = geometryOfHeader(header).refcountBits;
    this.#changeCount = Number(version !== header.version) + Number((refcountBits ?? before) !== before);
  }

  /**
   * Reckons with a step.
   *
   * @param progress What the step has told.
   * @returns The percentage, in single precision; `undefined` where it stays as it is.
   */
  after({ change, done, total }: AmendProgress): number | undefined {
    if (change === "size") return undefined;
    if (change !== this.#change && this.#change !== undefined) {
      this.#workDone += this.#work;
      this.#changesDone++;
    }
    this.#change = change;
    this.#work = total;
    const known = this.#workDone + total;
    const left = Math.floor(known * (this.#changeCount - this.#changesDone - 1) / (this.#changesDone + 1));
    return Math.fround(Math.fround(100 * Math.fround(this.#workDone + done)) / Math.fround(known + left));
  }
}
