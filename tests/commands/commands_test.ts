import { assertEquals } from "@std/assert";
import { qemuTest } from "../qemu.ts";
import { Random, seed } from "../random.ts";
import { describeResult, runSequence, shortened } from "./sequence.ts";

/** The same sequences in each run, unless a seed is asked for: what is found anew is for the long form. */
const DEFAULT_SEED = 4;
const SEQUENCES = 6;
const STEPS = 40;

const used = (Deno.env.get("QCOW2_TEST_SEED") ?? "") === "" ? DEFAULT_SEED : seed;
for (let index = 0; index < SEQUENCES; index++) {
  qemuTest(`A sequence of commands does here what it does with qemu-img: round ${index} of seed ${used}`, async () => {
    const result = await runSequence(new Random(`round ${index}`, used), STEPS);
    if (result.difference === undefined) return;
    assertEquals(describeResult(await shortened(result)), "no difference");
  });
}
