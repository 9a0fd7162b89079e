import { assert, assertEquals, assertRejects } from "@std/assert";
import { Qcow2Error } from "../../lib/errors.ts";
import { FsBlockFile } from "../../lib/storage/mod.ts";
import { pattern, withDirectory } from "./_files.ts";

const MIB = 1024 * 1024;

/** Calls a function with a file that holds some bytes. */
function withContent(content: Uint8Array, fn: (path: string) => Promise<void>): Promise<void> {
  return withDirectory((directory) => {
    const path = `${directory}/disk.img`;
    Deno.writeFileSync(path, content);
    return fn(path);
  });
}

Deno.test("FsBlockFile.readAhead() reads what readAt() reads, long and short, and up to the end", () => {
  const content = pattern(3 * MIB + 100);
  return withContent(content, async (path) => {
    using file = FsBlockFile.open(path);
    for (
      const [offset, length] of [[0, MIB], [MIB, MIB], [5, 2 * MIB], [2 * MIB, 10], [3 * MIB, MIB], [4 * MIB, MIB]]
    ) {
      const bytes = new Uint8Array(length ?? 0);
      const expected = content.subarray(offset, (offset ?? 0) + bytes.length);
      assertEquals(await file.readAhead(offset ?? 0, bytes), expected.length);
      assertEquals(bytes.subarray(0, expected.length), expected);
    }
  });
});

Deno.test("FsBlockFile.readAhead() reads for several callers at once, and leaves readAt() and writeAt() usable meanwhile", () => {
  const content = pattern(4 * MIB);
  return withContent(content, async (path) => {
    using file = FsBlockFile.open(path, { writable: true });
    const buffers = [3, 1, 0, 2].map((index) => ({ offset: index * MIB, bytes: new Uint8Array(MIB) }));
    const reading = buffers.map(({ offset, bytes }) => file.readAhead(offset, bytes));
    const between = new Uint8Array(100);
    assertEquals(file.readAt(2 * MIB + 7, between), 100);
    assertEquals(between, content.subarray(2 * MIB + 7, 2 * MIB + 107));
    file.writeAt(4 * MIB, between);
    assertEquals(await Promise.all(reading), [MIB, MIB, MIB, MIB]);
    for (const { offset, bytes } of buffers) assertEquals(bytes, content.subarray(offset, offset + MIB));
  });
});

Deno.test("FsBlockFile.readAhead() sees what was written just before", () =>
  withContent(new Uint8Array(MIB), async (path) => {
    using file = FsBlockFile.open(path, { writable: true });
    const bytes = new Uint8Array(MIB);
    for (let turn = 1; turn < 4; turn++) {
      file.writeAt(0, new Uint8Array(MIB).fill(turn));
      await file.readAhead(0, bytes);
      assertEquals([bytes[0], bytes[MIB - 1]], [turn, turn]);
    }
  }));

Deno.test("FsBlockFile.readAhead() reads the file that was opened, whatever stands at its path by now", () =>
  withContent(new Uint8Array(MIB).fill(1), async (path) => {
    using file = FsBlockFile.open(path);
    Deno.renameSync(path, `${path}.old`);
    Deno.writeFileSync(path, new Uint8Array(MIB).fill(2));
    const bytes = new Uint8Array(MIB);
    await file.readAhead(0, bytes);
    assertEquals(bytes[0], 1);
  }));

Deno.test("FsBlockFile.readAhead() reads a file that was handed over without its path", () =>
  withContent(pattern(MIB), async (path) => {
    using file = FsBlockFile.from(Deno.openSync(path), { name: "some file", writable: false });
    const bytes = new Uint8Array(MIB);
    assertEquals(await file.readAhead(0, bytes), MIB);
    assertEquals(bytes, pattern(MIB));
  }));

Deno.test("FsBlockFile.readAhead() takes no lock away", () =>
  withContent(pattern(MIB), async (path) => {
    using file = FsBlockFile.open(path);
    assert(file.tryLock(false));
    await file.readAhead(0, new Uint8Array(MIB));
    using other = FsBlockFile.open(path, { writable: true });
    assertEquals(other.tryLock(true), false);
  }));

Deno.test("FsBlockFile.readAhead() refuses what readAt() refuses", () =>
  withContent(pattern(MIB), async (path) => {
    const file = FsBlockFile.open(path);
    for (const offset of [-1, 0.5, NaN]) {
      const error = await assertRejects(() => file.readAhead(offset, new Uint8Array(MIB)), Qcow2Error);
      assertEquals(error.code, "invalid-argument");
    }
    file.close();
    for (const length of [1, MIB]) {
      const error = await assertRejects(() => file.readAhead(0, new Uint8Array(length)), Qcow2Error);
      assertEquals(error.code, "closed");
    }
  }));
