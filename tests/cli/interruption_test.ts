import { assertEquals, assertStringIncludes } from "@std/assert";
import { importFlags } from "../../tools/imports.ts";
import { Folder } from "./_program.ts";

const CLI = new URL("../../cli.ts", import.meta.url).href;
const ROOT = new URL("../../", import.meta.url);

/**
 * Begins to convert 32 GiB without leaving holes, which takes long on any machine, and sends a signal once the program has said
 * that it has begun.
 */
async function convertInterrupted(
  source: string,
  target: string,
  signal: Deno.Signal,
  options: readonly string[] = [],
): Promise<number> {
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "-A",
      "--no-check",
      ...await importFlags(),
      CLI,
      "convert",
      "-p",
      "-S",
      "0",
      ...options,
      source,
      target,
    ],
    cwd: ROOT,
    stdout: "piped",
    stderr: "null",
  }).spawn();
  let isSent = false;
  let printed = "";
  for await (const bytes of child.stdout) {
    printed += new TextDecoder().decode(bytes);
    if (isSent) continue;
    isSent = true;
    child.kill(signal);
  }
  assertStringIncludes(printed, "(0.00/100%)");
  return (await child.status).code;
}

function makeSource(folder: Folder): string {
  const source = folder.path("source");
  using file = Deno.createSync(source);
  file.truncateSync(32 * 1024 ** 3);
  return source;
}

Deno.test({
  name: "convert takes a new target away when it is interrupted",
  // There, the runtime can end a program but send no signal to it.
  ignore: Deno.build.os === "windows",
  fn: async () => {
    using folder = new Folder();
    const source = makeSource(folder);
    assertEquals(await convertInterrupted(source, folder.path("target"), "SIGINT"), 130);
    assertEquals(folder.names(), ["source"]);
  },
});

Deno.test({
  name: "convert -c takes a new target away when it is interrupted, whatever its threads are at",
  ignore: Deno.build.os === "windows",
  fn: async () => {
    using folder = new Folder();
    const source = makeSource(folder);
    assertEquals(await convertInterrupted(source, folder.path("target"), "SIGINT", ["-c", "-O", "qcow2"]), 130);
    assertEquals(folder.names(), ["source"]);
  },
});

Deno.test({
  name: "convert leaves an existing target as it is when it is terminated",
  ignore: Deno.build.os === "windows",
  fn: async () => {
    using folder = new Folder();
    const source = makeSource(folder);
    const target = folder.path("target");
    Deno.writeTextFileSync(target, "old");
    assertEquals(await convertInterrupted(source, target, "SIGTERM"), 143);
    assertEquals(folder.names(), ["source", "target"]);
    assertEquals(Deno.readTextFileSync(target), "old");
  },
});
