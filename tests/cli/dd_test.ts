import { assertEquals } from "@std/assert";
import { qemuTest } from "../qemu.ts";
import { Random } from "../random.ts";
import { assertSame, Folder, makeFile, program, qemuImg, qemuIo } from "./_program.ts";

function contentOf(folder: Folder, format: string, path: string): unknown {
  try {
    const content = folder.path("content");
    qemuImg("convert", "-f", format, "-O", "raw", path, content);
    const map: { length: number; data: boolean }[] = JSON.parse(
      qemuImg("map", "-f", format, "--output=json", path).stdout || "[]",
    );
    const data = map.filter(({ data }) => data).reduce((sum, { length }) => sum + length, 0);
    return [Deno.readFileSync(content), data];
  } catch {
    return undefined;
  }
}

qemuTest("dd copies what qemu-img copies", async () => {
  using folder = new Folder();
  const [raw, image, target] = [folder.path("disk.raw"), folder.path("disk.qcow2"), folder.path("target")];
  makeFile(raw, 1_000_000, { 0: "begin", 300_000: "middle", 999_990: "end" });
  qemuImg("create", "-q", "-f", "qcow2", image, "3M");
  qemuIo(image, "write -P 1 100k 100k", "write -z 1M 1M", "write -P 2 3071k 1k");
  for (const source of [raw, image]) {
    for (const format of ["raw", "qcow2"]) {
      for (
        const words of [
          [],
          ["bs=1M"],
          ["bs=100", "count=3"],
          ["bs=100", "count=3", "skip=1"],
          ["bs=1k", "skip=100", "count=200"],
          ["bs=64k", "skip=3"],
          ["count=0"],
          ["skip=5k", "bs=1k"],
          ["skip=3", "count=2"],
          ["skip=8388608T", "bs=7"],
          ["count=7E"],
          ["bs=1k", "count=700", "bs=300"],
        ]
      ) {
        await assertSame(["dd", "-O", format, ...words, `if=${source}`, `of=${target}`], {
          prepare: () => Deno.writeTextFileSync(target, "old"),
          outcome: () => contentOf(folder, format, target),
        });
      }
    }
  }
  await assertSame(["dd", "-U", "-f", "raw", `if=${image}`, `of=${target}`], {
    outcome: () => Deno.readFileSync(target),
  });
});

qemuTest("dd refuses what qemu-img refuses", async () => {
  using folder = new Folder();
  const [source, target] = [folder.path("disk.raw"), folder.path("target")];
  makeFile(source, 10_000, { 0: "data" });
  for (
    const args of [
      [],
      [`if=${source}`],
      [`of=${target}`],
      [`if=${source}`, "of"],
      [`if=${source}`, `of=${target}`, "conv=sync"],
      [`if=${source}`, `of=${target}`, "bs=0"],
      [`if=${source}`, `of=${target}`, "bs=2G"],
      [`if=${source}`, `of=${target}`, "bs=x"],
      [`if=${source}`, `of=${target}`, "count=x"],
      [`if=${source}`, `of=${target}`, "count=-1"],
      [`if=${source}`, `of=${target}`, "skip=9E"],
      ["-O", "none", `if=${source}`, `of=${target}`],
      ["-f", "none", `if=${source}`, `of=${target}`],
      ["-f", "qcow2", `if=${source}`, `of=${target}`],
      ["-x", `if=${source}`, `of=${target}`],
      ["-O"],
      [`if=${target}`, `of=${target}`],
      [`if=${source}`, `of=${folder.path("none")}/target`],
      [`if=${source}`, "of=none:x"],
      ["if=", "of="],
      [`if=${source}`, `of=${folder.path("")}`],
    ]
  ) {
    await assertSame(["dd", ...args], { outcome: () => folder.names() });
  }
});

qemuTest("dd tells that there is nothing to copy when there is a target, and not before", async () => {
  using folder = new Folder();
  const [image, below] = [folder.path("image"), folder.path("below")];
  qemuImg("create", "-q", "-f", "qcow2", below, "1M");
  qemuImg("create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", image, "512");
  for (const target of [below, folder.path("other")]) {
    await assertSame(["dd", "-f", "qcow2", "-O", "raw", `if=${image}`, `of=${target}`, "bs=512", "skip=7"]);
  }
});

Deno.test("dd does not write over its source", async () => {
  using folder = new Folder();
  const source = folder.path("disk.raw");
  makeFile(source, 10_000, { 0: "data" });
  for (const format of ["raw", "qcow2"]) {
    const { code, stderr } = await program("dd", "-O", format, `if=${source}`, `of=${source}`);
    assertEquals([code, stderr.startsWith(`qcow2: ${source}: error while creating output image: `)], [1, true]);
    assertEquals(Deno.statSync(source).size, 10_000);
  }
});

qemuTest("dd copies random parts as qemu-img does", async () => {
  const random = new Random("dd");
  using folder = new Folder();
  const [source, target] = [folder.path("disk.qcow2"), folder.path("target")];
  for (let round = 0; round < 8; round++) {
    const size = random.between(1, 3000) * 512;
    qemuImg("create", "-q", "-f", "qcow2", "-o", `cluster_size=${random.pick(["512", "64k"])}`, source, String(size));
    qemuIo(source, `write -P 7 ${random.below(size / 512) * 512} 512`);
    const blockSize = random.pick([100, 512, 4096, 65536]);
    const words = [`bs=${blockSize}`];
    if (random.oneIn(2)) words.push(`skip=${random.below(Math.ceil(size / blockSize * 1.1))}`);
    if (random.oneIn(2)) words.push(`count=${random.below(Math.ceil(size / blockSize * 1.1))}`);
    const format = random.pick(["raw", "qcow2"]);
    await assertSame(["dd", "-O", format, ...words, `if=${source}`, `of=${target}`], {
      outcome: () => contentOf(folder, format, target),
    });
  }
});

Deno.test("dd leaves an older target as it was where it fails", async () => {
  using folder = new Folder();
  const [source, target] = [folder.path("source"), folder.path("target")];
  Deno.writeTextFileSync(source, "source");
  Deno.writeTextFileSync(target, "old");
  const { code } = await program("dd", "-f", "qcow2", `if=${source}`, `of=${target}`);
  assertEquals([code, Deno.readTextFileSync(target), folder.names()], [1, "old", ["source", "target"]]);
});

Deno.test("dd explains itself", async () => {
  const { code, stdout } = await program("dd", "--help");
  assertEquals([code, stdout.startsWith("qcow2 dd: ")], [0, true]);
});
