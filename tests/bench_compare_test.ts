import { assertEquals, assertStringIncludes } from "@std/assert";
import { type Bench, compare, main, table } from "../tools/bench_compare.ts";

function bench(group: string | null, name: string, avg: number | undefined, baseline = false): Bench {
  const results = avg === undefined ? [{ failed: {} }] : [{ ok: { avg, min: avg / 2, p75: avg, p99: avg * 3 } }];
  return { origin: `file:///somewhere/${avg}/read_bench.ts`, group, name, baseline, results };
}

function run(...benches: Bench[]): { benches: Bench[] } {
  return { benches };
}

function withFiles(contents: readonly unknown[], use: (paths: string[]) => void): void {
  const folder = Deno.makeTempDirSync();
  try {
    use(contents.map((content, index) => {
      const path = `${folder}/${index}.json`;
      Deno.writeTextFileSync(path, typeof content === "string" ? content : JSON.stringify(content));
      return path;
    }));
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

/** Runs the program without letting it print, and returns its exit status and what it would have printed. */
function quietly(args: string[]): { status: number; printed: string } {
  const { log, error } = console;
  let printed = "";
  console.log = console.error = (text: string) => printed += `${text}\n`;
  try {
    return { status: main(args), printed };
  } finally {
    Object.assign(console, { log, error });
  }
}

const OLD = run(bench("read", "raw", 100, true), bench("read", "qcow2", 200));

Deno.test("compare() takes times as multiples of the reference in the same run", () => {
  const slowMachine = run(bench("read", "raw", 1000, true), bench("read", "qcow2", 2000));
  assertEquals(compare(OLD, slowMachine), [
    { name: "read_bench.ts / read / qcow2", old: 2, new: 2, verdict: "ok" },
  ]);
});

Deno.test("compare() calls slower what is beyond the margin, and only that", () => {
  const verdict = (avg: number, margin?: number) =>
    compare(OLD, run(bench("read", "raw", 100, true), bench("read", "qcow2", avg)), margin)[0]?.verdict;
  assertEquals(verdict(229), "ok");
  assertEquals(verdict(231), "slower");
  assertEquals(verdict(231, 1.2), "ok");
  assertEquals(verdict(50), "ok");
});

Deno.test("compare() uses the time that is asked for", () => {
  const rarelySlow = run(bench("read", "raw", 100, true), {
    ...bench("read", "qcow2", 200),
    results: [{ ok: { avg: 200, min: 100, p75: 200, p99: 6000 } }],
  });
  assertEquals(compare(OLD, rarelySlow, 1.15, "avg")[0]?.verdict, "ok");
  assertEquals(compare(OLD, rarelySlow, 1.15, "p99")[0]?.verdict, "slower");
});

Deno.test("compare() leaves out benches that have no reference", () => {
  const lonely = run(bench(null, "alone", 5), bench("other", "unreferenced", 5));
  assertEquals(compare(lonely, lonely), []);
});

Deno.test("compare() tells what was added, is gone and failed", () => {
  const fresh = run(bench("read", "raw", 100, true), bench("read", "new", 300), bench("read", "broken", undefined));
  assertEquals(compare(OLD, fresh).map(({ name, verdict }) => [name, verdict]), [
    ["read_bench.ts / read / new", "added"],
    ["read_bench.ts / read / broken", "failed"],
    ["read_bench.ts / read / qcow2", "gone"],
  ]);
});

Deno.test("compare() calls a whole group failed whose reference failed", () => {
  const broken = run(bench("read", "raw", undefined, true), bench("read", "qcow2", 200));
  assertEquals(compare(OLD, broken)[0]?.verdict, "failed");
});

Deno.test("table() shows both multiples, the change and what is wrong", () => {
  const lines = table(compare(OLD, run(bench("read", "raw", 100, true), bench("read", "qcow2", 300)))).split("\n");
  assertEquals(lines.length, 2);
  assertEquals(lines[1]?.split(/ {2,}/), ["read_bench.ts / read / qcow2", "2.00", "3.00", "1.50", "slower"]);
});

Deno.test("main() ends with 0 when nothing became slower, 1 when something did", () => {
  const slower = run(bench("read", "raw", 100, true), bench("read", "qcow2", 300));
  withFiles([OLD, slower], ([before = "", after = ""]) => {
    assertEquals(quietly([before, before]).status, 0);
    assertEquals(quietly([before, after]).status, 1);
    assertEquals(quietly([before, after, "--margin", "1.6"]).status, 0);
    assertEquals(quietly([before, "--margin=1.6", after]).status, 0);
    assertStringIncludes(quietly([before, after]).printed, "slower");
  });
});

Deno.test("main() ends with 2 when arguments or files make no sense", () => {
  withFiles([OLD, "not JSON", {}, run()], ([good = "", text = "", other = "", empty = ""]) => {
    const senseless = [[], [good], [good, good, good], [good, text], [good, other], [empty, empty], [good, "/nowhere"]];
    for (const args of senseless) assertEquals(quietly(args).status, 2, args.join(" "));
    for (const option of ["--margin=no", "--margin=0", "--measure=max", "--colour=red", "--margin"]) {
      assertEquals(quietly([good, good, option]).status, 2, option);
    }
  });
});

Deno.test("main() explains itself", () => {
  const { status, printed } = quietly(["--help"]);
  assertEquals(status, 0);
  assertStringIncludes(printed, "--margin");
});
