import { assert, assertEquals } from "@std/assert";
import { FsBlockFile } from "../../lib/storage/mod.ts";
import { altered, assertCode, pattern, withDirectory, withFile } from "./_files.ts";

Deno.test("FsBlockFile.open() takes the size from the file", () => {
  withFile(pattern(1000), (path) => {
    using file = FsBlockFile.open(path);
    assertEquals(file.size, 1000);
    assertEquals(file.name, path);
    assertEquals(file.writable, false);
  });
});

Deno.test("FsBlockFile.open() says that a file does not exist", () => {
  const error = assertCode("not-found", () => FsBlockFile.open("/nowhere/disk.img"));
  assert(error.message.startsWith('Cannot open "/nowhere/disk.img": '), error.message);
});

Deno.test("FsBlockFile.open() refuses a directory", () => {
  assertCode("io", () => FsBlockFile.open(Deno.cwd()));
});

Deno.test({
  name: "FsBlockFile.open() refuses a named pipe instead of waiting for its other end",
  ignore: Deno.build.os === "windows",
  fn: () =>
    withDirectory((directory) => {
      const path = `${directory}/pipe`;
      assertEquals(new Deno.Command("mkfifo", { args: [path] }).outputSync().code, 0);
      assertCode("io", () => FsBlockFile.open(path));
    }),
});

Deno.test("FsBlockFile.create() makes an empty file that can be read and written", () =>
  withDirectory((directory) => {
    using file = FsBlockFile.create(`${directory}/new.img`);
    assertEquals([file.size, file.writable], [0, true]);
    file.writeAt(0, pattern(10));
    const bytes = new Uint8Array(10);
    assertEquals(file.readAt(0, bytes), 10);
    assertEquals(bytes, pattern(10));
  }));

Deno.test("FsBlockFile.create() empties a file that exists", () => {
  withFile(pattern(1000), (path) => {
    using file = FsBlockFile.create(path);
    assertEquals(file.size, 0);
    assertEquals(Deno.statSync(path).size, 0);
  });
});

Deno.test("FsBlockFile.create() leaves an existing file alone when it must be new", () => {
  withFile(pattern(10), (path) => {
    assertCode("already-exists", () => FsBlockFile.create(path, { exclusive: true }));
    assertEquals(Deno.readFileSync(path), pattern(10));
  });
});

Deno.test("FsBlockFile.from() wraps an open file and closes it", () => {
  withFile(pattern(10), (path) => {
    const host = Deno.openSync(path);
    host.seekSync(3, Deno.SeekMode.Start);
    const file = FsBlockFile.from(host, { name: "some file", writable: false });
    const bytes = new Uint8Array(2);
    assertEquals(file.readAt(0, bytes), 2);
    assertEquals(bytes, pattern(2));
    file.close();
    let closed = false;
    try {
      host.statSync();
    } catch {
      closed = true;
    }
    assert(closed);
  });
});

Deno.test("FsBlockFile.readAt() returns fewer bytes where the file ends", () => {
  withFile(pattern(100), (path) => {
    using file = FsBlockFile.open(path);
    const bytes = new Uint8Array(20).fill(0xee);
    assertEquals(file.readAt(90, bytes), 10);
    assertEquals(bytes.subarray(0, 10), pattern(100).subarray(90));
    assertEquals(bytes.subarray(10), new Uint8Array(10).fill(0xee));
    assertEquals(file.readAt(100, bytes), 0);
    assertEquals(file.readAt(5000, bytes), 0);
    assertEquals(file.readAt(0, new Uint8Array(0)), 0);
  });
});

Deno.test("FsBlockFile.readAt() goes on after the host read less than asked", () => {
  withFile(pattern(100), (path) => {
    const host = Deno.openSync(path);
    const small = altered(host, { readSync: (into) => host.readSync(into.subarray(0, 7)) });
    using file = FsBlockFile.from(small, { name: path, writable: false });
    const bytes = new Uint8Array(50);
    assertEquals(file.readAt(20, bytes), 50);
    assertEquals(bytes, pattern(100).subarray(20, 70));
    assertEquals(file.readAt(70, bytes), 30);
    assertEquals(bytes.subarray(0, 30), pattern(100).subarray(70));
  });
});

