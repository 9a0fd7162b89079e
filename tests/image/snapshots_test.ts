import { assertEquals } from "@std/assert";
import { type BlockFile, checkImage, type LayoutOptions, Qcow2File, type Snapshot } from "../../mod.ts";
import {
  assertCode,
  copyOf,
  emptyImage,
  filled,
  getUint32,
  getUint64,
  KIB,
  MIB,
  readBytes,
  setUint32,
} from "../images.ts";
import { Random } from "../random.ts";

const CASES: readonly (LayoutOptions & { readonly name: string; readonly maxSnapshots: number })[] = [
  { name: "512-byte clusters, 64-bit refcounts", size: 700 * KIB, clusterSize: 512, refcountBits: 64, maxSnapshots: 4 },
  { name: "512-byte clusters, 2-bit refcounts", size: 300 * KIB, clusterSize: 512, refcountBits: 2, maxSnapshots: 2 },
  { name: "4 KiB clusters in version 2", size: 3 * MIB + 512, clusterSize: 4 * KIB, version: 2, maxSnapshots: 4 },
  { name: "64 KiB clusters", size: 5 * MIB, maxSnapshots: 4 },
  { name: "subclusters of 512 bytes", size: 2 * MIB + 512, clusterSize: 16 * KIB, extendedL2: true, maxSnapshots: 4 },
  { name: "subclusters of 2 KiB, 2-bit refcounts", size: 5 * MIB, extendedL2: true, refcountBits: 2, maxSnapshots: 2 },
];

function assertSound(file: BlockFile): void {
  const messages: string[] = [];
  const { corruptions, leaks } = checkImage(file, { lock: false, onFinding: ({ message }) => messages.push(message) });
  assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 }, messages.slice(0, 5).join("\n"));
}

/** Changes a disk in some places, by every means. */
function changeSome(disk: Qcow2File, model: Uint8Array, random: Random, steps: number): void {
  const cluster = disk.allocationSize;
  for (let step = 0; step < steps; step++) {
    const offset = random.below(disk.size);
    const length = Math.min(random.pick([1, 100, cluster, 3 * cluster + 5, 20 * cluster]), disk.size - offset);
    const end = offset + length;
    const first = Math.ceil(offset / cluster) * cluster;
    const last = end === disk.size ? end : Math.floor(end / cluster) * cluster;
    switch (random.below(6)) {
      case 0:
        disk.writeZeroesAt(offset, length, { unmap: random.oneIn(2) });
        model.fill(0, offset, end);
        break;
      case 1:
        disk.discardAt(offset, length);
        if (first < last) model.fill(0, first, last);
        break;
      case 2:
        // Compressed clusters share host clusters, which narrow refcounts cannot count.
        if (first < last && disk.header.refcountOrder > 2) {
          const data = filled(last - first, random.between(1, 255));
          disk.writeCompressedAt(first, data);
          model.set(data, first);
        }
        break;
      default: {
        const data = random.bytes(length);
        disk.writeAt(offset, data);
        model.set(data, offset);
      }
    }
  }
}

for (const { name, maxSnapshots, ...options } of CASES) {
  Deno.test(`Snapshots hold what the disk held, whatever is made, applied and deleted, with ${name}`, () => {
    const random = new Random(`snapshot model ${name}`);
    const file = emptyImage(options);
    let disk = Qcow2File.open(file, { write: true, cacheSize: random.pick([1, 65536]) });
    let model = new Uint8Array(disk.size);
    let kept: { snapshot: Snapshot; content: Uint8Array<ArrayBuffer> }[] = [];
    for (let turn = 0; turn < 24; turn++) {
      changeSome(disk, model, random, random.between(0, 12));
      const chosen = kept.length === 0 ? undefined : random.pick(kept);
      const action = random.below(4);
      if (action === 0 && chosen !== undefined) {
        disk.applySnapshot(chosen.snapshot.id);
        model = chosen.content.slice();
      } else if (action === 1 && chosen !== undefined) {
        disk.deleteSnapshot(chosen.snapshot.name);
        kept = kept.filter((entry) => entry !== chosen);
      } else if (kept.length < maxSnapshots) {
        kept.push({ snapshot: disk.createSnapshot(`turn ${turn}`), content: model.slice() });
      }
      if (random.oneIn(3)) {
        disk.flush();
        disk = Qcow2File.open(file, { write: true, lock: false, cacheSize: random.pick([1, 65536]) });
      }
      assertEquals(disk.snapshots, kept.map(({ snapshot }) => snapshot));
      assertEquals(readBytes(disk, 0, disk.size), model);
      for (const { snapshot, content } of kept) {
        assertEquals(readBytes(disk.openSnapshot(snapshot.id), 0, content.length), content);
      }
      disk.flush();
      assertSound(copyOf(file));
    }
    for (const { snapshot } of kept) disk.deleteSnapshot(snapshot.id);
    disk.flush();
    assertSound(copyOf(file));
    assertEquals(readBytes(disk, 0, disk.size), model);
    // Everything is the disk's own again: nothing is copied when it is written.
    for (const entry of disk.l1Table) assertEquals(entry.copied, entry.hostOffset !== 0);
  });
}

