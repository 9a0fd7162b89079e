import { assert, assertEquals } from "@std/assert";
import { type CheckFinding, checkImage, type CheckResult, Qcow2Error, Qcow2File, type RepairKind } from "../../mod.ts";
import { getRefcount, setRefcount } from "../../lib/format/mod.ts";
import { FsBlockFile, MemoryBlockFile } from "../../lib/storage/mod.ts";
import {
  assertCode,
  assertQemuClean,
  copyOf,
  emptyImage,
  filled,
  getUint64,
  GIB,
  KIB,
  MIB,
  qemuCheck,
  qemuImg,
  readBytes,
  setUint64,
  withFolder,
} from "../images.ts";
import { qemuTest, run } from "../qemu.ts";
import { Random, seed } from "../random.ts";

const COPIED = 1n << 63n;
const OFFSET_MASK = 0x00fffffffffffe00n;

/** An image with data, free clusters between them, zero clusters and two L2 tables. */
function usedImage(clusterSize = 65536, refcountBits = 16): MemoryBlockFile {
  const file = emptyImage({ size: clusterSize * clusterSize / 8 * 2, clusterSize, refcountBits });
  using disk = Qcow2File.open(file, { write: true });
  disk.writeAt(0, filled(10 * clusterSize, 1));
  disk.writeAt(disk.size / 2, filled(5 * clusterSize, 2));
  disk.writeAt(disk.size - clusterSize, filled(clusterSize, 3));
  disk.flush();
  disk.discardAt(2 * clusterSize, 2 * clusterSize);
  disk.writeZeroesAt(5 * clusterSize, clusterSize);
  disk.close();
  return copyOf(file);
}

/** Where things stand in an image, for damaging it. */
class ImageMap {
  readonly file: MemoryBlockFile;
  readonly clusterSize: number;
  readonly order: number;
  readonly l1: number;
  readonly table: number;

  constructor(file: MemoryBlockFile) {
    this.file = file;
    using disk = Qcow2File.open(copyOf(file));
    const { header } = disk;
    this.clusterSize = 2 ** header.clusterBits;
    this.order = header.refcountOrder;
    this.l1 = header.l1TableOffset;
    this.table = header.refcountTableOffset;
  }

  /** Host offset of an L2 entry of the first or second table. */
  l2Entry(l1Index: number, index: number): number {
    return Number(getUint64(this.file, this.l1 + l1Index * 8) & OFFSET_MASK) + index * 8;
  }

  /** Host offset of the data cluster behind an L2 entry. */
  data(l1Index: number, index: number): number {
    return Number(getUint64(this.file, this.l2Entry(l1Index, index)) & OFFSET_MASK);
  }

  /** Changes a refcount in the first block. */
  setRefcount(hostOffset: number, change: (refcount: number) => number): void {
    const block = new Uint8Array(this.clusterSize);
    const blockOffset = Number(getUint64(this.file, this.table));
    this.file.readAt(blockOffset, block);
    const view = new DataView(block.buffer);
    const index = hostOffset / this.clusterSize;
    setRefcount(view, index, this.order, change(getRefcount(view, index, this.order)));
    this.file.writeAt(blockOffset, block);
  }

  /** The first free cluster within the file, or the one behind its end. */
  freeCluster(): number {
    using disk = Qcow2File.open(copyOf(this.file));
    return disk.firstZeroRefcount() ?? 0;
  }
}

/** The whole disk, where it is small enough, or the parts with data. */
function contentOf(file: MemoryBlockFile): Uint8Array[] {
  using disk = Qcow2File.open(copyOf(file));
  const part = Math.min(disk.size / 2, 16 * disk.allocationSize);
  return [0, disk.size / 2, disk.size - part].map((offset) => readBytes(disk, offset, part));
}

function countsOf({ corruptions, leaks }: CheckResult): { corruptions: number; leaks: number } {
  return { corruptions, leaks };
}

function check(file: MemoryBlockFile, repair?: RepairKind): { result: CheckResult; findings: CheckFinding[] } {
  const findings: CheckFinding[] = [];
  const image = copyOf(file);
  const result = checkImage(image, {
    ...(repair === undefined ? {} : { repair }),
    onFinding: (finding) => findings.push(finding),
  });
  if (repair !== undefined) {
    // What was repaired is handed back in the file that was given.
    file.truncate(0);
    file.writeAt(0, image.toBytes());
  }
  return { result, findings };
}