Deno.test("FsBlockFile.writeAt() goes on after the host wrote less than asked", () => {
  withFile(new Uint8Array(0), (path) => {
    const host = Deno.openSync(path, { read: true, write: true });
    const small = altered(host, { writeSync: (data) => host.writeSync(data.subarray(0, 7)) });
    using file = FsBlockFile.from(small, { name: path, writable: true });
    file.writeAt(10, pattern(50));
    file.writeAt(60, pattern(5));
    assertEquals(file.size, 65);
    assertEquals(Deno.readFileSync(path), new Uint8Array([...new Uint8Array(10), ...pattern(50), ...pattern(5)]));
  });
});

Deno.test("FsBlockFile.writeAt() throws where the host takes nothing", () => {
  withFile(new Uint8Array(0), (path) => {
    const host = Deno.openSync(path, { read: true, write: true });
    let left = 10;
    const full = altered(host, {
      writeSync(data) {
        const count = host.writeSync(data.subarray(0, left));
        left -= count;
        return count;
      },
    });
    using file = FsBlockFile.from(full, { name: "full", writable: true });
    const error = assertCode("io", () => file.writeAt(4096, pattern(50)));
    assertEquals(error.message, 'Cannot write "full" at 0x1000: the host took none of the bytes');
    assertEquals(file.size, 4106);
  });
});

Deno.test("FsBlockFile.writeAt() leaves the size alone when there is nothing to write", () => {
  withFile(pattern(10), (path) => {
    using file = FsBlockFile.open(path, { writable: true });
    file.writeAt(5000, new Uint8Array(0));
    assertEquals(file.size, 10);
    assertEquals(Deno.statSync(path).size, 10);
  });
});

Deno.test("FsBlockFile.writeAt() grows the file and leaves zeroes in between", () => {
  withFile(pattern(10), (path) => {
    using file = FsBlockFile.open(path, { writable: true });
    file.writeAt(1 << 20, pattern(3));
    assertEquals(file.size, (1 << 20) + 3);
    assertEquals(Deno.statSync(path).size, file.size);
    const bytes = new Uint8Array(100);
    file.readAt(10, bytes);
    assertEquals(bytes, new Uint8Array(100));
  });
});

Deno.test("FsBlockFile reads nothing where no file of the host can have bytes", async () => {
  await withDirectory(async (folder) => {
    const path = `${folder}/file`;
    Deno.writeFileSync(path, pattern(1000));
    using file = FsBlockFile.open(path);
    const far = Number.MAX_SAFE_INTEGER - (1 << 20);
    const bytes = new Uint8Array(1 << 18);
    assertEquals(file.readAt(far, bytes), 0);
    assertEquals(await file.readAhead(far, bytes), 0);
    assertEquals(file.readAt(0, bytes), 1000);
    assertEquals(await file.readAhead(0, bytes), 1000);
  });
});

Deno.test("FsBlockFile.writeAt() reaches beyond 4 GiB", () => {
  withFile(new Uint8Array(0), (path) => {
    using file = FsBlockFile.open(path, { writable: true });
    file.writeAt(5 * 2 ** 30 + 1, pattern(512));
    assertEquals(file.size, 5 * 2 ** 30 + 513);
    const bytes = new Uint8Array(512);
    file.readAt(5 * 2 ** 30 + 1, bytes);
    assertEquals(bytes, pattern(512));
  });
});

Deno.test("FsBlockFile seeks only where a call does not go on from the last one", () => {
  withFile(pattern(1000), (path) => {
    const host = Deno.openSync(path, { read: true, write: true });
    let seekCount = 0;
    const counted = altered(host, {
      seekSync(offset, whence) {
        seekCount++;
        return host.seekSync(offset, whence);
      },
    });
    using file = FsBlockFile.from(counted, { name: path, writable: true });
    const bytes = new Uint8Array(100);
    file.readAt(0, bytes);
    assertEquals(seekCount, 1);
    file.readAt(100, bytes);
    file.writeAt(200, bytes);
    file.readAt(300, bytes);
    assertEquals(seekCount, 1);
    file.readAt(300, bytes);
    assertEquals(seekCount, 2);
    assertEquals(file.readAt(950, bytes), 50);
    file.writeAt(1000, bytes);
    assertEquals(seekCount, 3);
  });
});

