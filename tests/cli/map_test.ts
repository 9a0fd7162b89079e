import { qemuTest } from "../qemu.ts";
import { assertSame, Folder, makeFile, makeVariedImage, patch, qemuImg, qemuIo } from "./_program.ts";

/** Compares the table and the list. */
async function assertSameMap(...args: string[]): Promise<void> {
  await assertSame(["map", ...args]);
  await assertSame(["map", "--output", "json", ...args]);
}

qemuTest("map tells of qcow2 images what qemu-img tells", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  const compressed = folder.path("compressed.qcow2");
  for (const options of ["compat=1.1", "compat=0.10", "cluster_size=512", "cluster_size=2M"]) {
    makeVariedImage(path, options);
    await assertSameMap(path);
  }
  qemuImg("convert", "-c", "-O", "qcow2", path, compressed);
  await assertSameMap(compressed);
  qemuImg("snapshot", "-c", "one", path);
  qemuIo(path, "write 0 64k");
  await assertSameMap(path);
  await assertSameMap("-f", "raw", path);
});

qemuTest("map tells where parts of a cluster stand that are not allocated", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  const overlay = folder.path("overlay.qcow2");
  qemuImg("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", path, "1M");
  qemuIo(path, "write -P 1 4k 2k", "write -z 64k 2k");
  await assertSameMap(path);
  qemuImg("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "-b", path, "-F", "qcow2", overlay, "2M");
  qemuIo(overlay, "write -P 1 1020k 2k", "write -P 2 4k 2k");
  await assertSameMap(overlay);
});

qemuTest("map begins and ends where it is told to", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeVariedImage(path);
  for (
    const args of [
      ["--start-offset", "21000000"],
      ["--start-offset=21000000", "--max-length=1M"],
      ["-s", "5M"],
      ["-l", "1.5M"],
      ["-s", "100", "-l", "700"],
      ["-l", "0"],
      ["-s", "5G"],
      ["-s", "1023M", "-l", "7E"],
    ]
  ) {
    await assertSameMap(...args, path);
  }
});

qemuTest("map tells holes of raw images", async () => {
  using folder = new Folder();
  const path = folder.path("disk.raw");
  for (
    const [length, data] of [[0, {}], [5, { 0: "hello" }], [1000, {}], [10_000_000, { 5_000_000: "data" }], [
      5_000_100,
      { 5_000_000: "data" },
    ]] as const
  ) {
    makeFile(path, length, data);
    await assertSameMap(path);
    await assertSameMap("-s", "1000", path);
  }
});

qemuTest("map tells holes of the host's file in preallocated images only", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  qemuImg("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "16M");
  await assertSameMap(path);
  qemuIo(path, "write 1M 100k", "write 5M 4k", "write 10000k 64k");
  await assertSameMap(path);
  await assertSameMap("-s", "1100k", "-l", "4M", path);
  makeVariedImage(path);
  Deno.truncateSync(path, 1 << 20);
  await assertSameMap(path);
});

qemuTest("map fails with the words of qemu-img", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeVariedImage(path);
  for (
    const args of [
      [],
      [path, path],
      [folder.path("none")],
      ["--start-offset", "foo", path],
      ["-s", "-5", path],
      ["--max-length=16E", path],
      ["--max-length=foo", path],
      ["--output=foo", path],
      ["-f", "foo", path],
    ]
  ) {
    await assertSame(["map", ...args]);
  }
});

qemuTest("map prints what it found before the damage", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeVariedImage(path);
  patch(path, [0x40000 + 8 * 320 + 6, 2]);
  await assertSame(["map", path]);
  await assertSame(["map", "--output=json", path]);
});
