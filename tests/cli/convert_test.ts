import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { Qcow2File } from "../../lib/image/qcow2_file.ts";
import { RawFile } from "../../lib/image/raw_file.ts";
import { FsBlockFile } from "../../lib/storage/mod.ts";
import { qemuTest, run } from "../qemu.ts";
import {
  assertSame,
  Folder,
  makeFile,
  makeVariedImage,
  markInUse,
  patch,
  program,
  qemuImg,
  qemuIo,
} from "./_program.ts";

/** A raw image with data, holes and zeroes. */
function makeRaw(path: string, length = 10_000_000): void {
  makeFile(path, length);
  using disk = RawFile.open(path, { write: true });
  disk.writeAt(4096, new Uint8Array(length >> 3).fill(1));
  disk.writeAt(length >> 1, new Uint8Array(length >> 3));
  disk.writeAt(disk.size - 512, new Uint8Array(512).fill(2));
}

function assertIdentical(one: string, other: string): void {
  const { code, stdout } = qemuImg("compare", one, other);
  assertEquals([code, stdout], [0, "Images are identical.\n"]);
}

qemuTest("convert copies between raw and qcow2 in all directions", async () => {
  using folder = new Folder();
  const raw = folder.path("source.raw");
  const varied = folder.path("varied.qcow2");
  const target = folder.path("target");
  makeRaw(raw);
  makeVariedImage(varied);
  for (const source of [raw, varied]) {
    for (
      const options of [
        [],
        ["-O", "qcow2"],
        ["-O", "qcow2", "-o", "cluster_size=4k,compat=0.10"],
        ["-O", "qcow2", "-S", "64k", "-m", "16", "-W", "-t", "none", "-T", "none"],
        ["-O", "qcow2", "-o", "refcount_bits=1", "-o", "lazy_refcounts=on,size=5M"],
      ]
    ) {
      assertEquals(await program("convert", ...options, source, target), { code: 0, stdout: "", stderr: "" });
      assertIdentical(source, target);
      const { code } = qemuImg("check", target);
      assert(code === 0 || code === 63, `check ended with ${code}`);
      Deno.removeSync(target);
    }
  }
  assertEquals(folder.names(), ["source.raw", "varied.qcow2"]);
});

qemuTest("convert makes targets of the size that qemu-img makes", async () => {
  using folder = new Folder();
  const source = folder.path("source");
  const target = folder.path("target");
  for (const length of [0, 5, 512, 1000, 1 << 20]) {
    makeFile(source, length, { 0: length > 0 ? "data" : "" });
    await assertSame(["convert", "-f", "raw", source, target], { outcome: () => Deno.readFileSync(target) });
    await assertSame(["convert", "-f", "raw", "-O", "qcow2", source, target], {
      outcome: () => JSON.parse(qemuImg("info", "--output=json", target).stdout)["virtual-size"],
    });
  }
});

qemuTest("convert puts several sources one behind the other", async () => {
  using folder = new Folder();
  const [one, two, three] = [folder.path("one"), folder.path("two"), folder.path("three")];
  const target = folder.path("target");
  makeFile(one, 1000, { 0: "one" });
  makeRaw(two, 3 << 20);
  qemuImg("create", "-q", "-f", "qcow2", three, "1M");
  qemuIo(three, "write -P 5 64k 64k");
  await assertSame(["convert", one, two, three, target], { outcome: () => Deno.readFileSync(target) });
});

qemuTest("convert -n writes into a target in place and makes zeroes of holes", async () => {
  using folder = new Folder();
  const source = folder.path("source.raw");
  const target = folder.path("target");
  makeRaw(source, 10 << 20);
  for (const [format, args] of [["raw", []], ["qcow2", []], ["qcow2", ["--target-is-zero"]]] as const) {
    const prepare = () => {
      qemuImg("create", "-q", "-f", format, target, "12M");
      qemuImg("bench", "-q", "-w", "--pattern", "7", "-s", "1M", "-c", "12", "-f", format, target);
    };
    const outcome = () => {
      qemuImg("convert", "-f", format, "-O", "raw", target, folder.path("content"));
      return Deno.readFileSync(folder.path("content"));
    };
    await assertSame(["convert", "-n", "-O", format, ...args, source, target], { prepare, outcome });
  }
});

