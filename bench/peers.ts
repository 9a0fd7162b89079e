/**
 * Measures the program and the engine beside `qemu-img` and the plain limit (`cp`, or `Deno.FsFile` alone), on the same files and in
 * alternation, and tells medians, best times and ratios as text, JSON and a chart.
 *
 * @module
 */

import { chart, json, type Measurement, table } from "./_peer_report.ts";
import { type Contender, CONTENDERS, Fixtures, type PeerWork, type Scale, SCALES, worksFor } from "./_peer_works.ts";

const HELP = `Measures this project beside qemu-img and the plain limit.

Usage: deno task bench:peers [OPTION…]

  --scale NAME      how large the images are: full (the default; takes some 25 GB of
                    disk and half an hour) or quick (a minute), where start-up
                    outweighs the work and nothing is judged
  --runs N          how often each contender is run, in turn (default 7, quick 3)
  --only TEXT       only works whose name has the text in it
  --program COMMAND the program to measure, such as bin/qcow2; without it, deno runs cli.ts
  --empty COMMAND   an empty program made in the same way, to compare start-up with
  --folder PATH     where the images are made; without it, the folder for temporary files
  --json PATH       write the figures there as well
  --svg PATH        draw the chart there

Wants qemu-img on the path. The page cache should hold all images: the full scale
wants 16 GiB of memory.
`;

interface Options {
  readonly scale: Scale;
  readonly runs: number;
  readonly only: string;
  readonly program: readonly string[];
  readonly empty: readonly string[];
  readonly folder: string | undefined;
  readonly json: string | undefined;
  readonly svg: string | undefined;
}

async function parse(args: readonly string[]): Promise<Options> {
  const values = new Map<string, string>();
  const left = [...args];
  for (let name = left.shift(); name !== undefined; name = left.shift()) {
    const value = left.shift();
    if (!/^--(scale|runs|only|program|empty|folder|json|svg)$/.test(name) || value === undefined) {
      throw new Error(`Cannot make sense of "${name}"; --help tells more`);
    }
    values.set(name.slice(2), value);
  }
  const scaleName = values.get("scale") ?? "full";
  const scale = SCALES[scaleName];
  if (scale === undefined) throw new Error(`Scale is "${scaleName}", expected ${Object.keys(SCALES).join(" or ")}`);
  const runs = Number(values.get("runs") ?? scale.runs);
  if (!Number.isInteger(runs) || runs < 1) throw new Error(`Runs is "${values.get("runs")}", expected a number`);
  const program = values.get("program");
  const empty = values.get("empty");
  return {
    scale,
    runs,
    only: values.get("only") ?? "",
    program: program === undefined ? await denoRun("cli.ts") : program.split(" "),
    empty: empty === undefined ? await denoRun("bench/_empty.ts") : empty.split(" "),
    folder: values.get("folder"),
    json: values.get("json"),
    svg: values.get("svg"),
  };
}

/** The command that runs a module of the project as it would be run from JSR. */
async function denoRun(path: string): Promise<string[]> {
  const { importFlags } = await import("../tools/imports.ts");
  const root = new URL("../", import.meta.url).pathname;
  const flags = (await importFlags()).map((flag) => flag.replace("--import-map=", `--import-map=${root}`));
  return [Deno.execPath(), "run", "-A", "--no-check", ...flags, root + path];
}

/**
 * Runs each contender of a work in turn, a first time without counting it. Each begins when the host has written what those before have
 * left to it, and with memory that was in use just before: a virtual machine may have given all other back to its host, and is slow to
 * have it again. So none pays for another.
 */
function measure({ contenders, fills = 0 }: PeerWork, runs: number): Partial<Record<Contender, number[]>> {
  const seconds: Partial<Record<Contender, number[]>> = {};
  for (let run = 0; run <= runs; run++) {
    for (const name of CONTENDERS) {
      const contender = contenders[name];
      if (contender === undefined) continue;
      new Deno.Command("sync").outputSync();
      if (fills > 0) fillMemory(fills * 5 / 4);
      const time = contender();
      if (run > 0) (seconds[name] ??= []).push(time);
    }
  }
  return seconds;
}

/** Fills as much memory in a process of its own, which leaves it to the next. */
function fillMemory(length: number): void {
  const script =
    `for (let left = ${length}; left > 0; left -= 2 ** 28) (globalThis.all ??= []).push(new Uint8Array(2 ** 28).fill(1));`;
  new Deno.Command(Deno.execPath(), { args: ["eval", script] }).outputSync();
}

async function main(args: readonly string[]): Promise<number> {
  if (args.includes("--help") || args.includes("-h")) {
    console.log(HELP.trimEnd());
    return 0;
  }
  const options = await parse(args);
  const folder = Deno.makeTempDirSync({
    prefix: "qcow2_peers_",
    ...options.folder === undefined ? {} : { dir: options.folder },
  });
  try {
    const fixtures = new Fixtures(folder, options.scale);
    const works = worksFor({ fixtures, ...options }).filter(({ name }) => name.includes(options.only));
    const measurements: Measurement[] = [];
    let failed = false;
    for (const work of works) {
      const { name, what, targets } = work;
      try {
        const measurement = { name, what, targets, seconds: measure(work, options.runs) };
        measurements.push(measurement);
        console.error(table([measurement], options.scale.isJudged).split("\n").at(-1));
      } catch (error) {
        failed = true;
        console.error(`${name}: ${error instanceof Error ? error.message : error}`);
      }
    }
    console.log(table(measurements, options.scale.isJudged));
    if (options.json !== undefined) Deno.writeTextFileSync(options.json, json(measurements, options.runs));
    if (options.svg !== undefined) Deno.writeTextFileSync(options.svg, chart(measurements));
    return failed ? 1 : 0;
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

if (import.meta.main) Deno.exit(await main(Deno.args));
