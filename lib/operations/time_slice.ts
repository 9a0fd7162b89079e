/**
 * Lets long synchronous work give way to the event loop now and then.
 *
 * @module
 */

import { setImmediate } from "node:timers";
import { Qcow2Error } from "../errors.ts";
import type { Progress, Steps } from "../metadata/steps.ts";

/**
 * How long the event loop waits at most, in milliseconds. The runtime looks for signals only every so many turns, so that one is
 * noticed within a few hundred milliseconds.
 */
const SLICE_MILLISECONDS = 4;

/** Measures how long work has gone on without the event loop having its turn. */
export class TimeSlice {
  readonly #signal: AbortSignal | undefined;
  #start = performance.now();

  /**
   * @param signal Ends the work when it is aborted.
   * @throws {Qcow2Error} With code `aborted` where it is aborted already.
   */
  constructor(signal?: AbortSignal) {
    this.#signal = signal;
    this.#assertNotAborted();
  }

  /** Whether it is time to call {@linkcode TimeSlice.next}. */
  isOver(): boolean {
    return performance.now() - this.#start >= SLICE_MILLISECONDS;
  }

  /**
   * Gives way to the event loop and begins a new slice.
   *
   * @throws {Qcow2Error} With code `aborted` where the signal was aborted.
   */
  async next(): Promise<void> {
    // A turn costs some microseconds; a timer, even of no time at all, would cost a millisecond and more.
    await new Promise((resolve) => setImmediate(resolve));
    this.#assertNotAborted();
    this.#start = performance.now();
  }

  #assertNotAborted(): void {
    if (this.#signal?.aborted !== true) return;
    throw new Qcow2Error("aborted", "Operation was aborted", { cause: this.#signal.reason });
  }
}

/** Who looks on while work goes on in slices. */
export interface Onlooker<Told> {
  /** Called after each step, and at the end. */
  readonly onProgress?: ((told: Told) => void) | undefined;
  /** Ends the work early when it is aborted. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Does work in slices, between which the event loop runs.
 *
 * @param steps The work.
 * @param onlooker Whom to tell, and what ends it early.
 * @returns What comes of the work.
 * @throws {Qcow2Error} With code `aborted` where the signal says so; whatever the work throws.
 */
export async function inSlices<Told extends Progress, Result>(
  steps: Steps<Told, Result>,
  { onProgress, signal }: Onlooker<Told>,
): Promise<Result> {
  const slice = new TimeSlice(signal);
  using work = steps;
  let last: Told | undefined;
  for (;;) {
    const step = work.next();
    if (step.done === true) {
      if (last !== undefined && last.done < last.total) onProgress?.({ ...last, done: last.total });
      return step.value;
    }
    last = step.value;
    onProgress?.(last);
    if (slice.isOver() || signal?.aborted === true) await slice.next();
  }
}
