import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { main } from "../../lib/cli/main.ts";
import { Qcow2File } from "../../mod.ts";
import { filled } from "../images.ts";
import { validate } from "../json_schema.ts";
import { qemuTest } from "../qemu.ts";
import { assertSame, Folder, makeFile, patch, program, programNamed, VERSION } from "./_program.ts";

/** Runs the program where a person watches the standard error. */
async function onTerminal(...args: string[]): Promise<string> {
  let errors = "";
  const console = { stderrIsTerminal: true, out: () => {}, err: (text: string) => void (errors += text) };
  await main(args, console, { version: VERSION });
  return errors;
}

/** What the program prints on the standard error, as the schema says that it is. */
function parseErrors({ stderr }: { readonly stderr: string }): Record<string, unknown> {
  assertEquals([stderr.indexOf("\n"), stderr.length - 1], [stderr.length - 1, stderr.length - 1], stderr);
  const errors = JSON.parse(stderr);
  assertEquals(validate(errors, new URL("../../docs/schemas/error.json", import.meta.url)), [], stderr);
  return errors;
}

/** Failures, and what can be done about them. */
function failures(folder: Folder): (readonly [args: readonly string[], hint: RegExp])[] {
  const path = folder.path("disk.qcow2");
  const corrupt = folder.path("corrupt.qcow2");
  const overlay = folder.path("overlay.qcow2");
  const base = folder.path("base.raw");
  makeFile(base, 65536);
  Qcow2File.create(path, { size: 1 << 20 }).close();
  Qcow2File.create(corrupt, { size: 1 << 20 }).close();
  patch(corrupt, [79, 2]);
  Qcow2File.create(overlay, { size: 1 << 20, backingFile: "base.raw", backingFormat: "raw" }).close();
  Deno.removeSync(base);
  return [
    [["resize", path, "512k"], /--shrink allows it/],
    [["create", "-f", "qcow2", "-b", path, folder.path("new.qcow2")], /-F raw or -F qcow2/],
    [["create", "-f", "qcow2", "-o", "foo=1", folder.path("new.qcow2"), "1M"], /-o help/],
    [["resize", corrupt, "2M"], /check -r all .*corrupt.qcow2' repairs it/],
    [["convert", overlay, folder.path("new.raw")], /rebase -u -b/],
    [["snapshot", "-a", "nosuch", path], /snapshot -l FILE/],
    [["info", "-f", "qcow3", path], /-f raw or -f qcow2/],
    [["con"], /Did you mean convert\?/],
    [["rezise"], /Did you mean rebase or resize\?/],
    [["xyz"], /'qcow2 help' lists/],
  ];
}

Deno.test("errors come with a hint where a person watches", async () => {
  using folder = new Folder();
  for (const [args, hint] of failures(folder)) {
    const plain = (await program(...args)).stderr;
    const shown = await onTerminal(...args);
    // The hint is a line of its own, behind everything else.
    assert(shown.startsWith(plain.trimEnd()), shown);
    const rest = shown.slice(plain.trimEnd().length).trim();
    assert(/^Hint: .+[^.]$/.test(rest) && hint.test(rest), `${args.join(" ")}: ${rest}`);
    assertEquals(plain.includes("Hint:"), false);
  }
});

Deno.test("errors come without hints where the program stands in for another one, or nobody watches", async () => {
  using folder = new Folder();
  for (const [args] of failures(folder)) {
    const named = await onTerminal("--argv0", "qcow2", ...args);
    assertEquals(named, (await programNamed("qcow2", args)).stderr);
    assertEquals(named.includes("Hint"), false);
  }
});

qemuTest("errors of a stand-in for qemu-img are its own to the letter, also on a terminal", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  Qcow2File.create(path, { size: 1 << 20 }).close();
  for (const args of [["resize", path, "512k"], ["snapshot", "-a", "nosuch", path], ["create", "-b", path, path]]) {
    await assertSame(args);
    assertEquals(await onTerminal("--argv0", "qemu-img", ...args), (await programNamed("qemu-img", args)).stderr);
  }
});

Deno.test("--json tells of an error in one object, with the hint", async () => {
  using folder = new Folder();
  for (const [args, hint] of failures(folder)) {
    const result = await program("--json", ...args);
    const error = parseErrors(result);
    assertEquals([result.code, error.status], [1, 1]);
    assert(hint.test(String(error.hint)), result.stderr);
    assertStringIncludes((await program(...args)).stderr, String(error.message));
  }
});

Deno.test("--json tells what the engine found, where, and what would have been right", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  assertEquals(parseErrors(await program("--json", "info", path)), {
    status: 1,
    code: "not-found",
    message: `Could not open '${path}': Could not open '${path}': No such file or directory`,
    path,
  });
  Qcow2File.create(path, { size: 1 << 20 }).close();
  patch(path, [36, 0x7f, 0xff, 0xff, 0xff]);
  const { code, offset, found, expected, ...rest } = parseErrors(await program("--json", "info", path));
  assertEquals([code, offset, found, expected, rest.path], [
    "limit-exceeded",
    36,
    0x7fffffff * 8,
    "at most 33554432",
    path,
  ]);
  assertEquals(parseErrors(await program("--json", "--argv0", "x", "info")).code, "usage");
  assertEquals(parseErrors(await program("--argv0", "x", "--json", "foo")).code, "usage");
});

Deno.test("--json collects what is told without an error, and says nothing where there is nothing to say", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  {
    using disk = Qcow2File.create(path, { size: 1 << 20 });
    disk.writeAt(0, filled(65536, 1));
  }
  const sound = await program("--json", "check", path);
  assertEquals([sound.code, sound.stderr], [0, ""]);
  assertEquals(sound.stdout, (await program("check", path)).stdout);
  // A refcount of a cluster behind all others.
  patch(path, [0x20000 + 2 * 20, 0, 1]);
  Deno.truncateSync(path, 21 * 65536);
  const leaky = await program("--json", "check", path);
  assertEquals(leaky.code, 3);
  assertEquals(parseErrors(leaky), { status: 3, messages: ["Leaked cluster 20 refcount=1 reference=0"] });
});

Deno.test("the schema of errors has every code of the engine", () => {
  const schema = JSON.parse(Deno.readTextFileSync(new URL("../../docs/schemas/error.json", import.meta.url)));
  const source = Deno.readTextFileSync(new URL("../../lib/errors.ts", import.meta.url));
  const codes = [...source.matchAll(/^ {2}\| "([a-z0-9-]+)"/gm)].map(([, code]) => code);
  assert(codes.length > 20);
  assertEquals(schema.properties.code.enum, ["usage", "command", "internal", ...codes]);
});
