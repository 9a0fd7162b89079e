import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { chart, isMet, json, type Measurement, median, ratios, table } from "../bench/_peer_report.ts";

const MEASUREMENT: Measurement = {
  name: "convert <everything>",
  what: "process",
  targets: { peer: 1, limit: 1.25 },
  seconds: { here: [3, 1, 2], peer: [4, 2, 4], limit: [1, 1, 2] },
};

/** The same with other times. */
function measured(here: number[], targets: Measurement["targets"]): Measurement {
  return { ...MEASUREMENT, targets, seconds: { ...MEASUREMENT.seconds, here } };
}

Deno.test("median() is the middle of an odd number and the mean of the two in the middle of an even one", () => {
  assertEquals([median([3, 1, 2]), median([4, 1, 3, 2]), median([7])], [2, 2.5, 7]);
});

Deno.test("ratios() compares medians and best times, where both were measured", () => {
  assertEquals(ratios(MEASUREMENT, "peer"), { median: 0.5, best: 0.5 });
  assertEquals(ratios(MEASUREMENT, "limit"), { median: 2, best: 1 });
  assertEquals(ratios({ ...MEASUREMENT, seconds: { here: [1] } }, "peer"), undefined);
});

Deno.test("isMet() wants every target met, by the median or by the best time", () => {
  assertEquals(isMet(MEASUREMENT), true);
  assertEquals(isMet(measured([5, 5, 5], { peer: 1 })), false);
  assertEquals(isMet(measured([2, 2, 2], { peer: 1, limit: 1.25 })), false);
  assertEquals(isMet(measured([1.03, 1.04, 1.05], { overLimit: 0.05 })), true);
  assertEquals(isMet(measured([1.1, 1.2, 1.3], { overLimit: 0.05 })), false);
  assertEquals(isMet(measured([100], {})), true);
});

Deno.test("table() is Markdown with a row for each work, and judges only where it is asked to", () => {
  const lines = table([MEASUREMENT, measured([9, 9, 9], { peer: 1 })], true).split("\n");
  assertEquals(new Set(lines.map((line) => line.split(" | ").length)), new Set([7]));
  assertEquals(
    lines[2],
    "| convert <everything> | 2.00 (1.00) | 4.00 (2.00) | 1.00 (1.00) | 0.50 (0.50) | 2.00 (1.00) | " +
      "1 of qemu-img, 1.25 of the limit: met |",
  );
  assert(lines[3]?.endsWith("1 of qemu-img: missed |"));
  assert(table([MEASUREMENT], false).endsWith("1 of qemu-img, 1.25 of the limit |"));
});

Deno.test("json() holds every run, and the machine", () => {
  const parsed = JSON.parse(json([MEASUREMENT], 3));
  assertEquals(parsed.measurements, [JSON.parse(JSON.stringify(MEASUREMENT))]);
  assertEquals([parsed.runs, parsed.machine.processors], [3, navigator.hardwareConcurrency]);
});

Deno.test("chart() is a picture that needs nothing else, with a bar for each work that qemu-img did too", () => {
  const alone: Measurement = { ...MEASUREMENT, name: "alone", seconds: { here: [1] } };
  const svg = chart([MEASUREMENT, alone, measured([1000], {})]);
  assert(svg.startsWith("<svg ") && svg.endsWith("</svg>\n"));
  assertStringIncludes(svg, "convert &lt;everything&gt;");
  assertEquals(svg.includes("alone"), false);
  // The paper, and two bars: one to the left of 1, one to the right.
  assertEquals(svg.match(/<rect /g)?.length, 3);
  assertEquals([...svg.matchAll(/fill="(#2a9d5c|#d9822b)"/g)].map(([, colour]) => colour), ["#2a9d5c", "#d9822b"]);
  assertEquals(svg.replace('xmlns="http://www.w3.org/2000/svg"', "").includes("http"), false);
});