interface Damage {
  readonly name: string;
  readonly corruptions: number;
  readonly leaks: number;
  readonly apply: (map: ImageMap) => void;
  /** The narrowest refcounts that can hold it. */
  readonly minRefcountBits?: number;
}

const DAMAGES: readonly Damage[] = [
  { name: "nothing", corruptions: 0, leaks: 0, apply: () => undefined },
  {
    name: "a leaked cluster",
    corruptions: 0,
    leaks: 1,
    apply: (map) => map.setRefcount(map.freeCluster(), () => 1),
  },
  {
    name: "an L2 entry that lost its cluster",
    corruptions: 0,
    leaks: 1,
    apply: (map) => setUint64(map.file, map.l2Entry(0, 0), 0n),
  },
  {
    name: "a refcount that is too high",
    // The flag says that the refcount is one.
    corruptions: 1,
    leaks: 1,
    minRefcountBits: 2,
    apply: (map) => map.setRefcount(map.data(0, 1), () => 3),
  },
  {
    name: "a data cluster with refcount 0",
    corruptions: 2,
    leaks: 0,
    apply: (map) => map.setRefcount(map.data(0, 1), () => 0),
  },
  {
    name: "an L2 table with refcount 0",
    corruptions: 2,
    leaks: 0,
    apply: (map) => map.setRefcount(map.l2Entry(0, 0), () => 0),
  },
  {
    name: "the header with refcount 0",
    corruptions: 1,
    leaks: 0,
    apply: (map) => map.setRefcount(0, () => 0),
  },
  {
    name: "an L2 entry without its COPIED flag",
    corruptions: 1,
    leaks: 0,
    apply: (map) => setUint64(map.file, map.l2Entry(0, 0), getUint64(map.file, map.l2Entry(0, 0)) & ~COPIED),
  },
  {
    name: "an L1 entry without its COPIED flag",
    corruptions: 1,
    leaks: 0,
    apply: (map) => setUint64(map.file, map.l1 + 8, getUint64(map.file, map.l1 + 8) & ~COPIED),
  },
  {
    name: "a zero cluster without its COPIED flag",
    corruptions: 1,
    leaks: 0,
    apply: (map) => setUint64(map.file, map.l2Entry(0, 5), getUint64(map.file, map.l2Entry(0, 5)) & ~COPIED),
  },
  {
    name: "two entries for one cluster, with the refcount for it and no COPIED flags",
    corruptions: 0,
    leaks: 1,
    minRefcountBits: 2,
    apply: (map) => {
      const shared = getUint64(map.file, map.l2Entry(0, 0)) & ~COPIED;
      setUint64(map.file, map.l2Entry(0, 0), shared);
      setUint64(map.file, map.l2Entry(0, 1), shared);
      map.setRefcount(map.data(0, 0), () => 2);
    },
  },
  {
    name: "two entries for one cluster that is counted once",
    corruptions: 1,
    leaks: 1,
    minRefcountBits: 2,
    apply: (map) => setUint64(map.file, map.l2Entry(0, 1), getUint64(map.file, map.l2Entry(0, 0))),
  },
];

const SIZES: readonly (readonly [clusterSize: number, refcountBits: number])[] = [
  [65536, 16],
  [512, 1],
  [512, 64],
  [4096, 2],
  [4096, 4],
  [4096, 8],
  [4096, 32],
];