qemuTest("convert -C comes to what qemu-img -C comes to", async () => {
  using folder = new Folder();
  const [base, overlay, target] = [folder.path("base.raw"), folder.path("overlay.qcow2"), folder.path("target")];
  makeRaw(base, 10 << 20);
  qemuImg("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay, "12M");
  qemuIo(overlay, "write -P 3 1M 700k", "write -z 4M 1M", "write -P 4 11M 64k", "write -P 0 7M 128k");
  // Zeroes that were written stay where the host copies: nobody looks at them here.
  const hostCopies = [base, target].map((path) => FsBlockFile.create(`${path}.copy`));
  const [from, to] = hostCopies;
  from?.writeAt(0, new Uint8Array(4096));
  const canCopy = from !== undefined && (to?.copyFrom(from, 0, 0, 4096) ?? 0) > 0;
  for (const file of hostCopies) file.close();
  for (const [options, isData] of [[[], false], [["-C"], canCopy]] as const) {
    assertEquals((await program("convert", ...options, "-O", "qcow2", overlay, target)).code, 0);
    using disk = Qcow2File.open(target);
    const [extent] = disk.extents(7 << 20, 65536);
    assertEquals(extent?.kind === "data", isData);
  }
  for (const source of [base, overlay]) {
    for (const format of ["raw", "qcow2"]) {
      await assertSame(["convert", "-C", "-O", format, source, target], {
        outcome: () => {
          qemuImg("convert", "-f", format, "-O", "raw", target, folder.path("content"));
          return Deno.readFileSync(folder.path("content"));
        },
      });
    }
  }
});

qemuTest("convert -S 0 leaves no holes", async () => {
  using folder = new Folder();
  const source = folder.path("source.raw");
  const target = folder.path("target");
  makeFile(source, 1 << 20, { 600_000: "data" });
  assertEquals((await program("convert", "-S", "0", source, target)).code, 0);
  assertIdentical(source, target);
  assert((Deno.statSync(target).blocks ?? 2048) * 512 >= 1 << 20);
  assertEquals((await program("convert", "-S", "0", "-O", "qcow2", source, target)).code, 0);
  assertMatch(qemuImg("check", target).stdout, /^16\/16 = 100.00% allocated/m);
});

qemuTest("convert makes targets with the options that qemu-img knows", async () => {
  using folder = new Folder();
  const [source, base, target, data] = ["source.qcow2", "base.qcow2", "target", "data"].map((name) =>
    folder.path(name)
  );
  if (source === undefined || base === undefined || target === undefined || data === undefined) return;
  qemuImg("create", "-q", "-f", "qcow2", source, "3M");
  // Whole clusters: QEMU's conversion writes subclusters where only they are not zero.
  qemuIo(source, "write -P 1 0 640k", "write -z 1M 512k", "write -P 2 2M 128k", `write -P 3 ${3 * 1024 - 64}k 64k`);
  qemuImg("create", "-q", "-f", "qcow2", base, "3M");
  qemuIo(base, "write -P 1 0 128k", "write -P 9 1M 128k");
  const prepare = () => {
    for (const name of folder.names()) if (name === "target" || name === "data") Deno.removeSync(folder.path(name));
  };
  const modes = ["off", "metadata", "falloc", "full"];
  const raw = modes.map((mode) => ["-O", "raw", "-o", `preallocation=${mode}`]);
  const qcow2: readonly string[][] = [
    ...["", ",extended_l2=on", `,data_file=${data}`, `,data_file=${data},data_file_raw=on`].flatMap((more) =>
      modes.map((mode) => ["-o", `preallocation=${mode}${more}`])
    ),
    ["-o", `preallocation=metadata,extended_l2=on,data_file=${data}`],
    ["-S", "0", "-o", "preallocation=metadata"],
    ["-S", "0", "-o", `data_file=${data},extended_l2=on`],
    ["-c", "-o", "compression_type=zstd"],
    ["-c", "-o", "preallocation=off,extended_l2=on"],
    ["-c", "-o", "compat=0.10"],
    ["-o", "lazy_refcounts=on,refcount_bits=1,cluster_size=4k"],
    ["-o", "refcount_bits=64,compat=v3"],
    ["-o", "preallocation=falloc,compat=0.10,cluster_size=4k"],
    ["-B", base, "-F", "qcow2", "-o", "extended_l2=on"],
    ["-B", base, "-F", "qcow2", "-o", `data_file=${data}`],
  ];
  for (const args of [...raw, ...qcow2.map((list) => ["-O", "qcow2", ...list])]) {
    const isRaw = args[1] === "raw";
    await assertSame(["convert", ...args, source, target], {
      prepare,
      outcome: () => {
        if (args.includes("preallocation=metadata") && isRaw) return undefined;
        assertIdentical(source, target);
        const info = JSON.parse(qemuImg("info", "--output=json", target).stdout);
        const check = qemuImg("check", "--output=json", target);
        const sizes = args.includes("-c") ? [] : [target, data].map((path) => existing(path)?.size);
        const reserves = /falloc|full/.test(args.join());
        const held = (existing(data)?.blocks ?? existing(target)?.blocks ?? 0) * 512 >= 3 << 20;
        return {
          specific: info["format-specific"],
          allocated: isRaw || args.includes("-c") ? check.code : JSON.parse(check.stdout)["allocated-clusters"],
          sizes,
          held: reserves && held,
        };
      },
    });
  }
});

function existing(path: string): Deno.FileInfo | undefined {
  try {
    return Deno.statSync(path);
  } catch {
    return undefined;
  }
}

Deno.test("convert takes a data file away again where the target is not completed, unless it was there", async () => {
  using folder = new Folder();
  const [source, target, data] = [folder.path("source"), folder.path("target"), folder.path("data")];
  makeRaw(source, 1 << 20);
  const convert = () => program("convert", "-c", "-O", "qcow2", "-o", `data_file=${data}`, source, target);
  assertEquals((await convert()).code, 1);
  assertEquals(folder.names(), ["source"]);
  Deno.writeFileSync(data, new Uint8Array());
  assertEquals((await convert()).code, 1);
  assertEquals(folder.names(), ["data", "source"]);
  assertEquals((await program("convert", "-o", "preallocation=metadata", source, target)).code, 1);
  assertEquals(folder.names(), ["data", "source"]);
});

qemuTest("convert -p prints the lines that qemu-img prints", async () => {
  using folder = new Folder();
  const source = folder.path("source.raw");
  const target = folder.path("target");
  makeRaw(source);
  for (const args of [["-p"], ["-p", "-O", "qcow2"], ["-p", "-q"], ["-q"]]) {
    await assertSame(["convert", ...args, "-m", "1", source, target]);
  }
  makeFile(source, 0);
  await assertSame(["convert", "-p", "-m", "1", source, target]);
});

qemuTest("convert fails with the words of qemu-img", async () => {
  using folder = new Folder();
  const [source, target, none] = [folder.path("source"), folder.path("target"), folder.path("none")];
  makeRaw(source, 1 << 20);
  // QEMU takes the target away where it cannot make the image.
  const prepare = () => Deno.writeTextFileSync(target, "old");
  for (
    const args of [
      [],
      [source],
      ["-O", "foo", source, target],
      ["-f", "foo", source, target],
      ["-f", "qcow2", source, target],
      [none, target],
      [source, folder.path("none/target")],
      [source, folder.path("")],
      [folder.path(""), target],
      ["-O", "qcow2", "-o", "foo=1", source, target],
      ["-O", "qcow2", "-o", "cluster_size=3", source, target],
      ["-O", "qcow2", "-o", "", source, target],
      ["-S", "foo", source, target],
      ["-S", "100", source, target],
      ["-S", "32M", source, target],
      ["-S", "-1", source, target],
      ["-m", "0", source, target],
      ["-m", "17", source, target],
      ["-m", "x", source, target],
      ["-t", "foo", source, target],
      ["-T", "foo", source, target],
      ["-r", "foo", source, target],
      ["-C", "-S", "4k", source, target],
      ["-c", source, target],
      ["-c", "-o", "preallocation=full", source, target],
      ["-c", "-O", "qcow2", "-o", "preallocation=metadata", source, target],
      ["-c", "-O", "qcow2", "-o", "preallocation=foo", source, target],
      ["-O", "qcow2", "-o", "preallocation=foo", source, target],
      ["-o", "preallocation=foo", source, target],
      ["-O", "qcow2", "-o", "data_file_raw=on", source, target],
      ["-O", "qcow2", "-o", "compat=0.10,data_file=d,extended_l2=on", source, target],
      ["-O", "qcow2", "-o", "extended_l2=on,cluster_size=8k,lazy_refcounts=on", source, target],
      ["-n", source, none],
      ["-n", source, target],
      ["-n", "-O", "qcow2", source, target],
      ["-n", "-o", "cluster_size=4k", source, target],
      ["--target-is-zero", source, target],
      [source, source],
      ["-O", "qcow2", source, source],
      ["-n", source, source],
      ["--bogus", source, target],
      [source, "foo:bar"],
      ["-O", "qcow2", "-o", "help"],
      ["-O", "qcow2", "-o", "help", source],
      ["-O", "raw", "-o", "help", source, target],
    ]
  ) {
    await assertSame(["convert", ...args], { prepare });
    assertEquals(Deno.readTextFileSync(target), "old", args.join(" "));
  }
  assertEquals(folder.names(), ["source", "target"]);
});

Deno.test("convert says which capability is missing, in one line, and touches nothing", async () => {
  using folder = new Folder();
  const [source, target] = [folder.path("source"), folder.path("target")];
  makeRaw(source, 1 << 20);
  for (
    const args of [
      ["--object", "tls-creds-anon,id=x"],
      ["-o", "encrypt.format=luks"],
    ]
  ) {
    const { code, stdout, stderr } = await program("convert", "-O", "qcow2", ...args, source, target);
    assertEquals([code, stdout, stderr.split("\n").length], [1, "", 2], stderr);
    assertStringIncludes(stderr, "not supported");
  }
  assertEquals((await program("convert", "-O", "vmdk", source, target)).code, 1);
  assertEquals(folder.names(), ["source"]);
});

qemuTest("convert leaves nothing of a target behind where the source is damaged", async () => {
  using folder = new Folder();
  const [source, target] = [folder.path("source.qcow2"), folder.path("target")];
  makeVariedImage(source);
  // The entry that maps the cluster at 24 MiB of the disk; what is in front of it can be read.
  patch(source, [0x40000 + 8 * 384 - 8 + 6, 2]);
  const { code, stderr } = await program("convert", source, target);
  assertEquals(code, 1);
  assertMatch(stderr, /^qcow2: Image is corrupt: .*\nqcow2: error while reading .* at \w+ \d+: Input\/output error\n$/);
  assertEquals(folder.names(), ["source.qcow2"]);

  Deno.writeTextFileSync(target, "old");
  assertEquals((await program("convert", source, target)).code, 1);
  assertEquals(Deno.readTextFileSync(target), "old");
  assertEquals(folder.names(), ["source.qcow2", "target"]);
});

Deno.test("convert replaces a target in the end, keeps its mode and follows links", async () => {
  using folder = new Folder();
  const [source, target, link] = [folder.path("source"), folder.path("target"), folder.path("link")];
  makeRaw(source, 1 << 20);
  Deno.writeTextFileSync(target, "old");
  if (Deno.build.os !== "windows") Deno.chmodSync(target, 0o640);
  Deno.symlinkSync("target", link);
  assertEquals((await program("convert", source, link)).code, 0);
  assertEquals(Deno.readFileSync(target), Deno.readFileSync(source));
  assertEquals(Deno.lstatSync(link).isSymlink, true);
  if (Deno.build.os !== "windows") assertEquals((Deno.statSync(target).mode ?? 0) & 0o777, 0o640);
  assertEquals(folder.names(), ["link", "source", "target"]);
});

Deno.test("convert makes a target durable where a cache mode asks for it, or where a file is replaced", async () => {
  using folder = new Folder();
  const [source, target] = [folder.path("source"), folder.path("target")];
  makeRaw(source, 1 << 20);
  const { syncDataSync } = Deno.FsFile.prototype;
  let syncs = 0;
  Deno.FsFile.prototype.syncDataSync = function (): void {
    syncs++;
    syncDataSync.call(this);
  };
  try {
    for (const format of ["raw", "qcow2"]) {
      for (
        const [mode, exists, isDurable] of [
          [[], false, false],
          [["-t", "unsafe"], false, false],
          [["-t", "writeback"], false, true],
          [["-t", "none"], false, true],
          [[], true, true],
          [["-t", "writethrough"], true, true],
          [["-t", "unsafe"], true, false],
        ] as const
      ) {
        if (exists) Deno.writeTextFileSync(target, "old");
        syncs = 0;
        assertEquals((await program("convert", "-O", format, ...mode, source, target)).code, 0);
        assertEquals(syncs > 0, isDurable, `${format} ${mode.join(" ")} ${exists}`);
        Deno.removeSync(target);
      }
    }
  } finally {
    Deno.FsFile.prototype.syncDataSync = syncDataSync;
  }
});

Deno.test("convert refuses a target that somebody has open", async () => {
  using folder = new Folder();
  const [source, target] = [folder.path("source"), folder.path("target")];
  makeRaw(source, 1 << 20);
  Deno.writeTextFileSync(target, "old");
  using file = Deno.openSync(target, { read: true, write: true });
  file.lockSync(true);
  const { code, stderr } = await program("convert", source, target);
  assertEquals(code, 1);
  assertEquals(
    stderr,
    `qcow2: ${target}: error while converting raw: Failed to get "write" lock\n` +
      `Is another process using the image [${target}]?\n`,
  );
  assertEquals(Deno.readTextFileSync(target), "old");
  assertEquals(folder.names(), ["source", "target"]);
});

qemuTest(
  "convert onto a full host says so in one line, and leaves the source and an older target as they were",
  async () => {
    using folder = new Folder();
    const [source, mounted] = [folder.path("source.raw"), folder.path("small")];
    Deno.mkdirSync(mounted);
    const mount = new Deno.Command("mount", {
      args: ["-t", "tmpfs", "-o", "size=4m", "tmpfs", mounted],
      stderr: "null",
    });
    // Only the superuser can make a file system of its own.
    if (!mount.outputSync().success) return;
    try {
      const content = new Uint8Array(8 << 20).fill(7);
      Deno.writeFileSync(source, content);
      const target = `${mounted}/target.qcow2`;
      for (const before of [[], ["target.qcow2"]]) {
        if (before.length > 0) Deno.writeTextFileSync(target, "older");
        for (const format of ["qcow2", "raw"]) {
          const { code, stdout, stderr } = await program("convert", "-f", "raw", "-O", format, source, target);
          assertEquals([code, stdout, stderr.split("\n").length], [1, "", 2], stderr);
          assertStringIncludes(stderr, "No space left on device");
          assertEquals([...Deno.readDirSync(mounted)].map(({ name }) => name), before);
        }
        if (before.length > 0) assertEquals(Deno.readTextFileSync(target), "older");
      }
      assertEquals(Deno.readFileSync(source), content);
    } finally {
      new Deno.Command("umount", { args: [mounted] }).outputSync();
    }
  },
);

/** An image of 4 MiB of which the map is damaged at 320 KiB. */
function makeDamaged(path: string): void {
  qemuImg("create", "-q", "-f", "qcow2", path, "4M");
  qemuIo(path, "write -P 1 0 2M");
  patch(path, [0x40000 + 8 * 5 + 6, 2]);
}

qemuTest("convert finds damage before it writes, and with --salvage copies what can be read", async () => {
  using folder = new Folder();
  const [source, target] = [folder.path("source"), folder.path("target")];
  makeDamaged(source);
  await assertSame(["convert", source, target], { outcome: () => {} });
  for (const args of [["--salvage"], ["--salvage", "-q"], ["--salvage", "-O", "qcow2"], ["--salvage", "-S", "0"]]) {
    await assertSame(["convert", ...args, source, target], {
      // Content is read in larger pieces here, so that it is told of later.
      anyErrorOrder: true,
      outcome: () => {
        qemuImg("convert", "-O", "raw", target, folder.path("content"));
        return Deno.readFileSync(folder.path("content"));
      },
    });
  }
});

/** An image with three bitmaps, of which the last is not enabled. */
function makeMarked(path: string): void {
  qemuImg("create", "-q", "-f", "qcow2", path, "4M");
  qemuImg("bitmap", "--add", path, "one");
  qemuImg("bitmap", "--add", "-g", "512", path, "two");
  qemuIo(path, "write -P 1 0 100k", "write -P 2 3M 64k");
  qemuImg("bitmap", "--add", "--disable", "--merge", "one", "-g", "1M", path, "three");
}

qemuTest("convert --bitmaps copies bitmaps with what they mark", async () => {
  using folder = new Folder();
  const [source, target] = [folder.path("source"), folder.path("target")];
  makeMarked(source);
  const outcome = () => {
    const { stdout } = qemuImg("info", "--output=json", target);
    return ["one", "two", "three"].map((name) => bitmapOf(target, name)).concat(
      JSON.parse(stdout)["format-specific"].data.bitmaps,
    );
  };
  await assertSame(["convert", "--bitmaps", "-O", "qcow2", source, target], { outcome });
  await assertSame(["convert", "--bitmaps", "-O", "qcow2", "-c", "-o", "cluster_size=4k", source, target], { outcome });
  await assertSame(["convert", "--bitmaps", "-n", "-O", "qcow2", source, target]);
  const prepare = () => qemuImg("create", "-q", "-f", "qcow2", target, "4M");
  await assertSame(["convert", "--bitmaps", "-n", "-O", "qcow2", source, target], { prepare, outcome });
  assertEquals(qemuImg("check", target).code, 0);
  // Of several that cannot be copied, the same one is told.
  await assertSame(["convert", "--bitmaps", "-n", "-O", "qcow2", source, target], {
    prepare: () => qemuImg("create", "-q", "-f", "qcow2", target, "5M"),
    outcome: () => JSON.parse(qemuImg("info", "--output=json", target).stdout)["format-specific"].data.bitmaps,
  });
});

qemuTest("convert --bitmaps refuses what qemu-img refuses", async () => {
  using folder = new Folder();
  const [source, raw, target] = [folder.path("source"), folder.path("raw"), folder.path("target")];
  const old = folder.path("old");
  makeMarked(source);
  makeFile(raw, 1 << 20);
  qemuImg("create", "-q", "-f", "qcow2", "-o", "compat=0.10", old, "1M");
  for (
    const args of [
      ["--bitmaps", source, target],
      ["--bitmaps", "-O", "qcow2", "-o", "compat=0.10", source, target],
      ["--bitmaps", "-f", "raw", raw, target],
      ["--bitmaps", "-f", "raw", raw, raw, target],
      ["--skip-broken-bitmaps", source, target],
      ["--bitmaps", "-O", "raw", old, target],
    ]
  ) {
    await assertSame(["convert", ...args]);
  }
  for (const mark of [() => markInUse(source, 12), () => void run("qemu-io", ["-c", "abort", source])]) {
    mark();
    await assertSame(["convert", "--bitmaps", "-O", "qcow2", source, target]);
    await assertSame(["convert", "--bitmaps", "--skip-broken-bitmaps", "-O", "qcow2", source, target]);
  }
});

/** What a bitmap marks. */
function bitmapOf(path: string, name: string): unknown {
  using disk = Qcow2File.open(path);
  return [...disk.dirtyExtents(name)];
}

Deno.test("convert -r writes no faster than it may", async () => {
  using folder = new Folder();
  const [source, target] = [folder.path("source"), folder.path("target")];
  Deno.writeFileSync(source, new Uint8Array(3 << 20).fill(7));
  const start = performance.now();
  assertEquals((await program("convert", "-f", "raw", "-r", "10M", source, target)).code, 0);
  // Two of the three MiB have been written before the last piece is.
  assert(performance.now() - start > 190);
  assertEquals(Deno.readFileSync(target), Deno.readFileSync(source));
});

qemuTest("convert --bitmaps leaves no bitmap behind that it could not fill", async () => {
  using folder = new Folder();
  const [source, target] = [folder.path("source"), folder.path("target")];
  qemuImg("create", "-q", "-f", "qcow2", source, "1M");
  qemuImg("bitmap", "--add", source, "one");
  await assertSame(["convert", "-n", "--bitmaps", "-O", "qcow2", source, target], {
    prepare: () => qemuImg("create", "-q", "-f", "qcow2", target, "2M"),
    outcome: () => /"bitmaps"/.test(qemuImg("info", "--output=json", target).stdout),
  });
});
