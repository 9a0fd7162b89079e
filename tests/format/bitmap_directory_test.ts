import { assertEquals } from "@std/assert";
import {
  decodeBitmapDirectory,
  encodeBitmapDirectory,
  encodeBitmapEntry,
  withBitmapFlags,
} from "../../lib/format/mod.ts";
import { assertCode } from "../images.ts";

interface Fields {
  readonly name?: string;
  readonly flags?: number;
  readonly extraLength?: number;
  readonly tableEntryCount?: number;
}

function entryOf({ name = "backup", flags = 2, extraLength = 0, tableEntryCount = 1 }: Fields): number[] {
  const nameBytes = new TextEncoder().encode(name);
  const bytes = new Uint8Array(Math.ceil((24 + extraLength + nameBytes.length) / 8) * 8);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, 0x1_0007_0000n);
  view.setUint32(8, tableEntryCount);
  view.setUint32(12, flags);
  bytes.set([1, 16], 16);
  view.setUint16(18, nameBytes.length);
  view.setUint32(20, extraLength);
  bytes.set(nameBytes, 24 + extraLength);
  return [...bytes];
}

Deno.test("decodeBitmapDirectory() reads every entry", () => {
  const bytes = new Uint8Array([
    ...entryOf({ name: "a", flags: 1, tableEntryCount: 7 }),
    ...entryOf({ name: "with extra data", flags: 2, extraLength: 11 }),
    ...entryOf({ name: "off", flags: 4 }),
  ]);
  assertEquals(decodeBitmapDirectory(bytes, 3, 0), [
    {
      tableOffset: 0x1_0007_0000,
      tableEntryCount: 7,
      flags: 1,
      inUse: true,
      auto: false,
      type: 1,
      granularityBits: 16,
      extraDataLength: 0,
      nameLength: 1,
      name: "a",
      bytes: bytes.slice(0, 32),
    },
    {
      tableOffset: 0x1_0007_0000,
      tableEntryCount: 1,
      flags: 2,
      inUse: false,
      auto: true,
      type: 1,
      granularityBits: 16,
      extraDataLength: 11,
      nameLength: 15,
      name: "with extra data",
      bytes: bytes.slice(32, 88),
    },
    {
      tableOffset: 0x1_0007_0000,
      tableEntryCount: 1,
      flags: 4,
      inUse: false,
      auto: false,
      type: 1,
      granularityBits: 16,
      extraDataLength: 0,
      nameLength: 3,
      name: "off",
      bytes: bytes.slice(88),
    },
  ]);
});

Deno.test("decodeBitmapDirectory() refuses a directory that does not hold what it should", () => {
  const entry = entryOf({});
  assertCode("corrupt", () => decodeBitmapDirectory(new Uint8Array(entry), 2, 0x80000));
  assertCode("corrupt", () => decodeBitmapDirectory(new Uint8Array([...entry, ...entry]), 1, 0x80000));
  for (let length = 1; length < 24 + "backup".length; length++) {
    assertCode("corrupt", () => decodeBitmapDirectory(new Uint8Array(entry.slice(0, length)), 1, 0x80000));
  }
  const error = assertCode("corrupt", () => decodeBitmapDirectory(new Uint8Array([...entry, 1]), 2, 0x80000));
  assertEquals(error.offset, 0x80000 + entry.length);
});

Deno.test("decodeBitmapDirectory() refuses tables and extra data of sizes that only damage explains", () => {
  const large = new Uint8Array(entryOf({ tableEntryCount: 0x8000000 / 8 + 1 }));
  assertCode("limit-exceeded", () => decodeBitmapDirectory(large, 1, 0));
  const extra = new Uint8Array(entryOf({}));
  new DataView(extra.buffer).setUint32(20, 0xffffffff);
  assertCode("corrupt", () => decodeBitmapDirectory(extra, 1, 0));
});

Deno.test("encodeBitmapDirectory() gives back byte for byte what was decoded, extra data included", () => {
  const bytes = new Uint8Array([
    ...entryOf({ name: "a", flags: 0x81, tableEntryCount: 7 }),
    ...entryOf({ name: "extra", flags: 6, extraLength: 13 }),
  ]);
  bytes.fill(0xee, 32 + 24, 32 + 24 + 13);
  const entries = decodeBitmapDirectory(bytes, 2, 0);
  assertEquals(encodeBitmapDirectory(entries), bytes);
  const changed = encodeBitmapDirectory(entries.map((entry) => withBitmapFlags(entry, entry.flags ^ 1)));
  bytes[15] = 0x80;
  bytes[32 + 15] = 7;
  assertEquals(changed, bytes);
});

Deno.test("encodeBitmapEntry() writes what decodeBitmapDirectory() reads, and refuses names that do not fit", () => {
  const entry = encodeBitmapEntry({
    tableOffset: 0x1_0007_0000,
    tableEntryCount: 1,
    flags: 2,
    granularityBits: 16,
    name: "backup",
  });
  assertEquals([...entry.bytes], entryOf({}));
  for (const name of ["", "x".repeat(1024), "ä".repeat(512)]) {
    assertCode("invalid-argument", () => encodeBitmapEntry({ ...entry, name }));
  }
  assertEquals(encodeBitmapEntry({ ...entry, name: "x".repeat(1023) }).nameLength, 1023);
});
