import { assertEquals, assertStringIncludes } from "@std/assert";
import { assertQemuClean } from "../images.ts";
import { qemuTest } from "../qemu.ts";
import { assertSame, Folder, makeFile, program, qemuImg, qemuIo } from "./_program.ts";

const OPTIONS: readonly string[] = [
  "compat=0.10",
  "compat=v3",
  "compat=0.11",
  "lazy_refcounts=on",
  "lazy_refcounts=off",
  "lazy_refcounts=maybe",
  "lazy_refcounts=on,compat=0.10",
  "refcount_bits=1",
  "refcount_bits=2",
  "refcount_bits=16",
  "refcount_bits=64",
  "refcount_bits=3",
  "refcount_bits=128",
  "refcount_bits=8,compat=1.1",
  "compat=0.10,refcount_bits=8",
  "cluster_size=4096",
  "preallocation=full",
  "compression_type=zstd",
  "size=2M",
  "size=512k",
  "size=1M,compat=1.1,lazy_refcounts=on,refcount_bits=32",
  "backing_file=x",
  "compat=0.10,refcount_bits=8,backing_fmt=raw",
  "compat=0.10,lazy_refcounts=on,backing_fmt=raw",
  "compat=0.10,refcount_bits=8,size=1000",
  "compat=0.10,lazy_refcounts=on,size=1000",
  "compat=0.10,size=1000",
  "compat=0.10,refcount_bits=16",
  "data_file=foo",
  "extended_l2=on",
  "bogus=1",
  "help",
];

qemuTest("amend does what qemu-img does", async () => {
  using folder = new Folder();
  const image = folder.path("disk.qcow2");
  for (const created of ["compat=0.10", "compat=1.1", "cluster_size=512,lazy_refcounts=on,refcount_bits=8"]) {
    for (const options of OPTIONS) {
      // With the third image, what depends on it.
      if (created.includes("refcount_bits") && !/compat|refcount_bits=(8|64)/.test(options)) continue;
      await assertSame(["amend", "-p", "-f", "qcow2", "-o", options, image], {
        prepare: () => qemuImg("create", "-q", "-f", "qcow2", "-o", created, image, "1M"),
        outcome: () => {
          assertQemuClean(image);
          const { "format-specific": { data }, "virtual-size": size } = JSON.parse(
            qemuImg("info", "--output=json", image).stdout,
          );
          const file = Deno.readFileSync(image);
          // Header length, the feature name table and what stands around it.
          return [data, size, file.slice(72, 104), file.slice(104, 112)];
        },
      });
    }
  }
});

/** What QEMU says of an image, and the names of the files beside it. */
function outcomeOf(folder: Folder, image: string): unknown {
  const { stdout, stderr } = qemuImg("info", "--output=json", image);
  const { "format-specific": format, "virtual-size": size, snapshots } = JSON.parse(stdout);
  const lengths = folder.names().map((name) => [name, name === "disk.qcow2" || Deno.statSync(folder.path(name)).size]);
  return [format, size, stderr, snapshots?.length, lengths];
}

qemuTest("amend does what qemu-img does with images with a data file", async () => {
  using folder = new Folder();
  const image = folder.path("disk.qcow2");
  const data = folder.path("data");
  for (const raw of ["off", "on"]) {
    for (
      const options of [
        `data_file=${folder.path("other")}`,
        `data_file=${folder.path("other,,with commas,,in it")}`,
        "data_file=",
        `data_file=${"long".repeat(300)}`,
        `data_file=${"long".repeat(20_000)}`,
        "data_file_raw=on",
        "data_file_raw=off",
        "data_file_raw=perhaps",
        `data_file=${folder.path("other")},data_file_raw=off`,
        "compat=0.10",
        "compat=0.10,refcount_bits=8",
        "refcount_bits=64",
        "refcount_bits=8,compat=0.10",
        "lazy_refcounts=on",
        "lazy_refcounts=on,refcount_bits=4,data_file=x",
        "size=2M",
        "size=512k",
        "size=3M,data_file_raw=off,refcount_bits=8",
        "backing_file=x",
      ]
    ) {
      await assertSame(["amend", "-p", "-f", "qcow2", "-o", options, image], {
        prepare: () => {
          for (const name of folder.names()) Deno.removeSync(folder.path(name));
          const created = `data_file=${data},data_file_raw=${raw}`;
          qemuImg("create", "-q", "-f", "qcow2", "-o", created, image, "1M");
          qemuIo(image, "write -P 1 0 300k");
        },
        outcome: () => outcomeOf(folder, image),
        // Of what does not fit into the first cluster, QEMU says that no space is left.
        anyErrorText: options.length > 65536,
      });
    }
  }
  for (const options of ["data_file=", "data_file=foo", "data_file_raw=on", "data_file_raw=off"]) {
    await assertSame(["amend", "-p", "-f", "qcow2", "-o", options, image], {
      prepare: () => qemuImg("create", "-q", "-f", "qcow2", image, "1M"),
      outcome: () => outcomeOf(folder, image),
    });
  }
  qemuImg("create", "-q", "-f", "qcow2", "-o", `data_file=${data}`, image, "1M");
  Deno.removeSync(data);
  await assertSame(["amend", "-o", "data_file=foo", image]);
});

