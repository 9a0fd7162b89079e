import { assert, assertEquals } from "@std/assert";
import { Tally } from "./exploration.ts";
import { allFaults, type Fault, FAULTY_SEQUENCES, type FaultySequence, GROWTH_SEQUENCE, runFaulty } from "./faults.ts";
import { preparedImage } from "./sequences.ts";

function tryEveryFault(sequence: FaultySequence, every: number): void {
  const tally = new Tally();
  const whole = runFaulty(sequence);
  tally.add(whole);
  assertEquals(tally.describeFindings(), "");
  const { image } = sequence;
  const firstRoom = preparedImage(image).length;
  let count = 0;
  for (const fault of allFaults(whole, firstRoom, image.clusterSize ?? 65536)) {
    if (count++ % every !== 0) continue;
    const report = runFaulty(sequence, fault);
    tally.add(report);
    assert(report.codes.size > 0 || mayBeSilent(fault), `Nobody was told of ${JSON.stringify(fault)}`);
  }
  console.log(`Faults: ${tally}`);
  assertEquals(tally.describeFindings(), "");
}

/** Whether a fault may pass without an error: room can be found by freeing clusters, and a hole that is not punched is no loss. */
function mayBeSilent(fault: Fault): boolean {
  if ("room" in fault) return true;
  return fault.call === "punch" || (fault.code === "no-space" && !fault.forever);
}

for (const sequence of FAULTY_SEQUENCES) {
  Deno.test(`A host that fails costs nothing that was flushed: ${sequence.name}`, () => tryEveryFault(sequence, 1));
}

Deno.test(`A host that fails costs nothing that was flushed: ${GROWTH_SEQUENCE.name}`, () => {
  tryEveryFault(GROWTH_SEQUENCE, 7);
});
