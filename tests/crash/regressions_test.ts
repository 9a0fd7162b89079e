/**
 * The states in which the explorer found the engine wrong, each as small as it could be made.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { checkImage, Qcow2File } from "../../mod.ts";
import { setRefcount } from "../../lib/format/refcount_entries.ts";
import { viewOf } from "../../lib/format/uint64.ts";
import { assertCode, getUint64, KIB, readBytes, setUint64 } from "../images.ts";
import { type Effort, explore, Tally } from "./exploration.ts";
import { FlatBytes, ScratchFile } from "./flat_file.ts";
import { hostFault, Recorder } from "./recorder.ts";
import { preparedImage } from "./sequences.ts";
import { taggedBytes } from "./tags.ts";

const ALL: Effort = {
  limits: { listed: 100, subsets: 100, torn: 100 },
  samples: { repair: 1, overwrite: 1, qemu: 0 },
};

Deno.test("The header of a new image is written once all that it points to is durable", () => {
  const recorder = new Recorder(new Uint8Array());
  let first = true;
  recorder.onSync = () => {
    const touchesHeader = recorder.changes.some(({ kind, firstSector }) => kind === "write" && firstSector === 0);
    assertEquals(touchesHeader, !first);
    if (touchesHeader) assertEquals(recorder.changes.length, 1);
    first = false;
  };
  Qcow2File.create(recorder, { size: 1024 * KIB, clusterSize: 4096, lock: false });
  assertEquals(first, false);
});

Deno.test("L2 tables that were made for writes that failed lie inside the file", () => {
  const recorder = new Recorder(preparedImage({ size: 256 * KIB, clusterSize: 512 }));
  const disk = Qcow2File.open(recorder, { write: true, lock: false });
  const room = recorder.size;
  for (let table = 0; table < 8; table++) {
    // Each table has room, and the data behind it does not.
    recorder.onCall = (call, _count, end) => {
      if (call === "write" && end > room + (table + 1) * 512) throw hostFault("no-space", call);
    };
    assertCode("no-space", () => disk.writeAt(table * 32 * KIB, taggedBytes(1, table * 32 * KIB, 2048)));
  }
  recorder.onCall = undefined;
  disk.flush();
  const { corruptions } = checkImage(recorder, { lock: false });
  assertEquals(corruptions, 0);
});

Deno.test("L2 tables that were made for writes that failed at once lie inside the file", () => {
  const recorder = new Recorder(preparedImage({ size: 256 * KIB, clusterSize: 512 }));
  const disk = Qcow2File.open(recorder, { write: true, lock: false });
  recorder.onCall = (call, _count, end) => {
    if (call === "write" && end > recorder.size) throw hostFault("no-space", call);
  };
  for (let table = 0; table < 8; table++) {
    assertCode("no-space", () => disk.writeAt(table * 32 * KIB, taggedBytes(1, table * 32 * KIB, 512)));
  }
  disk.flush();
  recorder.onCall = undefined;
  assertEquals(checkImage(recorder, { lock: false }).corruptions, 0);
});

Deno.test("A repair of leaks makes no corruption of them", () => {
  const file = new ScratchFile(
    new FlatBytes(preparedImage({ size: 64 * KIB, clusterSize: 4096, filled: [[0, 9000]] })),
  );
  const disk = Qcow2File.open(file, { lock: false });
  const cluster = (disk.l2Table(0)?.[1]?.hostOffset ?? 0) / 4096;
  const entryOffset = (disk.l1Table[0]?.hostOffset ?? 0) + 8;
  // As a snapshot leaves it that was never finished: counted twice, and not the disk's own.
  const block = new Uint8Array(4096);
  file.readAt(disk.refcountTable[0] ?? 0, block);
  setRefcount(viewOf(block), cluster, 4, 2);
  file.writeAt(disk.refcountTable[0] ?? 0, block);
  setUint64(file, entryOffset, getUint64(file, entryOffset) & (2n ** 63n - 1n));
  const found = checkImage(file, { lock: false });
  assertEquals([found.corruptions, found.leaks], [0, 1]);
  checkImage(file, { repair: "leaks", lock: false });
  const left = checkImage(file, { lock: false });
  assertEquals([left.corruptions, left.leaks], [0, 0]);
});

Deno.test("No sector is torn where writes begin and end within one, over zeroes that were not flushed", () => {
  const report = explore({
    name: "zeroes and unaligned writes",
    image: () => preparedImage({ size: 64 * KIB, clusterSize: 512, filled: [[0, 64 * KIB]] }),
    run(session) {
      session.writeZeroes(0, 16 * KIB, false);
      session.write(100, 5000);
      session.write(9000, 2000);
      session.writeZeroes(512, 2048, false);
      session.write(777, 1000);
      session.close();
    },
  }, ALL);
  const tally = new Tally();
  tally.add(report);
  assertEquals(tally.describeFindings(), "");
});

Deno.test("After a failed sync all of the disk can be read, whatever the cache holds", () => {
  const recorder = new Recorder(preparedImage({ size: 512 * KIB, clusterSize: 512, filled: [[0, 512 * KIB]] }));
  const disk = Qcow2File.open(recorder, { write: true, lock: false, cacheSize: 1 });
  // As many dirty slices as the cache holds.
  for (let table = 0; table < 4; table++) disk.discardAt(table * 32 * KIB, 512);
  disk.writeAt(512, taggedBytes(1, 512, 512));
  recorder.onCall = (call) => {
    if (call === "sync") throw hostFault("io", call);
  };
  assertCode("io", () => disk.flush());
  for (let table = 0; table < 16; table++) {
    const offset = table * 32 * KIB + 1024;
    assertEquals(readBytes(disk, offset, 31 * KIB), taggedBytes(0x40000000, offset, 31 * KIB));
  }
  assertCode("failed", () => disk.writeAt(0, new Uint8Array(512)));
});

Deno.test("A full host does not keep a reader from reading, whatever the cache holds", () => {
  const recorder = new Recorder(preparedImage({ size: 512 * KIB, clusterSize: 512, filled: [[0, 512 * KIB]] }));
  const disk = Qcow2File.open(recorder, { write: true, lock: false, cacheSize: 1 });
  for (let table = 0; table < 4; table++) disk.discardAt(table * 32 * KIB, 512);
  recorder.onCall = (call) => {
    if (call === "write") throw hostFault("no-space", call);
  };
  for (let table = 0; table < 16; table++) {
    const offset = table * 32 * KIB + 1024;
    assertEquals(readBytes(disk, offset, 31 * KIB), taggedBytes(0x40000000, offset, 31 * KIB));
  }
  recorder.onCall = undefined;
  disk.flush();
  assertEquals(readBytes(disk, 0, 512), new Uint8Array(512));
  const { corruptions, leaks } = checkImage(recorder, { lock: false });
  assert(corruptions === 0 && leaks === 0);
});
