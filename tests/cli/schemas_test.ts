import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { Qcow2File } from "../../mod.ts";
import { validate } from "../json_schema.ts";
import { qemuTest } from "../qemu.ts";
import { Folder, makeFile, makeVariedImage, markInUse, patch, program, qemuImg, qemuIo } from "./_program.ts";

type Schema = "info" | "backing-chain" | "check" | "map" | "measure" | "inspect" | "untrusted" | "error";

function problemsOf(schema: Schema, value: unknown): string[] {
  return validate(value, new URL(`../../docs/schemas/${schema}.json`, import.meta.url));
}

function assertFits(schema: Schema, text: string, message: string): void {
  assertEquals(problemsOf(schema, JSON.parse(text)), [], message);
}

/** Holds what our program prints against a schema. */
async function assertOursFits(schema: Schema, ...args: string[]): Promise<void> {
  assertFits(schema, (await program(...args)).stdout, `qcow2 ${args.join(" ")}`);
}

/** Holds what both programs print against a schema. */
async function assertBothFit(schema: Schema, ...args: string[]): Promise<void> {
  assertFits(schema, qemuImg(...args).stdout, `qemu-img ${args.join(" ")}`);
  await assertOursFits(schema, ...args);
}

/** An image with a snapshot, a bitmap and all kinds of clusters. */
function makeImage(path: string): void {
  using disk = Qcow2File.create(path, { size: 1 << 30 });
  disk.addBitmap("changes");
  disk.writeAt(0, new Uint8Array(1 << 20).fill(1));
  disk.createSnapshot("before");
  disk.writeAt(1 << 16, new Uint8Array(1 << 20).fill(2));
  disk.writeZeroesAt(1 << 22, 1 << 20);
  disk.writeCompressedAt(1 << 24, new Uint8Array(1 << 16).fill(3));
}

Deno.test("JSON of our program is as the schemas say", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeImage(path);
  const raw = folder.path("disk.raw");
  makeFile(raw, 1 << 20, { 0: "data" });
  for (const image of [path, raw]) {
    await assertOursFits("info", "info", "--output", "json", image);
    await assertOursFits("backing-chain", "info", "--backing-chain", "--output", "json", image);
    await assertOursFits("map", "map", "--output", "json", image);
    await assertOursFits("measure", "measure", "-O", "qcow2", "--output", "json", image);
    await assertOursFits("inspect", "inspect", "--output", "json", image);
    await assertOursFits("untrusted", "inspect", "--untrusted", image);
  }
  await assertOursFits("check", "check", "--output", "json", path);
  await assertOursFits("measure", "measure", "-O", "qcow2", "--output", "json", "--size", "1T");
  await assertOursFits("map", "map", "--output", "json", "--max-length", "0", path);
});

Deno.test("JSON about images that are damaged, refused or without their backing file is as the schemas say", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeImage(path);
  // The header counts as free, and a cluster behind the end as used.
  const bytes = Deno.readFileSync(path);
  const view = new DataView(bytes.buffer);
  const refcountBlock = Number(view.getBigUint64(Number(view.getBigUint64(48))));
  const end = Math.ceil(bytes.length / 65536);
  Deno.truncateSync(path, (end + 1) * 65536);
  patch(path, [refcountBlock, 0, 0], [refcountBlock + 2 * end, 0, 1]);
  await assertOursFits("check", "check", "--output", "json", path);
  const { leaks, corruptions } = JSON.parse((await program("check", "--output", "json", path)).stdout);
  assert(leaks > 0 && corruptions > 0);
  await assertOursFits("inspect", "inspect", "--output", "json", path);
  await assertOursFits("untrusted", "inspect", "--untrusted", path);
  await assertOursFits("check", "check", "-r", "all", "--output", "json", path);

  const backing = folder.path("backing.qcow2");
  Qcow2File.create(backing, { size: 1 << 20 }).close();
  await program("create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", path);
  await assertOursFits("inspect", "inspect", "--output", "json", path);
  await assertOursFits("inspect", "inspect", "--no-backing", "--output", "json", path);
  await assertOursFits("untrusted", "inspect", "--untrusted", path);
  Deno.removeSync(backing);
  await assertOursFits("inspect", "inspect", "--output", "json", path);
  // The refcount table stands outside of the file, so that the check does not come to its end.
  patch(path, [48, 0, 0, 1]);
  await assertOursFits("untrusted", "inspect", "--untrusted", path);
  patch(path, [0, 0]);
  await assertOursFits("untrusted", "inspect", "--untrusted", "-f", "qcow2", path);
});