Deno.test("A refcount that cannot rise refuses the snapshot, and the image stays as it was", () => {
  const file = emptyImage({ size: MIB, refcountBits: 1 });
  const disk = Qcow2File.open(file, { write: true });
  disk.createSnapshot("of nothing");
  disk.writeAt(0, filled(100, 1));
  disk.flush();
  const before = file.toBytes();
  assertCode("refcount-overflow", () => disk.createSnapshot("second"));
  assertEquals(file.toBytes(), before);
  assertEquals(disk.snapshots.map(({ id }) => id), ["1"]);
  disk.writeAt(200, filled(100, 2));
  disk.applySnapshot("of nothing");
  assertEquals(readBytes(disk, 0, 300), filled(300, 0));
  disk.flush();
  assertSound(copyOf(file));
});

Deno.test("Snapshots are found by identifier, then by name, and numbered above all that are there", () => {
  const disk = Qcow2File.open(emptyImage({ size: MIB }), { write: true });
  const date = new Date(1_700_000_000_250);
  const first = disk.createSnapshot("2", { date });
  assertEquals([first.id, first.seconds, first.nanoseconds, first.diskSize], ["1", 1_700_000_000, 250_000_000, MIB]);
  assertEquals(disk.createSnapshot("b").id, "2");
  disk.deleteSnapshot("2");
  assertEquals(disk.snapshots.map(({ name }) => name), ["2"]);
  disk.deleteSnapshot("2");
  assertEquals(disk.createSnapshot("").id, "1");
  for (const act of [disk.applySnapshot, disk.deleteSnapshot, disk.openSnapshot]) {
    assertCode("invalid-argument", () => act.call(disk, "nothing"));
  }
  assertCode("invalid-argument", () => disk.createSnapshot("x".repeat(65536)));
  assertCode("invalid-argument", () => disk.createSnapshot("x", { date: new Date(-1) }));
});

Deno.test("A snapshot's disk can only be read, until it is deleted or the image closed", () => {
  const file = emptyImage({ size: MIB });
  const disk = Qcow2File.open(file, { write: true });
  disk.writeAt(5, filled(5, 1));
  disk.createSnapshot("a");
  disk.createSnapshot("b");
  const a = disk.openSnapshot("a");
  const b = disk.openSnapshot("b");
  assertEquals([...a.extents(0, MIB)].map(({ kind }) => kind), ["data", "unallocated"]);
  assertCode("read-only", () => a.writeAt(0, filled(1, 1)));
  assertCode("read-only", () => a.writeZeroesAt(0, 1));
  assertCode("read-only", () => a.discardAt(0, 1));
  assertCode("out-of-range", () => readBytes(a, MIB, 1));
  disk.deleteSnapshot("a");
  assertCode("closed", () => readBytes(a, 0, 1));
  assertEquals(readBytes(b, 5, 5), filled(5, 1));
  disk.close();
  assertCode("closed", () => readBytes(b, 0, 1));
  const reader = Qcow2File.open(copyOf(file));
  assertCode("read-only", () => reader.createSnapshot("c"));
});

Deno.test("Entries keep what is not known of them, byte for byte, when others come and go", () => {
  const file = emptyImage({ size: MIB });
  {
    const disk = Qcow2File.open(file, { write: true });
    for (const name of ["one", "two", "three"]) disk.createSnapshot(name);
    disk.flush();
  }
  // The second entry gets 32 bytes of extra data and a name that is no text.
  const table = getUint32(file, 68);
  const entries = new Uint8Array(3 * 72);
  file.readAt(table, entries);
  const odd = new Uint8Array(80);
  odd.set(entries.subarray(72, 136));
  new DataView(odd.buffer).setUint32(36, 32);
  odd.set([1, 2, 3, 4, 5, 6, 7, 8, 0x32, 0xff, 0xfe, 0xfd], 64);
  file.writeAt(table + 72, odd);
  file.writeAt(table + 152, entries.subarray(144));
  const disk = Qcow2File.open(file, { write: true });
  assertEquals(disk.snapshots.map(({ extraData }) => extraData.length), [24, 32, 24]);
  disk.createSnapshot("four");
  disk.deleteSnapshot("1");
  disk.applySnapshot("2");
  disk.flush();
  const kept = new Uint8Array(80);
  file.readAt(getUint32(file, 68), kept);
  assertEquals(kept, odd);
  assertEquals(disk.snapshots.map(({ id }) => id), ["2", "3", "4"]);
  assertSound(copyOf(file));
});

