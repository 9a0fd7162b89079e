import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import {
  type CreateOptions,
  judgeUntrustedImage,
  Qcow2Error,
  Qcow2File,
  type UntrustedOptions,
  type UntrustedVerdict,
} from "../../mod.ts";
import { FsBlockFile } from "../../lib/storage/mod.ts";
import {
  assertCode,
  filled,
  getUint64,
  GIB,
  KIB,
  MIB,
  qemuImg,
  setUint32,
  setUint64,
  TIB,
  withFolder,
} from "../images.ts";
import { qemuTest, run } from "../qemu.ts";

const CLUSTER = 64 * KIB;
const OFFSET_MASK = 0x00fffffffffffe00n;

/** Makes an image, changes bytes in it and judges it. */
async function judge(
  change: (file: FsBlockFile, disk: Pick<Qcow2File, "header">) => void,
  options: UntrustedOptions & { readonly create?: CreateOptions; readonly fill?: (disk: Qcow2File) => void } = {},
): Promise<UntrustedVerdict> {
  const { create = { size: GIB }, fill = (disk) => disk.writeAt(0, filled(4 * CLUSTER, 1)), ...judgeOptions } = options;
  let verdict: UntrustedVerdict | undefined;
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    const disk = Qcow2File.create(path, create);
    const { header } = disk;
    fill(disk);
    disk.close();
    const file = FsBlockFile.open(path, { writable: true });
    change(file, { header });
    file.close();
    verdict = judgeUntrustedImage(path, judgeOptions);
  });
  assert(verdict !== undefined);
  return verdict;
}

function refusals({ acceptable, findings }: UntrustedVerdict): string[] {
  const rules = findings.filter(({ severity }) => severity === "refuse").map(({ rule }) => rule);
  assertEquals(acceptable, rules.length === 0);
  return [...new Set(rules)];
}

function notes({ findings }: UntrustedVerdict): string[] {
  return findings.filter(({ severity }) => severity === "note").map(({ rule }) => rule);
}

Deno.test("judgeUntrustedImage() has nothing against an ordinary image", async () => {
  for (const version of [2, 3] as const) {
    const verdict = await judge(() => {}, { create: { size: GIB, version }, format: "qcow2" });
    assertEquals(verdict.findings, []);
    assertEquals([verdict.acceptable, verdict.format, verdict.virtualSize], [true, "qcow2", GIB]);
  }
});

Deno.test("judgeUntrustedImage() refuses a backing file, whatever it is called", async () => {
  for (const name of ["/etc/passwd", "json:{}", "nbd://host/export", ""]) {
    const verdict = await judge((file) => {
      const bytes = new TextEncoder().encode(name);
      file.writeAt(4096, bytes);
      setUint64(file, 8, 4096n);
      setUint32(file, 16, bytes.length);
    });
    assertEquals(refusals(verdict), ["backing-file"]);
    assertEquals(verdict.findings[0]?.found, name);
  }
});

Deno.test("judgeUntrustedImage() tells all that is wrong with a header, also where it cannot be read as a whole", async () => {
  const verdict = await judge((file) => {
    setUint64(file, 8, 1n << 40n);
    setUint32(file, 16, 100);
    setUint32(file, 32, 1);
    setUint64(file, 72, (1n << 40n) + 7n);
  });
  assertEquals(refusals(verdict), [
    "backing-file",
    "encryption",
    "data-file",
    "marked-dirty",
    "marked-corrupt",
    "unknown-feature",
    "damaged-header",
  ]);
});

Deno.test("judgeUntrustedImage() refuses features that are not known, and notes those that may be ignored", async () => {
  assertEquals(refusals(await judge((file) => setUint64(file, 72, 1n << 20n))), ["unknown-feature"]);
  for (const position of [80, 88]) {
    const verdict = await judge((file) => setUint64(file, position, 1n << 20n));
    assertEquals([refusals(verdict), notes(verdict)], [[], ["unknown-feature"]]);
  }
});

Deno.test("judgeUntrustedImage() refuses images that say that they are dirty or corrupt", async () => {
  assertEquals(refusals(await judge((file) => setUint64(file, 72, 1n))), ["marked-dirty"]);
  assertEquals(refusals(await judge((file) => setUint64(file, 72, 2n))), ["marked-corrupt"]);
});

