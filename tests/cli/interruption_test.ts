import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { importFlags } from "../../tools/imports.ts";
import { checkImage, Qcow2File, RawFile } from "../../mod.ts";
import { Folder } from "./_program.ts";

const CLI = new URL("../../cli.ts", import.meta.url).href;
const ROOT = new URL("../../", import.meta.url);

/** What {@linkcode interrupted} waits for before it sends the signal. */
interface Moment {
  /** Where the program prints something first. */
  readonly stream?: "stdout" | "stderr";
  /** A file that grows first, beyond so many bytes. */
  readonly growing?: readonly [path: string, size: number];
}

/** Runs the program, and sends it a signal in the midst of its work. Gives its exit status and what it has printed. */
async function interrupted(
  args: readonly string[],
  signal: Deno.Signal,
  { stream = "stdout", growing }: Moment = {},
): Promise<{ readonly code: number; readonly printed: string }> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", ...await importFlags(), CLI, ...args],
    cwd: ROOT,
    stdout: stream === "stdout" ? "piped" : "null",
    stderr: stream === "stderr" ? "piped" : "null",
  }).spawn();
  if (growing !== undefined) {
    const [path, size] = growing;
    while (Deno.statSync(path).size <= size) await new Promise((resolve) => setTimeout(resolve, 5));
    child.kill(signal);
  }
  let printed = "";
  for await (const bytes of child[stream]) {
    if (printed === "" && growing === undefined) child.kill(signal);
    printed += new TextDecoder().decode(bytes);
  }
  const status = await child.status;
  // The program has ended itself, after it had put things in order.
  assertEquals(status.signal, null);
  return { code: status.code, printed };
}