for (const { size, snapshots } of [{ size: 200 * MIB, snapshots: 10 }, { size: 1024 * MIB, snapshots: 12 }]) {
  Deno.test(`Tables of ${size / 32 / KIB / 64} clusters stand in one place, where a refcount block describes 64`, () => {
    const file = emptyImage({ size, clusterSize: 512, refcountBits: 64 });
    const disk = Qcow2File.open(file, { write: true });
    const step = Math.floor(size / snapshots);
    const turns = Array.from({ length: snapshots }, (_, turn) => turn);
    for (const turn of turns) {
      disk.writeAt(turn * step, filled(600, turn + 1));
      disk.createSnapshot(`a name that makes the table of snapshots longer than a cluster ${turn}`);
    }
    disk.flush();
    assertSound(copyOf(file));
    for (const turn of turns) {
      const snapshot = disk.openSnapshot(String(turn + 1));
      for (const other of turns) {
        assertEquals(readBytes(snapshot, other * step, 600), filled(600, other <= turn ? other + 1 : 0));
      }
    }
    for (const turn of turns) disk.deleteSnapshot(String(turn + 1));
    disk.flush();
    assertSound(copyOf(file));
  });
}

Deno.test("A state beyond the end of the disk, and a snapshot of another size, survive", () => {
  const file = emptyImage({ size: 64 * KIB, clusterSize: 512 });
  const big = 1 << 20;
  {
    // The L1 table is longer than the disk needs where a state was saved behind it.
    const disk = Qcow2File.open(file, { write: true });
    disk.writeAt(0, filled(64 * KIB, 1));
    disk.createSnapshot("small");
    disk.flush();
  }
  const cluster = file.size;
  file.truncate(cluster + 8 * 512);
  const l1 = new Uint8Array(512);
  file.readAt(getUint32(file, 44), l1);
  file.writeAt(cluster, l1);
  setUint32(file, 36, big / (64 * 512));
  setUint32(file, 44, cluster);
  setUint32(file, 28, big);
  checkImage(copyOf(file), { lock: false });
  const repaired = copyOf(file);
  checkImage(repaired, { lock: false, repair: "all" });
  const whole = copyOf(repaired);
  {
    const disk = Qcow2File.open(whole, { write: true });
    disk.writeAt(big - 1000, filled(1000, 3));
    disk.createSnapshot("large");
    disk.flush();
    // The header says less than the table holds: what lies behind is the state.
    setUint32(whole, 28, 128 * KIB);
  }
  const disk = Qcow2File.open(whole, { write: true });
  assertEquals(disk.size, 128 * KIB);
  disk.createSnapshot("with a state");
  disk.applySnapshot("small");
  assertEquals(disk.size, 64 * KIB);
  assertEquals(readBytes(disk, 0, 64 * KIB), filled(64 * KIB, 1));
  disk.applySnapshot("with a state");
  assertEquals([disk.size, disk.l1Table.length], [128 * KIB, 32]);
  assertEquals(disk.l1Table[31]?.hostOffset === 0, false);
  disk.applySnapshot("large");
  assertEquals(disk.size, big);
  assertEquals(readBytes(disk, big - 1000, 1000), filled(1000, 3));
  disk.flush();
  assertSound(copyOf(whole));
  for (const { id } of disk.snapshots) disk.deleteSnapshot(id);
  disk.flush();
  assertSound(copyOf(whole));
});

Deno.test("Snapshots have 24 bytes of extra data in both versions, as QEMU writes them", () => {
  for (const version of [2, 3] as const) {
    const file = emptyImage({ size: MIB, version });
    using disk = Qcow2File.open(file, { write: true });
    disk.createSnapshot("first");
    const { snapshotTableOffset } = disk.header;
    assertEquals(getUint32(file, snapshotTableOffset + 36), 24);
    // Size of the state, size of the disk, and a count of instructions.
    assertEquals([0, 8, 16].map((at) => getUint64(file, snapshotTableOffset + 40 + at)), [0n, BigInt(MIB), 0n]);
  }
});
