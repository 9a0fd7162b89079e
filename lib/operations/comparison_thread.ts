/**
 * A second thread that compares.
 *
 * @module
 */

import type { HostBytes } from "../disk.ts";
import { mayLoad } from "../image/worker_module.ts";
import { type Greeting, PART_LENGTH, type PlacedBytes, type Question, READY, STATE } from "./comparison_jobs.ts";

/** Less is compared sooner than a thread has started, in bytes. */
const LENGTH_BEFORE_THREAD = 16 * 1024 * 1024;
/** How long an answer may take, in milliseconds, until the thread is given up. */
const PATIENCE = 10_000;

/** How many jobs there may be at once. */
export const MAX_JOBS = 8;

/**
 * Compares bytes of files while the caller compares others. The thread is started once there is enough to do; until it is there, and
 * where it cannot be started, the caller does all of the work: the results are the same.
 */
export class ComparisonThread implements Disposable {
  readonly #module: URL;
  readonly #patience: number;
  readonly #state = new Int32Array(new SharedArrayBuffer(4 * (1 + MAX_JOBS)));
  /** Started at the first need; null where there is none. */
  #worker: Worker | null | undefined;
  #offered = 0;
  #jobCount = 0;

  /**
   * @param module What the thread runs, for tests.
   * @param patience How long it may take for an answer, in milliseconds, for tests.
   */
  constructor(module: URL = new URL("./comparison_worker.ts", import.meta.url), patience: number = PATIENCE) {
    this.#module = module;
    this.#patience = patience;
  }

  /**
   * Begins to compare bytes of two files, where they are enough for a message to be worth it. There are no more than {@linkcode MAX_JOBS} jobs at once.
   *
   * @param first Bytes of one file.
   * @param second As many bytes of the other.
   * @returns The job; undefined where the caller has to compare.
   */
  begin(first: HostBytes, second: HostBytes): number | undefined {
    const { length } = first;
    this.#offered += length;
    if (this.#offered <= LENGTH_BEFORE_THREAD || length < PART_LENGTH) return undefined;
    if (this.#worker === undefined) this.#worker = this.#start();
    if (this.#worker === null || Atomics.load(this.#state, READY) === STATE.none) return undefined;
    const [one, other] = [placed(first), placed(second)];
    if (one === undefined || other === undefined) return undefined;
    const slot = 1 + this.#jobCount++ % MAX_JOBS;
    Atomics.store(this.#state, slot, STATE.none);
    const question: Question = { first: one, second: other, length, slot };
    this.#worker.postMessage(question);
    return slot;
  }

  /**
   * Waits for the end of a job.
   *
   * @param job The job.
   * @returns Whether the bytes are the same; false as well where that cannot be told.
   */
  areSame(job: number): boolean {
    if (this.#worker === null) return false;
    if (Atomics.wait(this.#state, job, STATE.none, this.#patience) === "timed-out") this[Symbol.dispose]();
    return Atomics.load(this.#state, job) === STATE.same;
  }

  /** Ends the thread. Of what it is at nothing can be told. */
  [Symbol.dispose](): void {
    this.#worker?.terminate();
    this.#worker = null;
  }

  #start(): Worker | null {
    try {
      if (navigator.hardwareConcurrency < 2 || !mayLoad(this.#module)) return null;
      const worker = new Worker(this.#module, { type: "module", name: "comparison" });
      worker.onerror = (event) => {
        event.preventDefault();
        this[Symbol.dispose]();
      };
      const greeting: Greeting = { state: this.#state };
      worker.postMessage(greeting);
      return worker;
    } catch {
      // Nobody can start workers here.
      return null;
    }
  }
}

function placed({ file: { place }, offset }: HostBytes): PlacedBytes | undefined {
  return place === undefined ? undefined : { place, offset };
}
