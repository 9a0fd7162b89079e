import { assertEquals, assertStringIncludes } from "@std/assert";
import { qemuTest } from "../qemu.ts";
import { assertSame, Folder, makeFile, makeVariedImage, patch, program, qemuImg, qemuIo } from "./_program.ts";

/** Compares what is printed for people and for programs. */
async function assertSameInfo(...args: string[]): Promise<void> {
  await assertSame(["info", ...args]);
  await assertSame(["info", "--output", "json", ...args]);
}

qemuTest("info says of qcow2 images what qemu-img says", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  for (
    const options of [
      "compat=1.1",
      "compat=0.10",
      "lazy_refcounts=on,compression_type=zstd,refcount_bits=1",
      "cluster_size=2M",
      "extended_l2=on",
      `data_file=${folder.path("a.raw")},data_file_raw=on`,
      `data_file=${folder.path("b.raw")}`,
    ]
  ) {
    qemuImg("create", "-q", "-f", "qcow2", "-o", options, path, "1G");
    await assertSameInfo(path);
  }
  makeVariedImage(path);
  await assertSameInfo(path);
  await assertSameInfo("-f", "raw", path);
  await assertSameInfo("-U", path);
});

qemuTest("info says of raw images what qemu-img says", async () => {
  using folder = new Folder();
  const path = folder.path("disk.raw");
  for (const length of [0, 5, 1000, 1 << 20, 10_000_000]) {
    makeFile(path, length, { [length >> 1]: length > 4 ? "data" : "" });
    await assertSameInfo(path);
  }
});

qemuTest("info lists snapshots and bitmaps as qemu-img does", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeVariedImage(path);
  qemuImg("snapshot", "-c", "one", path);
  qemuImg("snapshot", "-c", "a name with spaces that is long é", path);
  qemuImg("bitmap", "--add", path, "b0");
  qemuImg("bitmap", "--add", "-g", "4k", path, "b1");
  qemuImg("bitmap", "--add", "--disable", path, "b2");
  await assertSameInfo(path);
  // Without the autoclear bit the bitmaps count for nothing.
  patch(path, [88, 0, 0, 0, 0, 0, 0, 0, 0]);
  await assertSame(["info", path], { anyErrorText: true });
});

qemuTest("info says that an image is dirty, corrupt or encrypted", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  qemuImg("create", "-q", "-f", "qcow2", path, "1M");
  patch(path, [79, 1]);
  await assertSameInfo(path);
  patch(path, [79, 2]);
  await assertSameInfo(path);
  for (const format of ["aes", "luks"]) {
    const options = `encrypt.format=${format},encrypt.key-secret=s${format === "luks" ? ",encrypt.iter-time=400" : ""}`;
    const args = ["create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=abc", "-o", options];
    // On some machines QEMU cannot measure how long the hashing of a passphrase takes.
    if (qemuImg(...args, path, "1M").code === 0) await assertSameInfo(path);
  }
});

qemuTest("info follows the backing chain only where it is asked to", async () => {
  using folder = new Folder();
  const [base, middle, top] = ["base.raw", "middle.qcow2", "top.qcow2"].map((name) => folder.path(name));
  if (base === undefined || middle === undefined || top === undefined) throw new Error("There are three names");
  makeFile(base, 1 << 20);
  qemuImg("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", middle);
  qemuImg("create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2", top);
  qemuIo(top, "write 0 64k");
  await assertSameInfo(middle);
  await assertSameInfo(top);
  await assertSameInfo("--backing-chain", top);
  Deno.removeSync(base);
  await assertSameInfo(middle);
  await assertSame(["info", "--backing-chain", top]);
});

qemuTest("info fails with the words of qemu-img", async () => {
  using folder = new Folder();
  const path = folder.path("disk.raw");
  makeFile(path, 1000);
  for (
    const args of [
      [],
      [path, path],
      [folder.path("none")],
      [folder.path("none/x")],
      [folder.path("")],
      [`${path}/x`],
      ["-f", "foo", path],
      ["-f", "qcow2", path],
      ["--output"],
      ["--output", "xml", path],
      ["--foo", path],
      ["-U=3", path],
      ["foo:bar"],
      [""],
    ]
  ) {
    await assertSame(["info", ...args]);
  }
});

Deno.test("info refuses other formats than to take them for raw", async () => {
  using folder = new Folder();
  const path = folder.path("disk");
  for (const [format, start] of [["vmdk", "KDMV"], ["vhdx", "vhdxfile"], ["qed", "QED\0"]] as const) {
    makeFile(path, 1000, { 0: start });
    const { code, stderr } = await program("info", path);
    assertEquals(code, 1);
    assertStringIncludes(stderr, `Format '${format}' is not supported, expected raw or qcow2`);
    assertEquals((await program("info", "-f", "raw", path)).code, 0);
  }
});