Deno.test("judgeUntrustedImage() refuses header extensions that are not known, and data files in any form", async () => {
  const extension = (type: number, text: string) => (file: FsBlockFile) => {
    // Over the feature names, which are ended right behind it.
    setUint32(file, 112, type);
    setUint32(file, 116, text.length);
    file.writeAt(120, filled(376, 0));
    file.writeAt(120, new TextEncoder().encode(text));
  };
  assertEquals(refusals(await judge(extension(0x12345678, "x"))), ["unknown-extension"]);
  const hidden = await judge(extension(0x44415441, "/etc/shadow"));
  assertEquals(refusals(hidden), ["data-file"]);
  assertStringIncludes(hidden.findings[0]?.message ?? "", "/etc/shadow");
  assertEquals(refusals(await judge((file) => setUint64(file, 72, 4n))), ["data-file"]);
});

Deno.test("judgeUntrustedImage() refuses files that are two formats at once", async () => {
  const text = (offset: number, bytes: string) => (file: FsBlockFile) => {
    file.writeAt(offset, Uint8Array.from(bytes, (character) => character.charCodeAt(0)));
  };
  for (
    const [offset, bytes, name] of [
      [0x8001, "CD001", "iso"],
      [512, "EFI PART", "gpt"],
      [446, `\x80${"\0".repeat(3)}\x07${"\0".repeat(59)}\x55\xaa`, "mbr"],
    ] as const
  ) {
    const verdict = await judge(text(offset, bytes));
    assertEquals(refusals(verdict)[0], "ambiguous-format", name);
    assertEquals(verdict.findings[0]?.found, `qcow2, ${name}`);
  }
  const footer = await judge((file) => text(file.size - 512, "conectix")(file));
  assertEquals(footer.findings[0]?.found, "qcow2, vpc");
});

Deno.test("judgeUntrustedImage() refuses a format that was not declared, and others than raw and qcow2", async () => {
  assertEquals(refusals(await judge(() => {}, { format: "raw" })), ["format-mismatch"]);
  await withFolder((folder) => {
    const path = `${folder}/disk`;
    Deno.writeFileSync(path, filled(4096, 0));
    assertEquals(judgeUntrustedImage(path, { format: "raw" }).findings, []);
    assertEquals(refusals(judgeUntrustedImage(path, { format: "qcow2" })), ["format-mismatch"]);
    const guessed = judgeUntrustedImage(path);
    assertEquals([refusals(guessed), notes(guessed), guessed.virtualSize], [[], ["guessed-format"], 4096]);
    assertEquals(refusals(judgeUntrustedImage(path, { maxVirtualSize: 4095 })), ["virtual-size"]);
    Deno.writeTextFileSync(path, '# Disk DescriptorFile\nRW 63 FLAT "/etc/passwd" 0\n');
    const foreign = judgeUntrustedImage(path);
    assertEquals([refusals(foreign), foreign.format], [["foreign-format"], "vmdk"]);
    Deno.writeTextFileSync(path, "");
    assertEquals(refusals(judgeUntrustedImage(path)), []);
  });
});

Deno.test("judgeUntrustedImage() refuses disks that are larger than allowed", async () => {
  const create = { size: 2 * TIB };
  assertEquals(refusals(await judge(() => {}, { create })), ["virtual-size"]);
  assertEquals(refusals(await judge(() => {}, { create, maxVirtualSize: 2 * TIB })), []);
  assertEquals(refusals(await judge(() => {}, { maxVirtualSize: GIB - 1 })), ["virtual-size"]);
  const snapshot = await judge(() => {}, {
    maxVirtualSize: GIB,
    create: { size: 2 * GIB },
    fill: (disk) => {
      disk.createSnapshot("large");
      disk.resize(GIB, { shrink: true });
    },
  });
  assertEquals([refusals(snapshot), notes(snapshot)], [["virtual-size"], ["snapshots"]]);
});

Deno.test("judgeUntrustedImage() refuses a small file that becomes very much data", async () => {
  const verdict = await judge((file, { header }) => {
    // All clusters of the first 2 GiB lead to one compressed cluster.
    const table = Number(getUint64(file, header.l1TableOffset) & OFFSET_MASK);
    for (let index = 0; index < 4; index++) setUint64(file, header.l1TableOffset + index * 8, BigInt(table));
    const descriptor = getUint64(file, table);
    for (let index = 0; index < CLUSTER / 8; index++) setUint64(file, table + index * 8, descriptor);
  }, {
    create: { size: 2 * GIB },
    fill: (disk) => disk.writeCompressedAt(0, filled(CLUSTER, 1)),
  });
  assert(refusals(verdict).includes("inflation"));
});

