import { assertEquals } from "@std/assert";
import { explore, SHORT, Tally } from "./exploration.ts";
import { SCRIPTED } from "./sequences.ts";

const tally = new Tally();

for (const sequence of SCRIPTED) {
  Deno.test(`A power cut costs nothing that was flushed: ${sequence.name}`, () => {
    const report = explore(sequence, SHORT);
    tally.add(report);
    const found = new Tally();
    found.add(report);
    assertEquals(found.describeFindings(), "");
  });
}

Deno.test("The scripted crashes were many", () => {
  console.log(`Crashes: ${tally}`);
});
