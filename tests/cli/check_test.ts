import { assertEquals } from "@std/assert";
import { qemuTest } from "../qemu.ts";
import { assertSame, Folder, makeFile, makeVariedImage, patch, qemuImg } from "./_program.ts";

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
    await assertSame(["check", "-r", repair, path], { prepare, outcome, anyErrorText: true });
    await assertSame(["check", "-r", repair, "--output", "json", path], { prepare, outcome, anyErrorText: true });
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
      [path, path],
    ]
  ) {
    await assertSame(["check", ...args]);
  }
  assertEquals(folder.names(), ["disk.raw"]);
});