for (const { name, corruptions, leaks, apply, minRefcountBits = 1 } of DAMAGES) {
  Deno.test(`checkImage() finds and mends ${name}, with refcounts of every width`, () => {
    for (const [clusterSize, refcountBits] of SIZES) {
      if (refcountBits < minRefcountBits) continue;
      const about = `${clusterSize}-byte clusters, ${refcountBits}-bit refcounts`;
      const file = usedImage(clusterSize, refcountBits);
      apply(new ImageMap(file));
      const content = contentOf(file);
      const before = file.toBytes();

      const found = check(file);
      assertEquals(countsOf(found.result), { corruptions, leaks }, about);
      assertEquals(found.findings.filter(({ kind }) => kind === "corruption").length, corruptions, about);
      assertEquals(found.findings.filter(({ kind }) => kind === "leak").length, leaks, about);
      assertEquals(found.findings.some(({ fixed }) => fixed), false);
      assertEquals(file.toBytes(), before, "A check without repair changes nothing");

      const mended = check(file, "all");
      assertEquals(countsOf(mended.result), { corruptions: 0, leaks: 0 }, about);
      assert(mended.result.corruptionsFixed + mended.result.leaksFixed >= Math.min(1, corruptions + leaks), about);
      assertEquals(contentOf(file), content, `The data reads the same after the repair, ${about}`);

      const again = check(file);
      assertEquals([countsOf(again.result), again.findings], [{ corruptions: 0, leaks: 0 }, []], about);
      const mendedBytes = file.toBytes();
      const twice = check(file, "all");
      assertEquals([twice.result.corruptionsFixed, twice.result.leaksFixed, twice.findings], [0, 0, []], about);
      assertEquals(file.toBytes(), mendedBytes, "A second repair changes nothing");
    }
  });

  qemuTest(
    `qemu-img check counts the same for ${name}, and finds nothing after the repair here`,
    () =>
      withFolder((folder) => {
        for (const [clusterSize, refcountBits] of SIZES) {
          if (refcountBits < minRefcountBits) continue;
          const about = `${clusterSize}-byte clusters, ${refcountBits}-bit refcounts`;
          const file = usedImage(clusterSize, refcountBits);
          apply(new ImageMap(file));
          const image = `${folder}/damaged.qcow2`;
          Deno.writeFileSync(image, file.toBytes());
          const theirs = qemuCheck(image);
          assertEquals({ corruptions: theirs.corruptions, leaks: theirs.leaks }, { corruptions, leaks }, about);
          const ours = checkImage(image);
          assertStatisticsAgree(ours, theirs.report, about);
          checkImage(image, { repair: "all" });
          assertQemuClean(image);
          assertStatisticsAgree(checkImage(image), qemuCheck(image).report, about);
        }
      }),
  );
}

function assertStatisticsAgree(ours: CheckResult, theirs: Readonly<Record<string, unknown>>, about: string): void {
  assertEquals(
    {
      total: ours.totalClusters,
      allocated: ours.allocatedClusters,
      fragmented: ours.fragmentedClusters,
      compressed: ours.compressedClusters,
      end: ours.imageEndOffset,
    },
    {
      total: theirs["total-clusters"],
      allocated: theirs["allocated-clusters"] ?? 0,
      fragmented: theirs["fragmented-clusters"] ?? 0,
      compressed: theirs["compressed-clusters"] ?? 0,
      end: theirs["image-end-offset"],
    },
    about,
  );
}

Deno.test("checkImage() gives leaks back and leaves corruptions alone when asked for leaks only", () => {
  const file = usedImage();
  const map = new ImageMap(file);
  map.setRefcount(map.freeCluster(), () => 1);
  const reservedBit = 0x20n;
  setUint64(file, map.l2Entry(0, 0), (getUint64(file, map.l2Entry(0, 0)) & ~COPIED) | reservedBit);
  const { result, findings } = check(file, "leaks");
  assertEquals(
    [result.corruptions, result.corruptionsFixed, result.leaks, result.leaksFixed],
    [2, 0, 0, 1],
  );
  assertEquals(findings.filter(({ fixed }) => fixed).map(({ kind }) => kind), ["leak"]);
  assertEquals(countsOf(check(file).result), { corruptions: 2, leaks: 0 });
});

Deno.test("checkImage() sets flags right after leaks were given back, where nothing else is wrong", () => {
  const file = usedImage();
  const map = new ImageMap(file);
  map.setRefcount(map.freeCluster(), () => 1);
  setUint64(file, map.l2Entry(0, 0), getUint64(file, map.l2Entry(0, 0)) & ~COPIED);
  const { result } = check(file, "leaks");
  assertEquals([result.corruptionsFixed, result.leaksFixed], [1, 1]);
  assertEquals(countsOf(check(file).result), { corruptions: 0, leaks: 0 });
});

Deno.test("checkImage() says in its findings what is wrong and where", () => {
  const file = usedImage();
  const map = new ImageMap(file);
  const leaked = map.freeCluster();
  map.setRefcount(leaked, () => 1);
  const [finding] = check(file).findings;
  assertEquals(finding, {
    kind: "leak",
    message: `Leaked cluster ${leaked / 65536} refcount=1 reference=0`,
    hostOffset: leaked,
    fixed: false,
  });
});

