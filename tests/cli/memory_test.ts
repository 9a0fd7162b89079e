import { assert, assertEquals } from "@std/assert";
import { Qcow2File } from "../../mod.ts";
import { importFlags } from "../../tools/imports.ts";
import { Folder } from "./_program.ts";

const ROOT = new URL("../../", import.meta.url);
const MIB = 1024 ** 2;
const GIB = 1024 ** 3;

/** Runs code in a process of its own and answers with the most memory that it had, in bytes. */
async function peakMemory(code: string): Promise<number> {
  const report = 'console.log(/VmHWM:\\s*(\\d+) kB/.exec(Deno.readTextFileSync("/proc/self/status"))[1])';
  const { code: status, stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["eval", "--no-check", ...await importFlags(), `${code}\n${report}`],
    cwd: ROOT,
    stderr: "inherit",
  }).output();
  assertEquals(status, 0);
  return Number(new TextDecoder().decode(stdout)) * 1024;
}

Deno.test({
  name: "convert takes no more memory for a terabyte with tables everywhere than for any other disk",
  // Elsewhere nobody says how much memory a process had.
  ignore: Deno.build.os !== "linux",
  fn: async () => {
    using folder = new Folder();
    const source = folder.path("source.qcow2");
    {
      using disk = Qcow2File.create(source, { size: 1024 * GIB, durability: "unsafe" });
      const sector = new Uint8Array(512).fill(7);
      // 2,048 L2 tables of 64 KiB, each used in several places.
      for (let offset = 0; offset < disk.size; offset += GIB / 8) disk.writeAt(offset, sector);
    }
    const main = JSON.stringify(new URL("lib/cli/main.ts", ROOT).href);
    const args = JSON.stringify(["convert", "-O", "qcow2", source, folder.path("target.qcow2")]);
    const peak = await peakMemory(`
      import { main } from ${main};
      const silent = { stderrIsTerminal: false, out: () => {}, err: () => {} };
      if (await main(${args}, silent, { version: "" }) !== 0) Deno.exit(1);
    `);
    const empty = await peakMemory("");
    assert(peak < empty + 64 * MIB, `${peak} bytes, and ${empty} without a conversion`);
  },
});
