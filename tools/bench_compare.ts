/**
 * Compares two runs of `deno bench --json` by what can be compared across machines and days: in each group, the bench that is
 * marked `baseline: true` is the reference, and every other bench is taken as a multiple of the reference's time in the same
 * run.
 *
 * @module
 */

const HELP = `Compares two runs of "deno bench --json".

Usage: deno run --allow-read tools/bench_compare.ts OLD.json NEW.json [--margin FACTOR] [--measure NAME]

In each group the bench marked "baseline: true" is the reference of its own run. Of
every other bench the time is given as a multiple of the reference's, in the old run
and in the new one, and how the two relate: above 1.00 the bench became slower.

  --margin FACTOR  how much slower is still as good (default 1.15)
  --measure NAME   which time is compared: avg, min, p75, p99 (default avg)
  --help           this text

Exit status: 0 nothing became slower by more than the margin, 1 something did, or
failed in the new run, 2 the arguments or files make no sense.

  deno task bench --json > new.json
  deno run --allow-read tools/bench_compare.ts old.json new.json --margin 1.1
`;

/** The times of a bench that can be compared. */
export type Measure = "avg" | "min" | "p75" | "p99";

/** What `deno bench --json` prints, as far as it is used here. */
export interface BenchRun {
  /** All benches of all files. */
  readonly benches: readonly Bench[];
}

/** One bench of a run. */
export interface Bench {
  /** The URL of its file. */
  readonly origin: string;
  /** Its group, where it has one. */
  readonly group: string | null;
  /** Its name. */
  readonly name: string;
  /** Whether it is its group's reference. */
  readonly baseline: boolean;
  /** One element: its times in nanoseconds, or why it failed. */
  readonly results: readonly { readonly ok?: Readonly<Record<Measure, number>>; readonly failed?: unknown }[];
}

/** How one bench did in two runs. */
export interface Comparison {
  /** File, group and name. */
  readonly name: string;
  /** Its time as a multiple of the reference's in the old run, where there is one. */
  readonly old: number | undefined;
  /** Its time as a multiple of the reference's in the new run, where there is one. */
  readonly new: number | undefined;
  /**
   * - `ok`: within the margin, or faster.
   * - `slower`: slower by more than the margin.
   * - `failed`: it, or its reference, failed in the new run.
   * - `added`: not in the old run, or without a time there.
   * - `gone`: not in the new run.
   */
  readonly verdict: "ok" | "slower" | "failed" | "added" | "gone";
}

/**
 * Compares every bench that stands in a group with a reference. Benches without one are left out: their times say more about
 * the machine than about the code.
 *
 * @param oldRun The run to compare with.
 * @param newRun The run that is judged.
 * @param margin How many times slower is still as good.
 * @param measure Which time is compared.
 * @returns One element for each bench, in the order of the new run, the ones that are gone at the end.
 */
export function compare(
  oldRun: BenchRun,
  newRun: BenchRun,
  margin = 1.15,
  measure: Measure = "avg",
): Comparison[] {
  const oldRatios = ratios(oldRun, measure);
  const newRatios = ratios(newRun, measure);
  const present = [...newRatios].map(([name, ratio]): Comparison => {
    const before = oldRatios.get(name);
    const verdict = ratio === undefined
      ? "failed"
      : before === undefined
      ? "added"
      : ratio > before * margin
      ? "slower"
      : "ok";
    return { name, old: before, new: ratio, verdict };
  });
  const gone = [...oldRatios].filter(([name]) => !newRatios.has(name));
  return [...present, ...gone.map(([name, old]): Comparison => ({ name, old, new: undefined, verdict: "gone" }))];
}