qemuTest("checkImage() tells of a compressed cluster at offset 0 in the words of QEMU", () =>
  withFolder((folder) => {
    const file = usedImage();
    const map = new ImageMap(file);
    setUint64(file, map.l2Entry(0, 0), COPIED | (1n << 62n));
    const image = `${folder}/damaged.qcow2`;
    Deno.writeFileSync(image, file.toBytes());
    const { stderr } = run("qemu-img", ["check", "-f", "qcow2", image]);
    const told = check(file).findings.map(({ message }) => `${message}\n`).join("");
    assertEquals(told, stderr);
    assert(told.includes("coffset=0x0:"), told);
  }));

Deno.test("checkImage() finds clusters and tables outside of the file", () => {
  const file = usedImage();
  const map = new ImageMap(file);
  setUint64(file, map.l2Entry(0, 0), COPIED | BigInt(GIB));
  const { result } = check(file);
  assert(result.corruptions > 0);
  assertEquals(result.leaks, 1);
});

Deno.test("checkImage() finds reserved bits and offsets that are not aligned", () => {
  for (const bits of [2n, 0x100n, 1n << 56n, 1n << 61n, 512n]) {
    const file = usedImage();
    const map = new ImageMap(file);
    setUint64(file, map.l2Entry(0, 0), getUint64(file, map.l2Entry(0, 0)) | bits);
    assert(check(file).result.corruptions > 0, `L2 entry with ${bits.toString(16)}`);
  }
  for (const bits of [1n, 0x100n, 1n << 56n, 1n << 62n, 512n]) {
    const file = usedImage();
    const map = new ImageMap(file);
    setUint64(file, map.l1, getUint64(file, map.l1) | bits);
    assert(check(file).result.corruptions > 0, `L1 entry with ${bits.toString(16)}`);
  }
});

/** Breaks the refcount structures themselves, so that they have to be built anew. */
const BROKEN_STRUCTURES: readonly (readonly [name: string, apply: (map: ImageMap) => void])[] = [
  ["an unaligned refcount block", (map) => setUint64(map.file, map.table, getUint64(map.file, map.table) + 512n)],
  ["reserved bits", (map) => setUint64(map.file, map.table, getUint64(map.file, map.table) | 1n)],
  ["a refcount block far outside", (map) => setUint64(map.file, map.table, 1n << 45n)],
  ["an offset beyond 2^53", (map) => setUint64(map.file, map.table, 1n << 63n)],
  ["no refcount block", (map) => setUint64(map.file, map.table, 0n)],
  ["a refcount block on the refcount table", (map) => setUint64(map.file, map.table, BigInt(map.table))],
  ["a refcount block on the L1 table", (map) => setUint64(map.file, map.table, BigInt(map.l1))],
  ["a refcount block on data", (map) => setUint64(map.file, map.table, BigInt(map.data(0, 0)))],
  ["a refcount block on data with a reserved bit", (map) => {
    setUint64(map.file, map.table, BigInt(map.data(0, 0)) | 1n);
  }],
  ["a refcount block on an L2 table", (map) => setUint64(map.file, map.table, BigInt(map.l2Entry(0, 0)))],
  ["two entries for one refcount block", (map) => {
    setUint64(map.file, map.table + 8, getUint64(map.file, map.table));
  }],
  ["a second refcount block on data", (map) => setUint64(map.file, map.table + 8, BigInt(map.data(0, 1)))],
  ["a second refcount block outside", (map) => setUint64(map.file, map.table + 8, 1n << 40n)],
  ["a refcount block full of rubbish", (map) => {
    map.file.writeAt(Number(getUint64(map.file, map.table)), filled(map.clusterSize, 0));
  }],
  ["a refcount table full of rubbish", (map) => map.file.writeAt(map.table, filled(map.clusterSize, 0x5a))],
];

