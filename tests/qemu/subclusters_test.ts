import { assertEquals } from "@std/assert";
import { type CheckFinding, checkImage, Qcow2File } from "../../mod.ts";
import { FsBlockFile } from "../../lib/storage/mod.ts";
import {
  assertCode,
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
import { qemuTest, run } from "../qemu.ts";
import { assertSame } from "../cli/_program.ts";

const CLUSTER = 64 * KIB;
const SUBCLUSTER = 2 * KIB;
/** Where the first L2 table stands in the image of either side. */
const L2_OFFSET = 0x40000;

/** Asserts that an image holds what it should, for both sides, and that both find it clean. */
function assertHolds(image: string, twin: string, content: Uint8Array): void {
  {
    using disk = Qcow2File.open(image, { backing: "allow" });
    assertEquals(readBytes(disk, 0, disk.size), content);
  }
  const { corruptions, leaks } = checkImage(image);
  assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
  assertQemuClean(image);
  Deno.writeFileSync(twin, content);
  qemuImg("compare", "-q", "-f", "qcow2", "-F", "raw", image, twin);
}

/** What a side does to an image. */
type Step = readonly [kind: "write" | "zero" | "unmap" | "discard", offset: number, length: number];

/** The first three entries of the first L2 table, as hexadecimal numbers. */
function entriesOf(path: string): string[] {
  using file = FsBlockFile.open(path, { writable: false });
  return [0, 1, 2].map((index) =>
    [0, 8].map((half) => getUint64(file, L2_OFFSET + index * 16 + half).toString(16)).join(" ")
  );
}

const CASES: readonly (readonly Step[])[] = [
  [["write", 2 * KIB, 2 * KIB], ["zero", 8 * KIB, 4 * KIB]],
  [["write", 2 * KIB, KIB]],
  [["write", 0, CLUSTER], ["zero", 0, CLUSTER]],
  [["write", 0, CLUSTER], ["unmap", 0, CLUSTER]],
  [["write", 0, CLUSTER], ["zero", 4 * KIB, 4 * KIB]],
  [["write", 0, CLUSTER], ["zero", 4 * KIB, 3 * KIB]],
  [["write", 0, CLUSTER], ["unmap", 4 * KIB, 4 * KIB]],
  [["write", 0, CLUSTER], ["discard", 0, CLUSTER]],
  [["write", 0, CLUSTER], ["discard", 4 * KIB, 4 * KIB]],
  [["write", 0, 4 * KIB], ["discard", 0, 2 * CLUSTER]],
  [["write", 0, KIB], ["zero", 0, CLUSTER], ["write", 4 * KIB, KIB]],
  [["write", 60 * KIB, KIB], ["zero", 4 * KIB, 8 * KIB], ["write", 5 * KIB, KIB]],
  [["write", 4 * KIB, 4 * KIB], ["zero", 0, CLUSTER], ["write", 6 * KIB, KIB]],
  [["write", 60 * KIB, 70 * KIB]],
];

qemuTest("Subclusters are allocated as QEMU allocates them", () =>
  withFolder((folder) => {
    CASES.forEach((steps, index) => {
      const theirs = `${folder}/theirs${index}.qcow2`;
      const ours = `${folder}/ours${index}.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", theirs, "1M");
      const words = { write: "write", zero: "write -z", unmap: "write -z -u", discard: "discard" };
      qemuIo(theirs, steps.map(([kind, offset, length]) => `${words[kind]} ${offset} ${length}`));
      {
        using disk = Qcow2File.create(ours, { size: MIB, extendedL2: true });
        for (const [kind, offset, length] of steps) {
          if (kind === "write") disk.writeAt(offset, filled(length, 0xcd));
          else if (kind === "discard") disk.discardAt(offset, length);
          else disk.writeZeroesAt(offset, length, { unmap: kind === "unmap" });
        }
      }
      assertEquals(entriesOf(ours), entriesOf(theirs), JSON.stringify(steps));
      qemuImg("compare", "-q", ours, theirs);
    });
    // The format's own example: the second subcluster is allocated, the fifth and sixth read as zeroes.
    assertEquals(entriesOf(`${folder}/ours0.qcow2`)[0], "8000000000050000 3000000002");
  }));

qemuTest(
  "A write into a cluster that a snapshot shares keeps the state of the other subclusters",
  () =>
    withFolder((folder) => {
      const base = `${folder}/base.raw`;
      const image = `${folder}/disk.qcow2`;
      Deno.writeFileSync(base, filled(MIB, 7));
      const options = ["-o", "extended_l2=on", "-b", base, "-F", "raw"];
      qemuImg("create", "-q", "-f", "qcow2", ...options, image);
      const before = filled(MIB, 7).fill(1, SUBCLUSTER, 2 * SUBCLUSTER).fill(0, 4 * SUBCLUSTER, 6 * SUBCLUSTER);
      qemuIo(image, ["write -P 1 2k 2k", "write -z 8k 4k", "write -c -P 2 64k 64k"]);
      before.fill(2, CLUSTER, 2 * CLUSTER);
      qemuImg("snapshot", "-c", "kept", image);
      const model = before.slice();
      {
        using disk = Qcow2File.open(image, { write: true, backing: "allow" });
        disk.writeAt(20 * KIB, filled(KIB, 3));
        model.fill(3, 20 * KIB, 21 * KIB);
        assertEquals(disk.l2Table(0)?.[0]?.subclusters, { allocated: 0b10000000010, zero: 0b110000 });
        disk.writeAt(CLUSTER + 1000, filled(KIB, 4));
        model.fill(4, CLUSTER + 1000, CLUSTER + 1000 + KIB);
        assertEquals(disk.l2Table(0)?.[1]?.subclusters, { allocated: 0xffffffff, zero: 0 });
        // What the snapshot shares may read as zeroes from now on without being copied.
        disk.writeZeroesAt(SUBCLUSTER, SUBCLUSTER);
        model.fill(0, SUBCLUSTER, 2 * SUBCLUSTER);
      }
      assertHolds(image, `${folder}/twin.raw`, model);
      qemuImg("snapshot", "-a", "kept", image);
      assertHolds(image, `${folder}/twin.raw`, before);
    }),
);

qemuTest(
  "A first write copies nothing from the backing file beyond the subclusters that it touches",
  () =>
    withFolder((folder) => {
      const image = `${folder}/disk.qcow2`;
      Deno.writeFileSync(`${folder}/base.raw`, filled(MIB, 7));
      using disk = Qcow2File.create(image, { extendedL2: true, backingFile: "base.raw", backingFormat: "raw" });
      disk.writeAt(3 * SUBCLUSTER + 100, filled(SUBCLUSTER, 1));
      assertEquals(disk.l2Table(0)?.[0]?.subclusters, { allocated: 0b11000, zero: 0 });
      assertEquals([...disk.extents(0, CLUSTER)].map(({ kind, length, depth }) => [kind, length, depth]), [
        ["data", 3 * SUBCLUSTER, 1],
        ["data", 2 * SUBCLUSTER, 0],
        ["data", CLUSTER - 5 * SUBCLUSTER, 1],
      ]);
      const expected = filled(CLUSTER, 7).fill(1, 3 * SUBCLUSTER + 100, 4 * SUBCLUSTER + 100);
      assertEquals(readBytes(disk, 0, CLUSTER), expected);
    }),
);

qemuTest("Subclusters in impossible states are refused, and told as QEMU tells them", () =>
  withFolder((folder) => {
    const cases: readonly (readonly [offset: number, bitmap: bigint, read: number | undefined])[] = [
      [L2_OFFSET + 8, 0x1ffffffffn, 0],
      [L2_OFFSET + 72, 1n, 4 * CLUSTER],
      [L2_OFFSET + 40, 1n, undefined],
    ];
    for (const [offset, bitmap, read] of cases) {
      const image = `${folder}/disk.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", image, "1M");
      qemuIo(image, ["write 0 64k", "write 64k 4k", "write -c 128k 64k"]);
      {
        using file = FsBlockFile.open(image, { writable: true });
        setUint64(file, offset, bitmap);
      }
      const findings: CheckFinding[] = [];
      const result = checkImage(image, { onFinding: (finding) => findings.push(finding) });
      const theirs = qemuCheck(image);
      assertEquals([result.corruptions, result.leaks], [theirs.corruptions, theirs.leaks]);
      const { stderr } = run("qemu-img", ["check", "-f", "qcow2", image]);
      assertEquals(findings.map(({ message }) => `${message}\n`).join(""), stderr.replaceAll(/^qcow2: .*\n/gm, ""));
      using disk = Qcow2File.open(image);
      if (read !== undefined) assertCode("corrupt", () => readBytes(disk, read + SUBCLUSTER, 512));
      assertEquals(readBytes(disk, CLUSTER, 512), filled(512, 0xcd));
    }
  }));

qemuTest("An image with subclusters is converted with everything in it", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    {
      using disk = Qcow2File.create(image, { size: MIB, extendedL2: true });
      disk.writeCompressedAt(0, filled(CLUSTER, 1));
      disk.writeAt(100_000, filled(1000, 2));
    }
    assertQemuClean(image);
    qemuIo(image, ["read -P 1 0 64k", "read -P 0 65536 34464", "read -P 2 100000 1000", "read -P 0 101000 100000"]);
  }));

qemuTest(
  "The map tells the place of subclusters that are not allocated behind the end of a backing file",
  () =>
    withFolder(async (folder) => {
      const image = `${folder}/disk.qcow2`;
      Deno.writeFileSync(`${folder}/base.raw`, filled(CLUSTER + 10 * KIB, 7));
      qemuImg("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "-b", "base.raw", "-F", "raw", image, "256k");
      qemuIo(image, ["write 68k 2k", "write 180k 2k"]);
      await assertSame(["map", "--output=json", image]);
    }),
);
