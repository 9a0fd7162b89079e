import { assert, assertEquals, assertThrows } from "@std/assert";
import { checkImage, Qcow2Error, Qcow2File } from "../../mod.ts";
import { KIB } from "../images.ts";
import { Tally } from "./exploration.ts";
import { allFaults, type Fault, FAULTY_SEQUENCES, type FaultySequence, GROWTH_SEQUENCE, runFaulty } from "./faults.ts";
import { type FaultyCall, hostFault, Recorder } from "./recorder.ts";
import { preparedImage } from "./sequences.ts";
import { taggedBytes } from "./tags.ts";

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

Deno.test("A host that fails while an image is opened is told of, and the image opens once it is well again", () => {
  const image = preparedImage({ size: 64 * KIB, clusterSize: 512, filled: [[0, 20 * KIB]] });
  // A bit that only another program knows has to be cleared before the first change.
  image[95] = 0x80;
  const open = (recorder: Recorder): Qcow2File => {
    const disk = Qcow2File.open(recorder, { write: true, lock: false });
    disk.writeAt(0, taggedBytes(1, 0, 512));
    return disk;
  };
  const whole = new Recorder(image);
  open(whole);
  for (const call of ["read", "write", "sync"] satisfies FaultyCall[]) {
    assert(whole.counts[call] > 0);
    for (let index = 0; index < whole.counts[call]; index++) {
      const recorder = new Recorder(image);
      recorder.onCall = (made, count) => {
        if (made === call && count === index) throw hostFault("io", call);
      };
      const error = assertThrows(() => open(recorder), Qcow2Error);
      assertEquals(error.code, "io");
      recorder.onCall = undefined;
      const { corruptions, leaks } = checkImage(recorder, { lock: false });
      assertEquals([corruptions, leaks], [0, 0]);
      open(recorder).close();
      assertEquals(recorder.content()[95], 0);
    }
  }
});
