import { assertEquals } from "@std/assert";
import { decodeBitmapsPointer, EXTENSION } from "../../lib/format/mod.ts";
import { Qcow2File } from "../../lib/image/qcow2_file.ts";
import { qemuTest } from "../qemu.ts";
import { assertQemuClean } from "../images.ts";
import { assertSame, Folder, patch, program, qemuImg, qemuIo } from "./_program.ts";

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

qemuTest("resize takes subclusters, data files and bitmaps along as qemu-img does", async () => {
  using folder = new Folder();
  const [image, data] = [folder.path("disk.qcow2"), folder.path("disk.data")];
  const options = ["compat=1.1", "extended_l2=on", `data_file=${data}`, `data_file=${data},data_file_raw=on`];
  for (const option of [...options, `data_file=${data},extended_l2=on`]) {
    const resized = [["2M"], ["--shrink", "300k"], ["--preallocation=metadata", "3M"], ["--preallocation=full", "3M"]];
    for (const words of resized) {
      await assertSame(["resize", ...words.slice(0, -1), image, words.at(-1) ?? ""], {
        prepare: () => {
          qemuImg("create", "-q", "-f", "qcow2", "-o", option, image, "1M");
          qemuImg("bitmap", "--add", image, "auto");
          qemuIo(image, "write -P 1 0 100k", "write -P 2 900k 100k");
          qemuImg("bitmap", "--add", "--disable", image, "still");
          qemuImg("bitmap", "--merge", "auto", image, "still");
        },
        outcome: () => {
          assertQemuClean(image);
          qemuIo(image, "read -P 1 0 100k", "read -P 0 100k 200k");
          const info = JSON.parse(qemuImg("info", "--output=json", image).stdout);
          const check = JSON.parse(qemuImg("check", "--output=json", image).stdout);
          const dataSize = option.includes("data_file") ? Deno.statSync(data).size : undefined;
          return [info["virtual-size"], info["format-specific"], check["allocated-clusters"], dataSize];
        },
      });
    }
  }
});

qemuTest("resize and amend refuse an image with an inconsistent bitmap in the words of qemu-img", async () => {
  using folder = new Folder();
  const image = folder.path("disk.qcow2");
  qemuImg("create", "-q", "-f", "qcow2", image, "1M");
  qemuImg("bitmap", "--add", image, "one");
  qemuImg("bitmap", "--add", image, "two");
  {
    using disk = Qcow2File.open(image);
    const extension = disk.header.extensions.find(({ type }) => type === EXTENSION.bitmaps);
    const { directoryOffset } = decodeBitmapsPointer(extension?.data ?? new Uint8Array());
    patch(image, [directoryOffset + 32 + 12, 0, 0, 0, 3]);
  }
  for (const args of [["resize", image, "2M"], ["resize", "--shrink", image, "512k"], ["resize", image, "1M"]]) {
    await assertSame(args, {
      outcome: () => JSON.parse(qemuImg("info", "--output=json", image).stdout)["virtual-size"],
    });
  }
  await assertSame(["amend", "-o", "size=2M", image]);
  // Without the bit for them they mean nothing, and do not stand in the way.
  patch(image, [95, 0]);
  assertEquals((await program("resize", image, "2M")).stdout, "Image resized.\n");
});

Deno.test("resize explains itself", async () => {
  const { code, stdout } = await program("resize", "--help");
  assertEquals([code, stdout.startsWith("qcow2 resize: ")], [0, true]);
});
