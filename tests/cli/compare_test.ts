import { assertEquals } from "@std/assert";
import { Qcow2File } from "../../lib/image/qcow2_file.ts";
import { qemuTest } from "../qemu.ts";
import { Random } from "../random.ts";
import { assertSame, Folder, makeFile, makeVariedImage, patch, program, qemuImg, qemuIo } from "./_program.ts";

qemuTest("compare finds what qemu-img finds between raw and qcow2 images", async () => {
  using folder = new Folder();
  const [varied, raw, other] = [folder.path("varied.qcow2"), folder.path("copy.raw"), folder.path("other.qcow2")];
  makeVariedImage(varied);
  qemuImg("convert", "-O", "raw", varied, raw);
  qemuImg("convert", "-O", "qcow2", "-c", "-o", "cluster_size=4k", varied, other);
  const pairs = [[varied, raw], [raw, varied], [varied, other], [other, other], [raw, other]] as const;
  for (const pair of pairs) {
    for (const options of [[], ["-s"], ["-p"], ["-q"], ["-q", "-p", "-s"], ["-U", "-T", "none"]]) {
      await assertSame(["compare", ...options, ...pair]);
    }
  }
  for (
    const command of ["write -P 9 100 1", "write -P 0 1M 512", "write -P 3 5000k 512", "write -P 3 1073741312 512"]
  ) {
    qemuIo(other, command);
    for (const pair of [[varied, other], [other, raw]]) {
      await assertSame(["compare", "-p", ...pair]);
      await assertSame(["compare", "-s", ...pair]);
    }
  }
});

qemuTest("compare takes what is longer for the same only where it is zero", async () => {
  using folder = new Folder();
  const [short, long, raw] = [folder.path("short.qcow2"), folder.path("long.qcow2"), folder.path("long.raw")];
  qemuImg("create", "-q", "-f", "qcow2", short, "10M");
  qemuImg("create", "-q", "-f", "qcow2", long, "20M");
  makeFile(raw, 15_000_000);
  for (const command of ["write -P 0 9M 3M", "write -z 15M 64k", "write -P 1 16M 1M"]) {
    for (const pair of [[short, long], [long, short], [raw, short], [raw, long]]) {
      for (const options of [[], ["-s"], ["-p"], ["-q"]]) await assertSame(["compare", ...options, ...pair]);
    }
    qemuIo(long, command);
  }
  for (const pair of [[short, long], [long, short]]) await assertSame(["compare", "-p", ...pair]);
  makeFile(raw, 512);
  makeFile(short, 0);
  for (const pair of [[raw, short], [short, short], [short, long]]) await assertSame(["compare", "-p", ...pair]);
});

qemuTest("compare refuses what qemu-img refuses, with its exit status", async () => {
  using folder = new Folder();
  const [image, raw] = [folder.path("disk.qcow2"), folder.path("disk.raw")];
  qemuImg("create", "-q", "-f", "qcow2", image, "1M");
  makeFile(raw, 1 << 20);
  for (
    const args of [
      [],
      [image],
      [image, raw, image],
      ["-f"],
      ["-x", image, raw],
      ["--strict", image, raw],
      [folder.path("none"), raw],
      [raw, folder.path("none")],
      ["-p", raw, folder.path("none")],
      ["-f", "qcow2", raw, image],
      ["-F", "qcow2", image, raw],
      ["-f", "none", image, raw],
      ["-T", "none", image, raw],
      ["-T", "sometimes", image, raw],
      ["-f", "raw", image, image],
    ]
  ) {
    await assertSame(["compare", ...args]);
  }
});

qemuTest("compare ends with 3 where a table cannot be read, and with 4 where content cannot", async () => {
  using folder = new Folder();
  const [sound, damaged] = [folder.path("sound.qcow2"), folder.path("damaged.qcow2")];
  qemuImg("create", "-q", "-f", "qcow2", sound, "2G");
  qemuIo(sound, "write -P 1 0 64k", "write -P 1 512M 64k");
  Deno.copyFileSync(sound, damaged);
  // The second L2 table's offset is no multiple of a cluster.
  patch(damaged, [0x3000e, 2]);
  for (const pair of [[sound, damaged], [damaged, sound]]) await assertSame(["compare", ...pair]);
  qemuImg("convert", "-O", "qcow2", "-c", sound, damaged);
  const [{ offset }] = JSON.parse(qemuImg("map", "--output=json", damaged).stdout);
  assertEquals(offset, undefined);
  // What stands in the place of compressed bytes cannot be inflated.
  patch(damaged, [0x50000, ...new Array(64).fill(0xff)]);
  for (const pair of [[sound, damaged], [damaged, sound]]) await assertSame(["compare", ...pair]);
});

qemuTest("compare does not look at an image that somebody writes to, unless it is told to", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  using _writer = Qcow2File.create(path, { size: 1 << 20 });
  await assertSame(["compare", path, path]);
  await assertSame(["compare", "-U", path, path]);
});

qemuTest("compare prints what qemu-img prints of random images and chains", async () => {
  const random = new Random("compare");
  using folder = new Folder();
  for (let round = 0; round < 25; round++) {
    const names = ["base", "one", "two"].map((name) => folder.path(name));
    const [base = "", one = "", two = ""] = names;
    const size = () => random.between(1, 60) * 512 * random.pick([1, 128, 1000]);
    const options = () =>
      `cluster_size=${random.pick(["512", "4k", "64k", "2M"])},compat=${random.pick(["0.10", "1.1"])}`;
    const writes = (path: string, length: number) => {
      const commands = Array.from({ length: random.between(0, 4) }, () => {
        const offset = random.below(length / 512) * 512;
        const count = Math.min(length - offset, random.between(1, 200) * 512);
        return `${random.pick(["write -P 1", "write -z", "write -P 0", "write -z -u", "discard"])} ${offset} ${count}`;
      });
      if (commands.length > 0) qemuIo(path, ...commands);
    };
    const baseSize = size();
    qemuImg("create", "-q", "-f", "qcow2", "-o", options(), base, String(baseSize));
    writes(base, baseSize);
    const sizes = random.oneIn(3) ? [size(), size()] : Array(2).fill(size());
    for (const [index, path] of [one, two].entries()) {
      const backed = random.oneIn(2) ? ["-b", base, "-F", "qcow2"] : [];
      qemuImg("create", "-q", "-f", "qcow2", "-o", options(), ...backed, path, String(sizes[index]));
      writes(path, sizes[index]);
    }
    for (const pair of [[one, two], [two, base]]) {
      await assertSame(["compare", "-p", ...pair]);
      await assertSame(["compare", "-s", ...pair]);
    }
  }
});

Deno.test("compare explains itself", async () => {
  const { code, stdout } = await program("compare", "--help");
  assertEquals([code, stdout.startsWith("qcow2 compare: ")], [0, true]);
});
