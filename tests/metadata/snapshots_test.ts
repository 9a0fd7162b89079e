import { assertEquals, assertThrows } from "@std/assert";
import { decodeHeader, encodeSnapshot, encodeSnapshotExtra, type Header } from "../../lib/format/mod.ts";
import { assertSnapshotL1, readSnapshotTable, SnapshotTableError } from "../../lib/metadata/snapshots.ts";
import { assertCode, emptyImage, MIB, setUint32 } from "../images.ts";

const TABLE = MIB;

/** An entry of a snapshot table. */
function entryOf(name: string): Uint8Array {
  return encodeSnapshot({
    l1TableOffset: 0x80000,
    l1EntryCount: 1,
    id: name,
    name,
    seconds: 0,
    nanoseconds: 0,
    vmClockNanoseconds: 0n,
    vmStateSize: 0,
    diskSize: MIB,
    instructionCount: 0n,
    extraData: encodeSnapshotExtra(MIB),
  });
}

/** An image with entries at the end of its file, and the header that counts them. */
function imageWith(entries: readonly Uint8Array[], snapshotCount = entries.length) {
  const file = emptyImage({ size: MIB });
  const start = new Uint8Array(65536);
  file.readAt(0, start);
  const header: Header = { ...decodeHeader(start), snapshotCount, snapshotTableOffset: TABLE };
  let position = TABLE;
  for (const entry of entries) {
    file.writeAt(position, entry);
    position += entry.length;
  }
  return { file, header };
}

Deno.test("readSnapshotTable() reads entries one behind the other", () => {
  const entries = ["1", "second", "the third"].map(entryOf);
  const { file, header } = imageWith(entries);
  const table = readSnapshotTable(file, header);
  assertEquals(table.snapshots.map(({ name }) => name), ["1", "second", "the third"]);
  assertEquals(table.entries, entries);
  assertEquals(table.length, entries.reduce((sum, { length }) => sum + length, 0));
});

Deno.test("readSnapshotTable() takes what lies behind the end of the file for zeroes", () => {
  const { file, header } = imageWith([entryOf("only")], 3);
  const { snapshots } = readSnapshotTable(file, header);
  assertEquals(snapshots.map(({ name, l1EntryCount, diskSize }) => [name, l1EntryCount, diskSize]), [
    ["only", 1, MIB],
    ["", 0, undefined],
    ["", 0, undefined],
  ]);
});

Deno.test("readSnapshotTable() refuses an entry with too much extra data, or goes on without it", () => {
  const { file, header } = imageWith([entryOf("first"), new Uint8Array(8000), entryOf("last")], 2);
  const second = TABLE + entryOf("first").length;
  // Known extra data, more of it than is allowed, and the text behind it.
  file.writeAt(second, entryOf("x").subarray(0, 64));
  setUint32(file, second + 36, 7957);
  file.writeAt(second + 40 + 7957, new TextEncoder().encode("22"));
  const error = assertThrows(() => readSnapshotTable(file, header), SnapshotTableError);
  assertEquals([error.code, error.problem, error.index, error.extraLength], ["limit-exceeded", "extra-data", 1, 7957]);
  const errors: SnapshotTableError[] = [];
  const table = readSnapshotTable(file, { ...header, snapshotCount: 3 }, (found) => errors.push(found));
  assertEquals(errors.length, 1);
  assertEquals(table.snapshots.map(({ name, diskSize }) => [name, diskSize]), [["first", MIB], ["2", MIB], [
    "last",
    MIB,
  ]]);
  assertEquals(table.snapshots[1]?.extraData.length, 1024);
  assertEquals(table.length, entryOf("first").length + 8000 + entryOf("last").length);
});

Deno.test("readSnapshotTable() refuses a table that is too long, or drops what is too much", () => {
  const entry = encodeSnapshot({ ...decodedBig(), name: "n".repeat(65535) });
  const count = Math.floor(64 * MIB / entry.length) + 3;
  const { file, header } = imageWith(Array.from({ length: count }, () => entry));
  const error = assertThrows(() => readSnapshotTable(file, header), SnapshotTableError);
  assertEquals([error.problem, error.overhanging], ["length", 3]);
  assertEquals(readSnapshotTable(file, header, () => {}).snapshots.length, count - 3);
});

function decodedBig() {
  const { file, header } = imageWith([entryOf("1")]);
  const [snapshot] = readSnapshotTable(file, header).snapshots;
  if (snapshot === undefined) throw new Error("No snapshot");
  return snapshot;
}

Deno.test("assertSnapshotL1() refuses L1 tables that cannot be", () => {
  const snapshot = decodedBig();
  assertSnapshotL1(snapshot, 65536);
  assertCode("invalid-header", () => assertSnapshotL1({ ...snapshot, l1TableOffset: 0x80200 }, 65536));
  assertCode("limit-exceeded", () => assertSnapshotL1({ ...snapshot, l1EntryCount: 4 * MIB + 1 }, 65536));
});
