import { assert, assertEquals } from "@std/assert";
import { checkImage, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { KIB, MIB, readBytes } from "../images.ts";
import { ScratchFile } from "./flat_file.ts";
import { Recorder } from "./recorder.ts";
import { type ImageOptions, preparedImage } from "./sequences.ts";
import { taggedBytes } from "./tags.ts";

/** A disk on a recorder. */
function openRecorded(image: ImageOptions, cacheSize?: number): { recorder: Recorder; disk: Qcow2File } {
  const recorder = new Recorder(preparedImage(image));
  const options = cacheSize === undefined ? {} : { cacheSize };
  return { recorder, disk: Qcow2File.open(recorder, { write: true, lock: false, ...options }) };
}

/** How many syncs something takes. */
function syncsOf({ counts }: Recorder, fn: () => void): number {
  const before = counts.sync;
  fn();
  return counts.sync - before;
}

Deno.test("A flush of a clean image costs no sync", () => {
  const { recorder, disk } = openRecorded({ size: MIB });
  assertEquals(syncsOf(recorder, () => disk.flush()), 0);
  disk.writeAt(0, taggedBytes(1, 0, 4096));
  disk.flush();
  disk.readAt(0, new Uint8Array(MIB));
  assertEquals(syncsOf(recorder, () => disk.flush()), 0);
  // What changes nothing leaves the image clean.
  disk.discardAt(512 * KIB, 64 * KIB);
  disk.writeZeroesAt(512 * KIB, 64 * KIB);
  assertEquals(syncsOf(recorder, () => disk.flush()), 0);
});

Deno.test("A close costs no sync after a flush", () => {
  const { recorder, disk } = openRecorded({ size: MIB });
  disk.writeAt(0, taggedBytes(1, 0, 4096));
  disk.flush();
  assertEquals(syncsOf(recorder, () => disk.close()), 0);
});

Deno.test("A flush after rewrites in place costs one sync", () => {
  const { recorder, disk } = openRecorded({ size: MIB, filled: [[0, MIB]] });
  for (let turn = 0; turn < 10; turn++) disk.writeAt(turn * 100_000, taggedBytes(turn, turn * 100_000, 5000));
  assertEquals(recorder.counts.sync, 0);
  assertEquals(syncsOf(recorder, () => disk.flush()), 1);
});

Deno.test("A flush after allocations costs two syncs", () => {
  const { recorder, disk } = openRecorded({ size: 16 * MIB });
  for (const offset of [0, MIB, 5 * MIB]) {
    disk.writeAt(offset, taggedBytes(1, offset, 100_000));
    assertEquals(syncsOf(recorder, () => disk.flush()), 2);
  }
});

Deno.test("A flush after allocations costs three syncs where a refcount block is new", () => {
  const { recorder, disk } = openRecorded({ size: MIB, clusterSize: 512, refcountBits: 64 });
  let most = 0;
  let three = 0;
  for (let offset = 0; offset < MIB; offset += 8 * KIB) {
    disk.writeAt(offset, taggedBytes(1, offset, 8 * KIB));
    const syncs = syncsOf(recorder, () => disk.flush());
    most = Math.max(most, syncs);
    if (syncs === 3) three++;
  }
  assertEquals(most, 3);
  // Clusters of 512 bytes with refcounts of 64 bits: one block for 32 KiB of the file.
  assert(three >= 32, `${three} flushes took three syncs`);
});

Deno.test("A flush costs three syncs even where the refcount table grows", () => {
  const { recorder, disk } = openRecorded({
    size: 2 * MIB,
    clusterSize: 512,
    refcountBits: 64,
    filled: [[0, 1960 * KIB]],
  });
  const before = disk.header.refcountTableOffset;
  let most = 0;
  for (let offset = 1960 * KIB; offset < 2 * MIB; offset += 8 * KIB) {
    disk.writeAt(offset, taggedBytes(1, offset, 8 * KIB));
    most = Math.max(most, syncsOf(recorder, () => disk.flush()));
  }
  assert(disk.header.refcountTableOffset !== before);
  assertEquals(most, 3);
});

Deno.test("A flush after discards costs one sync", () => {
  const { recorder, disk } = openRecorded({ size: MIB, filled: [[0, MIB]] });
  disk.discardAt(0, 512 * KIB);
  assertEquals(syncsOf(recorder, () => disk.flush()), 1);
  // The clusters are free now, and using them again needs what any allocation needs.
  disk.writeAt(0, taggedBytes(1, 0, 65536));
  assertEquals(syncsOf(recorder, () => disk.flush()), 2);
});

Deno.test("An eviction shares its sync among all dirty slices", () => {
  // One L2 table for 32 KiB of the disk, and a cache of four.
  const { recorder, disk } = openRecorded({ size: MIB, clusterSize: 512, filled: [[0, MIB]] }, 1);
  const rewrite = (table: number): void => {
    const offset = table * 32 * KIB;
    // A discard dirties the table without a write of its own.
    disk.discardAt(offset, 512);
  };
  for (let table = 0; table < 4; table++) rewrite(table);
  assertEquals(recorder.counts.sync, 0);
  const writes = recorder.counts.write;
  rewrite(4);
  // Nothing was written before, so there was nothing to make durable.
  assertEquals(recorder.counts.sync, 0);
  assertEquals(recorder.counts.write - writes, 4);
  const more = syncsOf(recorder, () => {
    for (let table = 5; table < 29; table++) rewrite(table);
  });
  assertEquals(more, 6);
});

Deno.test("New L2 tables are evicted without a sync", () => {
  const { recorder, disk } = openRecorded({ size: MIB, clusterSize: 512 }, 1);
  for (let table = 0; table < 30; table++) disk.writeAt(table * 32 * KIB, taggedBytes(table, table * 32 * KIB, 512));
  assertEquals(recorder.counts.sync, 0);
  assertEquals(syncsOf(recorder, () => disk.flush()), 2);
});

Deno.test("Evictions in known tables share their syncs: one for each time the cache fills", () => {
  const { recorder, disk } = openRecorded({ size: MIB, clusterSize: 512, filled: halves() }, 1);
  const syncs = syncsOf(recorder, () => {
    for (let table = 0; table < 32; table++) {
      const offset = table * 32 * KIB + 16 * KIB;
      disk.writeAt(offset, taggedBytes(table, offset, 512));
    }
  });
  assert(syncs <= 8, `${syncs} syncs for 32 tables in a cache of 4`);
});

Deno.test("Without durability nothing is synced before the close, and the close makes everything durable", () => {
  const recorder = new Recorder(preparedImage({ size: MIB, clusterSize: 512 }));
  const disk = Qcow2File.open(recorder, { write: true, lock: false, durability: "none", cacheSize: 1 });
  for (let offset = 0; offset < MIB; offset += 40 * KIB) {
    disk.writeAt(offset, taggedBytes(1, offset, 5 * KIB));
    disk.flush();
  }
  disk.discardAt(0, 100 * KIB);
  assertEquals(recorder.counts.sync, 0);
  disk.close();
  assert(recorder.counts.sync > 0);
  const { corruptions } = checkImage(new ScratchFile(recorder.durable), { lock: false });
  assertEquals(corruptions, 0);
  const durable = Qcow2File.open(new ScratchFile(recorder.durable), { lock: false });
  for (let offset = 120 * KIB; offset < MIB; offset += 40 * KIB) {
    assertEquals(readBytes(durable, offset, 5 * KIB), taggedBytes(1, offset, 5 * KIB));
  }
});

Deno.test("An unsafe durability never syncs, and what was written is there while the host lives", () => {
  const recorder = new Recorder(preparedImage({ size: MIB, clusterSize: 512 }));
  const disk = Qcow2File.open(recorder, { write: true, lock: false, durability: "unsafe", cacheSize: 1 });
  for (let offset = 0; offset < MIB; offset += 40 * KIB) {
    disk.writeAt(offset, taggedBytes(1, offset, 5 * KIB));
    disk.flush();
  }
  disk.close();
  assertEquals(recorder.counts.sync, 0);
  const { corruptions, leaks } = checkImage(MemoryBlockFile.from(recorder.content()), { lock: false });
  assertEquals([corruptions, leaks], [0, 0]);
});

Deno.test("A raw disk is synced by each flush, by its close alone, or never, as its durability says", () => {
  for (const [durability, syncs] of [["full", 3], ["none", 1], ["unsafe", 0]] as const) {
    const recorder = new Recorder(preparedImage({ size: MIB }));
    const disk = RawFile.open(recorder, { write: true, lock: false, durability });
    for (let turn = 0; turn < 2; turn++) {
      disk.writeAt(0, taggedBytes(turn, 0, 512));
      disk.flush();
    }
    disk.writeAt(0, taggedBytes(2, 0, 512));
    disk.close();
    assertEquals(recorder.counts.sync, syncs, durability);
  }
});

Deno.test("A close leaves nothing unsynced but refcounts that fell", () => {
  const { recorder, disk } = openRecorded({ size: MIB, clusterSize: 512, filled: [[0, MIB]] }, 1);
  disk.discardAt(0, 300 * KIB);
  disk.writeAt(600 * KIB, taggedBytes(1, 600 * KIB, 5 * KIB));
  disk.close();
  const durable = checkImage(new ScratchFile(recorder.durable), { lock: false });
  const all = checkImage(recorder, { lock: false });
  // A power cut now costs the space that was freed, and nothing else.
  assertEquals([durable.corruptions, durable.leaks, all.corruptions, all.leaks], [0, 600, 0, 0]);
});

/** Data at the start of each stretch that an L2 table maps, so that all tables are there. */
function halves(): [number, number][] {
  return Array.from({ length: 32 }, (_, table) => [table * 32 * KIB, 512]);
}
