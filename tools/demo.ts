/**
 * Shows the program at work on a real disk image: makes one, converts it, writes to it, checks and maps it.
 *
 * @module
 */

import { Qcow2File } from "../mod.ts";
import { importFlags } from "./imports.ts";

const MIB = 1024 * 1024;

function say(text: string): void {
  console.log(`\n\x1b[1m${text}\x1b[0m`);
}

const flags = await importFlags();

async function qcow2(...args: string[]): Promise<void> {
  console.log(`\x1b[2m$ qcow2 ${args.join(" ")}\x1b[0m`);
  const cli = new URL("../cli.ts", import.meta.url).pathname;
  const root = new URL("..", import.meta.url).pathname;
  const map = flags.map((flag) => flag.replace("=tools/", `=${root}tools/`));
  const command = new Deno.Command(Deno.execPath(), { args: ["run", "-A", ...map, cli, ...args], cwd: folder });
  const { code } = await command.spawn().status;
  if (code !== 0) throw new Error(`qcow2 ${args[0]} ended with exit status ${code}`);
}

/** A file system with files in it where the host has the tool for it; otherwise a partition table and text. */
function makeSampleDisk(path: string): string {
  try {
    const content = new URL("../lib", import.meta.url).pathname;
    const command = new Deno.Command("mkfs.ext4", { args: ["-q", "-F", "-d", content, path, "64M"], stderr: "null" });
    if (command.outputSync().success) return "an ext4 file system with the sources of this package in it";
  } catch {
    // No such tool: the other kind of sample does as well.
  }
  using file = Deno.openSync(path, { write: true, create: true, truncate: true });
  file.truncateSync(64 * MIB);
  const bootSector = new Uint8Array(512);
  bootSector.set([0x80, 0, 2, 0, 0x83, 0xff, 0xff, 0xff, 0, 8, 0, 0, 0, 0xf8, 1, 0], 446);
  bootSector.set([0x55, 0xaa], 510);
  file.writeSync(bootSector);
  const text = new TextEncoder().encode("All work and no play makes Jack a dull boy.\n".repeat(30_000));
  for (const offset of [MIB, 9 * MIB, 40 * MIB]) {
    file.seekSync(offset, Deno.SeekMode.Start);
    file.writeSync(text);
  }
  return "a partition table and some text";
}

const folder = Deno.makeTempDirSync({ prefix: "qcow2_demo_" });
try {
  say("1. A raw disk image with real content");
  const kind = makeSampleDisk(`${folder}/disk.raw`);
  console.log(`disk.raw: 64 MiB, ${kind}`);

  say("2. Convert it to qcow2");
  await qcow2("convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2");
  const blocks = Deno.statSync(`${folder}/disk.qcow2`).size;
  console.log(`disk.raw is ${64 * MIB} bytes long, disk.qcow2 ${blocks}: what is zero takes no space`);

  say("3. What it is");
  await qcow2("info", "disk.qcow2");

  say("4. Write to it from TypeScript");
  console.log(`using disk = Qcow2File.open("disk.qcow2", { write: true });`);
  console.log(`disk.writeAt(${60 * MIB}, new TextEncoder().encode("Hello, disk"));`);
  {
    using disk = Qcow2File.open(`${folder}/disk.qcow2`, { write: true });
    disk.writeAt(60 * MIB, new TextEncoder().encode("Hello, disk"));
    const bytes = new Uint8Array(11);
    disk.readAt(60 * MIB, bytes);
    console.log(`read back: ${new TextDecoder().decode(bytes)}`);
  }

  say("5. Check it");
  await qcow2("check", "disk.qcow2");

  say("6. Where its data stands");
  await qcow2("map", "disk.qcow2");

  say("7. And back to raw");
  await qcow2("convert", "-f", "qcow2", "-O", "raw", "disk.qcow2", "back.raw");
  const original = Deno.readFileSync(`${folder}/disk.raw`);
  const back = Deno.readFileSync(`${folder}/back.raw`);
  original.set(new TextEncoder().encode("Hello, disk"), 60 * MIB);
  const same = original.length === back.length && original.every((byte, index) => byte === back[index]);
  if (!same) throw new Error("The disk came back different");
  console.log("back.raw holds every byte of disk.raw, and the greeting");
} finally {
  Deno.removeSync(folder, { recursive: true });
}
