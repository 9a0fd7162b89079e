import { assertEquals } from "@std/assert";
import { qemuTest, run } from "../qemu.ts";
import { assertSame, Folder, makeFile, makeVariedImage, patch, qemuImg, qemuIo } from "./_program.ts";

qemuTest("check says of sound images what qemu-img says", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  const compressed = folder.path("compressed.qcow2");
  qemuImg("create", "-q", "-f", "qcow2", path, "1G");
  await assertSame(["check", path]);
  makeVariedImage(path);
  qemuImg("convert", "-c", "-O", "qcow2", path, compressed);
  // Not both in one image: there, QEMU 7.2 forgets the snapshots when it repairs.
  const withBitmap = folder.path("bitmap.qcow2");
  Deno.copyFileSync(path, withBitmap);
  qemuImg("bitmap", "--add", withBitmap, "b0");
  qemuImg("snapshot", "-c", "one", path);
  for (const image of [path, withBitmap, compressed]) {
    for (const args of [[], ["--output", "json"], ["-q"], ["-r", "leaks"], ["-rall"], ["-U", "-T", "none"]]) {
      await assertSame(["check", ...args, image]);
    }
  }
});

qemuTest("check rounds percentages as C does", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  // One cluster of 32 is 3.125 percent.
  qemuImg("create", "-q", "-f", "qcow2", path, "2M");
  makeFile(folder.path("disk.raw"), 2 << 20, { 0: "data" });
  qemuImg("convert", "-O", "qcow2", folder.path("disk.raw"), path);
  await assertSame(["check", path]);
});

/** Two clusters that nobody uses, with refcounts of 1 and 2. */
const LEAKS: readonly [number, ...number[]] = [0x20000 + 2 * 40, 0, 1, 0, 2];
/** The COPIED flag of an L1 entry and of an L2 entry. */
const COPIED_FLAGS: readonly (readonly [number, ...number[]])[] = [[0x30000, 0], [0x40000, 0]];

qemuTest("check finds leaks and mends them as qemu-img does", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  const prepare = () => {
    makeVariedImage(path);
    patch(path, LEAKS);
  };
  await assertSame(["check", path], { prepare });
  await assertSame(["check", "--output", "json", path], { prepare });
  await assertSame(["check", "-q", path], { prepare });
  const outcome = () => qemuImg("check", path);
  for (const repair of ["leaks", "all"]) {
    await assertSame(["check", "-r", repair, path], { prepare, outcome });
    await assertSame(["check", "-r", repair, "--output", "json", path], { prepare, outcome });
  }
});

qemuTest("check finds wrong flags and mends them as qemu-img does", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  const prepare = () => {
    makeVariedImage(path);
    patch(path, ...COPIED_FLAGS);
  };
  await assertSame(["check", path], { prepare });
  await assertSame(["check", "--output", "json", path], { prepare });
  const outcome = () => qemuImg("check", path);
  await assertSame(["check", "-r", "all", path], { prepare, outcome });
  await assertSame(["check", "-r", "all", "--output", "json", path], { prepare, outcome });
});

qemuTest("check clears the dirty and the corrupt bit as qemu-img does", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  for (const bit of [1, 2]) {
    const prepare = () => {
      qemuImg("create", "-q", "-f", "qcow2", path, "1G");
      patch(path, [79, bit]);
    };
    await assertSame(["check", path], { prepare });
    await assertSame(["check", "-r", "all", path], { prepare, outcome: () => Deno.readFileSync(path)[79] });
  }
});

interface Damage {
  readonly what: string;
  readonly options?: string;
  readonly snapshot?: boolean;
  /** Where in the image, and the bytes there. */
  readonly patches: (snapshotTable: number) => readonly (readonly [number, ...number[]])[];
}

/**
 * In clusters: header, refcount table, refcount block, L1 table, L2 table, then data. Where QEMU itself gives up on a repair,
 * there is nothing to compare with.
 */
const DAMAGES: readonly Damage[] = [
  { what: "a refcount of 0", patches: () => [[0x20000 + 2 * 5, 0, 0]] },
  { what: "a refcount of 0 and leaks", patches: () => [[0x20000 + 2 * 5, 0, 0], LEAKS] },
  { what: "a refcount that is too low", snapshot: true, patches: () => [[0x20000 + 2 * 6, 0, 1]] },
  { what: "a refcount that is too high", patches: () => [[0x20000 + 2 * 6, 0, 7]] },
  { what: "no refcount block", patches: () => [[0x10000, 0, 0, 0, 0, 0, 0, 0, 0]] },
  { what: "a refcount block behind the end", patches: () => [[0x10008, 0, 0, 0, 0, 0x10, 0, 0, 0]] },
  { what: "two entries for one refcount block", patches: () => [[0x10008, 0, 0, 0, 0, 0, 2, 0, 0]] },
  { what: "no refcount table", patches: () => [[56, 0, 0, 0, 0]] },
  { what: "an L2 table that is not aligned", patches: () => [[0x30006, 2]] },
  { what: "an L2 table behind the end", patches: () => [[0x30004, 0x10]] },
  { what: "reserved bits", patches: () => [[0x30007, 1], [0x40007, 2], [0x40008, 0x81]] },
  { what: "a data cluster that is not aligned", patches: () => [[0x40006, 2]] },
  { what: "zero clusters that are not aligned", patches: () => [[0x40006, 2, 1], [0x4000e, 4, 1]] },
  { what: "a data cluster behind the end", patches: () => [[0x40004, 0x10]] },
  { what: "two entries for one cluster", patches: () => [[0x40008, 0x80, 0, 0, 0, 0, 5, 0, 0]] },
  {
    what: "more references than a refcount can count",
    options: "refcount_bits=1",
    patches: () => [[0x40008, 0x80, 0, 0, 0, 0, 5, 0, 0]],
  },
  { what: "a snapshot's L1 table that is not aligned", snapshot: true, patches: (table) => [[table + 6, 2]] },
  { what: "a snapshot's L1 table that is too large", snapshot: true, patches: (table) => [[table + 8, 0x10]] },
  { what: "a snapshot with too much extra data", snapshot: true, patches: (table) => [[table + 36, 0, 1, 0, 0]] },
  { what: "a snapshot with too little extra data", snapshot: true, patches: (table) => [[table + 36, 0, 0, 0, 8]] },
  { what: "a snapshot table at no cluster", snapshot: true, patches: () => [[70, 2]] },
  {
    what: "subclusters that contradict each other",
    options: "extended_l2=on",
    patches: () => [[0x40008, 0, 0, 0, 1], [0x4028c, 0, 0, 0, 1]],
  },
];