for (const [name, apply] of BROKEN_STRUCTURES) {
  Deno.test(`checkImage() builds refcounts anew from a table with ${name}`, () => {
    for (const [clusterSize, refcountBits] of [[65536, 16], [512, 1], [4096, 64]] as const) {
      const about = `${clusterSize}-byte clusters, ${refcountBits}-bit refcounts`;
      const file = usedImage(clusterSize, refcountBits);
      const content = contentOf(file);
      apply(new ImageMap(file));
      assert(check(file).result.corruptions > 0, about);
      assertEquals(countsOf(check(file, "all").result), { corruptions: 0, leaks: 0 }, about);
      const again = check(file);
      assertEquals([countsOf(again.result), again.findings], [{ corruptions: 0, leaks: 0 }, []], about);
      assertEquals(contentOf(file), content, about);
      // The image is as good as any: it can be written on.
      const image = copyOf(file);
      using disk = Qcow2File.open(image, { write: true });
      disk.writeAt(20 * clusterSize, filled(30 * clusterSize, 9));
      disk.close();
      assertEquals(countsOf(check(image).result), { corruptions: 0, leaks: 0 }, about);
      assertEquals(contentOf(image).slice(1), content.slice(1), about);
    }
  });
}

Deno.test("checkImage() builds refcounts anew beside a cluster that is in use and not all in the file yet", () => {
  const file = usedImage();
  const map = new ImageMap(file);
  const end = Math.ceil(file.size / 65536) * 65536;
  // The last cluster may be cut short by the end of the file: what lies behind reads as zeroes.
  file.truncate(end + 512);
  setUint64(file, map.l2Entry(0, 12), COPIED | BigInt(end));
  setUint64(file, map.table + 8, 1n);
  assertEquals(countsOf(check(file, "all").result), { corruptions: 0, leaks: 0 });
  assertEquals(countsOf(check(file).result), { corruptions: 0, leaks: 0 });
  const image = copyOf(file);
  using disk = Qcow2File.open(image, { write: true });
  assertEquals(readBytes(disk, 12 * 65536, 65536), filled(65536, 0));
  disk.writeAt(12 * 65536, filled(65536, 5));
  disk.close();
  assertEquals(countsOf(check(image).result), { corruptions: 0, leaks: 0 });
});

qemuTest("Refcounts beyond 2^53 are told digit by digit, as QEMU tells them", () =>
  withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    for (const refcount of [2n ** 53n - 1n, 2n ** 53n + 1n, 2n ** 63n + 12345n, 2n ** 64n - 1n]) {
      const image = usedImage(65536, 64);
      const map = new ImageMap(image);
      const block = Number(getUint64(image, map.table));
      // A data cluster, an L2 table, and a cluster that nobody uses.
      for (const offset of [map.data(0, 0), map.l2Entry(0, 0), map.freeCluster()]) {
        setUint64(image, block + offset / map.clusterSize * 8, refcount);
      }
      Deno.writeFileSync(path, image.toBytes());
      const messages: string[] = [];
      checkImage(copyOf(image), { onFinding: ({ message }) => messages.push(message) });
      const { stderr } = run("qemu-img", ["check", "-f", "qcow2", path]);
      assertEquals(messages.sort(), stderr.split("\n").filter((line) => line !== "").sort());
      assertEquals(messages.length, 5);
      using disk = Qcow2File.open(image, { write: true });
      const error = assertCode("refcount-overflow", () => disk.amend({ refcountBits: 32 }));
      assertEquals(error.message.endsWith(` has a refcount of ${refcount}`), true, error.message);
    }
  }));

qemuTest("qemu-img check finds nothing after refcounts were built anew", () =>
  withFolder((folder) => {
    for (const [name, apply] of BROKEN_STRUCTURES) {
      for (const [clusterSize, refcountBits] of [[65536, 16], [512, 1], [512, 64]] as const) {
        const file = usedImage(clusterSize, refcountBits);
        apply(new ImageMap(file));
        check(file, "all");
        const image = `${folder}/mended.qcow2`;
        Deno.writeFileSync(image, file.toBytes());
        const { corruptions, leaks } = qemuCheck(image);
        assertEquals([corruptions, leaks], [0, 0], `${name}, ${clusterSize}, ${refcountBits}`);
      }
    }
  }));

