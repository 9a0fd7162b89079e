import { assertEquals, assertStringIncludes } from "@std/assert";
import { Qcow2File } from "../../lib/image/qcow2_file.ts";
import { assertQemuClean } from "../images.ts";
import { qemuTest } from "../qemu.ts";
import { Random } from "../random.ts";
import { assertSame, Folder, makeFile, program, qemuImg, qemuIo } from "./_program.ts";

const FILES = ["base.raw", "middle.qcow2", "top.qcow2"];

/** A chain of three images. */
function makeChain(folder: Folder, options = "compat=1.1"): void {
  const backing = (name: string) => ["-b", name, "-F", name.endsWith(".raw") ? "raw" : "qcow2"];
  makeFile(folder.path("base.raw"), 2 << 20, { 0: "base", 70_000: "base", 1_000_000: "base" });
  const [middle, top] = [folder.path("middle.qcow2"), folder.path("top.qcow2")];
  qemuImg("create", "-q", "-f", "qcow2", "-o", options, ...backing("base.raw"), middle);
  qemuIo(middle, "write -P 1 512k 100k");
  qemuImg("create", "-q", "-f", "qcow2", "-o", options, ...backing("middle.qcow2"), top, "4M");
  qemuIo(top, "write -P 2 600k 10k", "write -z 1M 64k", "write -P 3 3M 1k");
}

function contentOf(folder: Folder, path: string): Uint8Array {
  const content = folder.path("content");
  qemuImg("convert", "-U", "-O", "raw", path, content);
  return Deno.readFileSync(content);
}

/** Sizes, content and what is the top image's own. */
function stateOf(folder: Folder): unknown {
  const top = folder.path("top.qcow2");
  assertQemuClean(top);
  const map: { depth: number; length: number }[] = JSON.parse(qemuImg("map", "--output=json", top).stdout);
  const own = map.filter(({ depth }) => depth === 0).reduce((sum, { length }) => sum + length, 0);
  const sizes = FILES.map((name) => JSON.parse(qemuImg("info", "--output=json", folder.path(name)).stdout));
  return [own, sizes.map((info) => info["virtual-size"]), FILES.map((name) => contentOf(folder, folder.path(name)))];
}

qemuTest("commit leaves images of the content that qemu-img leaves", async () => {
  using folder = new Folder();
  const top = folder.path("top.qcow2");
  for (const options of ["compat=1.1", "compat=0.10", "cluster_size=512", "extended_l2=on"]) {
    for (
      const args of [
        [],
        ["-d"],
        ["-q"],
        ["-b", "base.raw"],
        ["-b", folder.path("base.raw"), "-t", "none"],
        ["-b", "middle.qcow2", "-f", "qcow2"],
        ["-d", "-b", "middle.qcow2", "-r", "1G"],
      ]
    ) {
      await assertSame(["commit", ...args, top], {
        prepare: () => makeChain(folder, options),
        outcome: () => stateOf(folder),
      });
    }
  }
});

qemuTest("commit empties the image, and its file shrinks", async () => {
  using folder = new Folder();
  makeChain(folder);
  const [middle, top] = [folder.path("middle.qcow2"), folder.path("top.qcow2")];
  qemuIo(top, "write -P 5 0 4M");
  const before = contentOf(folder, top);
  assertEquals(await program("commit", top), { code: 0, stdout: "Image committed.\n", stderr: "" });
  assertEquals(contentOf(folder, top), before);
  assertEquals(contentOf(folder, middle), before);
  assertEquals(Deno.statSync(top).size < 1 << 20, true);
  for (const path of [middle, top]) assertQemuClean(path);
});

qemuTest("commit shows how far it is", async () => {
  using folder = new Folder();
  makeChain(folder);
  const { stdout } = await program("commit", "-p", folder.path("top.qcow2"));
  assertEquals(stdout.startsWith("    (0.00/100%)\r"), true);
  assertEquals(stdout.endsWith("    (100.00/100%)\r\nImage committed.\n"), true);
});