Deno.test("judgeUntrustedImage() refuses damaged headers and versions that do not exist", async () => {
  assertEquals(refusals(await judge((file) => setUint32(file, 20, 40))), ["damaged-header"]);
  assertEquals(refusals(await judge((file) => setUint32(file, 4, 9))), ["unsupported-version"]);
  assertEquals(refusals(await judge((file) => file.truncate(60))), ["damaged-header"]);
  assertEquals(refusals(await judge((file) => setUint32(file, 36, 0x7fffffff))), ["damaged-header"]);
});

Deno.test("judgeUntrustedImage() refuses tables outside of the file, and tables that contradict each other", async () => {
  for (const position of [40, 48]) {
    assertEquals(refusals(await judge((file) => setUint64(file, position, 1n << 40n))), ["damaged-tables"]);
  }
  const overlap = await judge((file, { header }) => {
    const table = Number(getUint64(file, header.l1TableOffset) & OFFSET_MASK);
    setUint64(file, table, BigInt(header.l1TableOffset));
  });
  assertEquals(refusals(overlap), ["damaged-tables"]);
  const leak = await judge((file, { header }) => {
    const table = Number(getUint64(file, header.l1TableOffset) & OFFSET_MASK);
    setUint64(file, table, 0n);
  });
  assertEquals([refusals(leak), notes(leak)], [[], ["leaks"]]);
});

Deno.test("judgeUntrustedImage() does a bounded amount of work, be there many tables or many ways to one", async () => {
  const options = { create: { size: 8 * TIB }, maxVirtualSize: 8 * TIB };
  const pointing =
    (offset: (index: number) => bigint) => (file: FsBlockFile, { header }: Pick<Qcow2File, "header">) => {
      const entries = new DataView(new ArrayBuffer(header.l1EntryCount * 8));
      for (let index = 0; index < header.l1EntryCount; index++) entries.setBigUint64(index * 8, offset(index));
      file.writeAt(header.l1TableOffset, new Uint8Array(entries.buffer));
    };
  const one = await judge((file, disk) => {
    const entry = getUint64(file, disk.header.l1TableOffset);
    pointing(() => entry)(file, disk);
  }, options);
  assertEquals(refusals(one), ["damaged-tables", "inflation"]);
  const many = await judge((file, disk) => {
    // A gigabyte of tables in a hole of the file.
    pointing((index) => BigInt(MIB + index * CLUSTER))(file, disk);
    file.truncate(MIB + disk.header.l1EntryCount * CLUSTER);
  }, options);
  assertEquals(refusals(many), ["excessive-tables"]);
});

Deno.test("judgeUntrustedImage() refuses to look at what is no file", () => {
  assertCode("unsupported", () => judgeUntrustedImage("/dev/null"));
  assertCode("unsupported", () => judgeUntrustedImage("."));
  assertThrows(() => judgeUntrustedImage("/nonexistent/image"), Qcow2Error);
});

qemuTest("judgeUntrustedImage() agrees with what QEMU makes", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    const secret = ["--object", "secret,id=s,data=abc"];
    const encrypt = "encrypt.format=aes,encrypt.key-secret=s";
    for (
      const [args, expected] of [
        [["-o", "extended_l2=on", path, "10M"], []],
        [["-o", "compression_type=zstd", path, "10M"], []],
        [["-o", "lazy_refcounts=on", path, "10M"], []],
        [["-o", "preallocation=metadata", path, "10M"], []],
        [["-o", `data_file=${folder}/data`, path, "10M"], ["data-file"]],
        [["-u", "-b", "json:{}", "-F", "raw", path, "10M"], ["backing-file"]],
        [[...secret, "-o", encrypt, path, "10M"], ["encryption"]],
      ] as const
    ) {
      qemuImg("create", "-q", "-f", "qcow2", ...args);
      assertEquals(refusals(judgeUntrustedImage(path, { format: "qcow2" })), [...expected], args.join(" "));
    }
    for (const format of ["vmdk", "vdi", "vhdx", "vpc", "qcow", "qed", "parallels"]) {
      const { code } = run("qemu-img", ["create", "-q", "-f", format, path, "10M"]);
      if (code !== 0) continue;
      assertEquals(refusals(judgeUntrustedImage(path)).at(-1), "foreign-format", format);
      assertEquals(judgeUntrustedImage(path).format, format);
    }
  });
});
