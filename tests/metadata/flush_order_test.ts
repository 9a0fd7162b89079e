import { assert, assertEquals } from "@std/assert";
import { checkImage, type LayoutOptions, Qcow2File } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import {
  copyOf,
  emptyImage,
  filled,
  getUint64,
  GIB,
  KIB,
  MIB,
  readBytes,
  type RecordedCall,
  RecordingFile,
} from "../images.ts";
import { Random } from "../random.ts";

function recorded(options: LayoutOptions): { inner: MemoryBlockFile; file: RecordingFile } {
  const inner = emptyImage(options);
  return { inner, file: new RecordingFile(inner) };
}

/** How many syncs a flush costs. */
function syncsOf(file: RecordingFile, disk: Qcow2File): number {
  file.calls.length = 0;
  disk.flush();
  return file.count("sync");
}

Deno.test("flush() syncs nothing where nothing was written", () => {
  const { file } = recorded({ size: GIB });
  using disk = Qcow2File.open(file, { write: true });
  assertEquals(syncsOf(file, disk), 0);
  disk.readAt(0, new Uint8Array(65536));
  disk.writeAt(0, new Uint8Array());
  disk.discardAt(0, MIB);
  disk.writeZeroesAt(0, MIB);
  assertEquals(syncsOf(file, disk), 0);
  disk.writeAt(0, filled(512, 1));
  disk.flush();
  assertEquals(syncsOf(file, disk), 0);
  assertEquals(file.calls, []);
  disk.close();
  assertEquals(file.count("sync"), 0);
});

Deno.test("flush() syncs once after rewrites in place", () => {
  const { file } = recorded({ size: GIB });
  using disk = Qcow2File.open(file, { write: true });
  disk.writeAt(0, filled(MIB, 1));
  disk.flush();
  file.calls.length = 0;
  disk.writeAt(1000, filled(100 * KIB, 2));
  disk.writeAt(MIB - 1, filled(1, 3));
  assertEquals(file.calls.filter(({ call }) => call !== "read").map(({ call }) => call), ["write", "write"]);
  assertEquals(syncsOf(file, disk), 1);
});

Deno.test("flush() syncs at most three times after new allocations, twice where all tables are there", () => {
  const { file } = recorded({ size: 8 * GIB });
  using disk = Qcow2File.open(file, { write: true });
  disk.writeAt(0, filled(MIB, 1));
  assert(syncsOf(file, disk) <= 3);
  disk.writeAt(MIB, filled(MIB, 1));
  assert(syncsOf(file, disk) <= 2);
  // Many new L2 tables share the syncs of one.
  for (let offset = 0; offset < 8 * GIB; offset += 512 * MIB) disk.writeAt(offset + 8 * MIB, filled(512, 2));
  assert(syncsOf(file, disk) <= 3);
  disk.discardAt(0, MIB);
  assert(syncsOf(file, disk) <= 3);
});

Deno.test("flush() syncs at most three times where a refcount block is new as well", () => {
  const { file } = recorded({ size: 64 * MIB, clusterSize: 4096, refcountBits: 64 });
  using disk = Qcow2File.open(file, { write: true });
  for (let offset = 0; offset < 16 * MIB; offset += MIB) {
    disk.writeAt(offset, filled(MIB, 1));
    const syncs = syncsOf(file, disk);
    assert(syncs <= 3, `${syncs} syncs at ${offset}`);
  }
});

Deno.test("Evicting a table writes all of them back, so that thousands share few syncs", () => {
  const { file, inner } = recorded({ size: 1024 * GIB });
  using disk = Qcow2File.open(file, { write: true, cacheSize: 64 * 4096 });
  file.calls.length = 0;
  for (let table = 0; table < 2000; table++) disk.writeAt(table * 512 * MIB, filled(512, 1));
  const syncs = file.count("sync");
  assert(syncs < 2000 / 8, `${syncs} syncs for 2000 new tables`);
  disk.close();
  const { corruptions, leaks } = checkImage(copyOf(inner));
  assertEquals([corruptions, leaks], [0, 0]);
});

