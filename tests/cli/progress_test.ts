import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import type { Console } from "../../lib/cli/console.ts";
import { main } from "../../lib/cli/main.ts";
import { type ProgressFrame, ProgressLine } from "../../lib/cli/progress_line.ts";
import { importFlags } from "../../tools/imports.ts";
import { qemuTest } from "../qemu.ts";
import { assertSame, Folder, makeFile, program, VERSION } from "./_program.ts";

const GIB = 1024 ** 3;
const BAR = "#####-----";

/** The lines for a work of 10 GiB of which so much is done at so many seconds. */
function lines(line: ProgressLine, moments: readonly (readonly [seconds: number, gib: number])[]): string[] {
  let previous = { time: 0, value: 0 };
  return moments.map(([seconds, gib]) => {
    const now = { time: seconds * 1000, value: gib * GIB };
    const frame: ProgressFrame = {
      ...now,
      previousTime: previous.time,
      previousValue: previous.value,
      progressBar: BAR,
      max: 10 * GIB,
    };
    previous = now;
    return line.format(frame);
  });
}

Deno.test("a line of progress tells how far it is, how fast and how long it will take", () => {
  const line = new ProgressLine(true, () => 100);
  assertEquals(lines(line, [[0, 0], [0.5, 0.25], [1, 0.5], [2, 1]]), [
    `[${BAR}]   0 %       0 B of 10 GiB`,
    `[${BAR}]   2 %   256 MiB of 10 GiB`,
    `[${BAR}]   5 %   512 MiB of 10 GiB   512 MiB/s  0:19 left`,
    `[${BAR}]  10 %     1 GiB of 10 GiB   512 MiB/s  0:18 left`,
  ]);
  line.end();
  assertEquals(lines(line, [[3725, 10]]), [`[${BAR}] 100 %    10 GiB of 10 GiB  in 1:02:05`]);
  assertEquals(lines(new ProgressLine(false, () => 100), [[5, 5]]), [`[${BAR}]  50 %  0:05 left`]);
});

Deno.test("a line of progress follows a rate that changes, and promises nothing where nothing goes on", () => {
  const line = new ProgressLine(true, () => 100);
  const slow = lines(line, [[1, 1], ...Array.from({ length: 60 }, (_, second) => [2 + second, 1] as const)]).at(-1);
  assertStringIncludes(slow ?? "", " B/s");
  assert(!lines(new ProgressLine(true, () => 100), [[5, 0]]).join().includes("left"));
});

Deno.test("a line of progress fits into every terminal", () => {
  const [whole = ""] = lines(new ProgressLine(true, () => 120), [[10, 5]]);
  for (let columns = 1; columns <= 120; columns++) {
    const [text = ""] = lines(new ProgressLine(true, () => columns), [[10, 5]]);
    assert(text.length < columns, `${columns}: ${text}`);
    assertEquals(text.includes(BAR), columns > whole.length, `${columns}: ${text}`);
  }
});

Deno.test("a script that reads the progress gets lines, even where a person sees the errors", async () => {
  using folder = new Folder();
  const source = folder.path("disk.raw");
  makeFile(source, 1 << 20, { 0: "data" });
  const printed = { stdout: "", stderr: "" };
  const console: Console = {
    stderrIsTerminal: true,
    out: (text) => void (printed.stdout += text),
    err: (text) => void (printed.stderr += text),
  };
  assertEquals(await main(["convert", "-p", source, folder.path("copy.raw")], console, { version: VERSION }), 0);
  assertEquals(printed.stderr, "");
  assert(printed.stdout.startsWith("    (0.00/100%)\r"), printed.stdout);
  assert(printed.stdout.endsWith("    (100.00/100%)\r\n"), printed.stdout);
});

/** Whether `script`, which gives a program a terminal, is the one of util-linux. */
const scriptAvailable = Deno.build.os === "linux" && (() => {
  try {
    return new Deno.Command("script", { args: ["--version"], stderr: "null" }).outputSync().success;
  } catch {
    return false;
  }
})();

/** Runs the program in a terminal, and returns what it has shown. */
async function inTerminal(folder: Folder, ...args: string[]): Promise<{ code: number; shown: string }> {
  const cli = new URL("../../cli.ts", import.meta.url).pathname;
  const run = [Deno.execPath(), "run", "-A", "--no-check", ...await importFlags(), cli, ...args];
  const quoted = run.map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(" ");
  const { code, stdout } = await new Deno.Command("script", {
    args: ["--quiet", "--return", "--command", `stty cols 100; exec ${quoted}`, folder.path("typescript")],
    cwd: new URL("../../", import.meta.url),
    stdin: "null",
  }).output();
  return { code, shown: new TextDecoder().decode(stdout) };
}

Deno.test({
  name: "a bar on a terminal ends complete, in a line of its own",
  ignore: !scriptAvailable,
  fn: async () => {
    using folder = new Folder();
    const source = folder.path("disk.raw");
    makeFile(source, 64 << 20, { 0: "data" });
    const { code, shown } = await inTerminal(folder, "convert", "-p", "-S", "0", source, folder.path("copy.raw"));
    assertEquals(code, 0, shown);
    const last = shown.split("\r\x1b[K").at(-1) ?? "";
    assert(/^\[#{30}\] 100 % {4}64 MiB of 64 MiB {2}in \d+:\d\d\r\n$/.test(last), shown);
    const other = folder.path("other.raw");
    makeFile(other, 64 << 20, { 0: "Data" });
    const comparison = await inTerminal(folder, "compare", "-p", source, other);
    assertEquals(comparison.code, 1);
    // What is printed meanwhile has a line of its own as well.
    assertStringIncludes(comparison.shown, "\r\x1b[KContent mismatch at offset 0!\r\n");
  },
});

qemuTest("convert shows progress from the start, also where it comes to nothing", async () => {
  using folder = new Folder();
  const [raw, target] = [folder.path("disk.raw"), folder.path("target")];
  makeFile(raw, 1 << 20, { 0: "data" });
  for (
    const args of [
      [folder.path("none"), target],
      ["-O", "qcow2", "-o", "cluster_size=3", raw, target],
      ["-T", "some", raw, target],
      [raw],
      ["-q", folder.path("none"), target],
    ]
  ) await assertSame(["convert", "-p", ...args]);
});

Deno.test("progress never goes beyond its end, though whole clusters are read to compress them", async () => {
  using folder = new Folder();
  const raw = folder.path("disk.raw");
  makeFile(raw, 1 << 20, { 0: "data" });
  const { stdout } = await program("convert", "-c", "-p", "-O", "qcow2", raw, folder.path("target"));
  for (const [, percent] of stdout.matchAll(/\(([\d.]+)\/100%\)/g)) assert(Number(percent) <= 100, stdout);
});
