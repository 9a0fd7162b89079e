import { assertEquals } from "@std/assert";
import { Qcow2File } from "../../lib/image/qcow2_file.ts";
import { assertQemuClean } from "../images.ts";
import { qemuTest } from "../qemu.ts";
import { dirtyAccordingToQemu } from "../qemu/dirty_extents.ts";
import { Random } from "../random.ts";
import { assertSame, Folder, makeFile, program, qemuImg, qemuIo } from "./_program.ts";

/** A chain of three images, and a fourth one beside it. */
function makeChain(folder: Folder): void {
  makeFile(folder.path("base.raw"), 2 << 20, { 0: "base", 70_000: "base", 1_000_000: "base" });
  makeFile(folder.path("other.raw"), 3 << 20, { 0: "other", 70_000: "base", 1_500_000: "other" });
  const backing = (name: string) => ["-b", name, "-F", name.endsWith(".raw") ? "raw" : "qcow2"];
  qemuImg("create", "-q", "-f", "qcow2", ...backing("base.raw"), folder.path("middle.qcow2"));
  qemuIo(folder.path("middle.qcow2"), "write -P 1 512k 100k");
  qemuImg("create", "-q", "-f", "qcow2", ...backing("middle.qcow2"), folder.path("top.qcow2"), "4M");
  qemuIo(folder.path("top.qcow2"), "write -P 2 600k 10k", "write -z 1M 64k");
}

/** What is to be the same after both programs: backing file, content, and where it stands. */
function stateOf(path: string): unknown {
  const { "backing-filename": name, "backing-filename-format": format } = JSON.parse(
    qemuImg("info", "-U", "--output=json", path).stdout,
  );
  return [name, format, mergedMap(path)];
}

interface Stretch {
  length: number;
  depth: number;
  zero: boolean;
  data: boolean;
}

/** The map without places on the host. */
function mergedMap(path: string): Stretch[] {
  const merged: Stretch[] = [];
  const entries: Stretch[] = JSON.parse(qemuImg("map", "-U", "--output=json", path).stdout || "[]");
  for (const { length, depth, zero, data } of entries) {
    const last = merged.at(-1);
    if (last !== undefined && last.depth === depth && last.zero === zero && last.data === data) last.length += length;
    else merged.push({ length, depth, zero, data });
  }
  return merged;
}

function contentOf(folder: Folder, path: string): Uint8Array {
  qemuImg("convert", "-U", "-O", "raw", path, folder.path("content"));
  return Deno.readFileSync(folder.path("content"));
}

qemuTest("rebase keeps the content and copies what qemu-img copies", async () => {
  using folder = new Folder();
  const top = folder.path("top.qcow2");
  makeChain(folder);
  const before = contentOf(folder, top);
  for (
    const args of [
      ["-b", "other.raw", "-F", "raw"],
      ["-b", "base.raw", "-F", "raw"],
      ["-b", folder.path("base.raw"), "-F", "raw", "-t", "none", "-T", "unsafe"],
      ["-b", "middle.qcow2", "-F", "qcow2"],
      ["-b", ""],
      ["-b", "", "-F", "raw", "-q"],
      ["-U", "-b", "other.raw", "-F", "raw"],
    ]
  ) {
    await assertSame(["rebase", "-p", "-f", "qcow2", ...args, top], {
      prepare: () => makeChain(folder),
      outcome: () => {
        assertQemuClean(top);
        assertEquals(contentOf(folder, top), before);
        return stateOf(top);
      },
    });
  }
});

qemuTest("rebase -u changes the name alone, whatever it names", async () => {
  using folder = new Folder();
  const top = folder.path("top.qcow2");
  for (
    const args of [
      ["-b", "base.raw", "-F", "raw"],
      ["-b", "none.qcow2", "-F", "qcow2"],
      ["-b", "/some/where", "-F", "host_device"],
      ["-b", "x".repeat(1023), "-F", "raw"],
      ["-b", "json:{}", "-F", "vmdk"],
      ["-b", ""],
      ["-F", "raw"],
      [],
    ]
  ) {
    await assertSame(["rebase", "-u", ...args, top], {
      prepare: () => {
        makeChain(folder);
        // Nobody needs the old one.
        Deno.removeSync(folder.path("middle.qcow2"));
      },
      outcome: () => Deno.readFileSync(top),
    });
  }
});

