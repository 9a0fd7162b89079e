import { assertEquals, assertStringIncludes } from "@std/assert";
import { qemuTest } from "../qemu.ts";
import { assertSame, Folder, makeFile, patch, program, qemuImg } from "./_program.ts";

/** What every image of this list is created with, behind `create` and in front of the file's name. */
const CREATED: readonly (readonly [options: string[], size: string])[] = [
  [["-f", "qcow2"], "1G"],
  [["-f", "qcow2"], "1.5G"],
  [["-f", "qcow2"], "1000"],
  [["-q", "-f", "qcow2"], "1G"],
  [["-qfqcow2"], "1G"],
  [["-f", "qcow2", "-o", "cluster_size=4k"], "1G"],
  [["-f", "qcow2", "-o", "cluster_size=512"], "1M"],
  [["-f", "qcow2", "-o", "cluster_size=2M"], "1T"],
  [["-f", "qcow2", "-o", "compat=v2"], "1G"],
  [["-f", "qcow2", "-o", "compat=0.10,size=1M"], ""],
  [["-f", "qcow2", "-o", "compat=1.1,lazy_refcounts"], "1G"],
  [["-f", "qcow2", "-o", "lazy_refcounts=yes", "-o", "refcount_bits=1"], "1G"],
  [["-f", "qcow2", "-o", "nolazy_refcounts,refcount_bits=64"], "1G"],
  [["-f", "qcow2", "-o", "compression_type=zstd"], "1G"],
  [["-f", "qcow2", "-o", "preallocation=off,extended_l2=off,encryption=off,data_file_raw=off"], "1G"],
  [["-f", "qcow2", "-o", "nocow=on,extent_size_hint=0"], "1M"],
  [["-f", "qcow2", "-o", "cluster_size=4k,cluster_size=8k"], "1G"],
];

qemuTest("create makes the image, and prints the line, that qemu-img makes and prints", async () => {
  using folder = new Folder();
  const path = folder.path("a,b.qcow2");
  for (const [options, size] of CREATED) {
    await assertSame(["create", ...options, path, ...(size === "" ? [] : [size])], {
      prepare: () => void (folder.names().length > 0 && Deno.removeSync(path)),
      outcome: () => [Deno.readFileSync(path).slice(0, 1 << 20), qemuImg("check", path)],
    });
  }
});

qemuTest("create makes images without any bytes as qemu-img does", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  await assertSame(["create", "-f", "qcow2", path, "0"], { outcome: () => qemuImg("check", path) });
});

qemuTest("create makes raw images of the same size as qemu-img does", async () => {
  using folder = new Folder();
  const path = folder.path("disk.raw");
  for (const args of [["1M"], ["1000"], ["0"], ["-o", "size=64k"], ["-o", "preallocation=off,nocow=off", "1M"]]) {
    await assertSame(["create", ...args.slice(0, -1), path, ...args.slice(-1)].filter((arg) => arg !== ""), {
      outcome: () => folder.names().includes("disk.raw") ? Deno.statSync(path).size : undefined,
    });
  }
});