Deno.test("durability none syncs at the end and never before", () => {
  const { file } = recorded({ size: 64 * GIB });
  const disk = Qcow2File.open(file, { write: true, durability: "none", cacheSize: 1 });
  file.calls.length = 0;
  for (let table = 0; table < 100; table++) {
    disk.writeAt(table * 512 * MIB, filled(512, 1));
    disk.flush();
  }
  disk.discardAt(0, GIB);
  disk.flush();
  assertEquals(file.count("sync"), 0);
  disk.close();
  assertEquals(file.count("sync"), 1);
});

Deno.test("A range of the disk becomes the fewest calls to the host", () => {
  const { file } = recorded({ size: GIB });
  using disk = Qcow2File.open(file, { write: true });
  disk.writeAt(0, filled(16 * MIB, 1));
  disk.flush();
  file.calls.length = 0;
  disk.readAt(0, new Uint8Array(16 * MIB));
  disk.writeAt(123, filled(10 * MIB, 2));
  assertEquals(file.calls.map(({ call, length }) => [call, length]), [["read", 16 * MIB], ["write", 10 * MIB]]);
});

Deno.test("Allocating writes of a whole run are one write of data", () => {
  const { file } = recorded({ size: GIB });
  using disk = Qcow2File.open(file, { write: true });
  disk.writeAt(0, filled(65536, 1));
  file.calls.length = 0;
  disk.writeAt(65536, filled(8 * MIB, 2));
  assertEquals(file.calls.filter(({ length }) => length >= 65536).map(({ call, length }) => [call, length]), [
    ["write", 8 * MIB],
  ]);
  assertEquals(file.count("truncate"), 0);
});

/** A write to the file, or a sync between writes. */
type Event = { readonly file: JournalFile; readonly offset: number; readonly data: Uint8Array } | {
  readonly file: JournalFile;
  readonly data?: never;
};

/** Records every write with its bytes, so that a crash can keep some of them and lose others. */
class JournalFile extends RecordingFile {
  /** What happened to all files together, in order. */
  readonly events: Event[];
  readonly #file: MemoryBlockFile;

  constructor(file: MemoryBlockFile, events: Event[] = []) {
    super(file);
    this.#file = file;
    this.events = events;
  }

  override writeAt(offset: number, data: Uint8Array): void {
    super.writeAt(offset, data);
    this.events.push({ file: this, offset, data: data.slice() });
  }

  override truncate(size: number): void {
    if (size > this.size) this.events.push({ file: this, offset: size - 1, data: new Uint8Array(1) });
    super.truncate(size);
  }

  override sync(): void {
    super.sync();
    this.events.push({ file: this });
  }