qemuTest(
  "qemu-img check counts the same for random damage to refcounts and entries, before and after a repair of leaks",
  () =>
    withFolder((folder) => {
      const image = `${folder}/damaged.qcow2`;
      const random = new Random("same counts");
      for (let round = 0; round < 60; round++) {
        const [clusterSize, refcountBits] = random.pick(SIZES);
        const file = usedImage(clusterSize, refcountBits);
        const map = new ImageMap(file);
        const clusters = Math.ceil(file.size / clusterSize);
        const largest = Math.min(2 ** refcountBits - 1, 3);
        for (let count = random.between(1, 5); count > 0; count--) {
          const entry = map.l2Entry(random.below(2), random.pick([0, 1, 4, 5]));
          switch (random.below(3)) {
            case 0:
              map.setRefcount(random.below(clusters) * clusterSize, () => random.between(0, largest));
              break;
            case 1:
              setUint64(file, entry, getUint64(file, entry) ^ COPIED);
              break;
            default:
              setUint64(file, entry, 0n);
          }
        }
        Deno.writeFileSync(image, file.toBytes());
        const theirs = qemuCheck(image);
        const about = `Round ${round} with QCOW2_TEST_SEED=${seed}`;
        assertEquals(countsOf(checkImage(image)), { corruptions: theirs.corruptions, leaks: theirs.leaks }, about);
        const mended = attempt(() => checkImage(image, { repair: "leaks" }));
        const rest = qemuCheck(image);
        assertEquals(countsOf(checkImage(image)), { corruptions: rest.corruptions, leaks: rest.leaks }, about);
        // Where refcounts must be built anew, leaks alone cannot be mended.
        const { code } = run("qemu-img", ["check", "-f", "qcow2", "-r", "leaks", image]);
        assertEquals(mended === undefined, code === 1, about);
        assertEquals(countsOf(checkImage(image, { repair: "all" })), { corruptions: 0, leaks: 0 }, about);
        assertQemuClean(image);
      }
    }),
);

Deno.test("A repair leaves data alone that a wrong L1 entry takes for a table", () => {
  const image = usedImage();
  const { l1 } = new ImageMap(image);
  const [first, second] = [0, 1].map((index) => new ImageMap(image).data(0, index));
  if (first === undefined || second === undefined) return;
  // The guest's own bytes look like an entry whose COPIED flag is wrong.
  const data = filled(65536, 0);
  new DataView(data.buffer).setBigUint64(8, COPIED | BigInt(first));
  const file = copyOf(image);
  file.writeAt(second, data);
  setUint64(file, l1 + 8, COPIED | BigInt(second));
  const { corruptionsFixed } = checkImage(file, { repair: "all" });
  assert(corruptionsFixed > 0);
  using disk = Qcow2File.open(copyOf(file));
  assertEquals(readBytes(disk, 65536, 65536), data);
});

qemuTest("A repair keeps what snapshots and bitmaps need", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    Deno.writeFileSync(image, usedImage().toBytes());
    qemuImg("snapshot", "-c", "kept", image);
    qemuImg("bitmap", "--add", image, "backup");
    let content: Uint8Array;
    {
      using disk = Qcow2File.open(image);
      content = readBytes(disk, 0, 16 * 65536);
    }
    {
      using file = FsBlockFile.open(image, { writable: true });
      file.writeAt(Number(getUint64(file, 0x10000)), filled(65536, 0));
    }
    assertEquals(countsOf(checkImage(image, { repair: "all" })), { corruptions: 0, leaks: 0 });
    assertQemuClean(image);
    qemuImg("bitmap", "--remove", image, "backup");
    qemuImg("snapshot", "-a", "kept", image);
    assertQemuClean(image);
    using disk = Qcow2File.open(image);
    assertEquals(readBytes(disk, 0, 16 * 65536), content);
  }));

Deno.test("checkImage() counts the clusters of a LUKS header, and needs no key", () => {
  const file = usedImage();
  const end = Math.ceil(file.size / 65536) * 65536;
  file.truncate(end + 2 * 65536);
  setUint64(file, 32, (2n << 32n) | (getUint64(file, 32) & 0xffffffffn));
  // The extension comes in place of the feature names.
  setUint64(file, 112, 0x0537be77_00000010n);
  setUint64(file, 120, BigInt(end));
  setUint64(file, 128, 2n * 65536n);
  setUint64(file, 136, 0n);
  assertEquals(countsOf(check(file).result), { corruptions: 2, leaks: 0 });
  assertEquals(countsOf(check(file, "all").result), { corruptions: 0, leaks: 0 });
  assertEquals(countsOf(check(file).result), { corruptions: 0, leaks: 0 });
  assertCode("encrypted", () => Qcow2File.open(copyOf(file)));
});

Deno.test("checkImage() leaves the corrupt bit where something stays wrong", () => {
  const file = usedImage();
  const map = new ImageMap(file);
  setUint64(file, 72, 2n);
  setUint64(file, map.l2Entry(0, 0), getUint64(file, map.l2Entry(0, 0)) | 512n);
  assert(check(file, "all").result.corruptions > 0);
  assertEquals(getUint64(file, 72), 2n);
});