Deno.test("FsBlockFile seeks again after the host failed", () => {
  withFile(pattern(100), (path) => {
    const host = Deno.openSync(path);
    let failing = false;
    const flaky = altered(host, {
      readSync(into) {
        const count = host.readSync(into);
        if (failing) throw new Error("bad sector");
        return count;
      },
    });
    using file = FsBlockFile.from(flaky, { name: "flaky", writable: false });
    const bytes = new Uint8Array(10);
    file.readAt(0, bytes);
    failing = true;
    const error = assertCode("io", () => file.readAt(10, bytes));
    assertEquals(error.message, 'Cannot read "flaky" at 0xa: bad sector');
    assertEquals(error.offset, 10);
    failing = false;
    file.readAt(10, bytes);
    assertEquals(bytes, pattern(100).subarray(10, 20));
  });
});

Deno.test("FsBlockFile reads and writes the right places in any order", () => {
  withFile(new Uint8Array(0), (path) => {
    using file = FsBlockFile.open(path, { writable: true });
    const expected = new Uint8Array(8192);
    let size = 0;
    let state = 12345;
    const next = (below: number) => (state = (state * 1103515245 + 12345) % 2 ** 31) % below;
    let offset = 0;
    for (let step = 0; step < 5000; step++) {
      // Every other call goes on where the last one ended.
      if (next(2) === 0) offset = next(8000);
      const length = Math.min(next(200), 8192 - offset);
      if (next(2) === 0) {
        const data = pattern(length, step);
        file.writeAt(offset, data);
        expected.set(data, offset);
        if (length > 0) size = Math.max(size, offset + length);
      } else {
        const bytes = new Uint8Array(length);
        const count = file.readAt(offset, bytes);
        assertEquals(count, Math.max(0, Math.min(length, size - offset)));
        assertEquals(bytes.subarray(0, count), expected.subarray(offset, offset + count));
      }
      assertEquals(file.size, size);
      offset += length;
    }
    assertEquals(Deno.readFileSync(path), expected.subarray(0, size));
  });
});

Deno.test("FsBlockFile.truncate() cuts and grows", () => {
  withFile(pattern(1000), (path) => {
    using file = FsBlockFile.open(path, { writable: true });
    const bytes = new Uint8Array(10);
    file.readAt(490, bytes);
    file.truncate(500);
    assertEquals(file.size, 500);
    file.truncate(2000);
    assertEquals(file.size, 2000);
    file.readAt(500, bytes);
    assertEquals(bytes, new Uint8Array(10));
    assertEquals(Deno.statSync(path).size, 2000);
  });
});

Deno.test("FsBlockFile refuses changes when open for reading", () => {
  withFile(pattern(1000), (path) => {
    using file = FsBlockFile.open(path);
    assertCode("read-only", () => file.writeAt(0, pattern(1)));
    assertCode("read-only", () => file.truncate(0));
    assertCode("read-only", () => file.punchHole(0, 100));
    assertCode("read-only", () => file.preallocate(0, 100));
    file.sync();
    assertEquals(Deno.readFileSync(path), pattern(1000));
  });
});

Deno.test("FsBlockFile refuses offsets that cannot be one", () => {
  withFile(pattern(1000), (path) => {
    using file = FsBlockFile.open(path, { writable: true });
    for (const offset of [-1, 0.5, NaN, Infinity, 2 ** 53]) {
      assertCode("invalid-argument", () => file.readAt(offset, new Uint8Array(1)));
      assertCode("invalid-argument", () => file.writeAt(offset, new Uint8Array(1)));
      assertCode("invalid-argument", () => file.truncate(offset));
      assertCode("invalid-argument", () => file.punchHole(offset, 1));
      assertCode("invalid-argument", () => file.dataExtents(0, offset));
    }
    assertEquals(Deno.readFileSync(path), pattern(1000));
  });
});

Deno.test("FsBlockFile refuses every call after close()", () => {
  withFile(pattern(1000), (path) => {
    const file = FsBlockFile.open(path, { writable: true });
    file.close();
    file.close();
    assertCode("closed", () => file.readAt(0, new Uint8Array(1)));
    assertCode("closed", () => file.writeAt(0, new Uint8Array(1)));
    assertCode("closed", () => file.truncate(0));
    assertCode("closed", () => file.sync());
    assertCode("closed", () => file.punchHole(0, 1));
    assertCode("closed", () => file.preallocate(0, 1));
    assertCode("closed", () => file.dataExtents(0, 1));
    assertCode("closed", () => file.tryLock(false));
  });
});

Deno.test("FsBlockFile.sync() leaves what was written in the file", () => {
  withFile(new Uint8Array(0), (path) => {
    using file = FsBlockFile.open(path, { writable: true });
    file.writeAt(0, pattern(100));
    file.sync();
    assertEquals(Deno.readFileSync(path), pattern(100));
  });
});
