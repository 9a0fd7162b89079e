import { assertEquals } from "@std/assert";
import { checkImage, Qcow2File } from "../../mod.ts";
import { FsBlockFile } from "../../lib/storage/mod.ts";
import {
  assertQemuClean,
  filled,
  getUint64,
  KIB,
  MIB,
  qemuCheck,
  qemuImg,
  qemuIo,
  readBytes,
  setUint64,
  withFolder,
} from "../images.ts";
import { qemuTest } from "../qemu.ts";
import { Random } from "../random.ts";

interface Case {
  readonly name: string;
  readonly options: string;
  readonly size: number;
  readonly backed?: boolean;
}

const CASES: readonly Case[] = [
  { name: "512-byte clusters", options: "cluster_size=512", size: 600 * KIB },
  { name: "4 KiB clusters in version 2", options: "cluster_size=4096,compat=0.10", size: 3 * MIB },
  { name: "64 KiB clusters and 64-bit refcounts", options: "refcount_bits=64", size: 8 * MIB },
  { name: "4 KiB clusters over a backing file", options: "cluster_size=4096", size: 3 * MIB, backed: true },
  { name: "subclusters of 512 bytes", options: "cluster_size=16k,extended_l2=on", size: 3 * MIB },
  { name: "subclusters over a backing file", options: "extended_l2=on", size: 5 * MIB, backed: true },
];

/** A disk's content, and how it was when each snapshot was taken. */
interface Expected {
  model: Uint8Array<ArrayBuffer>;
  readonly snapshots: { readonly id: string; readonly content: Uint8Array<ArrayBuffer> }[];
}

/** Asserts that both sides find nothing, and that both read what is expected, of the disk and of every snapshot. */
function assertAsExpected(folder: string, image: string, { model, snapshots }: Expected): void {
  assertQemuClean(image);
  const { corruptions, leaks } = checkImage(image);
  assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
  using disk = Qcow2File.open(image, { backing: "allow" });
  assertEquals(readBytes(disk, 0, disk.size), model);
  assertEquals(disk.snapshots.map(({ id }) => id), snapshots.map(({ id }) => id));
  const raw = `${folder}/read.raw`;
  qemuImg("convert", "-f", "qcow2", "-O", "raw", image, raw);
  assertEquals(Deno.readFileSync(raw), model);
  for (const { id, content } of snapshots) {
    assertEquals(readBytes(disk.openSnapshot(id), 0, content.length), content, `snapshot ${id}`);
    qemuImg("convert", "-f", "qcow2", "-O", "raw", "-l", `snapshot.id=${id}`, image, raw);
    assertEquals(Deno.readFileSync(raw), content, `snapshot ${id}, read by QEMU`);
  }
}

function changeSome(image: string, model: Uint8Array, random: Random, backed: boolean): void {
  using disk = Qcow2File.open(image, { write: true, backing: "allow", cacheSize: random.pick([1, 1 << 20]) });
  const cluster = disk.allocationSize;
  for (let step = 0; step < 25; step++) {
    const offset = random.below(disk.size);
    const length = Math.min(random.pick([1, 700, cluster, 3 * cluster + 5, 30 * cluster]), disk.size - offset);
    const first = Math.ceil(offset / cluster) * cluster;
    const last = Math.floor((offset + length) / cluster) * cluster;
    const action = random.below(7);
    if (action === 0) {
      disk.writeZeroesAt(offset, length, { unmap: random.oneIn(2) });
      model.fill(0, offset, offset + length);
    } else if (action === 1 && first < last && !backed) {
      disk.discardAt(first, last - first);
      model.fill(0, first, last);
    } else if (action === 2 && first < last) {
      const data = filled(last - first, random.between(1, 255));
      disk.writeCompressedAt(first, data);
      model.set(data, first);
    } else {
      const data = random.bytes(length);
      disk.writeAt(offset, data);
      model.set(data, offset);
    }
  }
}

for (const { name, options, size, backed = false } of CASES) {
  qemuTest(`Snapshots go back and forth between QEMU and here, with ${name}`, () =>
    withFolder((folder) => {
      const random = new Random(`snapshots by turns ${name}`);
      const image = `${folder}/disk.qcow2`;
      const expected: Expected = { model: new Uint8Array(size), snapshots: [] };
      if (backed) {
        const content = random.bytes(size);
        Deno.writeFileSync(`${folder}/base.raw`, content);
        qemuImg("create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw", "-o", options, image, String(size));
        expected.model = content;
      } else {
        qemuImg("create", "-q", "-f", "qcow2", "-o", options, image, String(size));
      }
      const inTurn = (here: (disk: Qcow2File) => void, ...args: string[]): void => {
        if (random.oneIn(2)) {
          qemuImg("snapshot", ...args, image);
        } else {
          using disk = Qcow2File.open(image, { write: true, backing: "allow" });
          here(disk);
        }
      };
      for (let turn = 0; turn < 10; turn++) {
        const { snapshots } = expected;
        changeSome(image, expected.model, random, backed);
        const chosen = random.below(snapshots.length + 1);
        const { id, content } = snapshots[chosen] ?? {};
        const action = random.below(4);
        if (action === 0 && id !== undefined && content !== undefined) {
          inTurn((disk) => disk.applySnapshot(id), "-a", id);
          expected.model = content.slice();
        } else if (action === 1 && id !== undefined) {
          inTurn((disk) => disk.deleteSnapshot(id), "-d", `name ${id}`);
          snapshots.splice(chosen, 1);
        } else {
          const next = String(Math.max(0, ...snapshots.map((snapshot) => Number(snapshot.id))) + 1);
          inTurn((disk) => disk.createSnapshot(`name ${next}`), "-c", `name ${next}`);
          snapshots.push({ id: next, content: expected.model.slice() });
        }
        assertAsExpected(folder, image, expected);
      }
      while (expected.snapshots.length > 0) {
        const [gone] = expected.snapshots.splice(random.below(expected.snapshots.length), 1);
        const id = gone?.id ?? "";
        inTurn((disk) => disk.deleteSnapshot(id), "-d", `name ${id}`);
        assertAsExpected(folder, image, expected);
      }
    }));
}

