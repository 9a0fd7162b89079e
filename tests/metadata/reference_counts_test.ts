import { assertEquals } from "@std/assert";
import { coverageOf } from "../../lib/metadata/coverage.ts";
import { ReferenceCounts } from "../../lib/metadata/reference_counts.ts";
import { Random } from "../random.ts";

Deno.test("ReferenceCounts counts as a map does, near and far, few and many", () => {
  const random = new Random("reference counts");
  const counts = new ReferenceCounts();
  const expected = new Map<number, number>();
  const add = (cluster: number, times: number): void => {
    const count = (expected.get(cluster) ?? 0) + times;
    expected.set(cluster, count);
    assertEquals(counts.add(cluster, times), count);
  };
  for (let step = 0; step < 30_000; step++) add(random.below(10_000), random.pick([1, 1, 2, 7]));
  for (let step = 0; step < 1000; step++) add(random.below(2 ** 40), random.pick([1, 2 ** 40]));
  for (const cluster of [3, 5000, 2 ** 35]) add(cluster, 2 ** 33 + 1);
  for (const cluster of [3, 4]) add(cluster, -1);
  const clusters = [...expected.keys()].filter((cluster) => expected.get(cluster) !== 0).sort((a, b) => a - b);
  assertEquals([...counts.clusters()], clusters);
  assertEquals(clusters.map((cluster) => counts.get(cluster)), clusters.map((cluster) => expected.get(cluster)));
  assertEquals([counts.get(20_000), counts.get(2 ** 45)], [0, 0]);
});

Deno.test("coverageOf() tells how many ranges cover each byte", () => {
  const random = new Random("coverage");
  for (let turn = 0; turn < 50; turn++) {
    const ranges = Array.from(
      { length: random.below(12) },
      () => ({ offset: random.below(90), length: random.below(9) }),
    );
    const expected = Array.from(
      { length: 100 },
      (_, at) => ranges.filter(({ offset, length }) => at >= offset && at < offset + length).length,
    );
    const found = new Array<number>(100).fill(0);
    let last = 0;
    for (const { offset, length, times } of coverageOf(ranges)) {
      assertEquals(offset >= last && length > 0 && times > 0, true);
      found.fill(times, offset, offset + length);
      last = offset + length;
    }
    assertEquals(found, expected);
  }
});