/** Begins to convert 32 GiB without leaving holes, which takes long on any machine. */
async function convertInterrupted(
  source: string,
  target: string,
  signal: Deno.Signal,
  options: readonly string[] = [],
): Promise<number> {
  const { code, printed } = await interrupted(["convert", "-p", "-S", "0", ...options, source, target], signal);
  assertStringIncludes(printed, "(0.00/100%)");
  return code;
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

Deno.test({
  name: "check -r leaves an image as it is when it is interrupted before it has mended anything",
  ignore: Deno.build.os === "windows",
  fn: async () => {
    using folder = new Folder();
    const path = folder.path("disk.qcow2");
    const before = makeEndlessImage(path, true);
    const { code, printed } = await interrupted(["check", "-r", "all", path], "SIGINT", { stream: "stderr" });
    assertStringIncludes(printed, "ERROR found L1 entry with reserved bits set: 8000000000800002\n");
    assertEquals(code, 130);
    assertEquals(startOf(path, before.length), before);
  },
});

Deno.test({
  name: "resize leaves a disk of its old size when it is interrupted",
  ignore: Deno.build.os === "windows",
  fn: async () => {
    using folder = new Folder();
    const image = folder.path("disk.qcow2");
    const raw = folder.path("disk.raw");
    Qcow2File.create(image, { size: 1 << 20 }).close();
    RawFile.create(raw, { size: 1 << 20 }).close();
    for (const [path, format] of [[image, "qcow2"], [raw, "raw"]] as const) {
      const { size } = Deno.statSync(path);
      const args = ["resize", "-f", format, "--preallocation=full", path, "1T"];
      // What is written in front of the first data is less than that.
      const { code, printed } = await interrupted(args, "SIGINT", { growing: [path, size + (1 << 20)] });
      assertEquals([code, printed], [130, ""]);
      // An L1 table may have become longer.
      assert(Deno.statSync(path).size < size + (1 << 20));
    }
    using disk = Qcow2File.open(image);
    const { corruptions, leaks } = disk.check();
    assertEquals([disk.size, corruptions, leaks], [1 << 20, 0, 0]);
  },
});

Deno.test({
  name: "amend leaves an image of its old version when it is interrupted",
  ignore: Deno.build.os === "windows",
  fn: async () => {
    using folder = new Folder();
    const path = folder.path("disk.qcow2");
    const before = makeEndlessImage(path, false);
    const { code, printed } = await interrupted(["amend", "-p", "-o", "compat=0.10", path], "SIGTERM");
    assertEquals(code, 143);
    assertStringIncludes(printed, "(0.00/100%)");
    assertEquals(printed.includes("(100.00/100%)"), false);
    assertEquals(startOf(path, before.length), before);
  },
});

Deno.test({
  name: "commit leaves the overlay with all that it has when it is interrupted",
  ignore: Deno.build.os === "windows",
  fn: async () => {
    using folder = new Folder();
    const [base, overlay] = [folder.path("base.qcow2"), folder.path("overlay.qcow2")];
    Qcow2File.create(base, { size: 64 * MIB }).close();
    makeOverlay(overlay, base, 64 * MIB);
    // So slowly that it would take a minute.
    const { code, printed } = await interrupted(["commit", "-p", "-r", "1M", overlay], "SIGINT");
    assertStringIncludes(printed, "(0.00/100%)");
    assertEquals([code, printed.includes("Image committed.")], [130, false]);
    using disk = Qcow2File.open(overlay, { backing: "allow" });
    const bytes = new Uint8Array(64 * MIB);
    disk.readAt(0, bytes);
    assertEquals(bytes.every((byte) => byte === 7), true);
    assertEquals([...disk.extents()].map(({ depth, length }) => [depth, length]), [[0, 64 * MIB]]);
    for (const path of [base, overlay]) {
      const { corruptions, leaks } = checkImage(path, { lock: false });
      assertEquals([corruptions, leaks], [0, 0]);
    }
  },
});

Deno.test({
  name: "rebase leaves the image on its old backing file when it is terminated",
  ignore: Deno.build.os === "windows",
  fn: async () => {
    using folder = new Folder();
    const [old, fresh, overlay] = ["old.qcow2", "fresh.qcow2", "overlay.qcow2"].map((name) => folder.path(name));
    if (old === undefined || fresh === undefined || overlay === undefined) return;
    const size = 128 * 1024 * MIB;
    Qcow2File.create(old, { size, preallocation: "metadata" }).close();
    Qcow2File.create(fresh, { size, preallocation: "metadata" }).close();
    makeOverlay(overlay, old, size, MIB);
    const { code, printed } = await interrupted(["rebase", "-p", "-b", fresh, "-F", "qcow2", overlay], "SIGTERM");
    assertStringIncludes(printed, "(0.00/100%)");
    assertEquals([code, printed.includes("(100.00/100%)")], [143, false]);
    using disk = Qcow2File.open(overlay, { backing: "allow" });
    assertEquals(disk.header.backingFile, old);
    const bytes = new Uint8Array(2 * MIB);
    disk.readAt(0, bytes);
    assertEquals(bytes.every((byte, index) => byte === (index < MIB ? 7 : 0)), true);
    const { corruptions, leaks } = disk.check();
    assertEquals([corruptions, leaks], [0, 0]);
  },
});

const MIB = 1024 * 1024;

/** Makes an image over another one, with data at its beginning. */
function makeOverlay(path: string, backingFile: string, size: number, length = size): void {
  using disk = Qcow2File.create(path, { size, backingFile, backingFormat: "qcow2", backing: "allow" });
  disk.writeAt(0, new Uint8Array(length).fill(7));
}

function startOf(path: string, length: number): Uint8Array {
  using file = Deno.openSync(path);
  const bytes = new Uint8Array(length);
  file.readSync(bytes);
  return bytes;
}

const CLUSTER_SIZE = 2 * 1024 * 1024;

/**
 * Makes an image with tables of 16 GiB, all of them holes, and something wrong at its start if asked for. Gives what stands in front of
 * them.
 */
function makeEndlessImage(path: string, isDamaged: boolean): Uint8Array {
  const tableCount = 8192;
  const tableSpan = CLUSTER_SIZE / 8 * CLUSTER_SIZE;
  Qcow2File.create(path, { size: tableCount * tableSpan, clusterSize: CLUSTER_SIZE }).close();
  const start = Deno.readFileSync(path);
  const view = new DataView(start.buffer);
  const l1Offset = Number(view.getBigUint64(40));
  const first = Math.ceil(start.length / CLUSTER_SIZE);
  for (let index = 0; index < tableCount; index++) {
    view.setBigUint64(l1Offset + index * 8, 1n << 63n | BigInt((first + index) * CLUSTER_SIZE));
  }
  if (isDamaged) view.setUint8(l1Offset + 7, 2);
  Deno.writeFileSync(path, start);
  Deno.truncateSync(path, (first + tableCount) * CLUSTER_SIZE);
  return start;
}