Deno.test("checkImage() closes the file it was handed, also when it throws", () => {
  for (const bytes of [usedImage().toBytes(), new Uint8Array(1000)]) {
    const file = MemoryBlockFile.from(bytes);
    try {
      checkImage(file);
    } catch (error) {
      assert(error instanceof Qcow2Error);
    }
    assertCode("closed", () => file.readAt(0, new Uint8Array(1)));
  }
});

Deno.test("checkImage() without repair needs no right to write", () => {
  const bytes = usedImage().toBytes();
  assertEquals(countsOf(checkImage(MemoryBlockFile.from(bytes, { writable: false }))), { corruptions: 0, leaks: 0 });
  assertCode("read-only", () => checkImage(MemoryBlockFile.from(bytes, { writable: false }), { repair: "all" }));
});

Deno.test("check() of an open image looks at what was not flushed yet", () => {
  const file = usedImage();
  using disk = Qcow2File.open(file, { write: true });
  disk.writeAt(30 * 65536, filled(100 * KIB, 5));
  disk.discardAt(0, MIB);
  assertEquals(countsOf(disk.check()), { corruptions: 0, leaks: 0 });
  disk.writeAt(0, filled(MIB, 6));
  assertEquals(countsOf(disk.check({ repair: "all" })), { corruptions: 0, leaks: 0 });
  assertEquals(readBytes(disk, 0, MIB), filled(MIB, 6));
});

Deno.test("check() repairs only an image that was opened for writing", () => {
  using disk = Qcow2File.open(usedImage());
  assertEquals(countsOf(disk.check()), { corruptions: 0, leaks: 0 });
  assertCode("read-only", () => disk.check({ repair: "leaks" }));
});

/** Calls a function that may fail, in a `Qcow2Error` and in nothing else. */
function attempt<T>(fn: () => T): T | undefined {
  try {
    return fn();
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error;
    return undefined;
  }
}

/** The first clusters of a disk, as far as they can be read. */
function readableClusters(file: MemoryBlockFile): (Uint8Array | undefined)[] {
  return attempt(() => {
    using disk = Qcow2File.open(copyOf(file));
    const { allocationSize } = disk;
    const count = Math.min(40, Math.floor(disk.size / allocationSize));
    return Array.from(
      { length: count },
      (_, index) => attempt(() => readBytes(disk, index * allocationSize, allocationSize)),
    );
  }) ?? [];
}

/**
 * Where a damaged image leaks as soon as its file is longer: refcounts behind the end stand for nothing until then. A repair that writes
 * the snapshot table anew makes it longer.
 */
function leaksBehindEnd(file: MemoryBlockFile, size: number): number[] {
  const end = file.size;
  file.truncate(Math.max(end, size));
  const leaks = attempt(() => check(file, "all").findings.filter(({ kind }) => kind === "leak")) ?? [];
  return leaks.map(({ hostOffset }) => hostOffset).filter((hostOffset) => hostOffset >= end);
}