function ratios(run: BenchRun, measure: Measure): Map<string, number | undefined> {
  const references = new Map(run.benches.filter((bench) => bench.baseline).map((bench) => [groupOf(bench), bench]));
  const result = new Map<string, number | undefined>();
  for (const bench of run.benches) {
    const reference = references.get(groupOf(bench));
    if (reference === undefined || bench.baseline) continue;
    const time = bench.results[0]?.ok?.[measure];
    const referenceTime = reference.results[0]?.ok?.[measure];
    result.set(
      `${groupOf(bench)} / ${bench.name}`,
      time === undefined || referenceTime === undefined ? undefined : time / referenceTime,
    );
  }
  return result;
}

/** The file's name, not its URL: the two runs may come from two checkouts. */
function groupOf(bench: Bench): string {
  return `${bench.origin.slice(bench.origin.lastIndexOf("/") + 1)} / ${bench.group ?? "(no group)"}`;
}

/**
 * A comparison as a table for people.
 *
 * @param comparisons What `compare()` returned.
 * @returns Lines without a final line break.
 */
export function table(comparisons: readonly Comparison[]): string {
  const number = (value: number | undefined) => (value === undefined ? "-" : value.toFixed(2)).padStart(9);
  const width = Math.max(5, ...comparisons.map((one) => one.name.length));
  return [
    `${"bench".padEnd(width)}       old       new    change`,
    ...comparisons.map((one) => {
      const change = one.old === undefined || one.new === undefined ? undefined : one.new / one.old;
      const verdict = one.verdict === "ok" ? "" : `  ${one.verdict}`;
      return `${one.name.padEnd(width)} ${number(one.old)} ${number(one.new)} ${number(change)}${verdict}`;
    }),
  ].join("\n");
}

/**
 * The program: prints the table and says how it ended.
 *
 * @param args The command line arguments.
 * @returns The exit status.
 */
export function main(args: readonly string[]): number {
  if (args.includes("--help") || args.includes("-h")) {
    console.log(HELP.trimEnd());
    return 0;
  }
  try {
    const { files, margin, measure } = parse(args);
    const [oldRun, newRun] = files.map(readRun);
    if (oldRun === undefined || newRun === undefined || files.length !== 2) throw new Error("Two files are needed");
    const comparisons = compare(oldRun, newRun, margin, measure);
    if (comparisons.length === 0) {
      throw new Error("No bench stands in a group with a baseline, so nothing can be compared");
    }
    console.log(table(comparisons));
    return comparisons.some(({ verdict }) => verdict === "slower" || verdict === "failed") ? 1 : 0;
  } catch (error) {
    console.error(`bench_compare: ${error instanceof Error ? error.message : error}; --help tells more`);
    return 2;
  }
}

function parse(args: readonly string[]): { files: string[]; margin: number; measure: Measure } {
  const files: string[] = [];
  const values = new Map([["--margin", "1.15"], ["--measure", "avg"]]);
  const left = [...args];
  for (let arg = left.shift(); arg !== undefined; arg = left.shift()) {
    if (!arg.startsWith("-")) {
      files.push(arg);
      continue;
    }
    const [name = "", assigned] = arg.split("=", 2);
    const value = assigned ?? left.shift();
    if (!values.has(name) || value === undefined) throw new Error(`Cannot make sense of "${arg}"`);
    values.set(name, value);
  }
  const margin = Number(values.get("--margin"));
  const measure = values.get("--measure") ?? "";
  if (!(margin > 0)) throw new Error(`Margin is "${values.get("--margin")}", must be a positive number such as 1.15`);
  if (!isMeasure(measure)) throw new Error(`Measure is "${measure}", must be avg, min, p75 or p99`);
  return { files, margin, measure };
}

function isMeasure(name: string): name is Measure {
  return ["avg", "min", "p75", "p99"].includes(name);
}

function readRun(path: string): BenchRun {
  const run: unknown = JSON.parse(Deno.readTextFileSync(path));
  if (typeof run !== "object" || run === null || !("benches" in run) || !Array.isArray(run.benches)) {
    throw new Error(`Cannot read "${path}": it is not what "deno bench --json" prints`);
  }
  return { benches: run.benches };
}

if (import.meta.main) Deno.exit(main(Deno.args));
