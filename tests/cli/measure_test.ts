import { assertEquals } from "@std/assert";
import { qemuTest } from "../qemu.ts";
import { Random } from "../random.ts";
import { assertSame, Folder, makeFile, makeVariedImage, patch, program, qemuImg, qemuIo } from "./_program.ts";

async function assertSameMeasure(...args: string[]): Promise<void> {
  await assertSame(["measure", ...args]);
  await assertSame(["measure", "--output=json", ...args]);
}

qemuTest("measure tells of empty disks what qemu-img tells", async () => {
  for (const size of ["0", "1", "1000", "64k", "1G", "100G", "8T", "1P", "1E", "7E", "9223372036854775807"]) {
    await assertSameMeasure("--size", size);
    for (
      const options of [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=1",
        "cluster_size=2M,refcount_bits=64",
        "extended_l2=on",
        "extended_l2=on,cluster_size=2M,compat=0.10",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full,cluster_size=16k",
        "backing_file=none,backing_fmt=raw",
        "encrypt.format=aes",
        "size=1M",
      ]
    ) {
      await assertSame(["measure", "-O", "qcow2", "-o", options, "--size", size]);
    }
  }
});

qemuTest("measure tells of images what qemu-img tells", async () => {
  using folder = new Folder();
  const [varied, raw, packed, overlay] = [
    folder.path("varied.qcow2"),
    folder.path("disk.raw"),
    folder.path("packed.qcow2"),
    folder.path("overlay.qcow2"),
  ];
  makeVariedImage(varied);
  makeFile(raw, 10_000_000, { 100_000: "data", 5_000_000: "data", 9_999_000: "data" });
  qemuImg("convert", "-c", "-O", "qcow2", "-o", "compat=0.10", varied, packed);
  qemuImg("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", varied, "-F", "qcow2", overlay, "2G");
  qemuIo(overlay, "write -P 1 1G 100k", "write -z 0 512k", "write -P 2 2047M 1M");
  for (const path of [varied, raw, packed, overlay]) {
    await assertSameMeasure(path);
    for (
      const options of [
        [],
        ["-o", "cluster_size=512"],
        ["-o", "cluster_size=2M", "-o", "compat=0.10"],
        ["-o", "preallocation=full"],
        ["-o", `backing_file=${raw}`],
        ["-o", "size=1E"],
        ["-o", "size=8T"],
        ["-U"],
      ]
    ) {
      await assertSameMeasure("-O", "qcow2", ...options, path);
    }
  }
  await assertSameMeasure("-O", "qcow2", "-f", "raw", varied);
});

qemuTest("measure leaves out what was only allocated, as qemu-img does", async () => {
  // Without native calls nobody knows of holes in a file.
  if (Deno.build.os !== "linux") return;
  using folder = new Folder();
  const image = folder.path("image");
  qemuImg("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", image, "1G");
  await assertSameMeasure("-O", "qcow2", image);
  qemuIo(image, "write -P 1 100M 3M", "write -P 1 500M 4k");
  await assertSameMeasure("-O", "qcow2", image);
});

qemuTest("measure counts the bitmaps of an image, whatever state they are in", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  qemuImg("create", "-q", "-f", "qcow2", path, "8G");
  for (const [name, granularity] of [["a", "512"], ["a-long-name-ä", "64k"], ["coarse", "2G"]] as const) {
    qemuImg("bitmap", "--add", "-g", granularity, path, name);
    await assertSameMeasure("-O", "qcow2", path);
  }
  await assertSameMeasure("-O", "qcow2", "-o", "cluster_size=512", path);
  await assertSameMeasure("-O", "qcow2", "-o", "compat=0.10", path);
  await assertSameMeasure(path);
  qemuImg("snapshot", "-c", "one", path);
  await assertSameMeasure("-O", "qcow2", "-l", "one", path);
  // Without the autoclear bit nobody vouches for the bitmaps.
  patch(path, [95, 0]);
  await assertSame(["measure", "-O", "qcow2", path], { anyErrorText: true });
});

qemuTest("measure tells of snapshots what qemu-img tells", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeVariedImage(path);
  qemuImg("snapshot", "-c", "one", path);
  qemuIo(path, "write -P 1 100M 10M");
  for (const snapshot of ["one", "1", "snapshot.id=1", "snapshot.name=one", "snapshot.name=two", "two"]) {
    await assertSameMeasure("-O", "qcow2", "-l", snapshot, path);
  }
  await assertSame(["measure", "-l", "snapshot.nr=1", path]);
});

qemuTest("measure refuses what qemu-img refuses", async () => {
  using folder = new Folder();
  const path = folder.path("disk.raw");
  makeFile(path, 1 << 20);
  for (
    const args of [
      [],
      [path, path],
      ["-f", "raw"],
      ["-l", "one"],
      ["--size", "1M", path],
      ["--size", "x"],
      ["--size", "-1"],
      ["--size", "9E"],
      ["--output=xml", path],
      ["-O", "none", path],
      ["-O", "qcow2", "-o", "help", path],
      ["-O", "qcow2", "-o", "", path],
      ["-O", "qcow2", "-o", "none=1", path],
      ["-O", "qcow2", "-o", "size=x", path],
      ["-O", "qcow2", "-o", "cluster_size=1000", path],
      ["-O", "qcow2", "-o", "cluster_size=4M", path],
      ["-O", "qcow2", "-o", "extended_l2=on,cluster_size=8k", path],
      ["-O", "qcow2", "-o", "extended_l2=perhaps", path],
      ["-O", "qcow2", "-o", "compat=1.2", path],
      ["-O", "qcow2", "-o", "refcount_bits=3", path],
      ["-O", "qcow2", "-o", "refcount_bits=128", path],
      ["-O", "qcow2", "-o", "compat=0.10,refcount_bits=8", path],
      ["-O", "qcow2", "-o", "preallocation=some", path],
      ["-O", "raw", "-o", "cluster_size=64k", path],
      ["-O", "raw", "-o", "preallocation=some", path],
      ["-O", "qcow2", "-f", "qcow2", path],
      ["-O", "qcow2", folder.path("none")],
      ["-O", "qcow2", "-l", "one", path],
    ]
  ) {
    await assertSame(["measure", ...args]);
  }
});

qemuTest("measure tells of random sizes and formats what qemu-img tells", async () => {
  const random = new Random("measure");
  for (let round = 0; round < 60; round++) {
    const size = random.below(2 ** random.between(1, 46));
    const extended = random.oneIn(3);
    const options = `cluster_size=${2 ** random.between(extended ? 14 : 9, 21)},refcount_bits=${
      2 ** random.between(0, 6)
    },extended_l2=${extended ? "on" : "off"}`;
    await assertSame(["measure", "-O", "qcow2", "-o", options, "--size", String(size)]);
  }
});

Deno.test("measure explains itself", async () => {
  const { code, stdout } = await program("measure", "--help");
  assertEquals([code, stdout.startsWith("qcow2 measure: ")], [0, true]);
});

qemuTest("measure tells of the cluster size before other mistakes, as qemu-img does", async () => {
  for (const wrong of ["compat=2.0", "preallocation=x"]) {
    for (const list of ["cluster_size=3", "extended_l2=on,cluster_size=4k"]) {
      await assertSame(["measure", "-O", "qcow2", "-o", `${wrong},${list}`, "--size", "1M"]);
    }
  }
});
