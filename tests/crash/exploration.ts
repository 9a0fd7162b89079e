/**
 * Runs sequences and adds up what was found.
 *
 * @module
 */

import { Qcow2Error } from "../../mod.ts";
import { qemuAvailable } from "../qemu.ts";
import { Random } from "../random.ts";
import type { ExamineSamples } from "./examine.ts";
import { describeFinding, type Finding } from "./explorer.ts";
import type { Sequence } from "./sequences.ts";
import { Session, type SessionOptions, type SessionReport } from "./session.ts";
import type { StateLimits } from "./states.ts";

/** How hard to look at a sequence. */
export interface Effort {
  /** How many states to build of each epoch. */
  readonly limits: StateLimits;
  /** How often the costly questions are asked. */
  readonly samples: ExamineSamples;
}

/** Enough to find every mutation, and cheap enough for each test run. */
export const SHORT: Effort = {
  limits: { listed: 16, subsets: 12, torn: 12 },
  samples: { repair: 10, overwrite: 40, qemu: qemuAvailable ? 400 : 0 },
};

/** Many times as many states of each epoch. */
export const LONG: Effort = {
  limits: { listed: 64, subsets: 100, torn: 100 },
  samples: { repair: 10, overwrite: 40, qemu: qemuAvailable ? 2000 : 0 },
};

/** What several sequences came to. */
export class Tally {
  /** How many sequences were run. */
  sequences = 0;
  /** How many states were judged. */
  states = 0;
  /** How many epochs they belong to. */
  epochs = 0;
  /** How many states were judged by QEMU as well. */
  qemuChecks = 0;
  /** States that must not be. */
  readonly findings: Finding[] = [];

  /** Adds the report of one sequence. */
  add({ findings, counts, epochs }: SessionReport): void {
    this.sequences++;
    this.states += counts.states;
    this.epochs += epochs;
    this.qemuChecks += counts.qemuChecks;
    this.findings.push(...findings);
  }

  /**
   * All of it in one line.
   *
   * @param others Findings that were made in another way.
   */
  toString(others = 0): string {
    const number = (value: number): string => value.toLocaleString("en-US");
    return `${number(this.sequences)} sequences, ${number(this.states)} states after ${number(this.epochs)} syncs ` +
      `(${number(this.qemuChecks)} judged by qemu-img as well), ${number(this.findings.length + others)} findings`;
  }

  /** The findings, one in a line, up to some. */
  describeFindings(most = 10): string {
    return this.findings.slice(0, most).map(describeFinding).join("\n");
  }
}

/**
 * Runs a sequence to its end and explores all of its epochs.
 *
 * @param sequence What to do.
 * @param effort How hard to look.
 * @param options Anything to do otherwise, such as rules to leave out; `prepare` is called before anything is done.
 */
export function explore(
  sequence: Sequence,
  effort: Effort,
  options: Partial<SessionOptions> & { readonly prepare?: (session: Session) => void } = {},
): SessionReport {
  const { name, image, cacheSize, backing, canPunch = false, run } = sequence;
  const { prepare, ...others } = options;
  const session = new Session({
    name,
    image: image(),
    cacheSize,
    backing,
    canPunch,
    random: new Random(name),
    maxFindings: 5,
    limits: effort.limits,
    // QEMU looks for the backing file, which is nowhere.
    samples: backing === undefined ? effort.samples : { ...effort.samples, qemu: 0 },
    ...others,
  });
  prepare?.(session);
  try {
    run(session);
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error;
    session.note("while it is used", { kind: "error", message: `Qcow2Error ${error.code}: ${error.message}` });
  }
  return session.finish();
}
