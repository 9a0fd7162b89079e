import { assertEquals } from "@std/assert";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { assertCode, pattern } from "./_files.ts";

const PAGE = 65536;

Deno.test("MemoryBlockFile.readAt() returns fewer bytes where the file ends", () => {
  using file = MemoryBlockFile.from(pattern(100));
  const bytes = new Uint8Array(20).fill(0xee);
  assertEquals(file.readAt(90, bytes), 10);
  assertEquals(bytes.subarray(0, 10), pattern(100).subarray(90));
  assertEquals(bytes.subarray(10), new Uint8Array(10).fill(0xee));
  assertEquals(file.readAt(100, bytes), 0);
  assertEquals(file.readAt(2 ** 40, bytes), 0);
});

Deno.test("MemoryBlockFile.from() copies the bytes", () => {
  const bytes = pattern(100);
  using file = MemoryBlockFile.from(bytes, { name: "copy", writable: false });
  bytes.fill(0);
  assertEquals(file.toBytes(), pattern(100));
  assertEquals([file.name, file.writable], ["copy", false]);
});

Deno.test("MemoryBlockFile.writeAt() crosses pages and grows the file", () => {
  using file = new MemoryBlockFile();
  file.writeAt(PAGE - 10, pattern(3 * PAGE));
  assertEquals(file.size, 4 * PAGE - 10);
  const bytes = new Uint8Array(3 * PAGE + 20);
  assertEquals(file.readAt(PAGE - 20, bytes), 3 * PAGE + 10);
  assertEquals(bytes.subarray(10, 10 + 3 * PAGE), pattern(3 * PAGE));
  assertEquals(bytes.subarray(0, 10), new Uint8Array(10));
});

Deno.test("MemoryBlockFile.writeAt() takes memory only where it writes", () => {
  using file = new MemoryBlockFile();
  for (let index = 0; index < 100; index++) file.writeAt(index * 2 ** 44, pattern(1));
  assertEquals(file.size, 99 * 2 ** 44 + 1);
  assertEquals([...file.dataExtents(0, file.size)].length, 100);
});

Deno.test("MemoryBlockFile.writeAt() leaves the size alone when there is nothing to write", () => {
  using file = new MemoryBlockFile();
  file.writeAt(5000, new Uint8Array(0));
  assertEquals(file.size, 0);
});

Deno.test("MemoryBlockFile.truncate() forgets what it cuts off", () => {
  using file = MemoryBlockFile.from(pattern(3 * PAGE));
  file.truncate(PAGE + 5);
  file.truncate(3 * PAGE);
  const expected = new Uint8Array(3 * PAGE);
  expected.set(pattern(PAGE + 5));
  assertEquals(file.toBytes(), expected);
  assertEquals([...file.dataExtents(0, file.size)], [{ offset: 0, length: 2 * PAGE }]);
});

Deno.test("MemoryBlockFile.punchHole() frees whole pages and clears parts", () => {
  using file = MemoryBlockFile.from(pattern(4 * PAGE));
  assertEquals(file.punchHole(PAGE - 1, PAGE + 2), true);
  const expected = pattern(4 * PAGE);
  expected.fill(0, PAGE - 1, 2 * PAGE + 1);
  assertEquals(file.toBytes(), expected);
  assertEquals(file.size, 4 * PAGE);
  assertEquals([...file.dataExtents(0, 2 ** 50)], [
    { offset: 0, length: PAGE },
    { offset: 2 * PAGE, length: 2 * PAGE },
  ]);
});

Deno.test("MemoryBlockFile.punchHole() frees the last page though the file ends within it", () => {
  using file = MemoryBlockFile.from(pattern(PAGE + 100));
  file.punchHole(PAGE, 2 ** 50);
  assertEquals([...file.dataExtents(0, file.size)], [{ offset: 0, length: PAGE }]);
  assertEquals(file.size, PAGE + 100);
});

Deno.test("MemoryBlockFile.dataExtents() clips to the range and to the file", () => {
  using file = MemoryBlockFile.from(pattern(PAGE + 100));
  assertEquals([...file.dataExtents(50, 100)], [{ offset: 50, length: 100 }]);
  assertEquals([...file.dataExtents(50, 2 ** 40)], [{ offset: 50, length: PAGE + 50 }]);
  assertEquals([...file.dataExtents(PAGE + 100, 1)], []);
  assertEquals([...file.dataExtents(0, 0)], []);
});

Deno.test("MemoryBlockFile grows up to maxSize", () => {
  using file = new MemoryBlockFile({ maxSize: 1000 });
  file.writeAt(990, pattern(10));
  assertCode("no-space", () => file.writeAt(991, pattern(10)));
  assertCode("no-space", () => file.truncate(1001));
  assertCode("no-space", () => file.preallocate(0, 1001));
  assertCode("no-space", () => MemoryBlockFile.from(pattern(11), { maxSize: 10 }));
  assertEquals(file.size, 1000);
});

Deno.test("MemoryBlockFile.toBytes() refuses what does not fit into a buffer", () => {
  using file = new MemoryBlockFile();
  file.truncate(2 ** 40);
  assertCode("limit-exceeded", () => file.toBytes());
});

Deno.test("MemoryBlockFile refuses changes when it is for reading", () => {
  using file = MemoryBlockFile.from(pattern(10), { writable: false });
  assertCode("read-only", () => file.writeAt(0, pattern(1)));
  assertCode("read-only", () => file.truncate(0));
  assertCode("read-only", () => file.punchHole(0, 1));
  assertCode("read-only", () => file.preallocate(0, 100));
});

Deno.test("MemoryBlockFile refuses every call after close()", () => {
  const file = MemoryBlockFile.from(pattern(10));
  file.close();
  file.close();
  assertCode("closed", () => file.readAt(0, new Uint8Array(1)));
  assertCode("closed", () => file.writeAt(0, new Uint8Array(1)));
  assertCode("closed", () => file.truncate(0));
  assertCode("closed", () => file.sync());
  assertCode("closed", () => file.punchHole(0, 1));
  assertCode("closed", () => file.preallocate(0, 1));
  assertCode("closed", () => file.dataExtents(0, 1));
  assertCode("closed", () => file.tryLock(true));
  assertEquals(file.toBytes(), pattern(10));
});