qemuTest("rebase refuses what qemu-img refuses, and leaves the image as it was", async () => {
  using folder = new Folder();
  const [top, middle, raw] = [folder.path("top.qcow2"), folder.path("middle.qcow2"), folder.path("base.raw")];
  for (
    const args of [
      [],
      [top],
      ["-b"],
      ["-b", "", top, top],
      ["-c", "-b", "", top],
      ["-u", "-b", "none", top],
      ["-b", "none", "-F", "raw", top],
      ["-b", "other.raw", "-F", "qcow2", top],
      ["-b", "other.raw", "-F", "none", top],
      ["-b", "other.raw", "-F", "", top],
      ["-b", ".", "-F", "raw", top],
      ["-b", "top.qcow2", "-F", "qcow2", top],
      ["-b", "top.qcow2", "-F", "qcow2", middle],
      ["-b", "", folder.path("none")],
      ["-b", "", "-f", "qcow2", raw],
      ["-b", "", "-f", "raw", top],
      ["-u", "-f", "raw", top],
      ["-b", "", "-t", "some", top],
      ["-b", "", "-T", "some", top],
      ["-u", "-b", "x".repeat(1024), "-F", "raw", top],
      ["-u", "-b", "x".repeat(1024), top],
    ]
  ) {
    await assertSame(["rebase", "-p", ...args], {
      prepare: () => makeChain(folder),
      outcome: () => [top, middle].map((path) => Deno.readFileSync(path)),
    });
  }
  for (const path of [raw, middle]) {
    Deno.removeSync(path);
    await assertSame(["rebase", "-b", "", "-f", "qcow2", top]);
  }
  await assertSame(["rebase", "-u", "-b", "", "--image-opts", `driver=qcow2,file.filename=${top}`], {
    outcome: () => Deno.readFileSync(top),
  });
});

qemuTest("rebase gives no backing file to a disk in a raw data file, as qemu-img", async () => {
  using folder = new Folder();
  const [image, below] = [folder.path("disk.qcow2"), folder.path("below.qcow2")];
  const data = `data_file=${folder.path("data")},data_file_raw=on`;
  qemuImg("create", "-q", "-f", "qcow2", "-o", data, image, "1M");
  qemuImg("create", "-q", "-f", "qcow2", below, "1M");
  for (const options of [[], ["-u"]]) {
    await assertSame(["rebase", ...options, "-b", below, "-F", "qcow2", image], { outcome: () => stateOf(image) });
  }
});

qemuTest("rebase wants the format before it copies anything", async () => {
  using folder = new Folder();
  makeChain(folder);
  const top = folder.path("top.qcow2");
  const before = Deno.readFileSync(top);
  const { code, stderr } = await program("rebase", "-b", "other.raw", top);
  assertEquals([code, Deno.readFileSync(top)], [1, before]);
  assertEquals(stderr, qemuImg("rebase", "-b", "other.raw", top).stderr.replace("qemu-img", "qcow2"));
});

qemuTest("rebase says that the header has no room for a name", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  await assertSame(["rebase", "-u", "-b", "x".repeat(400), "-F", "raw", path], {
    prepare: () => qemuImg("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1M"),
    outcome: () => Deno.readFileSync(path),
  });
});