/** Damages random bytes of an image's metadata and does everything with it; returns whether it could be repaired. */
function fuzz(base: MemoryBlockFile, metadata: readonly number[], random: Random): boolean {
  const original = readableClusters(base);
  const clusterSize = original.find((bytes) => bytes !== undefined)?.length ?? 0;
  const file = copyOf(base);
  for (let count = random.between(1, 6); count > 0; count--) {
    const at = random.pick(metadata) + random.below(random.pick([16, 64, 128, clusterSize]));
    const byte = new Uint8Array(1);
    file.readAt(at, byte);
    byte[0] = random.oneIn(2) ? (byte[0] ?? 0) ^ (1 << random.below(8)) : random.below(256);
    file.writeAt(at, byte);
  }
  attempt(() => {
    using disk = Qcow2File.open(copyOf(file));
    attempt(() => [...disk.extents(0, Math.min(disk.size, GIB))]);
    attempt(() => disk.snapshots);
  });
  attempt(() => {
    using disk = Qcow2File.open(copyOf(file), { write: true });
    for (let step = 0; step < 20; step++) {
      const offset = random.below(Math.max(1, disk.size - 4 * clusterSize));
      attempt(() => disk.writeAt(offset, filled(clusterSize, step)));
      attempt(() => disk.discardAt(offset, 3 * clusterSize));
    }
    attempt(() => disk.flush());
  });
  const damaged = readableClusters(file);
  const found = attempt(() => check(file));
  const unrepaired = copyOf(file);
  const repaired = attempt(() => check(file, "all"));
  const mended = readableClusters(file);
  damaged.forEach((bytes, index) => {
    // Entries that point to tables show how these change. What shows the guest's own bytes must go on doing so.
    if (bytes === undefined || bytes[0] === 0 || !equal(bytes, original[index])) return;
    assert(equal(bytes, mended[index]), `Cluster ${index} was read before the repair, and reads otherwise after it`);
  });
  if (repaired === undefined) return false;
  const isCut = repaired.findings.some(({ message }) => message.startsWith("Discarding"));
  assert(
    found !== undefined || isCut,
    "An image that can be repaired can be checked, unless its snapshots are too long",
  );
  if (repaired.result.corruptions > 0) return false;
  const after = check(file);
  const latent = after.findings.length === 0 ? [] : leaksBehindEnd(unrepaired, file.size);
  const isNews = ({ kind, hostOffset }: CheckFinding): boolean => kind !== "leak" || !latent.includes(hostOffset);
  const left = after.findings.filter(isNews).map(({ message }) => message);
  assertEquals(left, [], `A repair that is done leaves nothing to find: ${Deno.inspect(repaired.findings)}`);
  return true;
}

function equal(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  return a !== undefined && b !== undefined && a.length === b.length && a.every((byte, index) => byte === b[index]);
}

/** Damages an image in many ways, from the same start each time. */
function fuzzRounds(name: string, base: MemoryBlockFile, metadata: readonly number[], rounds: number): void {
  const random = new Random(name);
  let repaired = 0;
  for (let round = 0; round < rounds; round++) {
    try {
      if (fuzz(base, metadata, random)) repaired++;
    } catch (error) {
      throw new Error(`Round ${round} with QCOW2_TEST_SEED=${seed} failed: ${error}`, { cause: error });
    }
  }
  assert(repaired > 0, "No image was repaired, so that repairs were not tested at all");
}

for (const [clusterSize, refcountBits] of [[512, 16], [512, 1], [1024, 64], [4096, 16], [65536, 16]] as const) {
  const name = `${clusterSize}-byte clusters and ${refcountBits}-bit refcounts`;
  Deno.test(`Damaged metadata ends in an error or a repair, never in anything else, with ${name}`, () => {
    const base = usedImage(clusterSize, refcountBits);
    const map = new ImageMap(base);
    const block = Number(getUint64(base, map.table));
    const metadata = [0, 0, map.table, block, map.l1, map.l2Entry(0, 0), map.l2Entry(1, 0)];
    fuzzRounds(name, base, metadata, clusterSize === 65536 ? 60 : 250);
  });
}

qemuTest(
  "Damaged snapshots, bitmaps and compressed clusters end in an error or a repair, never in anything else",
  () =>
    withFolder((folder) => {
      const image = `${folder}/disk.qcow2`;
      const raw = `${folder}/disk.raw`;
      Deno.writeFileSync(raw, filled(64 * KIB, 7));
      qemuImg("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4096", raw, image);
      qemuImg("resize", "-q", image, "1M");
      {
        using disk = Qcow2File.open(image, { write: true });
        for (let index = 1; index < 40; index += 2) disk.writeZeroesAt(index * 4096, 4096);
        for (let index = 1; index < 40; index += 2) disk.writeAt(index * 4096, filled(4096, index));
      }
      qemuImg("snapshot", "-c", "one", image);
      qemuImg("snapshot", "-c", "two", image);
      qemuImg("bitmap", "--add", "-g", "64k", image, "backup");
      const base = MemoryBlockFile.from(Deno.readFileSync(image));
      // All metadata is packed into the clusters that hold neither data nor compressed bytes.
      const metadata: number[] = [];
      for (let offset = 0; offset < base.size; offset += 4096) {
        const cluster = readAll(base, offset, Math.min(4096, base.size - offset));
        if (new Set(cluster).size !== 1) metadata.push(offset);
      }
      fuzzRounds("snapshots and bitmaps", base, metadata, 200);
    }),
);

function readAll(file: MemoryBlockFile, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  file.readAt(offset, bytes);
  return bytes;
}
