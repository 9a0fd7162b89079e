import { assert, assertEquals } from "@std/assert";
import { checkImage, type LayoutOptions, Qcow2Error, Qcow2File } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { assertCode, copyOf, emptyImage, filled, GIB, KIB, MIB, readBytes, RecordingFile } from "../images.ts";
import { Random } from "../random.ts";

/** A file on a host with little room, which can be made to have more. */
function tightFile(inner: MemoryBlockFile, room: number): { file: RecordingFile; makeRoom: (bytes: number) => void } {
  const file = new RecordingFile(inner);
  let limit = room;
  file.onCall = ({ call, offset, length }) => {
    if (call !== "write" && call !== "truncate") return;
    if (offset + length > Math.max(limit, file.size)) throw new Qcow2Error("no-space", "Disk full");
  };
  return { file, makeRoom: (bytes) => limit = bytes };
}

function assertSound(file: MemoryBlockFile): void {
  const { corruptions, leaks } = checkImage(copyOf(file));
  assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
}

Deno.test("A write that finds the host full says no-space, and what was flushed stays", () => {
  const inner = emptyImage({ size: 64 * MIB }, { maxSize: 2 * MIB });
  const disk = Qcow2File.open(inner, { write: true });
  disk.writeAt(0, filled(MIB, 1));
  disk.flush();
  let written = MIB;
  assertCode("no-space", () => {
    for (; written < 64 * MIB; written += 65536) disk.writeAt(written, filled(65536, 2));
  });
  assert(written < 2 * MIB);
  assertEquals(readBytes(disk, 0, MIB), filled(MIB, 1));
  disk.close();
  using again = Qcow2File.open(copyOf(inner));
  assertEquals(readBytes(again, 0, MIB), filled(MIB, 1));
  assertEquals(readBytes(again, MIB, written - MIB), filled(written - MIB, 2));
  assertEquals(readBytes(again, written, 65536), filled(65536, 0));
  assertSound(inner);
});

Deno.test("A full host can be written again once there is room", () => {
  const inner = emptyImage({ size: 64 * MIB });
  const { file, makeRoom } = tightFile(inner, MIB);
  const disk = Qcow2File.open(file, { write: true });
  assertCode("no-space", () => disk.writeAt(0, filled(8 * MIB, 1)));
  assertCode("no-space", () => disk.writeAt(32 * MIB, filled(2 * MIB, 2)));
  makeRoom(64 * MIB);
  disk.writeAt(0, filled(8 * MIB, 3));
  disk.flush();
  assertEquals(readBytes(disk, 0, 8 * MIB), filled(8 * MIB, 3));
  disk.close();
  using again = Qcow2File.open(copyOf(inner));
  assertEquals(readBytes(again, 0, 8 * MIB), filled(8 * MIB, 3));
  assertSound(inner);
});

Deno.test("A flush that finds the host full says no-space, and succeeds once there is room", () => {
  const inner = emptyImage({ size: GIB });
  const { file, makeRoom } = tightFile(inner, inner.size);
  const disk = Qcow2File.open(file, { write: true });
  // A write of zeroes into nothing needs no room, a discard neither.
  disk.writeZeroesAt(0, MIB);
  disk.discardAt(0, MIB);
  disk.flush();
  makeRoom(inner.size + 4 * 65536);
  // The table and the data find room, and the full host stands in the way of the table's write.
  disk.writeAt(0, filled(65536, 1));
  makeRoom(0);
  const before = inner.size;
  try {
    disk.flush();
  } catch (error) {
    assert(error instanceof Qcow2Error);
    assertEquals(error.code, "no-space");
  }
  assert(inner.size >= before);
  makeRoom(GIB);
  disk.flush();
  disk.close();
  using again = Qcow2File.open(copyOf(inner));
  assertEquals(readBytes(again, 0, 65536), filled(65536, 1));
  assertSound(inner);
});

Deno.test("create() on a full host says no-space", () => {
  for (const maxSize of [0, 100, 65536, 150000]) {
    assertCode("no-space", () => Qcow2File.create(new MemoryBlockFile({ maxSize }), { size: GIB }));
  }
});

Deno.test("Writing and discarding in turns does not run out of space, with and without flushes", () => {
  for (const flushEvery of [1, 7, 2 ** 30]) {
    // There is room for all of the disk and as much again.
    const file = emptyImage({ size: 4 * MIB }, { maxSize: 10 * MIB });
    using disk = Qcow2File.open(file, { write: true });
    for (let turn = 0; turn < 100; turn++) {
      disk.writeAt(0, filled(4 * MIB, 1 + turn % 255));
      disk.discardAt(0, 4 * MIB);
      if (turn % flushEvery === 0) disk.flush();
    }
    disk.writeAt(MIB, filled(65536, 7));
    assertEquals(readBytes(disk, MIB, 65536), filled(65536, 7));
    assertEquals(readBytes(disk, 0, MIB), filled(MIB, 0));
    disk.close();
    assertSound(file);
  }
});

Deno.test("Discarded clusters are used again: the file does not grow with the number of turns", () => {
  const file = emptyImage({ size: GIB });
  using disk = Qcow2File.open(file, { write: true });
  let size = 0;
  for (let turn = 0; turn < 50; turn++) {
    disk.writeAt(0, filled(4 * MIB, 1));
    disk.flush();
    disk.discardAt(0, 4 * MIB);
    disk.flush();
    if (turn === 0) size = file.size;
  }
  assertEquals(file.size, size);
});

