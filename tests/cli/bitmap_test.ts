import { assertEquals, assertMatch } from "@std/assert";
import { qemuTest } from "../qemu.ts";
import { assertSame, Folder, makeFile, markInUse, program, programNamed, qemuImg, qemuIo } from "./_program.ts";

qemuTest("bitmap does what qemu-img does, one thing after the other", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  const other = folder.path("other.qcow2");
  const prepare = () => {
    for (const image of [path, other]) {
      qemuImg("create", "-q", "-f", "qcow2", image, "10M");
      qemuImg("bitmap", "--add", image, "old");
      qemuIo(image, image === path ? "write 0 1M" : "write 5M 1M");
    }
  };
  const outcome = () => [qemuImg("info", path).stdout.replace(/disk size.*/, ""), qemuImg("check", path).code];
  const cases: string[][] = [
    ["--add", path, "new"],
    ["--add", "-g", "512", path, "new"],
    ["--add", "-g", "2G", path, "new"],
    ["--add", "-g", "0", path, "new"],
    ["--add", "--granularity", "1M", "--disable", path, "new"],
    ["--add", "--merge", "old", path, "new"],
    ["--add", "--merge", "old", "-b", other, "-F", "qcow2", "-f", "qcow2", path, "new"],
    ["--disable", "--clear", "--enable", path, "old"],
    ["--disable", path, "old"],
    ["--remove", path, "old"],
    ["--remove", "--add", path, "old"],
    ["--clear", path, "old"],
    ["--merge", "old", path, "old"],
    ["--add", "--remove", path, "new"],
  ];
  for (const args of cases) {
    await assertSame(["bitmap", ...args], { prepare, outcome });
  }
});

qemuTest("bitmap refuses what qemu-img refuses, in its words", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  const larger = folder.path("larger.qcow2");
  qemuImg("create", "-q", "-f", "qcow2", path, "10M");
  qemuImg("bitmap", "--add", path, "a");
  qemuImg("bitmap", "--add", path, "torn");
  qemuImg("create", "-q", "-f", "qcow2", larger, "20M");
  qemuImg("bitmap", "--add", larger, "a");
  markInUse(path, 32 + 12);
  const cases: string[][] = [
    [],
    [path],
    [path, "a"],
    ["--add"],
    ["--add", path],
    ["--add", path, "b", "c"],
    ["--add", path, "a"],
    ["--add", path, ""],
    ["--add", "-g", "100", path, "b"],
    ["--add", "-g", "256", path, "b"],
    ["--add", "-g", "3000", path, "b"],
    ["--add", "-g", "4G", path, "b"],
    ["--add", "-g", "x", path, "b"],
    ["-g", "64k", "--remove", path, "a"],
    ["-g", "64k", "--remove", path],
    ["-g", "64k", "-F", "qcow2", "--remove", path, "a"],
    ["-F", "qcow2", "--merge", "a", path, "a"],
    ["-F", "qcow2", "--merge", "a", path],
    ["-b", larger, "--add", path, "b"],
    ["-b", larger, "--add", path],
    ["-b", larger, "-F", "qcow2", "-g", "512", "--remove", path, "b"],
    ["-b", larger, "--merge", "a", path, "a"],
    ["-b", larger, "--merge", "none", path, "a"],
    ["-b", folder.path("none"), "--merge", "a", path, "a"],
    ["-b", path, "--merge", "a", path, "a"],
    ["--add", folder.path("none"), "a"],
    ["--merge", "none", path, "a"],
    ["--merge", "none", path, "none"],
    ["--merge", "torn", path, "a"],
    ["--merge", "a", path, "torn"],
    ["--merge"],
    ["--clear", path, "none"],
    ["--enable", path, "none"],
    ["--disable", path, "none"],
    ["--remove", path, "none"],
    ["--clear", path, "torn"],
    ["--enable", path, "torn"],
    ["--disable", path, "torn"],
    ["--add", path, "torn"],
    ["--remove", path, "torn"],
  ];
  const outcome = () => [qemuImg("info", path).stdout.replace(/disk size.*/, ""), qemuImg("check", path).code];
  const before = Deno.readFileSync(path);
  for (const args of cases) {
    await assertSame(["bitmap", ...args], { prepare: () => Deno.writeFileSync(path, before), outcome });
  }
});

Deno.test("bitmap says what it cannot do", async () => {
  using folder = new Folder();
  const raw = folder.path("disk.raw");
  makeFile(raw, 1024 * 1024);
  const added = await program("bitmap", "-f", "raw", "--add", raw, "a");
  assertEquals([added.code, added.stderr], [
    1,
    "qcow2: Operation add on bitmap a failed: Can't store persistent bitmaps in a raw image\n",
  ]);
  const cleared = await program("bitmap", "-f", "raw", "--clear", raw, "a");
  assertEquals(cleared.stderr, "qcow2: Operation clear on bitmap a failed: Dirty bitmap 'a' not found\n");
  const old = folder.path("old.qcow2");
  await program("create", "-q", "-f", "qcow2", "-o", "compat=0.10", old, "1M");
  const refused = await program("bitmap", "--add", old, "a");
  assertEquals([refused.code, refused.stdout], [1, ""]);
  assertMatch(refused.stderr, /^qcow2: Operation add on bitmap a failed: Version 2 images hold no bitmaps/);
  const object = await programNamed("qemu-img", ["bitmap", "--object", "throttle-group,id=a", "--add", old, "a"]);
  assertMatch(object.stderr, /Object 'throttle-group' is not supported/);
  assertMatch((await program("bitmap", "--help")).stdout, /--merge SOURCE/);
});
