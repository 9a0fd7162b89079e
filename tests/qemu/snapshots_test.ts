import { assertEquals } from "@std/assert";
import { checkImage, Qcow2File } from "../../mod.ts";
import { assertQemuClean, filled, KIB, MIB, qemuCheck, qemuImg, qemuIo, readBytes, withFolder } from "../images.ts";
import { qemuTest } from "../qemu.ts";
import { Random } from "../random.ts";

interface Case {
  readonly name: string;
  readonly options: string;
  readonly size: number;
}

const CASES: readonly Case[] = [
  { name: "512-byte clusters", options: "cluster_size=512", size: 2 * MIB },
  { name: "4 KiB clusters and 2-bit refcounts", options: "cluster_size=4096,refcount_bits=2", size: 8 * MIB },
  { name: "4 KiB clusters in version 2", options: "cluster_size=4096,compat=0.10", size: 8 * MIB },
  { name: "64 KiB clusters and 64-bit refcounts", options: "refcount_bits=64", size: 30 * MIB },
  { name: "2 MiB clusters", options: "cluster_size=2M", size: 30 * MIB },
];

/** Asserts that neither QEMU nor the check here finds anything. */
function assertClean(image: string): void {
  assertQemuClean(image);
  const { corruptions, leaks } = checkImage(image);
  assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
}

/** Changes a disk in many places, by every means. */
function changeAllOver(disk: Qcow2File, model: Uint8Array, random: Random): void {
  const cluster = disk.allocationSize;
  for (let step = 0; step < 150; step++) {
    const offset = random.below(disk.size);
    const length = Math.min(random.pick([1, 100, cluster, 3 * cluster + 5]), disk.size - offset);
    const end = offset + length;
    switch (random.below(5)) {
      case 0:
        disk.writeZeroesAt(offset, length, { unmap: random.oneIn(2) });
        model.fill(0, offset, end);
        break;
      case 1: {
        const first = Math.ceil(offset / cluster) * cluster;
        disk.discardAt(offset, length);
        const last = end === disk.size ? end : Math.floor(end / cluster) * cluster;
        if (first < last) model.fill(0, first, last);
        break;
      }
      case 2:
        if (random.oneIn(8)) disk.flush();
        break;
      default: {
        const data = random.bytes(length);
        disk.writeAt(offset, data);
        model.set(data, offset);
      }
    }
  }
}

for (const { name, options, size } of CASES) {
  qemuTest(`Writes here leave the snapshots of an image alone, with ${name}`, () =>
    withFolder((folder) => {
      const random = new Random(`snapshots ${name}`);
      const image = `${folder}/disk.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", options, image, String(size));
      const model = new Uint8Array(size);
      const snapshots: [name: string, content: Uint8Array][] = [];
      for (const snapshot of ["first", "second", "third"]) {
        using disk = Qcow2File.open(image, { write: true, cacheSize: 1 });
        changeAllOver(disk, model, random);
        disk.close();
        assertClean(image);
        // Two bits count to three, and QEMU needs one more than there are snapshots and disks while it applies one.
        if (options.includes("refcount_bits=2") && snapshots.length === 1) break;
        qemuImg("snapshot", "-c", snapshot, image);
        snapshots.push([snapshot, model.slice()]);
      }
      {
        using disk = Qcow2File.open(image, { write: true });
        changeAllOver(disk, model, random);
        assertEquals(disk.snapshots.map((entry) => entry.name), snapshots.map(([snapshot]) => snapshot));
      }
      assertClean(image);
      {
        using disk = Qcow2File.open(image);
        assertEquals(readBytes(disk, 0, size), model);
      }
      for (const [snapshot, content] of snapshots) {
        qemuImg("snapshot", "-a", snapshot, image);
        assertClean(image);
        using disk = Qcow2File.open(image);
        assertEquals(readBytes(disk, 0, size), content);
      }
      qemuImg("snapshot", "-d", "first", image);
      {
        using disk = Qcow2File.open(image, { write: true });
        model.set(snapshots.at(-1)?.[1] ?? new Uint8Array());
        changeAllOver(disk, model, random);
      }
      assertClean(image);
      qemuImg("convert", "-f", "qcow2", "-O", "raw", image, `${folder}/disk.raw`);
      assertEquals(Deno.readFileSync(`${folder}/disk.raw`), model);
    }));
}

qemuTest("snapshots tells what qemu-img wrote", () =>
  withFolder((folder) => {
    for (const compat of ["0.10", "1.1"]) {
      const image = `${folder}/disk.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", `compat=${compat}`, image, "10M");
      const before = Math.floor(Date.now() / 1000) - 1;
      qemuImg("snapshot", "-c", "with a name of some length, ünicode", image);
      qemuImg("snapshot", "-c", "b", image);
      using disk = Qcow2File.open(image);
      const [first, second] = disk.snapshots;
      assertEquals([first?.id, first?.name], ["1", "with a name of some length, ünicode"]);
      assertEquals([second?.id, second?.name], ["2", "b"]);
      assertEquals([first?.diskSize, first?.vmStateSize, first?.l1EntryCount], [10 * MIB, 0, 1]);
      assertEquals(first?.vmClockNanoseconds, 0n);
      assertEquals((first?.seconds ?? 0) >= before, true);
    }
  }));

