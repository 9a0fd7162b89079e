import { assertEquals } from "@std/assert";
import { Qcow2File } from "../../mod.ts";
import { qemuTest } from "../qemu.ts";
import { assertSame, Folder, program, qemuImg, qemuIo } from "./_program.ts";

/** An image with a snapshot of each name, with a time that does not pass. */
function makeSnapshots(path: string, ...names: readonly string[]): void {
  qemuImg("create", "-q", "-f", "qcow2", path, "1M");
  using disk = Qcow2File.open(path, { write: true });
  for (const [index, name] of names.entries()) {
    disk.writeAt(index * 1000, new Uint8Array(3000).fill(index + 1));
    disk.createSnapshot(name, { date: new Date(1_700_000_000_000 + index) });
  }
}

/** What an image holds, without times. */
function contentOf(path: string): unknown {
  using disk = Qcow2File.open(path);
  const bytes = new Uint8Array(disk.size);
  disk.readAt(0, bytes);
  return {
    bytes,
    snapshots: disk.snapshots.map(({ id, name }) => [id, name]),
    check: qemuImg("check", "-q", path).code,
  };
}

qemuTest("snapshot lists as qemu-img does", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeSnapshots(path, "one", "a name with spaces that is long é", "");
  await assertSame(["snapshot", "-l", path]);
  await assertSame(["snapshot", "-q", "-U", "-l", path]);
  await assertSame(["snapshot", path]);
  makeSnapshots(path);
  await assertSame(["snapshot", "-l", path]);
});

qemuTest("snapshot makes, applies and deletes as qemu-img does", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  const prepare = () => makeSnapshots(path, "one", "two", "2", "two");
  const outcome = () => contentOf(path);
  for (
    const action of [
      ["-c", "new"],
      ["-c", "two"],
      ["-c", ""],
      ["-c", "n".repeat(300)],
      ["-a", "one"],
      ["-a", "2"],
      ["-a", "two"],
      ["-a", "nothing"],
      ["-d", "one"],
      ["-d", "two"],
      ["-d", "2"],
      ["-d", "1"],
      ["-q", "-d", "nothing"],
    ]
  ) {
    await assertSame(["snapshot", ...action, path], { prepare, outcome });
  }
});

qemuTest("snapshot refuses what qemu-img refuses", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeSnapshots(path, "one");
  for (
    const args of [
      [],
      [path, path],
      ["-l", "-a", "one", path],
      ["-l", "-l", path],
      ["-c", "x", "-d", "one", path],
      ["-a", "one", "-a", "one", path],
      ["-c"],
      ["-f", "qcow2", "-l", path],
      ["-U", "-c", "x", path],
      ["-l", folder.path("nothing")],
      ["-a", "one", folder.path("nothing")],
    ]
  ) {
    await assertSame(["snapshot", ...args]);
  }
  const raw = folder.path("disk.raw");
  Deno.writeFileSync(raw, new Uint8Array(65536));
  for (const args of [["-l"], ["-c", "x"], ["-a", "x"], ["-d", "x"]]) {
    await assertSame(["snapshot", ...args, raw], { anyErrorText: true });
  }
});

qemuTest("snapshot refuses images with a data file as qemu-img does", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  for (const options of ["data_file_raw=off", "data_file_raw=on", "extended_l2=on"]) {
    const created = `data_file=${folder.path("data")},${options}`;
    for (const args of [["-l"], ["-c", "x"], ["-a", "x"], ["-a", "1"], ["-d", "x"], ["-q", "-c", "x"]]) {
      await assertSame(["snapshot", ...args, path], {
        prepare: () => {
          qemuImg("create", "-q", "-f", "qcow2", "-o", created, path, "1M");
          qemuIo(path, "write -P 1 0 100k");
        },
        outcome: () => [Deno.readFileSync(path), Deno.readFileSync(folder.path("data"))],
      });
    }
  }
});