qemuTest("JSON of both programs is as the schemas say, for images of every kind", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  const look = async () => {
    await assertBothFit("info", "info", "--output", "json", path);
    await assertOursFits("untrusted", "inspect", "--untrusted", path);
  };
  const secret = ["--object", "secret,id=s,data=password"];
  for (
    const options of [
      ["-o", "compat=0.10"],
      ["-o", "compat=1.1,lazy_refcounts=on,refcount_bits=1"],
      ["-o", "extended_l2=on,cluster_size=128k,compression_type=zstd"],
      ["-o", `data_file=${folder.path("data")},data_file_raw=on`],
      [...secret, "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=400"],
      [...secret, "-o", "encrypt.format=aes,encrypt.key-secret=s"],
    ]
  ) {
    const { code, stderr } = qemuImg("create", "-q", "-f", "qcow2", ...options, path, "64M");
    // On some machines QEMU cannot measure how long the hashing of a passphrase takes.
    if (stderr.endsWith("Unable to get accurate CPU usage\n")) continue;
    assertEquals([code, stderr], [0, ""]);
    await look();
  }

  makeVariedImage(path);
  qemuImg("bitmap", "--add", "--disable", path, "old");
  qemuImg("bitmap", "--add", path, "changes");
  qemuImg("snapshot", "-c", "before", path);
  qemuIo(path, "write -c -P 4 30M 64k", "write -P 5 0 128k");
  await look();
  await assertBothFit("check", "check", "--output", "json", path);
  await assertBothFit("map", "map", "--output", "json", path);
  await assertBothFit("measure", "measure", "-O", "qcow2", "--output", "json", path);
  await assertBothFit("measure", "measure", "-O", "raw", "--output", "json", path);
  const overlay = folder.path("overlay.qcow2");
  qemuImg("create", "-q", "-f", "qcow2", "-b", path, "-F", "qcow2", overlay);
  qemuIo(overlay, "write -P 6 40M 1M");
  await assertBothFit("backing-chain", "info", "--backing-chain", "--output", "json", overlay);
  await assertBothFit("map", "map", "--output", "json", overlay);
  await assertOursFits("inspect", "inspect", "--output", "json", overlay);
  await assertBothFit("info", "info", "--image-opts", "--output", "json", `driver=file,filename=${path}`);

  markInUse(path, 12);
  await look();
  await assertOursFits("inspect", "inspect", "--output", "json", path);
});

Deno.test("errors in JSON are as the schema says", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  const explained = async (...args: string[]) => {
    const { code, stderr } = await program("--json", ...args);
    assertFits("error", stderr, args.join(" "));
    const error = JSON.parse(stderr);
    assertEquals(error.status, code);
    return error;
  };
  assertEquals((await explained("another")).code, "usage");
  assertEquals((await explained("info", path)).code, "not-found");
  makeImage(path);
  assertEquals((await explained("resize", path, "1M")).code, "command");
  patch(path, [20, 0, 0, 0, 60]);
  const { code, offset, found } = await explained("info", "-f", "qcow2", path);
  assertEquals([code, offset, found], ["unsupported", 20, 60]);
  assertNotEquals(problemsOf("error", { status: 1, code: "another", message: "" }), []);
  assertNotEquals(problemsOf("error", { status: 1, code: "usage" }), []);
});

Deno.test("a schema refuses what is not as it says", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeImage(path);
  const good = JSON.parse((await program("info", "--output", "json", path)).stdout);
  const data = good["format-specific"].data;
  const changed = (...changes: object[]) => Object.assign(structuredClone(good), ...changes);
  const withData = (changes: object) =>
    changed({ "format-specific": { type: "qcow2", data: { ...data, ...changes } } });
  assertEquals(problemsOf("info", good), []);
  for (
    const bad of [
      null,
      [good],
      changed({ "virtual-size": "1G" }),
      changed({ "virtual-size": -1 }),
      changed({ "virtual-size": 0.5 }),
      changed({ "another": 1 }),
      changed({ "filename": undefined }, { "format": undefined }),
      changed({ "snapshots": [] }),
      changed({ "snapshots": [{ ...good.snapshots[0], id: 1 }] }),
      changed({ "full-backing-filename": "/backing" }),
      withData({ "compat": "2.0" }),
      withData({ "refcount-bits": 3 }),
      withData({ "data-file": "data" }),
      withData({ "encrypt": { "format": "aes", "uuid": "" } }),
    ]
  ) assertNotEquals(problemsOf("info", JSON.parse(JSON.stringify(bad))), [], JSON.stringify(bad));
  const { "extended-l2": _extendedL2, ...incomplete } = data;
  const older = { ...good, "format-specific": { type: "qcow2", data: { ...incomplete, compat: "0.10" } } };
  assertEquals(problemsOf("info", older), []);
  older["format-specific"].data.compat = "1.1";
  assertEquals(problemsOf("info", older), ["$.format-specific.data: lacks extended-l2"]);
});
