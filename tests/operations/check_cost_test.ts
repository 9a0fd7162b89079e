import { assert, assertEquals } from "@std/assert";
import { type CheckFinding, checkImage, Qcow2File, type RepairKind } from "../../mod.ts";
import { encodeSnapshot, encodeSnapshotExtra } from "../../lib/format/mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import {
  assertQemuClean,
  copyOf,
  emptyImage,
  filled,
  getUint64,
  KIB,
  MIB,
  qemuCheck,
  RecordingFile,
  setUint32,
  setUint64,
  withFolder,
} from "../images.ts";
import { qemuTest, run } from "../qemu.ts";
import { Random } from "../random.ts";

const CLUSTER = 512;
const COPIED = 1n << 63n;
/** Bytes of the disk that an L1 entry maps. */
const SPAN = CLUSTER * CLUSTER / 8;

/** An image whose L1 entries all name the same L2 table, which is full. */
function sharedTable(entryCount: number): MemoryBlockFile {
  const file = emptyImage({ size: entryCount * SPAN, clusterSize: CLUSTER, refcountBits: 64 });
  const disk = Qcow2File.open(file, { write: true });
  disk.writeAt(0, filled(SPAN, 1));
  disk.flush();
  const l1 = disk.header.l1TableOffset;
  const entry = new Uint8Array(8);
  file.readAt(l1, entry);
  const table = new Uint8Array(entryCount * 8);
  for (let at = 0; at < table.length; at += 8) table.set(entry, at);
  file.writeAt(l1, table);
  return copyOf(file);
}

/** Checks an image; tells what was found and how often the file was read. */
function checked(file: MemoryBlockFile, repair?: RepairKind) {
  const findings: CheckFinding[] = [];
  const recording = new RecordingFile(file);
  const result = checkImage(recording, {
    onFinding: (finding) => findings.push(finding),
    ...(repair === undefined ? {} : { repair }),
  });
  return { ...result, findings, reads: recording.count("read") };
}

Deno.test("A check reads a table once or twice, however many L1 entries name it, and counts each of them", () => {
  const entryCount = 1_000_000;
  const file = sharedTable(entryCount);
  const table = Number(getUint64(file, Number(getUint64(file, 40))) & 0x00fffffffffffe00n);
  // One L2 entry lacks its flag, another one has a bit that means nothing.
  setUint64(file, table, getUint64(file, table) ^ COPIED);
  setUint64(file, table + 8, getUint64(file, table + 8) | 2n);
  const { reads, corruptions, allocatedClusters, findings } = checked(file);
  // Of each of the refcount blocks one, of the table four.
  assert(reads < 1000, `${reads} reads`);
  assertEquals(allocatedClusters, entryCount * 64);
  // Both are found by way of every L1 entry. The table and its 64 clusters have refcounts that are wrong.
  assertEquals(corruptions, 2 * entryCount + 65);
  assertEquals(findings.some(({ message }) => message.endsWith(` refcount=1 reference=${entryCount}`)), true);
  // Nobody can use a million times the same line.
  assert(findings.length < 20_000, `${findings.length} findings`);
});

Deno.test("A repair of a table that many L1 entries name reads it as seldom, and leaves nothing to find", () => {
  const file = sharedTable(200_000);
  assert(checked(MemoryBlockFile.from(file.toBytes()), "all").reads < 3000);
  const mended = copyOf(file);
  checkImage(mended, { repair: "all" });
  const { corruptions, leaks, reads } = checked(copyOf(mended));
  assertEquals([corruptions, leaks], [0, 0]);
  assert(reads < 1000, `${reads} reads`);
});

Deno.test("A check reads L1 tables of snapshots once where they lie over each other", () => {
  const file = sharedTable(64);
  const l1 = file.size;
  const snapshotCount = 3000;
  const l1ClusterCount = 200;
  const entry = new Uint8Array(8);
  file.readAt(Number(getUint64(file, 40)), entry);
  const table = new Uint8Array((snapshotCount + l1ClusterCount) * CLUSTER);
  for (let at = 0; at < table.length; at += 8) table.set(entry, at);
  file.writeAt(l1, table);
  const snapshots = file.size;
  const entries = Array.from({ length: snapshotCount }, (_, index) =>
    encodeSnapshot({
      l1TableOffset: l1 + index * CLUSTER,
      l1EntryCount: l1ClusterCount * 64,
      id: String(index),
      name: "",
      seconds: 0,
      nanoseconds: 0,
      vmClockNanoseconds: 0n,
      vmStateSize: 0,
      diskSize: 64 * SPAN,
      instructionCount: 0n,
      extraData: encodeSnapshotExtra(64 * SPAN),
    }));
  let position = snapshots;
  for (const bytes of entries) {
    file.writeAt(position, bytes);
    position += bytes.length;
  }
  setUint32(file, 60, snapshotCount);
  setUint64(file, 64, BigInt(snapshots));
  const { reads, findings } = checked(file);
  assert(reads < 10_000, `${reads} reads`);
  const references = 64 + snapshotCount * l1ClusterCount * 64;
  assertEquals(findings.some(({ message }) => message.endsWith(` refcount=1 reference=${references}`)), true);
});

