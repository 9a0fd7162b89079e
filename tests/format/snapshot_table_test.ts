import { assertEquals } from "@std/assert";
import { decodeSnapshot } from "../../lib/format/mod.ts";
import { assertCode, GIB } from "../images.ts";

interface Fields {
  readonly id?: string;
  readonly name?: string;
  readonly extra?: Uint8Array;
  readonly l1EntryCount?: number;
}

/** An entry byte by byte. */
function entryOf({ id = "1", name = "first", extra = new Uint8Array(), l1EntryCount = 2 }: Fields): Uint8Array {
  const idBytes = new TextEncoder().encode(id);
  const nameBytes = new TextEncoder().encode(name);
  const length = Math.ceil((40 + extra.length + idBytes.length + nameBytes.length) / 8) * 8;
  const bytes = new Uint8Array(length);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, 0x1_0005_0000n);
  view.setUint32(8, l1EntryCount);
  view.setUint16(12, idBytes.length);
  view.setUint16(14, nameBytes.length);
  view.setUint32(16, 1_700_000_000);
  view.setUint32(20, 123_456_789);
  view.setBigUint64(24, 0xffff_ffff_ffff_fff0n);
  view.setUint32(32, 77);
  view.setUint32(36, extra.length);
  bytes.set(extra, 40);
  bytes.set(idBytes, 40 + extra.length);
  bytes.set(nameBytes, 40 + extra.length + idBytes.length);
  return bytes;
}

function extraOf(...values: readonly bigint[]): Uint8Array {
  const bytes = new Uint8Array(values.length * 8);
  values.forEach((value, index) => new DataView(bytes.buffer).setBigInt64(index * 8, value));
  return bytes;
}

Deno.test("decodeSnapshot() reads every field", () => {
  const bytes = entryOf({ id: "12", name: "before ünicode", extra: extraOf(5n * BigInt(GIB), 7n, -1n) });
  const { snapshot, length } = decodeSnapshot(bytes, 0x60000);
  assertEquals(length, bytes.length);
  assertEquals(snapshot, {
    l1TableOffset: 0x1_0005_0000,
    l1EntryCount: 2,
    id: "12",
    name: "before ünicode",
    seconds: 1_700_000_000,
    nanoseconds: 123_456_789,
    vmClockNanoseconds: 0xffff_ffff_ffff_fff0n,
    vmStateSize: 5 * GIB,
    diskSize: 7,
    instructionCount: -1n,
    extraData: extraOf(5n * BigInt(GIB), 7n, -1n),
  });
});

Deno.test("decodeSnapshot() takes the short state size where there is no extra data, and keeps extra data it does not know", () => {
  const short = decodeSnapshot(entryOf({}), 0).snapshot;
  assertEquals([short.vmStateSize, short.diskSize, short.instructionCount], [77, undefined, undefined]);
  const long = decodeSnapshot(entryOf({ extra: extraOf(1n, 2n, 3n, 4n) }), 0).snapshot;
  assertEquals(long.extraData, extraOf(1n, 2n, 3n, 4n));
  assertEquals([long.vmStateSize, long.diskSize, long.instructionCount], [1, 2, 3n]);
  assertEquals(decodeSnapshot(entryOf({ extra: extraOf(9n, 8n) }), 0).snapshot.diskSize, 8);
});

Deno.test("decodeSnapshot() pads entries to 8 bytes", () => {
  for (let length = 0; length < 20; length++) {
    const name = "n".repeat(length);
    const decoded = decodeSnapshot(entryOf({ id: "", name }), 0);
    assertEquals([decoded.snapshot.name, decoded.length], [name, Math.ceil((40 + length) / 8) * 8]);
  }
});

Deno.test("decodeSnapshot() refuses an entry that runs past the table", () => {
  const bytes = entryOf({ name: "a name", extra: extraOf(1n, 2n) });
  for (let length = 0; length < bytes.length - 7; length++) {
    assertEquals(assertCode("corrupt", () => decodeSnapshot(bytes.subarray(0, length), 0x60000)).offset, 0x60000);
  }
});

Deno.test("decodeSnapshot() takes whatever an entry points to, and the longest of entries", () => {
  const l1EntryCount = 0xffffffff;
  assertEquals(decodeSnapshot(entryOf({ l1EntryCount }), 0).snapshot.l1EntryCount, l1EntryCount);
  const largest = entryOf({ extra: new Uint8Array(1024), id: "i".repeat(65535), name: "n".repeat(65535) });
  assertEquals(decodeSnapshot(largest, 0).length, largest.length);
});
