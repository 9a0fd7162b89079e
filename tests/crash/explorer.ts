/**
 * Builds the states that a power cut could leave at every sync, and judges them.
 *
 * @module
 */

import { blame, type Role, rolesOf, type Verdict } from "./blame.ts";
import { Examiner, type ExaminerOptions, type Problem } from "./examine.ts";
import { ScratchFile } from "./flat_file.ts";
import type { Recorder } from "./recorder.ts";
import { buildState, type CrashState, crashStates, describeState, type StateLimits } from "./states.ts";

/** A state that must not be. */
export interface Finding {
  /** Where it was found: the sequence and its epoch. */
  readonly place: string;
  /** What is kept in it. */
  readonly state: string;
  /** What is wrong. */
  readonly problem: Problem;
  /** The rule of the flush order that it breaks. */
  readonly verdict: Verdict;
  /** Why that rule. */
  readonly explanation: string;
}

/** How hard to look. */
export interface ExplorerOptions extends ExaminerOptions {
  /** Name of the sequence. */
  readonly name: string;
  /** How many states to build of each epoch. */
  readonly limits: StateLimits;
  /** After so many findings it stops looking. */
  readonly maxFindings: number;
}

/** Explores each epoch of a recorder as its sync comes. */
export class Explorer {
  /** What was found. */
  readonly findings: Finding[] = [];
  /** Judges states. */
  readonly examiner: Examiner;
  /** Epochs so far. */
  epochs = 0;
  /** Whether to leave epochs out, since others have explored them. */
  paused = false;
  readonly #recorder: Recorder;
  readonly #options: ExplorerOptions;
  readonly #scratch: ScratchFile;

  /**
   * @param recorder What happens to the file; the explorer listens to its syncs.
   * @param options How hard to look.
   */
  constructor(recorder: Recorder, options: ExplorerOptions) {
    this.#recorder = recorder;
    this.#options = options;
    this.examiner = new Examiner(options);
    this.#scratch = new ScratchFile(recorder.durable);
    recorder.onSync = () => this.explore();
    recorder.onCommit = (start, end) => this.#scratch.touch(start, end);
  }

  /** Explores what was done since the last sync. */
  explore(): void {
    const { random, limits, maxFindings } = this.#options;
    const { changes } = this.#recorder;
    if (this.paused) return;
    this.epochs++;
    this.#scratch.restore();
    for (const state of crashStates(changes, random, limits)) {
      if (this.findings.length >= maxFindings) return;
      buildState(this.#scratch, changes, state);
      const problem = this.examiner.examine(this.#scratch);
      this.#scratch.restore();
      if (problem !== undefined) this.#note(state, problem);
    }
  }

  /**
   * Picks one of the states that a power cut could leave now.
   *
   * @returns The bytes of the file, and what is wrong with them if anything is.
   */
  crash(): { content: Uint8Array<ArrayBuffer>; disk: Uint8Array; problem: Problem | undefined } {
    const { changes } = this.#recorder;
    const states = [...crashStates(changes, this.#options.random, this.#options.limits)];
    const state = this.#options.random.pick(states);
    this.#scratch.restore();
    buildState(this.#scratch, changes, state);
    const problem = this.examiner.glance(this.#scratch);
    if (problem !== undefined) this.#note(state, problem);
    const content = this.#scratch.content().slice();
    this.#scratch.restore();
    return { content, disk: this.examiner.disk.slice(), problem };
  }

  /** Notes something that is wrong without a crash. */
  note(state: string, problem: Problem): void {
    this.findings.push({
      place: `${this.#options.name}, epoch ${this.epochs}`,
      state,
      problem,
      verdict: "always",
      explanation: "without a crash",
    });
  }

  #note(state: CrashState, problem: Problem): void {
    this.#scratch.restore();
    const { changes, durable } = this.#recorder;
    const before = rolesOf(durable.content());
    const after = rolesOf(this.#recorder.content());
    const clusterSize = 2 ** (this.#recorder.content()[23] ?? 16);
    const roles = (hostOffset: number): Role => {
      const cluster = Math.floor(hostOffset / clusterSize);
      return after.get(cluster) ?? before.get(cluster) ?? "data";
    };
    const isWrong = (candidate: CrashState): boolean => {
      buildState(this.#scratch, changes, candidate);
      const found = this.examiner.glance(this.#scratch);
      this.#scratch.restore();
      return found !== undefined;
    };
    this.findings.push({
      place: `${this.#options.name}, epoch ${this.epochs}`,
      state: describeState(state),
      problem,
      ...blame(changes, state, isWrong, roles),
    });
  }
}

/** A finding in one line. */
export function describeFinding({ place, state, problem, verdict, explanation }: Finding): string {
  const rule = typeof verdict === "number" ? `breaks rule ${verdict}` : `no rule (${verdict})`;
  return `${place}, ${state}: ${problem.message}; ${rule}: ${explanation}`;
}