qemuTest("rebase keeps QEMU out while it works, and stays out where somebody writes", async () => {
  using folder = new Folder();
  makeChain(folder);
  const [top, middle] = [folder.path("top.qcow2"), folder.path("middle.qcow2")];
  {
    using _writer = Qcow2File.open(middle, { write: true, backing: "allow" });
    await assertSame(["rebase", "-b", "", top]);
    await assertSame(["rebase", "-b", "middle.qcow2", "-F", "qcow2", folder.path("alone.qcow2")], {
      prepare: () => qemuImg("create", "-q", "-f", "qcow2", folder.path("alone.qcow2"), "1M"),
    });
    await assertSame(["rebase", "-U", "-b", "middle.qcow2", "-F", "qcow2", folder.path("alone.qcow2")], {
      prepare: () => qemuImg("create", "-q", "-f", "qcow2", folder.path("alone.qcow2"), "1M"),
      outcome: () => stateOf(folder.path("alone.qcow2")),
    });
  }
  {
    using _reader = Qcow2File.open(top, { backing: "allow" });
    await assertSame(["rebase", "-u", "-b", "", top]);
  }
});

qemuTest("rebase copies between random chains what qemu-img copies", async () => {
  const random = new Random("rebase");
  using folder = new Folder();
  const names = ["base", "old", "top", "new"];
  for (let round = 0; round < 6; round++) {
    const extended = random.oneIn(4);
    const setup = names.map((name) => {
      const size = random.between(1, 40) * 512 * random.pick([1, 128, 400]);
      const clusterSize = random.pick(extended ? ["16k", "64k"] : ["512", "4k", "64k", "2M"]);
      const format = extended ? "extended_l2=on" : `compat=${random.pick(["0.10", "1.1"])}`;
      const commands = Array.from({ length: random.between(1, 5) }, () => {
        const offset = random.below(size / 512) * 512;
        const count = Math.min(size - offset, random.between(1, 300) * 512);
        const pattern = random.between(1, 2);
        return `${random.pick([`write -P ${pattern}`, "write -z", "write -P 0", "discard"])} ${offset} ${count}`;
      });
      return { name, size, options: `cluster_size=${clusterSize},${format}`, commands };
    });
    const make = () => {
      for (const [index, { name, size, options, commands }] of setup.entries()) {
        const below = name === "new" ? (round % 2 === 0 ? undefined : "base") : names[index - 1];
        const backing = below === undefined ? [] : ["-b", below, "-F", "qcow2"];
        qemuImg("create", "-q", "-f", "qcow2", "-o", options, ...backing, folder.path(name), String(size));
        qemuIo(folder.path(name), ...commands);
      }
    };
    make();
    const top = folder.path("top");
    const before = contentOf(folder, top);
    for (const target of ["new", "base", ""]) {
      await assertSame(["rebase", ...extended ? [] : ["-p"], "-b", target, "-F", "qcow2", top], {
        prepare: make,
        outcome: () => {
          assertQemuClean(top);
          assertEquals(contentOf(folder, top), before);
          return stateOf(top);
        },
      });
    }
  }
});

qemuTest("rebase tells bitmaps of the sectors that it changes, as qemu-img does", async () => {
  using folder = new Folder();
  const [top, below] = [folder.path("top"), folder.path("below")];
  for (const options of ["cluster_size=64k", "cluster_size=2M", "cluster_size=16k,extended_l2=on"]) {
    await assertSame(["rebase", "-b", below, "-F", "qcow2", top], {
      prepare: () => {
        qemuImg("create", "-q", "-f", "qcow2", below, "4M");
        qemuIo(below, "write -P 7 1654784 5632", "write -P 8 2195456 131072", "write -P 9 0 512");
        qemuImg("create", "-q", "-f", "qcow2", "-o", options, top, "5000000");
        qemuImg("bitmap", "--add", "-g", "512", top, "changes");
      },
      outcome: () => [dirtyAccordingToQemu(top, "changes"), stateOf(top)],
    });
  }
});

Deno.test("rebase explains itself", async () => {
  const { code, stdout } = await program("rebase", "--help");
  assertEquals([code, stdout.startsWith("qcow2 rebase: ")], [0, true]);
});
