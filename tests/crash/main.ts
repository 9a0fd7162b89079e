/**
 * The explorer as a program: `deno task crash` for the short form, `deno task crash:long` for a million states.
 *
 * ```
 * main.ts [--states=COUNT] [--kills=COUNT]
 * ```
 *
 * Goes through the scripted sequences and the faults, then through random sequences until there were as many states as asked
 * for, and kills processes at the end. Prints one line; ends with 1 where anything was found. `QCOW2_TEST_SEED` gives the same
 * random numbers again.
 *
 * @module
 */

import { parseArgs } from "@std/cli/parse-args";
import { Random, seed } from "../random.ts";
import { explore, LONG, SHORT, Tally } from "./exploration.ts";
import { allFaults, FAULTY_SEQUENCES, GROWTH_SEQUENCE, runFaulty } from "./faults.ts";
import { killMany } from "./kill.ts";
import { preparedImage, randomSequence, SCRIPTED } from "./sequences.ts";

const SHORT_STATE_COUNT = 50_000;
const SHORT_KILL_COUNT = 20;
/** The short form tries one fault in so many. */
const SHORT_FAULT_STEP = 4;

const tally = new Tally();

function showProgress(): void {
  if (!Deno.stderr.isTerminal()) return;
  Deno.stderr.writeSync(new TextEncoder().encode(`\r${tally.states.toLocaleString("en-US")} states `));
}

/** Makes hosts fail, and tells in how many ways. */
function tryFaults(step: number): number {
  let count = 0;
  for (const sequence of [...FAULTY_SEQUENCES, GROWTH_SEQUENCE]) {
    const whole = runFaulty(sequence);
    tally.add(whole);
    const firstRoom = preparedImage(sequence.image).length;
    let index = 0;
    for (const fault of allFaults(whole, firstRoom, sequence.image.clusterSize ?? 65536)) {
      if (index++ % step !== 0) continue;
      tally.add(runFaulty(sequence, fault));
      count++;
    }
    showProgress();
  }
  return count;
}

const options = parseArgs(Deno.args, { string: ["states", "kills"] });
const stateCount = Number(options.states ?? SHORT_STATE_COUNT);
const killCount = Number(options.kills ?? SHORT_KILL_COUNT);
const isLong = stateCount > SHORT_STATE_COUNT;

const started = performance.now();
for (const sequence of SCRIPTED) {
  tally.add(explore(sequence, isLong ? LONG : SHORT));
  showProgress();
}
const faults = tryFaults(isLong ? 1 : SHORT_FAULT_STEP);
for (let index = 0; tally.states < stateCount && tally.findings.length === 0; index++) {
  const name = `random sequence ${index}`;
  tally.add(explore(randomSequence(name, new Random(name)), isLong && index % 4 === 0 ? LONG : SHORT));
  if (index % 10 === 0) showProgress();
}
const { kills, flushes, findings } = await killMany(killCount, "kills");
const seconds = ((performance.now() - started) / 1000).toFixed(0);
if (Deno.stderr.isTerminal()) console.error("");

const described = [tally.describeFindings(50), ...findings].filter((text) => text !== "");
if (described.length > 0) console.log(described.join("\n"));
console.log(
  `Crashes: ${tally.toString(findings.length)}; ${faults} of the sequences on hosts that fail; ` +
    `${kills} processes killed after ${flushes} flushes; ${seconds} s with QCOW2_TEST_SEED=${seed}`,
);
Deno.exit(described.length > 0 ? 1 : 0);