Deno.test("Clusters that were discarded and flushed are used again by the next session", () => {
  const file = emptyImage({ size: GIB });
  {
    using disk = Qcow2File.open(file, { write: true });
    disk.writeAt(0, filled(4 * MIB, 1));
    disk.discardAt(0, 4 * MIB);
  }
  const { size } = file;
  const image = copyOf(file);
  {
    using disk = Qcow2File.open(image, { write: true });
    disk.writeAt(512 * MIB, filled(4 * MIB - 65536, 2));
  }
  assertEquals(image.size, size);
  assertSound(image);
});

/** Uses a disk on a host that fails now and then, then heals it, and compares with what must be on the disk. */
function surviveFailures(name: string, layout: LayoutOptions, cacheSize: number): void {
  const random = new Random(name);
  const inner = emptyImage(layout);
  const file = new RecordingFile(inner);
  let failing = false;
  file.onCall = ({ call, offset, length }) => {
    if (!failing || call === "sync" || !random.oneIn(6)) return;
    // Half of the writes that fail get to a part of what they should write, as on a real disk.
    if (call === "write" && random.oneIn(2)) inner.writeAt(offset, filled(Math.floor(length / 2), 0xdd));
    throw new Qcow2Error(call === "read" ? "io" : "no-space", `Failed to ${call}`);
  };
  const disk = Qcow2File.open(file, { write: true, cacheSize });
  const model = new Uint8Array(disk.size);
  /** Bytes whose content is not known, since the call that changed them failed. */
  const unsure = new Uint8Array(disk.size);
  const attempt = (fn: () => void): boolean => {
    try {
      fn();
      return true;
    } catch (error) {
      if (!(error instanceof Qcow2Error) || (error.code !== "no-space" && error.code !== "io")) throw error;
      return false;
    }
  };
  const compare = (offset: number, bytes: Uint8Array): void => {
    for (let index = 0; index < bytes.length; index++) {
      if (bytes[index] !== model[offset + index] && unsure[offset + index] === 0) {
        throw new Error(`Byte ${offset + index} is ${bytes[index]}, expected ${model[offset + index]}`);
      }
    }
  };
  for (let step = 0; step < 4000; step++) {
    if (step % 100 === 0) failing = random.oneIn(2);
    const offset = random.below(disk.size);
    const length = Math.min(random.below(12 * disk.allocationSize), disk.size - offset);
    switch (random.below(8)) {
      case 0:
        attempt(() => disk.flush());
        break;
      case 1: {
        const done = attempt(() => disk.writeZeroesAt(offset, length, { unmap: random.oneIn(2) }));
        if (done) model.fill(0, offset, offset + length);
        unsure.fill(done ? 0 : 1, offset, offset + length);
        break;
      }
      case 2: {
        attempt(() => disk.discardAt(offset, length));
        unsure.fill(1, offset, offset + length);
        break;
      }
      case 3: {
        const bytes = new Uint8Array(length);
        if (attempt(() => disk.readAt(offset, bytes))) compare(offset, bytes);
        break;
      }
      default: {
        const data = random.bytes(length);
        const done = attempt(() => disk.writeAt(offset, data));
        if (done) model.set(data, offset);
        unsure.fill(done ? 0 : 1, offset, offset + length);
      }
    }
  }
  failing = false;
  disk.flush();
  compare(0, readBytes(disk, 0, disk.size));
  disk.close();
  using again = Qcow2File.open(copyOf(inner));
  compare(0, readBytes(again, 0, again.size));
  assertEquals(checkImage(copyOf(inner)).corruptions, 0);
}

Deno.test("A host that fails now and then costs what failed and nothing else, with 512-byte clusters", () => {
  surviveFailures("failing 512", { size: 2 * MIB, clusterSize: 512 }, 1);
});

Deno.test("A host that fails now and then costs what failed and nothing else, with refcounts of 64 bits", () => {
  surviveFailures("failing 64 bits", { size: 2 * MIB, clusterSize: 512, refcountBits: 64 }, 8 * KIB);
});

Deno.test("A host that fails now and then costs what failed and nothing else, with 4 KiB clusters", () => {
  surviveFailures("failing 4 KiB", { size: 4 * MIB, clusterSize: 4096, refcountBits: 1 }, 1);
});

Deno.test("After a failed sync the image takes no more writes, and can be read and closed", () => {
  const inner = emptyImage({ size: MIB });
  const file = new RecordingFile(inner);
  const disk = Qcow2File.open(file, { write: true });
  disk.writeAt(0, filled(512, 1));
  disk.flush();
  disk.writeAt(0, filled(512, 2));
  file.onCall = ({ call }) => {
    if (call === "sync") throw new Qcow2Error("io", "Bad disk");
  };
  assertCode("io", () => disk.flush());
  file.onCall = undefined;
  assertCode("failed", () => disk.flush());
  assertCode("failed", () => disk.writeAt(0, filled(512, 3)));
  assertEquals(readBytes(disk, 0, 512), filled(512, 2));
  // Errors at the end are told, not lost.
  assertCode("failed", () => disk.close());
  disk.close();
  assertCode("closed", () => disk.readAt(0, new Uint8Array(1)));
});
