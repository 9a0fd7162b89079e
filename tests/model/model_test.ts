import { withFolder } from "../images.ts";
import { Random } from "../random.ts";
import { describeKind, variedKinds } from "./kinds.ts";
import { runModel } from "./run.ts";

/** How many kinds of images each test run tries. */
const KIND_COUNT = 40;
/** The kinds are the same in each run; what is done to them is not. */
const KINDS_SEED = 1;

let index = 0;
for (const kind of variedKinds(new Random("kinds", KINDS_SEED))) {
  if (index++ === KIND_COUNT) break;
  const name = describeKind(kind);
  Deno.test(`An image is what a plain array is, whoever writes: ${name}`, () =>
    withFolder((folder) => runModel(folder, kind, new Random(name), { turns: 2, steps: 150 })));
}