/** An image whose L1 entries name a few tables, some of them broken, over and over. */
function tangled(random: Random): MemoryBlockFile {
  const file = emptyImage({ size: 8 * SPAN, clusterSize: CLUSTER });
  const disk = Qcow2File.open(file, { write: true });
  for (let offset = 0; offset < disk.size; offset += SPAN) {
    disk.writeAt(offset, filled(random.between(1, 20) * CLUSTER, 1));
    disk.writeCompressedAt(offset + 30 * CLUSTER, filled(3 * CLUSTER, 2));
  }
  if (random.oneIn(2)) disk.createSnapshot("one");
  disk.writeAt(0, filled(5 * CLUSTER, 3));
  if (random.oneIn(2)) disk.createSnapshot("two");
  disk.flush();
  const { l1TableOffset } = disk.header;
  const tables = disk.l1Table.map(({ hostOffset }) => hostOffset);
  for (let step = random.between(1, 6); step > 0; step--) {
    const entryAt = random.pick(tables) + random.below(64) * 8;
    const entry = getUint64(file, entryAt);
    setUint64(file, entryAt, entry ^ random.pick([1n << 63n, 2n, 4n, 1n << 9n, 1n << 40n, 1n << 62n]));
  }
  if (disk.snapshots.length === 2 && random.oneIn(2)) {
    // Both snapshots have the same L1 table, and one has only a part of it.
    const [first, second] = [0, 72].map((position) => disk.header.snapshotTableOffset + position);
    setUint64(file, second ?? 0, getUint64(file, first ?? 0));
    setUint32(file, (random.oneIn(2) ? first ?? 0 : second ?? 0) + 8, random.between(1, 7));
  }
  for (let step = random.between(1, 8); step > 0; step--) {
    const [from, to] = [random.below(8), random.below(8)];
    setUint64(
      file,
      l1TableOffset + to * 8,
      getUint64(file, l1TableOffset + from * 8) ^ random.pick([0n, 0n, 1n, 1n << 63n]),
    );
  }
  return copyOf(file);
}

qemuTest("What is found where tables are shared is what QEMU finds, each as often", () =>
  withFolder((folder) => {
    const path = `${folder}/tangled.qcow2`;
    for (let turn = 0; turn < 60; turn++) {
      const random = new Random(`tangled tables ${turn}`);
      const file = tangled(random);
      Deno.writeFileSync(path, file.toBytes());
      const { corruptions, leaks, allocatedClusters, fragmentedClusters, findings } = checked(file);
      const theirs = qemuCheck(path);
      const count = (key: string) => theirs.report[key] ?? 0;
      assertEquals([corruptions, leaks], [theirs.corruptions, theirs.leaks], `turn ${turn}`);
      assertEquals([allocatedClusters, fragmentedClusters], [
        count("allocated-clusters"),
        count("fragmented-clusters"),
      ]);
      const { stderr } = run("qemu-img", ["check", "-f", "qcow2", path]);
      assertEquals(
        findings.map(({ message }) => message),
        stderr.replaceAll(/^qcow2: .*\n/gm, "").split("\n").filter((line) => line !== ""),
        `turn ${turn}`,
      );
    }
  }));

qemuTest("QEMU finds nothing where shared tables were mended here", () =>
  withFolder((folder) => {
    const path = `${folder}/shared.qcow2`;
    const file = sharedTable(100);
    checkImage(file, { repair: "all" });
    Deno.writeFileSync(path, file.toBytes());
    assertQemuClean(path);
  }));

Deno.test("A check of a sparse file takes memory for what is there, wherever it points", () => {
  // Each L1 entry names a table in another part of a file of 8 TiB.
  const entryCount = 200_000;
  const file = emptyImage({ size: entryCount * SPAN, clusterSize: CLUSTER });
  const l1 = Number(getUint64(file, 40));
  const table = new Uint8Array(entryCount * 8);
  const view = new DataView(table.buffer);
  for (let index = 0; index < entryCount; index++) view.setBigUint64(index * 8, BigInt(index) * BigInt(40 * MIB));
  file.writeAt(l1, table);
  file.truncate(8 * 1024 * 1024 * MIB);
  const { corruptions } = checked(file);
  assert(corruptions >= entryCount - 1);
  assert(Deno.memoryUsage().rss < 2 * 1024 * MIB, `${Deno.memoryUsage().rss / KIB} KiB`);
});
