import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { parseArguments } from "../../lib/cli/arguments.ts";
import { COMMAND_OPTIONS } from "../../lib/cli/command_options.ts";
import { COMMAND_NAMES, optionMeaning } from "../../lib/cli/help.ts";
import { importFlags } from "../../tools/imports.ts";
import { qemuTest, run } from "../qemu.ts";
import { assertSame, Folder, program, programNamed, VERSION } from "./_program.ts";

Deno.test("the program tells its version", async () => {
  for (const option of ["--version", "-V"]) {
    assertEquals(await program(option), { code: 0, stdout: `qcow2 version ${VERSION}\n`, stderr: "" });
  }
});

Deno.test("the program explains itself and every command", async () => {
  const { stdout } = await program("help");
  for (const name of COMMAND_NAMES) assertStringIncludes(stdout, `  ${name}`);
  for (const option of ["--help", "-h"]) assertEquals((await program(option)).stdout, stdout);
  for (const name of COMMAND_NAMES) {
    const { code, stdout } = await program("help", name);
    assertEquals(code, 0);
    assertStringIncludes(stdout, `Usage: qcow2 ${name}`);
    if (name === "help") continue;
    assertEquals((await program(name, "--help")).stdout, stdout);
    assertEquals((await program(name, "x", "-h")).stdout, stdout);
  }
});

Deno.test("the program's texts fit into a terminal", async () => {
  for (const name of COMMAND_NAMES) {
    const { stdout } = await program("help", name);
    for (const line of stdout.split("\n")) assert(line.length <= 100, line);
  }
});

Deno.test("the program's help tells of every option, and its examples are command lines", async () => {
  for (const name of COMMAND_NAMES) {
    for (const option of COMMAND_OPTIONS[name]) assert(optionMeaning(name, option), `${name} --${option.name}`);
    const { stdout } = await program("help", name);
    const examples = stdout.slice(stdout.indexOf("\nExamples:\n")).match(/^ {2}qcow2 .*$/gm) ?? [];
    assert(examples.length > 0, name);
    for (const example of examples) {
      const [, command, ...words] = example.trim().split(" > ")[0]?.split(" ") ?? [];
      assertEquals(command, name);
      parseArguments(name, words.map((word) => word === "''" ? "" : word), COMMAND_OPTIONS[name]);
    }
  }
});

Deno.test("the program loads nothing of the engine before a command is run", () => {
  const lib = new URL("../../lib/", import.meta.url);
  const seen = new Set<string>();
  const visit = (url: URL) => {
    if (seen.has(url.href)) return;
    seen.add(url.href);
    // What is imported by a call is loaded later.
    for (
      const [, name = ""] of Deno.readTextFileSync(url).matchAll(/^(?:import|export) (?!type ).*?from "(\..*?)";$/gms)
    ) {
      visit(new URL(name, url));
    }
  };
  for (const file of ["main.ts", "help.ts", "completions.ts"]) visit(new URL(`cli/${file}`, lib));
  const floors = [...seen].map((href) => href.slice(lib.href.length)).filter((path) => !path.startsWith("cli/"));
  assertEquals(floors, ["errors.ts"]);
});

qemuTest("the program fails with the words of qemu-img", async () => {
  for (const args of [[], ["foo"], ["-x", "info"], ["--foo"], ["--vers=3"], [""]]) await assertSame(args);
});

qemuTest("what stands in the place of an image and is none is told as qemu-img tells it", async () => {
  using folder = new Folder();
  Deno.mkdirSync(folder.path("folder"));
  const [path, image] = [folder.path("folder"), folder.path("disk")];
  await program("create", "-f", "qcow2", image, "1M");
  for (
    const args of [
      ["info", path],
      ["info", "-f", "raw", path],
      ["info", `${image}/x`],
      ["check", "-f", "qcow2", path],
      ["check", "-r", "all", path],
      ["commit", path],
      ["resize", "-f", "raw", path, "1M"],
      ["convert", "-n", "-O", "raw", image, path],
      ["convert", "-O", "raw", path, image],
      ["create", "-f", "qcow2", "-b", path, "-F", "raw", folder.path("other"), "1M"],
    ]
  ) await assertSame(args);
});

Deno.test("the program puts the name that it is given in front of errors", async () => {
  assertEquals(
    (await programNamed("x-img", ["foo"])).stderr,
    `x-img: Command not found: foo\nTry 'x-img --help' for more information\n`,
  );
});

Deno.test("cli.ts runs the program and ends with its status", async () => {
  const cli = new URL("../../cli.ts", import.meta.url).pathname;
  const flags = await importFlags();
  const root = new URL("../../", import.meta.url).pathname;
  const args = ["run", "-A", "--no-check", ...flags.map((flag) => flag.replace("=", `=${root}`)), cli];
  const { code, stderr } = run(Deno.execPath(), [...args, "--argv0", "qemu-img", "info", "/nonexistent/image"]);
  assertEquals(code, 1);
  assertEquals(
    stderr,
    "qemu-img: Could not open '/nonexistent/image': Could not open '/nonexistent/image': No such file or directory\n",
  );
});