qemuTest("Discards of clusters that a snapshot shares take them from the disk only", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    qemuImg("create", "-q", "-f", "qcow2", image, "64M");
    qemuIo(image, ["write -P 1 0 8M"]);
    qemuImg("snapshot", "-c", "kept", image);
    {
      using disk = Qcow2File.open(image, { write: true });
      disk.discardAt(0, 4 * MIB);
      disk.writeZeroesAt(4 * MIB, 2 * MIB);
      disk.writeZeroesAt(6 * MIB, MIB, { unmap: true });
      disk.flush();
      assertEquals(readBytes(disk, 0, 7 * MIB), filled(7 * MIB, 0));
      assertEquals(readBytes(disk, 7 * MIB, MIB), filled(MIB, 1));
      // New clusters must not come from those that the snapshot still has.
      disk.writeAt(32 * MIB, filled(8 * MIB, 2));
    }
    assertClean(image);
    qemuImg("snapshot", "-a", "kept", image);
    qemuIo(image, ["read -P 1 0 8M", "read -P 0 32M 8M"]);
    assertClean(image);
  }));

qemuTest("A partial write into a shared cluster keeps the rest of the cluster", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    qemuImg("create", "-q", "-f", "qcow2", image, "1M");
    qemuIo(image, ["write -P 1 0 256k"]);
    qemuImg("snapshot", "-c", "kept", image);
    {
      using disk = Qcow2File.open(image, { write: true });
      disk.writeAt(1000, filled(10, 2));
      disk.writeAt(65536 + 60000, filled(10 * KIB, 3));
      assertEquals(readBytes(disk, 0, 1000), filled(1000, 1));
      assertEquals(readBytes(disk, 1010, 64526), filled(64526, 1));
    }
    assertClean(image);
    qemuIo(image, [
      "read -P 1 0 1000",
      "read -P 2 1000 10",
      "read -P 1 1010 124526",
      "read -P 3 125536 10k",
      "read -P 1 135776 126368",
    ]);
  }));

qemuTest(
  "References that a refcount of one bit cannot count stay an error after a repair, and the disk what it was",
  () =>
    withFolder((folder) => {
      const image = `${folder}/disk.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", "refcount_bits=1", image, "1M");
      qemuIo(image, ["write -P 1 0 256k"]);
      // QEMU itself cannot make a snapshot of it; two entries for one cluster are damage.
      const fields = new Uint8Array(16);
      {
        using file = Deno.openSync(image, { read: true, write: true });
        file.seekSync(0x40000, Deno.SeekMode.Start);
        file.readSync(fields);
        fields.copyWithin(8, 0, 8);
        file.seekSync(0x40000, Deno.SeekMode.Start);
        file.writeSync(fields);
      }
      assertEquals(checkImage(image, { repair: "all" }).corruptions > 0, true);
      assertEquals(qemuCheck(image).corruptions > 0, true);
      qemuIo(image, ["read -P 1 0 256k"]);
    }),
);

qemuTest("Snapshots of a disk of another size stay whole", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    qemuImg("create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", image, "4M");
    qemuIo(image, ["write -P 1 0 4M"]);
    qemuImg("snapshot", "-c", "small", image);
    qemuImg("resize", "-q", image, "40M");
    {
      using disk = Qcow2File.open(image, { write: true });
      assertEquals(disk.size, 40 * MIB);
      assertEquals(disk.snapshots[0]?.diskSize, 4 * MIB);
      disk.writeAt(0, filled(40 * MIB, 2));
    }
    assertClean(image);
    qemuImg("snapshot", "-a", "small", image);
    assertClean(image);
    qemuIo(image, ["read -P 1 0 4M"]);
  }));
