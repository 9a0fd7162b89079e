import { assert, assertEquals } from "@std/assert";
import type { Verdict } from "./blame.ts";
import { explore, SHORT } from "./exploration.ts";
import { describeFinding, type Finding } from "./explorer.ts";
import { MUTATIONS } from "./mutations.ts";
import { SCRIPTED, type Sequence } from "./sequences.ts";

/** Enough for a defect that shows in few of the states, and few enough to be quick. */
const MAX_FINDINGS = 60;

for (const { name, verdicts, alsoBreaks, sequences = /^/, subject, prepare } of MUTATIONS) {
  Deno.test(`The explorer finds a defect made on purpose. ${name}`, () => {
    let caught: { readonly sequence: Sequence; readonly findings: readonly Finding[] } | undefined;
    for (const sequence of SCRIPTED.filter((sequence) => sequences.test(sequence.name))) {
      const { findings } = explore(sequence, SHORT, { ...subject, prepare, maxFindings: MAX_FINDINGS });
      if (!findings.some(({ verdict }) => verdicts.includes(verdict))) continue;
      caught = { sequence, findings };
      break;
    }
    assert(caught !== undefined, "None of the sequences shows it");
    const { sequence, findings } = caught;
    const first = findings.find(({ verdict }) => verdicts.includes(verdict));
    console.log(`${name}: ${first?.verdict}, ${first?.explanation}; ${first?.problem.message.slice(0, 80)}`);
    // Once an image is broken, everything after it may look wrong in any way; what is blamed on a rule must be the right one.
    const blamed = new Set(findings.map(({ verdict }) => verdict).filter((verdict) => typeof verdict === "number"));
    const expected = new Set<Verdict>([...verdicts, ...alsoBreaks]);
    assertEquals([...blamed].filter((verdict) => !expected.has(verdict)), []);
    // The very same sequence is fine without the defect.
    assertEquals(explore(sequence, SHORT).findings.map(describeFinding), []);
  });
}
