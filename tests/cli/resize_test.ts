import { assertEquals } from "@std/assert";
import { qemuTest } from "../qemu.ts";
import { assertQemuClean } from "../images.ts";
import { assertSame, Folder, program, qemuImg } from "./_program.ts";

const CASES: readonly (readonly string[])[] = [
  ["IMAGE", "2M"],
  ["IMAGE", "+1M"],
  ["-q", "IMAGE", "+512"],
  ["IMAGE", "512k"],
  ["--shrink", "IMAGE", "512k"],
  ["--shrink", "IMAGE", "-512k"],
  ["IMAGE", "-512k"],
  ["IMAGE", "-2M"],
  ["--shrink", "IMAGE", "0"],
  ["--shrink", "IMAGE", "1000"],
  ["IMAGE", "+1001"],
  ["IMAGE", "+x"],
  ["IMAGE", "99999999999999999999"],
  ["IMAGE", "4E"],
  ["IMAGE", "9E"],
  ["IMAGE"],
  ["IMAGE", "b", "2M"],
  ["--preallocation=foo", "IMAGE", "2M"],
  ["--preallocation=falloc", "IMAGE", "1M"],
  ["--shrink", "--preallocation=falloc", "IMAGE", "512k"],
  ["--preallocation=metadata", "IMAGE", "+64M"],
  ["--preallocation", "full", "IMAGE", "+1M"],
];

qemuTest("resize does to qcow2 images what qemu-img does", async () => {
  using folder = new Folder();
  const image = folder.path("disk.qcow2");
  for (const compat of ["0.10", "1.1"]) {
    for (const words of CASES) {
      await assertSame(["resize", "-f", "qcow2", ...words.map((word) => word === "IMAGE" ? image : word)], {
        prepare: () => qemuImg("create", "-q", "-f", "qcow2", "-o", `compat=${compat}`, image, "1M"),
        outcome: () => {
          assertQemuClean(image);
          const { "virtual-size": size } = JSON.parse(qemuImg("info", "--output=json", image).stdout);
          // Shrinking, qemu-img makes an L2 table where none is needed.
          return [size, words.includes("--shrink") ? undefined : Deno.statSync(image).size];
        },
      });
    }
  }
});

qemuTest("resize does to raw images what qemu-img does", async () => {
  using folder = new Folder();
  const image = folder.path("disk.raw");
  for (const words of CASES) {
    // A raw image ends with a whole sector here.
    if (words.some((word) => /1000|1001|[49]E$/.test(word))) continue;
    await assertSame(["resize", "-f", "raw", ...words.map((word) => word === "IMAGE" ? image : word)], {
      prepare: () => qemuImg("create", "-q", "-f", "raw", image, "1M"),
      outcome: () => Deno.statSync(image).size,
    });
  }
});

qemuTest("resize refuses what qemu-img refuses of version 2 images with snapshots", async () => {
  using folder = new Folder();
  const image = folder.path("disk.qcow2");
  qemuImg("create", "-q", "-f", "qcow2", "-o", "compat=0.10", image, "1M");
  qemuImg("snapshot", "-c", "one", image);
  await assertSame(["resize", "-f", "qcow2", image, "2M"]);
});

Deno.test("resize explains itself", async () => {
  const { code, stdout } = await program("resize", "--help");
  assertEquals([code, stdout.startsWith("qcow2 resize: ")], [0, true]);
});
