import { assert, assertEquals } from "@std/assert";
import { type BlockFile, checkImage, type CheckResult, Qcow2Error, Qcow2File, repair } from "../../mod.ts";
import { setRefcount } from "../../lib/format/refcount_entries.ts";
import { viewOf } from "../../lib/format/uint64.ts";
import { getUint64, KIB, setUint32, setUint64 } from "../images.ts";
import { Random } from "../random.ts";
import { FlatBytes, ScratchFile } from "./flat_file.ts";
import { Recorder } from "./recorder.ts";
import { type ImageOptions, preparedImage } from "./sequences.ts";
import { Watch } from "./watch.ts";

const LAYOUTS: readonly ImageOptions[] = [
  { size: 64 * KIB, clusterSize: 512, filled: [[0, 20 * KIB], [40 * KIB, 10 * KIB]] },
  { size: 64 * KIB, clusterSize: 512, refcountBits: 64, filled: [[0, 50 * KIB]], poisonLength: 5000 },
  { size: 300 * KIB, clusterSize: 4096, refcountBits: 2, filled: [[0, 100 * KIB]], poisonLength: 10000 },
  { size: 200 * KIB, clusterSize: 4096, version: 2, filled: [[8 * KIB, 100 * KIB]] },
  { size: 512 * KIB, refcountBits: 8, filled: [[0, 130 * KIB], [400 * KIB, 10 * KIB]] },
];

const DIRTY = 1n;
const CORRUPT = 2n;

/** An image that is to be damaged. */
class Victim {
  readonly file: ScratchFile;
  readonly disk: Qcow2File;

  constructor(layout: ImageOptions) {
    this.file = fileOf(preparedImage(layout));
    this.disk = Qcow2File.open(this.file, { lock: false });
  }

  /** The host offset of the L2 table for the start of the disk. */
  get l2Offset(): number {
    return this.disk.l1Table[0]?.hostOffset ?? 0;
  }

  /** Sets the refcount of a cluster. */
  setRefcount(cluster: number, refcount: number): void {
    const { refcountTable, allocationSize, header } = this.disk;
    const perBlock = allocationSize * 8 / 2 ** header.refcountOrder;
    const offset = refcountTable[Math.floor(cluster / perBlock)] ?? 0;
    assert(offset > 0, `No refcount block for cluster ${cluster}`);
    const block = new Uint8Array(allocationSize);
    this.file.readAt(offset, block);
    setRefcount(viewOf(block), cluster % perBlock, header.refcountOrder, refcount);
    this.file.writeAt(offset, block);
  }

  /** The host cluster that holds a guest cluster. */
  clusterOf(guestCluster: number): number {
    return (this.disk.l2Table(0)?.[guestCluster]?.hostOffset ?? 0) / this.disk.allocationSize;
  }

  /** Sets bits among the incompatible features. */
  mark(bits: bigint): void {
    setUint64(this.file, 72, getUint64(this.file, 72) | bits);
  }
}

/** What can be wrong with an image. */
const DAMAGES: Readonly<Record<string, (victim: Victim) => void>> = {
  "used clusters whose refcount is 0": (victim) => {
    for (let index = 4; index < 9; index++) victim.setRefcount(victim.clusterOf(index), 0);
  },
  "a refcount block that is all zeroes": ({ file, disk }) => {
    file.writeAt(disk.refcountTable[0] ?? 0, new Uint8Array(disk.allocationSize));
  },
  "a refcount block that is missing": ({ file, disk }) => {
    setUint64(file, disk.header.refcountTableOffset, 0n);
  },
  "a refcount block that cannot be": ({ file, disk }) => {
    setUint64(file, disk.header.refcountTableOffset, 0x1230n);
  },
  "leaks": (victim) => {
    // The poison behind the end of the image.
    const { size } = victim.file;
    const end = Math.ceil(size / victim.disk.allocationSize);
    victim.file.truncate((end + 3) * victim.disk.allocationSize);
    for (let cluster = end; cluster < end + 3; cluster++) {
      if (victim.disk.refcountAt(cluster * victim.disk.allocationSize) === 0) victim.setRefcount(cluster, 1);
    }
  },
  "a cluster that is used twice and counted once": ({ file, l2Offset }) => {
    setUint64(file, l2Offset + 5 * 8, getUint64(file, l2Offset + 6 * 8));
  },
  "flags that say shared of clusters that are not": ({ file, l2Offset, disk }) => {
    for (const offset of [l2Offset + 5 * 8, l2Offset + 9 * 8, disk.header.l1TableOffset]) {
      setUint64(file, offset, getUint64(file, offset) & (2n ** 63n - 1n));
    }
  },
};

