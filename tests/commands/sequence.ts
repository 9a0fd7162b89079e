/**
 * Runs random sequences of commands, and makes a sequence that fails as short as it can be.
 *
 * @module
 */

import type { Random } from "../random.ts";
import { Draft } from "./arguments.ts";
import * as changing from "./changing_commands.ts";
import { guest } from "./guest.ts";
import { judgeAll, judgeChanges } from "./judge.ts";
import { allocationAfter, isComparable, mayLeaveTarget } from "./limits.ts";
import * as reading from "./reading_commands.ts";
import { describeStep, type Step } from "./step.ts";
import { Difference, Twins } from "./twins.ts";
import { World } from "./world.ts";
import { madeOdd } from "./wrong_commands.ts";

/** The commands, each as often as it is worth. */
const COMMANDS: readonly changing.Command[] = [
  changing.create,
  changing.create,
  changing.convert,
  changing.convert,
  changing.convert,
  changing.commit,
  changing.commit,
  changing.rebase,
  changing.rebase,
  changing.resize,
  changing.resize,
  changing.snapshot,
  changing.snapshot,
  changing.snapshot,
  changing.bitmap,
  changing.bitmap,
  changing.amend,
  changing.amend,
  changing.dd,
  reading.check,
  reading.compare,
  reading.info,
  reading.map,
  reading.measure,
];
/** How many images there are before anything else is done. */
const FIRST_IMAGES = 3;
const OWN_PROCESS_CHANCE = 40;
const ODD_CHANCE = 12;

/** How a sequence has ended. */
export interface SequenceResult {
  /** What was done. */
  readonly steps: readonly Step[];
  /** Where the folders differ; nothing where they do not. */
  readonly difference?: string;
}

/**
 * Runs a random sequence.
 *
 * @param random Where it comes from.
 * @param count How many steps it has.
 * @returns What was done, and how it ended.
 */
export async function runSequence(random: Random, count: number): Promise<SequenceResult> {
  return await inFolders(async (twins, world, journal) => {
    const draft = new Draft(random, world);
    while (journal.length < count) {
      const step = nextStep(draft, journal.length);
      if (step === undefined) continue;
      journal.push(step);
      await take(twins, world, step);
    }
    await judgeAll(twins, world);
  });
}

/**
 * Runs given steps.
 *
 * @param steps The steps.
 * @returns How far they were run, and how that ended.
 */
export async function replay(steps: readonly Step[]): Promise<SequenceResult> {
  return await inFolders(async (twins, world, journal) => {
    for (const step of steps) {
      if (!isComparable(step.args, world)) continue;
      journal.push(step);
      await take(twins, world, step);
    }
    await judgeAll(twins, world);
  });
}

/**
 * Leaves out of a sequence whatever is not needed to make it fail.
 *
 * @param result How the sequence has ended.
 * @returns A shorter one that ends with the same kind of difference.
 */
export async function shortened(result: SequenceResult): Promise<SequenceResult> {
  let best = result;
  for (let length = Math.ceil(best.steps.length / 4); length >= 1; length = Math.floor(length / 2)) {
    for (let start = best.steps.length - 1 - length; start > -length; start -= length) {
      const steps = best.steps.filter((_, index) => index < start || index >= start + length);
      const tried = await replay(steps);
      if (tried.difference !== undefined && kindOf(tried.difference) === kindOf(result.difference)) best = tried;
    }
  }
  return best;
}

/** A result for people: the commands to repeat it with, and what differs. */
export function describeResult({ steps, difference }: SequenceResult): string {
  return [...steps.map(describeStep), difference ?? "no difference"].join("\n");
}

/** What two differences have in common that come from the same fault: their first words. */
function kindOf(difference: string | undefined): string {
  return difference?.split(/\s/, 2).join(" ") ?? "";
}

async function inFolders(
  act: (twins: Twins, world: World, journal: Step[]) => Promise<void>,
): Promise<SequenceResult> {
  const folder = Deno.makeTempDirSync({ prefix: "qcow2-commands-" });
  const steps: Step[] = [];
  try {
    await act(new Twins(folder), new World(), steps);
    return { steps };
  } catch (error) {
    if (!(error instanceof Difference)) throw error;
    return { steps, difference: error.message };
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

async function take(twins: Twins, world: World, step: Step): Promise<void> {
  const allocation = allocationAfter(step.args, world);
  const code = await twins.take(step);
  if (code !== 0 && mayLeaveTarget(step.args)) twins.removeWhatQemuChanged();
  await judgeChanges(twins, world, allocation);
}

function nextStep(draft: Draft, index: number): Step | undefined {
  const { random, world } = draft;
  if (index >= FIRST_IMAGES && random.oneIn(4)) {
    const args = guest(draft);
    return args === undefined || !isComparable(args, world)
      ? undefined
      : { program: "qemu-io", args, ownProcess: false };
  }
  const command = index < FIRST_IMAGES ? changing.create : random.pick(COMMANDS);
  const right = command(draft);
  const args = random.oneIn(ODD_CHANCE) ? madeOdd(draft, right) : right;
  if (!isComparable(args, world)) return undefined;
  return { program: "qemu-img", args, ownProcess: random.oneIn(OWN_PROCESS_CHANCE) };
}