  override punchHole(offset: number, length: number): boolean {
    const done = super.punchHole(offset, length);
    const end = Math.min(offset + length, this.#file.size);
    if (end > offset) this.events.push({ file: this, offset, data: new Uint8Array(end - offset) });
    return done;
  }
}

/** What a crash may leave: everything up to the last sync, and of what came after any sectors. */
function crash(start: MemoryBlockFile, happened: readonly Event[], random: Random): MemoryBlockFile {
  const file = copyOf(start);
  const lastSync = happened.findLastIndex((event) => event.data === undefined);
  // Some crashes lose nearly everything that was not synced, others nearly nothing.
  const keptOf = random.pick([2, 2, 8, 1000]);
  const keepsMost = random.oneIn(2);
  happened.forEach((event, index) => {
    if (event.data === undefined) return;
    for (let done = 0; done < event.data.length;) {
      const length = Math.min(512 - (event.offset + done) % 512, event.data.length - done);
      const kept = index < lastSync || random.oneIn(keptOf) !== keepsMost;
      if (kept) file.writeAt(event.offset + done, event.data.subarray(done, done + length));
      done += length;
    }
  });
  return file;
}

const CRASH_CASES: readonly (readonly [name: string, layout: LayoutOptions, cacheSize: number])[] = [
  ["512-byte clusters", { size: 2 * MIB, clusterSize: 512 }, 1],
  [
    "512-byte clusters and 64-bit refcounts, whose table grows",
    { size: 8 * MIB, clusterSize: 512, refcountBits: 64 },
    1,
  ],
  ["1-bit refcounts", { size: 2 * MIB, clusterSize: 1024, refcountBits: 1 }, 16 * KIB],
  ["4 KiB clusters", { size: 8 * MIB, clusterSize: 4096 }, MIB],
  ["subclusters of 512 bytes", { size: 2 * MIB, clusterSize: 16 * KIB, extendedL2: true }, 1],
  ["a data file", { size: 2 * MIB, clusterSize: 512, dataFile: "data" }, 1],
  ["a data file and subclusters", { size: 2 * MIB, clusterSize: 16 * KIB, extendedL2: true, dataFile: "data" }, 1],
];

/** A change of the disk: where, and how many events there were before it. */
interface Change {
  readonly events: number;
  readonly offset: number;
  readonly end: number;
}

/** What was on the disk at a flush, and how many events and changes there were by then. */
interface Flush {
  readonly events: number;
  readonly changes: number;
  readonly model: Uint8Array;
}

/** Changes a disk at random, and remembers when it was what. */
function useAtRandom(disk: Qcow2File, file: JournalFile, random: Random): { changes: Change[]; flushes: Flush[] } {
  const model = new Uint8Array(disk.size);
  const changes: Change[] = [];
  const flushes: Flush[] = [{ events: 0, changes: 0, model: model.slice() }];
  const cluster = disk.allocationSize;
  for (let step = 0; step < 400; step++) {
    if (random.oneIn(5)) {
      disk.flush();
      flushes.push({ events: file.events.length, changes: changes.length, model: model.slice() });
      continue;
    }
    let offset = random.below(disk.size);
    let end = Math.min(offset + random.pick([100, 512, 3 * cluster, 20 * cluster]), disk.size);
    const kind = random.pick(["zero", "discard", "write", "write", "write", "write"] as const);
    if (kind === "discard") {
      offset = Math.ceil(offset / cluster) * cluster;
      end = Math.max(offset, Math.floor(end / cluster) * cluster);
    }
    changes.push({ events: file.events.length, offset, end });
    if (kind === "write") {
      const data = random.bytes(end - offset);
      disk.writeAt(offset, data);
      model.set(data, offset);
      continue;
    }
    if (kind === "zero") disk.writeZeroesAt(offset, end - offset, { unmap: random.oneIn(2) });
    else disk.discardAt(offset, end - offset);
    model.fill(0, offset, end);
  }
  return { changes, flushes };
}

/** When to crash: at any event, or right before a sync, when the most is at stake. */
function crashTime(events: readonly Event[], random: Random): number {
  if (random.oneIn(2)) return random.below(events.length + 1);
  return random.pick(events.flatMap((event, index) => event.data === undefined ? [index] : []));
}

/** What the check has to say against an image, leaks left out. */
function corruptionsOf(file: MemoryBlockFile): string[] {
  const messages: string[] = [];
  checkImage(copyOf(file), { onFinding: ({ kind, message }) => kind === "corruption" && messages.push(message) });
  return messages;
}

for (const [name, layout, cacheSize] of CRASH_CASES) {
  Deno.test(`A crash at any time leaves leaks at worst, and everything that was flushed, with ${name}`, () => {
    const random = new Random(`crash ${name}`);
    const start = emptyImage(layout);
    const file = new JournalFile(copyOf(start));
    const dataFile = new JournalFile(new MemoryBlockFile(), file.events);
    const disk = Qcow2File.open(file, { write: true, cacheSize, dataFile: () => dataFile });
    const { changes, flushes } = useAtRandom(disk, file, random);
    const { events } = file;
    for (let round = 0; round < 60; round++) {
      const at = crashTime(events, random);
      const of = (which: JournalFile): Event[] => events.slice(0, at).filter((event) => event.file === which);
      const left = crash(start, of(file), random);
      const leftData = crash(new MemoryBlockFile(), of(dataFile), random);
      assertEquals(corruptionsOf(left), [], `Crash after ${at} of ${events.length} events`);
      const flush = flushes.findLast((candidate) => candidate.events <= at);
      assert(flush !== undefined);
      using survivor = Qcow2File.open(left, { write: true, dataFile: () => leftData });
      const bytes = readBytes(survivor, 0, survivor.size);
      // What was changed between the flush and the crash may be as before, as after, or something of both.
      const expected = flush.model.slice();
      for (const change of changes.slice(flush.changes)) {
        if (change.events <= at) expected.set(bytes.subarray(change.offset, change.end), change.offset);
      }
      assertEquals(bytes, expected, `Crash after ${at} of ${events.length} events`);
      // The survivor is as good as any image.
      survivor.writeAt(0, filled(Math.min(survivor.size, 64 * KIB), 9));
      survivor.flush();
      assertEquals(survivor.check().corruptions, 0);
    }
  });
}

Deno.test("Refcounts are on the disk before what uses the clusters, and entries are gone before refcounts fall", () => {
  const { inner, file } = recorded({ size: GIB });
  using disk = Qcow2File.open(file, { write: true });
  const places = (calls: readonly RecordedCall[]): string[] =>
    calls.filter(({ call }) => call === "write" || call === "sync").map(({ call, offset }) => {
      if (call === "sync") return "sync";
      if (offset < 0x10000) return "header";
      if (offset < 0x20000) return "refcount table";
      if (offset < 0x30000) return "refcount block";
      return offset < 0x40000 ? "L1 table" : offset < 0x50000 ? "L2 table" : "data";
    });
  file.calls.length = 0;
  disk.writeAt(0, filled(65536, 1));
  disk.flush();
  assertEquals(getUint64(inner, 0x30000), 0x8000000000040000n);
  const allocation = places(file.calls);
  const before = (earlier: string, later: string): void => {
    const sync = allocation.indexOf("sync");
    const first = allocation.indexOf(earlier);
    assert(first >= 0 && first < sync, `${earlier} comes first in ${allocation}`);
    assert(allocation.indexOf(later) > sync, `${later} comes after a sync in ${allocation}`);
  };
  before("refcount block", "L1 table");
  before("L2 table", "L1 table");
  before("data", "L1 table");
  assertEquals(allocation.at(-1), "sync");

  file.calls.length = 0;
  disk.discardAt(0, 65536);
  disk.flush();
  const discard = places(file.calls);
  const unlink = discard.indexOf("L2 table");
  assert(discard.slice(unlink, discard.indexOf("refcount block")).includes("sync"), discard.join(", "));
});

Deno.test("A refcount block is on the disk before the refcount table points to it, and a grown table before the header does", () => {
  // A block describes 64 clusters, a table of one cluster has 64 entries.
  const { inner, file } = recorded({ size: 16 * MIB, clusterSize: 512, refcountBits: 64 });
  using disk = Qcow2File.open(file, { write: true });
  /** What has to be durable before a table entry, or the header, is written that points there. */
  const unsynced = new Set<number>();
  let pointers = 0;
  let moves = 0;
  file.onCall = ({ call, offset, length }) => {
    if (call === "sync") unsynced.clear();
    if (call !== "write") return;
    const { refcountTableOffset: table, refcountTableClusterCount: clusters } = disk.header;
    const isHeader = offset < 512;
    const isTable = offset >= table && offset < table + clusters * 512;
    if (isHeader) {
      moves++;
      assert(!unsynced.has(pendingTable), "The grown table is durable before the header points to it");
    } else if (isTable) {
      pointers++;
      assertEquals([...unsynced].filter((written) => isBlock(written)), [], "Blocks are durable before the table");
    } else {
      for (let at = offset - offset % 512; at < offset + length; at += 512) unsynced.add(at);
    }
  };
  /** Blocks stand first in what they describe; so does the block in front of a grown table. */
  const isBlock = (offset: number): boolean => offset % (64 * 512) === 0;
  const pendingTable = 64 * 64 * 512 + 512;
  for (let offset = 0; offset < 4 * MIB; offset += 16 * KIB) {
    disk.writeAt(offset, filled(16 * KIB, 1));
    disk.flush();
  }
  assert(pointers > 10 && moves > 0, `${pointers} pointers, ${moves} moves`);
  disk.close();
  assertEquals(corruptionsOf(inner), []);
});