/** Damages that only images with refcounts of several bits can have, or only version 3. */
const MULTIPLE_COUNTS: Readonly<Record<string, (victim: Victim) => void>> = {
  "refcounts that are too high": (victim) => {
    for (let index = 4; index < 9; index++) victim.setRefcount(victim.clusterOf(index), 2);
  },
  "all kinds of damage at once": (victim) => {
    DAMAGES["flags that say shared of clusters that are not"]?.(victim);
    for (let index = 4; index < 9; index++) victim.setRefcount(victim.clusterOf(index), 3);
    victim.setRefcount(victim.clusterOf(10), 0);
  },
};

/** Makes a snapshot, and says of its entry that it has so much extra data. */
function patchSnapshot({ file }: Victim, extraLength: number): void {
  const disk = Qcow2File.open(file, { write: true, lock: false });
  disk.createSnapshot("one");
  disk.close();
  setUint32(file, Number(getUint64(file, 64)) + 36, extraLength);
}

/** A file in memory that can be closed and opened again. */
function fileOf(content: Uint8Array): ScratchFile {
  return new ScratchFile(new FlatBytes(content));
}

/** Reads a disk, but for a cluster that cannot be read. */
function read(file: BlockFile, exceptCluster = -1): Uint8Array {
  const disk = Qcow2File.open(file, { lock: false });
  const { size, allocationSize } = disk;
  const bytes = new Uint8Array(size);
  for (let offset = 0; offset < size; offset += allocationSize) {
    if (offset === exceptCluster * allocationSize) continue;
    disk.readAt(offset, bytes.subarray(offset, offset + allocationSize));
  }
  return bytes;
}

/** The clusters that are used more often than they are counted: what a crash must never add to. */
function undercounted(findings: readonly string[]): Set<string> {
  return new Set(findings.flatMap((message) => {
    const match = /cluster (\d+) refcount=(\d+) reference=(\d+)/.exec(message);
    return match !== null && Number(match[2]) < Number(match[3]) ? [match[1] ?? ""] : [];
  }));
}

function findingsOf(file: BlockFile): string[] {
  const findings: string[] = [];
  try {
    checkImage(file, { lock: false, onFinding: ({ message }) => findings.push(message) });
  } catch (error) {
    // Too many snapshots, or one that is too long: only a repair goes on then.
    if (!(error instanceof Qcow2Error) || error.code !== "limit-exceeded") throw error;
    findings.push(error.message);
  }
  return findings;
}

/**
 * Repairs an image, and asserts of every state that a crash could leave meanwhile that the guest's data is what it was, that
 * no more clusters are undercounted than before, and that another repair mends it.
 */
