/**
 * Random sequences of commands as a program: `deno task commands:long` goes on for as long as it is asked to.
 *
 * ```
 * main.ts [--rounds=COUNT] [--minutes=COUNT] [--seed=NUMBER] [--first=ROUND] [--steps=COUNT] [--all]
 * ```
 *
 * Each round is one sequence. Ends with 1 at the first one in which both programs differ, and says how, after as few commands
 * as it takes; with `--all` it goes on. The same seed gives the same rounds again; `--first` begins with a later one.
 *
 * @module
 */

import { parseArgs } from "@std/cli/parse-args";

const options = parseArgs(Deno.args, {
  string: ["rounds", "minutes", "seed", "first", "steps"],
  boolean: ["all"],
});
if (options.seed !== undefined) Deno.env.set("QCOW2_TEST_SEED", options.seed);
const { Random, seed } = await import("../random.ts");
const { describeResult, runSequence, shortened } = await import("./sequence.ts");

const rounds = Number(options.rounds ?? (options.minutes === undefined ? 200 : Infinity));
const milliseconds = Number(options.minutes ?? Infinity) * 60_000;
const first = Number(options.first ?? 0);
const steps = Number(options.steps ?? 40);
const started = performance.now();
let [round, commands, found] = [first, 0, 0];

for (; round < first + rounds && performance.now() - started < milliseconds; round++) {
  const result = await runSequence(new Random(`round ${round}`), steps);
  commands += result.steps.length;
  if (Deno.stderr.isTerminal()) console.error(`round ${round}: ${result.steps.length} commands`);
  if (result.difference === undefined) continue;
  found++;
  console.log(describeResult(await shortened(result)));
  console.log(`Round ${round} with --seed=${seed} fails\n`);
  if (!options.all) break;
}
const seconds = ((performance.now() - started) / 1000).toFixed(0);
const findings = found === 0 ? "no difference" : `${found} with a difference`;
console.log(
  `Commands: ${round - first} sequences, ${commands} commands in ${seconds} s with --seed=${seed}, ${findings}`,
);
if (found > 0) Deno.exit(1);
