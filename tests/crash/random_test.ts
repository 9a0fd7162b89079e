import { assert, assertEquals } from "@std/assert";
import { Random } from "../random.ts";
import { explore, SHORT, Tally } from "./exploration.ts";
import { randomSequence } from "./sequences.ts";

/** How many random sequences each test run tries. */
const SEQUENCE_COUNT = 60;

Deno.test("A power cut costs nothing that was flushed: random sequences", () => {
  const tally = new Tally();
  for (let index = 0; index < SEQUENCE_COUNT; index++) {
    const name = `random sequence ${index}`;
    tally.add(explore(randomSequence(name, new Random(name)), SHORT));
  }
  console.log(`Crashes: ${tally}`);
  assertEquals(tally.describeFindings(), "");
  assert(tally.states > 10000);
});
