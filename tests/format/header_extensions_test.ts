import { assertEquals } from "@std/assert";
import {
  decodeBitmapsPointer,
  decodeEncryptionPointer,
  decodeHeaderExtensions,
  encodeHeaderExtensions,
  EXTENSION,
} from "../../lib/format/mod.ts";
import { assertCode } from "../images.ts";
import { Random } from "../random.ts";

Deno.test("decodeHeaderExtensions() reads type, length and data, and skips the padding, whatever is in it", () => {
  const bytes = new Uint8Array([
    ...[0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 5, ...new TextEncoder().encode("qcow2"), 0xff, 0xff, 0xff],
    ...[0x01, 0x02, 0x03, 0x04, 0, 0, 0, 0],
    ...[0x05, 0x06, 0x07, 0x08, 0, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8],
    ...[0, 0, 0, 0, 0, 0, 0, 0],
    ...[0x09, 0x09, 0x09, 0x09, 0, 0, 0, 0],
  ]);
  assertEquals(decodeHeaderExtensions(bytes, 112), [
    { type: EXTENSION.backingFormat, data: new TextEncoder().encode("qcow2") },
    { type: 0x01020304, data: new Uint8Array() },
    { type: 0x05060708, data: new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8]) },
  ]);
});

Deno.test("decodeHeaderExtensions() ends where the area ends when there is no end mark", () => {
  assertEquals(decodeHeaderExtensions(new Uint8Array(), 112), []);
  assertEquals(decodeHeaderExtensions(new Uint8Array([1, 2, 3, 4, 0, 0, 0]), 112), []);
  assertEquals(decodeHeaderExtensions(new Uint8Array([1, 2, 3, 4, 0, 0, 0, 1, 7]), 112), [
    { type: 0x01020304, data: new Uint8Array([7]) },
  ]);
});

Deno.test("decodeHeaderExtensions() refuses an extension that runs past the area, and says where it stands", () => {
  const bytes = new Uint8Array([1, 2, 3, 4, 0, 0, 0, 0, 1, 2, 3, 5, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8]);
  const error = assertCode("invalid-header", () => decodeHeaderExtensions(bytes, 104));
  assertEquals([error.offset, error.found], [112, 9]);
});

Deno.test("Unknown extensions are the same byte for byte after decoding and encoding", () => {
  const random = new Random("extensions");
  for (let round = 0; round < 300; round++) {
    const extensions = Array.from(
      { length: random.below(8) },
      () => ({ type: random.between(1, 0xffff), data: random.bytes(random.below(100)) }),
    );
    const bytes = encodeHeaderExtensions(extensions);
    assertEquals(bytes.length % 8, 0);
    assertEquals(decodeHeaderExtensions(bytes, 112), extensions);
    assertEquals(encodeHeaderExtensions(decodeHeaderExtensions(bytes, 112)), bytes);
  }
});

Deno.test("decodeBitmapsPointer() reads where the bitmap directory stands", () => {
  const data = new Uint8Array(24);
  const view = new DataView(data.buffer);
  view.setUint32(0, 3);
  view.setBigUint64(8, 96n);
  view.setBigUint64(16, 0x1_0005_0000n);
  assertEquals(decodeBitmapsPointer(data), { count: 3, directorySize: 96, directoryOffset: 0x1_0005_0000 });
});

Deno.test("decodeBitmapsPointer() refuses another length, no bitmaps and what no number holds", () => {
  for (const length of [0, 16, 23, 25, 32]) {
    assertCode("invalid-header", () => decodeBitmapsPointer(new Uint8Array(length).fill(1)));
  }
  const data = new Uint8Array(24);
  assertCode("invalid-header", () => decodeBitmapsPointer(data));
  new DataView(data.buffer).setUint32(0, 1);
  new DataView(data.buffer).setBigUint64(8, 2n ** 63n);
  assertCode("limit-exceeded", () => decodeBitmapsPointer(data));
});

Deno.test("decodeEncryptionPointer() reads where the LUKS header stands", () => {
  const data = new Uint8Array(16);
  const view = new DataView(data.buffer);
  view.setBigUint64(0, 0x40000n);
  view.setBigUint64(8, 0x1f8000n);
  assertEquals(decodeEncryptionPointer(data), { offset: 0x40000, length: 0x1f8000 });
  assertCode("invalid-header", () => decodeEncryptionPointer(new Uint8Array(15)));
});