function repairWatched(
  victim: Victim,
  repair: (recorder: Recorder) => void,
  { exceptCluster = -1, allocates = false } = {},
): number {
  const image = victim.file.content().slice();
  const disk = read(victim.file, exceptCluster);
  const before = undercounted(findingsOf(victim.file));
  assert(findingsOf(victim.file).length > 0, "Nothing is damaged");
  const recorder = new Recorder(image);
  const limits = { listed: 30, subsets: 30, torn: 30 };
  const watch = new Watch(recorder, new Random("repair"), limits, (file) => {
    const copy = fileOf(file.content());
    assertEquals(read(copy, exceptCluster), disk);
    // Rebuilt refcounts may count clusters behind the old ones; those that were undercounted may be told by other faults.
    for (const cluster of undercounted(findingsOf(copy))) {
      assert(before.has(cluster) || isUnreadable(before), `Cluster ${cluster} became undercounted`);
    }
    // Refcounts behind the end of the file are leaks only once the file is longer.
    if (allocates) checkImage(copy, { repair: "all", lock: false });
    assertMended(checkImage(copy, { repair: "all", lock: false }), copy);
    assertEquals(read(copy, exceptCluster), disk);
  });
  repair(recorder);
  watch.show();
  assertEquals(findingsOf(recorder), []);
  assertEquals(read(recorder, exceptCluster), disk);
  return watch.states;
}

/** Whether the refcounts could not be read at all, so that every cluster was undercounted. */
function isUnreadable(before: ReadonlySet<string>): boolean {
  return before.has("0");
}

function assertMended({ corruptions, leaks }: CheckResult, file: ScratchFile): void {
  assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
  assertEquals(findingsOf(file), []);
}

let total = 0;

for (const [name, damage] of Object.entries({ ...DAMAGES, ...MULTIPLE_COUNTS })) {
  Deno.test(`A power cut during a repair leaves nothing worse: ${name}`, () => {
    for (const layout of LAYOUTS) {
      const victim = new Victim(layout);
      damage(victim);
      total += repairWatched(victim, (recorder) => checkImage(recorder, { repair: "all", lock: false }));
    }
  });
}

for (const [what, extraLength] of [["little", 8], ["much", 1 << 20]] as const) {
  Deno.test(`A power cut while a snapshot table is mended whose entry says too ${what} leaves nothing worse`, () => {
    for (const layout of LAYOUTS.filter(({ version, refcountBits }) => version !== 2 && refcountBits !== 2)) {
      const victim = new Victim(layout);
      patchSnapshot(victim, extraLength);
      total += repairWatched(victim, (recorder) => {
        checkImage(recorder, { repair: "all", lock: false });
        assertEquals(Qcow2File.open(recorder, { lock: false }).snapshots.length, 1);
      }, { allocates: true });
    }
  });
}

Deno.test("A power cut while an L2 entry is mended that points between clusters leaves nothing worse", () => {
  for (const layout of LAYOUTS.filter(({ version, clusterSize }) => version !== 2 && clusterSize !== 512)) {
    const victim = new Victim(layout);
    const entryAt = victim.l2Offset + 6 * 8;
    setUint64(victim.file, entryAt, getUint64(victim.file, entryAt) + 512n + 1n);
    total += repairWatched(victim, (recorder) => checkImage(recorder, { repair: "all", lock: false }), {
      exceptCluster: 6,
    });
  }
});

Deno.test("A power cut while leaks are repaired leaves nothing worse, on a disk that is open", () => {
  for (const layout of LAYOUTS) {
    const victim = new Victim(layout);
    DAMAGES["leaks"]?.(victim);
    total += repairWatched(victim, (recorder) => {
      const disk = Qcow2File.open(recorder, { write: true, lock: false });
      disk.check({ repair: "leaks" });
      disk.close();
    });
  }
});

Deno.test("A power cut while an image is opened that was not closed properly leaves nothing worse", () => {
  for (const layout of LAYOUTS.filter(({ version }) => version !== 2)) {
    for (const damage of [DAMAGES["used clusters whose refcount is 0"], DAMAGES["leaks"]]) {
      const victim = new Victim(layout);
      damage?.(victim);
      victim.mark(DIRTY);
      total += repairWatched(victim, (recorder) => {
        const disk = Qcow2File.open(recorder, { write: true, lock: false });
        disk.close();
        assertEquals(getUint64(recorder, 72), 0n);
      });
    }
  }
});

