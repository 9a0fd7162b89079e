import { assertEquals, assertStringIncludes } from "@std/assert";
import { assertQemuClean } from "../images.ts";
import { qemuTest } from "../qemu.ts";
import { assertSame, Folder, program, qemuImg } from "./_program.ts";

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
      await assertSame(["amend", "-f", "qcow2", "-o", options, image], {
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
    ]
  ) await assertSame(args);
});

qemuTest("amend says which refcount does not fit", async () => {
  using folder = new Folder();
  const image = folder.path("disk.qcow2");
  qemuImg("create", "-q", "-f", "qcow2", image, "1M");
  qemuImg("snapshot", "-c", "one", image);
  qemuImg("snapshot", "-c", "two", image);
  await assertSame(["amend", "-f", "qcow2", "-o", "refcount_bits=1", image]);
  assertQemuClean(image);
});

Deno.test("amend explains itself", async () => {
  const { code, stdout } = await program("amend", "--help");
  assertEquals(code, 0);
  assertStringIncludes(stdout, "qcow2 amend: ");
});
