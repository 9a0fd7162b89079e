import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { COMMAND_NAMES } from "../../lib/cli/help.ts";
import { importFlags } from "../../tools/imports.ts";
import { qemuTest, run } from "../qemu.ts";
import { assertSame, program, programNamed, VERSION } from "./_program.ts";

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

qemuTest("the program fails with the words of qemu-img", async () => {
  for (const args of [[], ["foo"], ["-x", "info"], ["--foo"], ["--vers=3"], [""]]) await assertSame(args);
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