for (const { what, options = "compat=1.1", snapshot = false, patches } of DAMAGES) {
  qemuTest(`check says the same of ${what}, and mends as much`, async () => {
    using folder = new Folder();
    const path = folder.path("disk.qcow2");
    const sound = folder.path("sound.qcow2");
    qemuImg("create", "-q", "-f", "qcow2", "-o", options, sound, "1G");
    qemuIo(sound, "write -P 1 0 128k", "write -P 2 1M 64k", "write -z 3M 64k");
    if (snapshot) qemuImg("snapshot", "-c", "one", sound);
    const header = new DataView(Deno.readFileSync(sound).buffer);
    const table = Number(header.getBigUint64(64));
    const prepare = () => {
      Deno.copyFileSync(sound, path);
      patch(path, ...patches(table));
    };
    const outcome = () => qemuImg("check", path);
    for (const args of [[], ["-r", "leaks"], ["-r", "all"], ["-r", "all", "--output", "json"]]) {
      await assertSame(["check", ...args, path], { prepare, outcome });
    }
  });
}

qemuTest("check says what it cannot examine", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  const prepare = () => {
    makeVariedImage(path);
    patch(path, [0x10006, 2]);
  };
  await assertSame(["check", path], { prepare });
  await assertSame(["check", "--output", "json", path], { prepare });
  await assertSame(["check", "-r", "leaks", path], { prepare });
});

qemuTest("check mends an image with too many snapshots", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  const prepare = () => {
    qemuImg("create", "-q", "-f", "qcow2", "-o", "compat=0.10", path, "1G");
    qemuImg("snapshot", "-c", "one", path);
    // Behind the table's end there are zeroes: entries without anything.
    patch(path, [60, 0, 1, 0, 1], [0x400000, 0]);
  };
  await assertSame(["check", path], { prepare });
  await assertSame(["check", "-r", "all", path], { prepare, outcome: () => qemuImg("check", path) });
});

qemuTest("Whoever opens an image with a snapshot table that is too long learns what takes that away", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  const prepare = () => {
    qemuImg("create", "-q", "-f", "qcow2", path, "1M");
    qemuImg("snapshot", "-c", "one", path);
    // The entry claims more extra data than may be.
    const table = Number(new DataView(Deno.readFileSync(path).buffer).getBigUint64(64));
    patch(path, [table + 36, 0, 0, 0x10, 0]);
  };
  await assertSame(["snapshot", "-l", path], { prepare });
  await assertSame(["info", path], { prepare });
});

qemuTest("check fails with the words of qemu-img", async () => {
  using folder = new Folder();
  const path = folder.path("disk.raw");
  makeFile(path, 1000);
  for (
    const args of [
      [],
      [path],
      ["-f", "raw", path],
      ["--output", "json", path],
      ["-f", "qcow2", path],
      ["-f", "foo", path],
      ["-r", "foo", path],
      ["-r"],
      ["-T", "foo", path],
      ["--output", "foo", path],
      [folder.path("none")],
      ["-r", "all", "-U", folder.path("none")],
      [path, path],
    ]
  ) {
    await assertSame(["check", ...args]);
  }
  assertEquals(folder.names(), ["disk.raw"]);
});

qemuTest("Whoever writes to an image that was not closed properly learns what was mended in it", async () => {
  using folder = new Folder();
  const [dirty, path] = [folder.path("dirty"), folder.path("disk.qcow2")];
  qemuImg("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", dirty, "2M");
  run("qemu-io", ["-c", "write 0 128k", "-c", "flush", "-c", "sigraise 9", dirty]);
  const prepare = () => Deno.copyFileSync(dirty, path);
  for (
    const args of [
      ["resize", path, "3M"],
      ["bitmap", "--add", path, "one"],
      ["snapshot", "-c", "one", path],
      ["amend", "-o", "lazy_refcounts=off", path],
      ["commit", path],
      ["info", path],
    ]
  ) {
    await assertSame(args, { prepare, outcome: () => qemuImg("check", path).code });
  }
});