qemuTest("create fails with the words of qemu-img", async () => {
  using folder = new Folder();
  const path = folder.path("x");
  for (
    const args of [
      ["create"],
      ["create", "-f"],
      ["create", "-z", path],
      ["create", path],
      ["create", path, "1M", "extra"],
      ["create", path, "xyz"],
      ["create", path, "1Q"],
      ["create", path, ""],
      ["create", path, "16E"],
      ["create", path, "8E"],
      ["create", path, "1P"],
      ["create", "-f", "foo", path, "1M"],
      ["create", "-f", "qcow2", path, "64P"],
      ["create", "-f", "qcow2", path, "9223372036854775807"],
      ["create", "-f", "qcow2", folder.path("none/x"), "1M"],
      ["create", folder.path("none/x"), "1M"],
      ["create", "foo:bar", "1M"],
      ["create", "-f", "qcow2", "", "1M"],
      ...[
        "cluster_size=1000",
        "cluster_size=foo",
        "cluster_size=",
        "cluster_size",
        "foo=bar",
        "compat=1.2",
        "compat",
        "compat=0.10,lazy_refcounts=on",
        "compat=0.10,refcount_bits=8",
        "compat=0.10,compression_type=zstd",
        "refcount_bits=3",
        "refcount_bits=x",
        "refcount_bits=-1",
        "refcount_bits=011",
        "refcount_bits=08",
        "refcount_bits=99999999999999999999",
        "compression_type=foo",
        "lazy_refcounts=foo",
        "preallocation=foo",
        `preallocation=full,backing_file=${path},backing_fmt=raw`,
        "data_file_raw=on",
        `data_file=${path}.data,data_file_raw=on,backing_file=${path},backing_fmt=raw`,
        "extended_l2=on,cluster_size=8k,lazy_refcounts=on",
        "compat=0.10,extended_l2=on,cluster_size=3k",
        "compat=0.10,lazy_refcounts=on,data_file_raw=on",
        `compat=0.10,compression_type=zstd,data_file=${path}.data`,
        "size=1G",
        "size=1G,,x",
        "size=-1",
        "size=18446744073709551616",
        "",
        ",compat=1.1",
        "compat=1.1,",
        "a,,b=c",
        "=x",
        "nonsense",
        "help=1",
      ].map((list) => ["create", "-f", "qcow2", "-o", list, path, "1G"]),
      ["create", "-o", "cluster_size=4k", path, "1M"],
      ["create", "-o", "preallocation=foo", path, "1M"],
    ]
  ) {
    await assertSame(args);
  }
  assertEquals(folder.names().filter((name) => name !== "x"), []);
});

qemuTest("create lists options as qemu-img lists them", async () => {
  using folder = new Folder();
  for (
    const args of [
      ["-o", "help"],
      ["-f", "qcow2", "-o", "help"],
      ["-f", "qcow2", "-o", "?", "x"],
      ["-o", "size=1M,help", "x"],
      ["-f", "foo", "-o", "help"],
      ["-f", "qcow2", "-o", "compat=x,,help", folder.path("x"), "1M"],
    ]
  ) {
    await assertSame(["create", ...args]);
  }
});

Deno.test("create says which capability is missing, in one line, and touches nothing", async () => {
  using folder = new Folder();
  const path = folder.path("x");
  for (
    const args of [
      ["--object", "tls-creds-anon,id=x"],
      ["-o", "encryption=on"],
      ["-o", "encrypt.format=luks"],
    ]
  ) {
    const { code, stdout, stderr } = await program("create", "-f", "qcow2", ...args, path, "1M");
    assertEquals([code, stdout, stderr.split("\n").length], [1, "", 2], stderr);
    assertStringIncludes(stderr, "not supported");
  }
  assertEquals(folder.names(), []);
});

Deno.test("create refuses an image that somebody has open, and leaves it as it is", async () => {
  using folder = new Folder();
  const path = folder.path("x");
  await program("create", "-f", "qcow2", path, "1M");
  patch(path, [100_000, 7]);
  const before = Deno.readFileSync(path);
  using file = Deno.openSync(path, { read: true, write: true });
  file.lockSync(true);
  const { code, stderr } = await program("create", "-f", "qcow2", path, "2M");
  assertEquals(code, 1);
  assertEquals(
    stderr,
    `qcow2: ${path}: Failed to get "write" lock\nIs another process using the image [${path}]?\n`,
  );
  assertEquals(Deno.readFileSync(path), before);
});

qemuTest("create preallocates as qemu-img does", async () => {
  using folder = new Folder();
  const path = folder.path("disk.img");
  const fresh = { prepare: () => makeFile(path, 0) };
  for (const format of ["raw", "qcow2"]) {
    for (const mode of ["off", "metadata", "falloc", "full"]) {
      await assertSame(["create", "-f", format, "-o", `preallocation=${mode}`, path, "10M"], {
        ...fresh,
        outcome: () => [Deno.statSync(path).size, qemuImg("map", "--output=json", "-f", format, path).stdout],
      });
    }
  }
});