qemuTest("amend does what qemu-img does with subclusters, zstd and narrow refcounts", async () => {
  using folder = new Folder();
  const image = folder.path("disk.qcow2");
  for (
    const [created, prepared, amended] of [
      ["extended_l2=on", [], [
        "compat=0.10",
        "refcount_bits=64",
        "lazy_refcounts=on",
        "refcount_bits=2,compat=0.10",
        "size=40M",
        "size=1M",
      ]],
      ["refcount_bits=8", [], ["compat=0.10", "compat=0.10,refcount_bits=16", "compat=0.10,refcount_bits=32"]],
      ["compression_type=zstd", [], ["compat=0.10"]],
      ["compression_type=zstd", ["write -c 0 64k"], ["compat=0.10"]],
    ] as const
  ) {
    for (const options of amended) {
      // Compressed clusters are looked for before anything is changed, and so before there is any progress.
      const progress = prepared.length === 0 ? ["-p"] : [];
      await assertSame(["amend", ...progress, "-f", "qcow2", "-o", options, image], {
        prepare: () => {
          qemuImg("create", "-q", "-f", "qcow2", "-o", created, image, "4M");
          qemuIo(image, "write 2M 1M", ...prepared);
        },
        outcome: () => {
          assertQemuClean(image);
          return outcomeOf(folder, image);
        },
      });
    }
  }
});

qemuTest("amend does what qemu-img does with snapshots, zero clusters in them and other sizes", async () => {
  using folder = new Folder();
  const image = folder.path("disk.qcow2");
  for (const size of ["1M", "2M"]) {
    // Where the new size is what prevents the new version, QEMU changes the size before it says so.
    for (const options of ["compat=0.10", "compat=0.10,size=1M", "size=2M", "refcount_bits=1"]) {
      await assertSame(["amend", "-p", "-f", "qcow2", "-o", options, image], {
        prepare: () => {
          qemuImg("create", "-q", "-f", "qcow2", image, "1M");
          qemuIo(image, "write -P 1 0 500k", "write -z -u 0 128k", "write -z -u 256k 64k");
          qemuImg("snapshot", "-c", "one", image);
          qemuImg("resize", "-q", image, size);
          qemuIo(image, "write -P 2 100k 500k");
        },
        outcome: () => {
          assertQemuClean(image);
          const raw = folder.path("raw");
          qemuImg("convert", "-f", "qcow2", "-l", "one", "-O", "raw", image, raw);
          return [outcomeOf(folder, image), Deno.readFileSync(raw).reduce((sum, byte) => sum + byte)];
        },
      });
    }
  }
});

qemuTest("amend shows the progress that qemu-img shows", async () => {
  using folder = new Folder();
  const image = folder.path("disk.qcow2");
  for (
    const [created, size, snapshotCount, options] of [
      ["compat=1.1", "100G", 0, "compat=0.10"],
      ["cluster_size=4k", "500M", 3, "compat=0.10"],
      ["cluster_size=512", "3M", 1, "compat=0.10"],
      ["compat=0.10,cluster_size=4k", "100M", 1, "compat=1.1,refcount_bits=64"],
      ["compat=0.10", "1G", 0, "compat=1.1,refcount_bits=1,lazy_refcounts=on,size=2G"],
      ["refcount_bits=8", "1G", 0, "compat=0.10,refcount_bits=16"],
      ["refcount_bits=64,cluster_size=512", "10M", 1, "refcount_bits=4,size=20M"],
    ] as const
  ) {
    await assertSame(["amend", "-p", "-o", options, image], {
      prepare: () => {
        qemuImg("create", "-q", "-f", "qcow2", "-o", created, image, size);
        qemuIo(image, "write 0 1M", "write 2M 512k");
        if (!created.includes("0.10")) qemuIo(image, "write -z 2M 64k", "write -z -u 0 64k");
        for (let count = 0; count < snapshotCount; count++) qemuImg("snapshot", "-c", `s${count}`, image);
      },
      outcome: () => {
        assertQemuClean(image);
        return outcomeOf(folder, image);
      },
    });
  }
});

qemuTest("amend complains of its arguments as qemu-img does", async () => {
  using folder = new Folder();
  const [image, raw] = [folder.path("disk.qcow2"), folder.path("disk.raw")];
  qemuImg("create", "-q", "-f", "qcow2", image, "1M");
  qemuImg("create", "-q", "-f", "raw", raw, "1M");
  for (
    const args of [
      ["amend", image],
      ["amend", "-o", "compat=1.1"],
      ["amend", "-f", "qcow2", "-o", "help"],
      ["amend", "-f", "raw", "-o", "size=2M", raw],
      ["amend", "-o", "compat=1.1", image, image],
      ["amend", "--force", "-q", "-o", "compat=1.1", image],
      ["amend", "-o", "compat=1.1", folder.path("none")],
      ["amend", "-o", "compat=1.1", "-t", "none-such", image],
      ["amend", "-o", "help", image],
      ["amend", "-o", "compat=1.1,", image],
    ]
  ) {
    await assertSame(args);
    await assertSame([...args, "-p"]);
    await assertSame([...args, "-p", "-q"]);
  }
});

qemuTest("amend says which refcount does not fit", async () => {
  using folder = new Folder();
  const image = folder.path("disk.qcow2");
  qemuImg("create", "-q", "-f", "qcow2", image, "1M");
  qemuIo(image, "write 0 1M");
  qemuImg("snapshot", "-c", "one", image);
  qemuImg("snapshot", "-c", "two", image);
  await assertSame(["amend", "-p", "-f", "qcow2", "-o", "refcount_bits=1", image]);
  assertQemuClean(image);
});

Deno.test("amend explains itself", async () => {
  const { code, stdout } = await program("amend", "--help");
  assertEquals(code, 0);
  assertStringIncludes(stdout, "qcow2 amend: ");
});

qemuTest("amend refuses sizes amid a sector, and a backing file of which only a part is named", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeFile(folder.path("base"), 1 << 20);
  for (const list of ["size=1000", "backing_file=base", "backing_fmt=raw", "backing_file=base,backing_fmt=raw"]) {
    await assertSame(["amend", "-o", list, path], {
      prepare: () => qemuImg("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", path, "2M"),
      outcome: () => Deno.readFileSync(path),
    });
  }
});