qemuTest("commit refuses what qemu-img refuses, and leaves everything as it was", async () => {
  using folder = new Folder();
  const [top, raw] = [folder.path("top.qcow2"), folder.path("base.raw")];
  for (
    const args of [
      [],
      [top, top],
      ["-b"],
      ["-U", top],
      ["-x", top],
      [raw],
      ["-f", "raw", top],
      ["-f", "qcow2", raw],
      ["-b", "none", top],
      ["-p", "-b", "none", top],
      ["-b", "top.qcow2", top],
      ["-t", "some", top],
      ["-r", "some", top],
      ["-r", "-1", top],
      [folder.path("none")],
    ]
  ) {
    await assertSame(["commit", ...args], {
      prepare: () => makeChain(folder),
      outcome: () => FILES.map((name) => Deno.readFileSync(folder.path(name))),
    });
  }
  for (const path of [raw, folder.path("middle.qcow2")]) {
    Deno.removeSync(path);
    await assertSame(["commit", top]);
  }
});

qemuTest("commit does not change an image whose size it cannot change", async () => {
  using folder = new Folder();
  const top = folder.path("top.qcow2");
  await assertSame(["commit", top], {
    prepare: () => {
      makeChain(folder, "compat=0.10");
      qemuImg("snapshot", "-c", "one", folder.path("middle.qcow2"));
    },
    outcome: () => stateOf(folder),
  });
});

qemuTest("commit keeps out of images that others use", async () => {
  using folder = new Folder();
  makeChain(folder);
  const [middle, top] = [folder.path("middle.qcow2"), folder.path("top.qcow2")];
  {
    using _reader = Qcow2File.open(middle, { backing: "allow" });
    await assertSame(["commit", top]);
    await assertSame(["commit", "-b", "base.raw", top]);
  }
  {
    using _writer = Qcow2File.open(middle, { write: true, backing: "allow" });
    await assertSame(["commit", top]);
  }
  using _reader = Qcow2File.open(top, { backing: "allow" });
  await assertSame(["commit", top]);
});

qemuTest("commit says which backing file cannot be written", async () => {
  using folder = new Folder();
  makeChain(folder);
  const path = folder.path("middle.qcow2");
  const { code } = new Deno.Command("chattr", { args: ["+i", path], stderr: "null" }).outputSync();
  // Only an administrator may, on some file systems.
  if (code !== 0) return;
  try {
    await assertSame(["commit", folder.path("top.qcow2")]);
  } finally {
    new Deno.Command("chattr", { args: ["-i", path] }).outputSync();
  }
});

qemuTest("commit brings what random chains have to where qemu-img brings it", async () => {
  const random = new Random("commit");
  using folder = new Folder();
  const names = ["lowest", "base.raw", "middle.qcow2", "top.qcow2"];
  for (let round = 0; round < 3; round++) {
    const setup = names.map((name) => {
      const size = random.between(1, 40) * 512 * random.pick([1, 128, 400]);
      // QEMU cannot make a version 2 image longer than it is over a longer one.
      const compat = name === "top.qcow2" ? random.pick(["0.10", "1.1"]) : "1.1";
      const options = `cluster_size=${random.pick(["512", "4k", "64k", "2M"])},compat=${compat}`;
      const commands = Array.from({ length: random.between(1, 5) }, () => {
        const offset = random.below(size / 512) * 512;
        const count = Math.min(size - offset, random.between(1, 300) * 512);
        return `${random.pick(["write -P 1", "write -P 2", "write -z", "discard"])} ${offset} ${count}`;
      });
      return { name, size, options, commands };
    });
    for (const args of [[], ["-b", "base.raw"], ["-d", "-b", "middle.qcow2"]]) {
      await assertSame(["commit", ...args, folder.path("top.qcow2")], {
        prepare: () => {
          for (const [index, { name, size, options, commands }] of setup.entries()) {
            const backing = index === 0 ? [] : ["-b", names[index - 1] ?? "", "-F", "qcow2"];
            qemuImg("create", "-q", "-f", "qcow2", "-o", options, ...backing, folder.path(name), String(size));
            qemuIo(folder.path(name), ...commands);
          }
        },
        outcome: () => stateOf(folder),
      });
    }
  }
});

Deno.test("commit explains itself", async () => {
  const { code, stdout } = await program("commit", "--help");
  assertEquals(code, 0);
  assertStringIncludes(stdout, "qcow2 commit: ");
});