for (const [name, damage] of Object.entries({ ...DAMAGES, ...MULTIPLE_COUNTS })) {
  Deno.test(`A repair that is ended early leaves nothing worse: ${name}`, async () => {
    for (const layout of LAYOUTS) {
      const victim = new Victim(layout);
      if (name in MULTIPLE_COUNTS && victim.disk.header.refcountOrder < 1) continue;
      damage(victim);
      const image = victim.file.content().slice();
      const disk = read(victim.file);
      const before = undercounted(findingsOf(victim.file));
      let lastStep = 0;
      for (let step = 1; lastStep === 0; step++) {
        const file = fileOf(image.slice());
        const controller = new AbortController();
        let steps = 0;
        const onProgress = () => ++steps === step && controller.abort("enough");
        try {
          await repair(file, { lock: false, signal: controller.signal, onProgress });
          lastStep = step;
        } catch (error) {
          if (!(error instanceof Qcow2Error) || error.code !== "aborted") throw error;
          assertEquals(error.cause, "enough");
        }
        assertEquals(read(file), disk);
        for (const cluster of undercounted(findingsOf(file))) {
          assert(before.has(cluster) || isUnreadable(before), `Cluster ${cluster} became undercounted in step ${step}`);
        }
        assertMended(await repair(file, { lock: false }), file);
        assertEquals(read(file), disk);
        total++;
      }
      assert(lastStep > 6, `${lastStep} steps`);
    }
  });
}

Deno.test("A power cut while an image is repaired that is marked as corrupt leaves nothing worse", () => {
  for (const layout of LAYOUTS.filter(({ version }) => version !== 2)) {
    const victim = new Victim(layout);
    DAMAGES["a cluster that is used twice and counted once"]?.(victim);
    victim.mark(CORRUPT);
    total += repairWatched(victim, (recorder) => {
      checkImage(recorder, { repair: "all", lock: false });
      assertEquals(getUint64(recorder, 72), 0n);
    });
  }
});

Deno.test("The mark of a corrupt image goes only once it is mended", () => {
  for (const layout of LAYOUTS.filter(({ version }) => version !== 2)) {
    const victim = new Victim(layout);
    DAMAGES["used clusters whose refcount is 0"]?.(victim);
    victim.mark(CORRUPT);
    const recorder = new Recorder(victim.file.content().slice());
    const limits = { listed: 30, subsets: 30, torn: 30 };
    const watch = new Watch(recorder, new Random("mark"), limits, (file) => {
      const copy = fileOf(file.content());
      if (getUint64(copy, 72) === 0n) assertEquals(undercounted(findingsOf(copy)).size, 0);
    });
    checkImage(recorder, { repair: "all", lock: false });
    watch.show();
    total += watch.states;
  }
});

Deno.test("Bits that only other programs know are cleared before the first change", () => {
  for (const layout of LAYOUTS.filter(({ version }) => version !== 2)) {
    const victim = new Victim(layout);
    setUint64(victim.file, 88, 0xf0n);
    const image = victim.file.content().slice();
    const disk = read(victim.file);
    const recorder = new Recorder(image);
    const limits = { listed: 30, subsets: 30, torn: 30 };
    const watch = new Watch(recorder, new Random("autoclear"), limits, (file) => {
      const copy = fileOf(file.content());
      assertEquals(findingsOf(copy), []);
      const cleared = getUint64(copy, 88) === 0n;
      // With the bits still there, nothing else may have changed.
      if (!cleared) assertEquals(copy.content().slice(), image);
      if (recorder.counts.write === 1) assertEquals(read(copy), disk);
    });
    const open = Qcow2File.open(recorder, { write: true, lock: false });
    open.writeAt(0, new Uint8Array(512));
    watch.show();
    total += watch.states;
  }
});

Deno.test("The states of interrupted repairs were many", () => {
  console.log(`Crashes: ${total} states of repairs and header updates, 0 findings`);
  assert(total > 500);
});
