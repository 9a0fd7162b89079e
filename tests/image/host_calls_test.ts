/**
 * How many calls of the host typical work takes. They are what the work costs: a call takes as long as dozens of look-ups in tables.
 */

import { assert, assertEquals } from "@std/assert";
import { convert, type CreateOptions, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { filled, GIB, KIB, MIB, type RecordedCall, RecordingFile } from "../images.ts";
import { Random } from "../random.ts";

const TIB = 1024 * GIB;

/** An image on a file that records calls. */
function recorded(options: CreateOptions): { file: RecordingFile; disk: Qcow2File } {
  const file = new RecordingFile(new MemoryBlockFile());
  return { file, disk: Qcow2File.create(file, options) };
}

/** What was asked of a file while something was done, as `call length`. */
function callsOf(file: RecordingFile, act: () => void): string[] {
  file.calls.length = 0;
  act();
  return file.calls.map(({ call, length }) => call === "sync" ? call : `${call} ${length}`);
}

function bytesOf(calls: readonly RecordedCall[], kind: RecordedCall["call"]): number {
  return calls.filter(({ call }) => call === kind).reduce((sum, { length }) => sum + length, 0);
}

/** A file that forgets what the guest writes, which comes in one buffer; so that a gibibyte of it takes no memory. */
class ForgetfulFile extends RecordingFile {
  readonly #data: Uint8Array;
  readonly #memory: MemoryBlockFile;

  constructor(data: Uint8Array, memory = new MemoryBlockFile()) {
    super(memory);
    this.#data = data;
    this.#memory = memory;
  }

  override writeAt(offset: number, data: Uint8Array): void {
    if (data.buffer !== this.#data.buffer) super.writeAt(offset, data);
    else {
      this.calls.push({ call: "write", offset, length: data.length });
      if (offset + data.length > this.size) this.#memory.truncate(offset + data.length);
    }
  }
}

Deno.test("A request over clusters in a row is one call, whether it reads, rewrites or allocates", () => {
  const { file, disk } = recorded({ size: GIB });
  disk.writeAt(0, filled(4096, 1));
  const data = filled(MIB, 1);
  assertEquals(callsOf(file, () => disk.writeAt(MIB, data)), ["write 1048576"]);
  assertEquals(callsOf(file, () => disk.writeAt(MIB, data)), ["write 1048576"]);
  assertEquals(callsOf(file, () => disk.readAt(MIB, data)), ["read 1048576"]);
  assertEquals(callsOf(file, () => disk.readAt(MIB + 5000, filled(900_000, 0))), ["read 900000"]);
  assertEquals(callsOf(file, () => disk.writeAt(MIB + 70_000, filled(4096, 2))), ["write 4096"]);
});

Deno.test("A small write into a fresh cluster is one call, wherever in the cluster it is", () => {
  const { file, disk } = recorded({ size: GIB });
  disk.writeAt(0, filled(4096, 1));
  for (const offset of [64 * KIB, 130 * KIB, 256 * KIB - 4096]) {
    assertEquals(callsOf(file, () => disk.writeAt(offset, filled(4096, 1))), ["write 4096"]);
  }
});

Deno.test("What is not allocated, or zero, costs no call to read; what lies around it one for each stretch", () => {
  const { file, disk } = recorded({ size: GIB });
  disk.writeAt(MIB, filled(MIB, 1));
  disk.writeAt(3 * MIB, filled(MIB, 1));
  disk.writeZeroesAt(5 * MIB, MIB);
  assertEquals(callsOf(file, () => disk.readAt(2 * MIB, filled(MIB, 1))), []);
  assertEquals(callsOf(file, () => disk.readAt(5 * MIB, filled(MIB, 1))), []);
  assertEquals(callsOf(file, () => disk.readAt(600 * MIB, filled(MIB, 1))), []);
  assertEquals(callsOf(file, () => disk.readAt(0, filled(8 * MIB, 1))), ["read 1048576", "read 1048576"]);
});

Deno.test("An entry that is not in memory costs one call of 4 KiB, which brings those for 32 MiB around it", () => {
  const { file, disk } = recorded({ size: GIB });
  for (let offset = 0; offset < 64 * MIB; offset += MIB) disk.writeAt(offset, filled(MIB, 1));
  disk.flush();
  const copy = new RecordingFile(MemoryBlockFile.from(contentOf(file)));
  using again = Qcow2File.open(copy);
  assertEquals(callsOf(copy, () => again.readAt(MIB, filled(4096, 0))), ["read 4096", "read 4096"]);
  for (const offset of [0, 20 * MIB, 32 * MIB - 4096]) {
    assertEquals(callsOf(copy, () => again.readAt(offset, filled(4096, 0))).length, 1);
  }
  assertEquals(callsOf(copy, () => again.readAt(32 * MIB, filled(4096, 0))).length, 2);
});

Deno.test("A gibibyte written from one end to the other writes each table once when it is flushed", () => {
  const data = filled(64 * KIB, 1);
  const file = new ForgetfulFile(data);
  const disk = Qcow2File.create(file, { size: GIB });
  const written = callsOf(file, () => {
    for (let offset = 0; offset < GIB; offset += data.length) disk.writeAt(offset, data);
  });
  // One call for each request; each of the two L2 tables is added to the file by a truncate.
  const others = written.filter((call) => call !== "write 65536");
  assertEquals(written.length - others.length, GIB / data.length);
  assert(others.length < 100, `${others.length} calls`);
  assertEquals(others.filter((call) => call.startsWith("write") || call === "sync"), []);
  const flushed = callsOf(file, () => disk.flush());
  // Refcounts of 16,384 clusters, two L2 tables, two entries of the L1 table, and a sync before and after these.
  assertEquals(flushed, ["write 36864", "write 65536", "write 65536", "sync", "write 16", "sync"]);
  assertEquals(callsOf(file, () => disk.flush()), []);
});

Deno.test("A refcount block is written at most once for a flush, however many clusters were allocated", () => {
  const data = filled(64 * KIB, 1);
  const file = new ForgetfulFile(data);
  const disk = Qcow2File.create(file, { size: 8 * GIB, durability: "none" });
  for (let offset = 0; offset < 8 * GIB; offset += data.length) disk.writeAt(offset, data);
  file.calls.length = 0;
  disk.flush();
  const blocks = new Set(disk.refcountTable.filter((offset) => offset !== 0));
  const writes = file.calls.filter(({ call, offset }) => call === "write" && blocks.has(offset - offset % 65536));
  assert(blocks.size >= 4);
  assert(writes.length <= blocks.size, `${writes.length} writes for ${blocks.size} blocks`);
});

Deno.test("More tables than the cache holds: a miss is one read of 4 KiB, and tables that must go are written together", () => {
  const { file, disk } = recorded({ size: TIB, cacheSize: 100 * 4096 });
  const tables = 500;
  for (let table = 0; table < tables; table++) disk.writeAt(table * 512 * MIB, filled(4096, 1));
  disk.flush();
  const read = callsOf(file, () => {
    for (let table = 0; table < tables; table++) disk.readAt(table * 512 * MIB, filled(4096, 0));
  });
  assertEquals(read.length, 2 * tables);
  const discarded = callsOf(file, () => {
    for (let table = 0; table < tables; table++) disk.discardAt(table * 512 * MIB, 64 * KIB);
  });
  // Each slice is read and written; five times all of the cache is written at once.
  const syncs = discarded.filter((call) => call === "sync").length;
  assert(syncs <= tables / 100 + 1, `${syncs} syncs`);
  assert(discarded.length <= 2 * tables + syncs, `${discarded.length} calls`);
});

Deno.test("Opening takes the same few calls whatever the size of the disk and however much is allocated", () => {
  const counts = [MIB, 64 * GIB, TIB].map((size) => {
    const { file, disk } = recorded({ size });
    for (let offset = 0; offset < size; offset += size / 16) disk.writeAt(offset, filled(4096, 1));
    disk.flush();
    const copy = new RecordingFile(MemoryBlockFile.from(contentOf(file)));
    return [false, true].map((write) => callsOf(copy, () => Qcow2File.open(copy, { write })).length);
  });
  assertEquals(counts, [[4, 4], [4, 4], [4, 4]]);
});

Deno.test("A compressed cluster is read by one call, and only once by somebody who reads on in it", () => {
  const { file, disk } = recorded({ size: GIB });
  disk.writeCompressedAt(0, filled(256 * KIB, 7));
  for (let cluster = 0; cluster < 4; cluster++) {
    const calls = callsOf(file, () => {
      for (let offset = 0; offset < 64 * KIB; offset += 4096) disk.readAt(cluster * 64 * KIB + offset, filled(4096, 0));
    });
    assertEquals(calls.length, 1);
  }
});

Deno.test("convert() takes a read for each stretch of data and a write for as many stretches as the target has in a row", async () => {
  const random = new Random("host calls");
  const source = new RecordingFile(new MemoryBlockFile());
  using raw = RawFile.create(source, { size: 4 * GIB });
  const stretches = 100;
  for (let index = 0; index < stretches; index++) raw.writeAt(index * 40 * MIB, random.bytes(64 * KIB));
  source.calls.length = 0;
  const { file, disk } = recorded({ size: 4 * GIB, durability: "none" });
  file.calls.length = 0;
  await convert(raw, disk, { targetIsZero: true });
  const reads = source.calls.filter(({ call }) => call === "read");
  // The first block of a raw image is always allocated.
  assert(reads.length <= stretches + 1, `${reads.length} reads`);
  assertEquals(bytesOf(source.calls, "read") <= (stretches + 1) * 64 * KIB, true);
  const writes = file.calls.filter(({ call }) => call === "write");
  assert(writes.length < stretches + 40, `${writes.length} writes`);
});

Deno.test("A check reads each table no more than twice, and nothing else", () => {
  const data = filled(64 * KIB, 1);
  const file = new ForgetfulFile(data);
  const disk = Qcow2File.create(file, { size: 8 * GIB, durability: "none" });
  for (let offset = 0; offset < 8 * GIB; offset += data.length) disk.writeAt(offset, data);
  disk.flush();
  const tables = disk.l1Table.filter(({ hostOffset }) => hostOffset !== 0).length;
  const blocks = disk.refcountTable.filter((offset) => offset !== 0).length;
  const calls = callsOf(file, () => assertEquals(disk.check().corruptions, 0));
  assert(calls.length <= 2 * tables + 16 * blocks + 10, `${calls.length} calls`);
  assert(bytesOf(file.calls, "read") <= (2 * tables + blocks + 2) * 64 * KIB);
});

/** What a file holds. */
function contentOf(file: RecordingFile): Uint8Array {
  const bytes = new Uint8Array(file.size);
  file.readAt(0, bytes);
  return bytes;
}
