/**
 * The model as a program: `deno task model:long` goes through many kinds of images.
 *
 * ```
 * main.ts [--rounds=COUNT] [--seed=NUMBER] [--first=ROUND]
 * ```
 *
 * Each round is one image. Ends with 1 at the first one in which anything is found, says what, and leaves its files. The same
 * seed gives the same rounds again; `--first` begins with a later one.
 *
 * @module
 */

import { parseArgs } from "@std/cli/parse-args";

const options = parseArgs(Deno.args, { string: ["rounds", "seed", "first"] });
if (options.seed !== undefined) Deno.env.set("QCOW2_TEST_SEED", options.seed);
const { Random, seed } = await import("../random.ts");
const { describeKind, variedKinds } = await import("./kinds.ts");
const { runModel } = await import("./run.ts");

const roundCount = Number(options.rounds ?? 500);
const first = Number(options.first ?? 0);
const kinds = variedKinds(new Random("kinds"));
const started = performance.now();

for (let round = 0; round < first + roundCount; round++) {
  const kind = kinds.next().value;
  if (kind === undefined || round < first) continue;
  const folder = Deno.makeTempDirSync({ prefix: "qcow2-model-" });
  try {
    await runModel(folder, kind, new Random(`round ${round}`), { turns: 6, steps: 120 });
  } catch (error) {
    console.log(error);
    console.log(`Round ${round} with --seed=${seed} fails; its files are in ${folder}`);
    Deno.exit(1);
  }
  Deno.removeSync(folder, { recursive: true });
  if (Deno.stderr.isTerminal()) console.error(`round ${round}: ${describeKind(kind)}`);
}
const seconds = ((performance.now() - started) / 1000).toFixed(0);
console.log(`Model: ${roundCount} images in ${seconds} s with --seed=${seed}, nothing found`);
