/**
 * Shows every state that a power cut could leave to a judge of one's own.
 *
 * @module
 */

import type { Random } from "../random.ts";
import { ScratchFile } from "./flat_file.ts";
import type { Recorder } from "./recorder.ts";
import { buildState, crashStates, describeState, type StateLimits } from "./states.ts";

/** A judge: what it does to the file is taken back. Throws where something is wrong. */
export type Judge = (file: ScratchFile) => void;

/** Watches a recorder; the states are shown as the syncs come. */
export class Watch {
  /** How many states were shown. */
  states = 0;
  readonly #recorder: Recorder;
  readonly #random: Random;
  readonly #limits: StateLimits;
  readonly #judge: Judge;
  readonly #scratch: ScratchFile;

  /**
   * @param recorder Whose syncs to watch.
   * @param random Where random states come from.
   * @param limits How many states of each epoch.
   * @param judge Looks at each.
   */
  constructor(recorder: Recorder, random: Random, limits: StateLimits, judge: Judge) {
    this.#recorder = recorder;
    this.#random = random;
    this.#limits = limits;
    this.#judge = judge;
    this.#scratch = new ScratchFile(recorder.durable);
    recorder.onSync = () => this.show();
    recorder.onCommit = (start, end) => this.#scratch.touch(start, end);
  }

  /** Shows the states of what was done since the last sync. */
  show(): void {
    const { changes } = this.#recorder;
    this.#scratch.restore();
    for (const state of crashStates(changes, this.#random, this.#limits)) {
      this.states++;
      buildState(this.#scratch, changes, state);
      try {
        this.#judge(this.#scratch);
      } catch (error) {
        throw new Error(`A state that ${describeState(state)} is wrong: ${String(error)}`, { cause: error });
      }
      this.#scratch.restore();
    }
  }
}