/** Adds an image with a snapshot an external data file, which no program does. */
function giveDataFile(path: string, name: string): void {
  const bytes = Deno.readFileSync(path);
  const view = new DataView(bytes.buffer);
  view.setUint32(76, view.getUint32(76) | 4);
  const start = view.getUint32(100);
  bytes.copyWithin(start + 16, start, start + 1000);
  view.setUint32(start, 0x44415441);
  view.setUint32(start + 4, name.length);
  bytes.fill(0, start + 8, start + 16).set(new TextEncoder().encode(name), start + 8);
  Deno.writeFileSync(path, bytes);
}

qemuTest("Snapshots in an image with a data file are told by check, and neither listed nor touched", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeSnapshots(path, "one", "two");
  giveDataFile(path, "d");
  Deno.writeFileSync(folder.path("d"), new Uint8Array(1 << 20));
  const before = Deno.readFileSync(path);
  const cwd = Deno.cwd();
  Deno.chdir(folder.path("."));
  try {
    await assertSame(["snapshot", "-l", path]);
    await assertSame(["info", path]);
    await assertSame(["info", "--output=json", path]);
    await assertSame(["check", path]);
  } finally {
    Deno.chdir(cwd);
  }
  for (const args of [["snapshot", "-c", "x"], ["snapshot", "-a", "one"], ["snapshot", "-d", "one"]]) {
    const { code, stderr } = await program(...args, path);
    assertEquals([code, stderr.split("\n").length], [1, 2], stderr);
  }
  const target = folder.path("target");
  assertEquals((await program("convert", "-O", "raw", "-l", "one", path, target)).code, 1);
  assertEquals(Deno.readFileSync(path), before);
  assertEquals(folder.names(), ["d", "disk.qcow2"]);
});

qemuTest("snapshot leaves an image alone whose refcounts cannot rise", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  qemuImg("create", "-q", "-f", "qcow2", "-o", "refcount_bits=1", path, "1M");
  qemuIo(path, "write -P 1 0 100k");
  const before = contentOf(path);
  const { code, stdout, stderr } = await program("snapshot", "-c", "x", path);
  assertEquals([code, stdout], [1, ""]);
  assertEquals(stderr, "qcow2: Could not create snapshot 'x': -22 (Invalid argument)\n");
  assertEquals(contentOf(path), before);
});

qemuTest("convert -l reads a snapshot as qemu-img does", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  qemuImg("create", "-q", "-f", "qcow2", path, "40M");
  qemuIo(path, "write -P 1 0 1M", "write -P 3 20M 4M", "write -z 22M 64k");
  qemuImg("snapshot", "-c", "first", path);
  qemuIo(path, "write -P 9 0 3M", "discard 20M 2M");
  qemuImg("snapshot", "-c", "second, and last", path);
  qemuIo(path, "write -P 10 1M 30M");
  const target = folder.path("target.raw");
  for (
    const parameter of [
      "first",
      "2",
      "second, and last",
      "snapshot.id=1",
      "snapshot.name=second,, and last",
      "snapshot.id=1,snapshot.name=first",
      "snapshot.id=2,snapshot.name=first",
      "nothing",
      "snapshot.id=7",
    ]
  ) {
    await assertSame(["convert", "-f", "qcow2", "-O", "raw", "-l", parameter, path, target], {
      prepare: () => Deno.writeTextFileSync(target, ""),
      outcome: () => qemuImg("info", "--output=json", target).code === 0 && digest(target),
    });
  }
  await assertSame(["convert", "-O", "raw", "-l", "first", path, path, target]);
  await assertSame(["convert", "-f", "raw", "-O", "raw", "-l", "first", path, target]);
});

function digest(path: string): number {
  let sum = Deno.statSync(path).size;
  const bytes = Deno.readFileSync(path);
  const words = new Uint32Array(bytes.buffer, 0, Math.floor(bytes.length / 4));
  for (const word of words) sum = (Math.imul(sum, 31) + word) | 0;
  return sum;
}