for (const options of ["cluster_size=512", "cluster_size=16k,extended_l2=on"]) {
  qemuTest(
    `A disk takes the size back that it had, whoever takes the snapshot and applies it, with ${options}`,
    () =>
      withFolder((folder) => {
        for (const ours of [true, false]) {
          const image = `${folder}/disk.qcow2`;
          const take = (name: string): void => {
            if (!ours) return void qemuImg("snapshot", "-c", name, image);
            using disk = Qcow2File.open(image, { write: true });
            disk.createSnapshot(name);
          };
          const apply = (name: string): void => {
            if (ours) return void qemuImg("snapshot", "-a", name, image);
            using disk = Qcow2File.open(image, { write: true });
            disk.applySnapshot(name);
          };
          const sizeOf = (): number => {
            using disk = Qcow2File.open(image);
            return disk.size;
          };
          qemuImg("create", "-q", "-f", "qcow2", "-o", options, image, "100k");
          qemuIo(image, ["write -P 1 0 100k"]);
          take("small");
          // An L1 table with one entry of 16 KiB clusters and subclusters maps 16 MiB.
          qemuImg("resize", "-q", image, "40M");
          qemuIo(image, ["write -P 2 50k 900k", "write -P 3 39M 1M"]);
          take("large");
          qemuImg("resize", "-q", "--shrink", image, "200k");
          for (const [name, size] of [["small", 100 * KIB], ["large", 40 * MIB], ["small", 100 * KIB]] as const) {
            apply(name);
            assertEquals(sizeOf(), size);
            assertQemuClean(image);
            const large = ["read -P 1 0 50k", "read -P 2 50k 900k", "read -P 0 950k 38M", "read -P 3 39M 1M"];
            qemuIo(image, name === "small" ? ["read -P 1 0 100k"] : large);
            using disk = Qcow2File.open(image);
            assertEquals(readBytes(disk, 0, 50 * KIB), filled(50 * KIB, 1));
            assertEquals(readBytes(disk.openSnapshot("large"), 39 * MIB, MIB), filled(MIB, 3));
          }
        }
      }),
  );
}

qemuTest(
  "Subclusters and snapshots survive a check that finds refcounts and flags wrong",
  () =>
    withFolder((folder) => {
      const image = `${folder}/disk.qcow2`;
      const broken = `${folder}/broken.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", image, "4M");
      qemuIo(image, ["write -P 1 0 1M", "write -P 2 3M 3k", "write -z 4k 4k", "write -c -P 3 2M 64k"]);
      qemuImg("snapshot", "-c", "kept", image);
      qemuIo(image, ["write -P 4 10k 3k", "write -P 4 2050k 1k"]);
      const contents = (path: string): Uint8Array[] => {
        using disk = Qcow2File.open(path);
        return [disk, disk.openSnapshot("kept")].map((side) => readBytes(side, 0, side.size));
      };
      const before = contents(image);
      const breakages: readonly (readonly [what: string, (file: FsBlockFile) => void])[] = [
        // Of a table that is the disk's own: its first entry, and one that the snapshot shares.
        ["flags", (file) => {
          const [table] = tablesOf(image);
          for (const index of [0, 2]) {
            setUint64(file, table + index * 16, getUint64(file, table + index * 16) ^ (1n << 63n));
          }
        }],
        ["refcounts", (file) => file.writeAt(0x20000, filled(64, 0))],
        ["leaks", (file) => {
          file.truncate(1010 * 64 * KIB);
          file.writeAt(0x20000 + 2000, filled(20, 1));
        }],
      ];
      for (const [what, damage] of breakages) {
        Deno.copyFileSync(image, broken);
        {
          using file = FsBlockFile.open(broken, { writable: true });
          damage(file);
        }
        const theirs = qemuCheck(broken);
        const { corruptions, leaks } = checkImage(broken);
        assertEquals([corruptions, leaks], [theirs.corruptions, theirs.leaks], what);
        assertEquals(corruptions + leaks > 0, true, what);
        checkImage(broken, { repair: "all" });
        assertQemuClean(broken);
        assertEquals(contents(broken), before, what);
      }
    }),
);

/** Where the active L2 tables stand. */
function tablesOf(path: string): [number, ...number[]] {
  using disk = Qcow2File.open(path);
  const [first = 0, ...others] = disk.l1Table.map(({ hostOffset }) => hostOffset);
  return [first, ...others];
}

qemuTest("What QEMU lists is what was made here", () =>
  withFolder((folder) => {
    for (const compat of ["0.10", "1.1"]) {
      const image = `${folder}/disk.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", `compat=${compat}`, image, "10M");
      {
        using disk = Qcow2File.open(image, { write: true });
        disk.createSnapshot("with a name, ünicode", { date: new Date(1_700_000_000_123) });
        disk.createSnapshot("b");
      }
      const info = JSON.parse(qemuImg("info", "--output=json", image));
      const [first, second] = info.snapshots;
      assertEquals(
        [first.id, first.name, first["date-sec"], first["date-nsec"], first["vm-state-size"], first.icount],
        [
          "1",
          "with a name, ünicode",
          1_700_000_000,
          123_000_000,
          0,
          0,
        ],
      );
      assertEquals([second.id, second.name], ["2", "b"]);
    }
  }));
