import { assert, assertEquals } from "@std/assert";
import { FsBlockFile, MemoryBlockFile } from "../../lib/storage/mod.ts";
import { run } from "../qemu.ts";
import { assertCode, pattern, withFile } from "./_files.ts";

const MIB = 1 << 20;

/** The tests need a host of which it is known what it can do. */
function linuxTest(name: string, fn: () => void): void {
  Deno.test({ name, ignore: Deno.build.os !== "linux", fn });
}

/** How much space a file takes on the host, in bytes. */
function takenSize(path: string): number {
  return (Deno.statSync(path).blocks ?? 0) * 512;
}

linuxTest("FsBlockFile.punchHole() gives space back and leaves zeroes", () => {
  withFile(pattern(MIB), (path) => {
    using file = FsBlockFile.open(path, { writable: true });
    file.sync();
    const before = takenSize(path);
    assertEquals(file.punchHole(MIB / 4, MIB / 2), true);
    file.sync();
    assert(before - takenSize(path) >= MIB / 2 - 8192, `${before} before, ${takenSize(path)} after`);
    assertEquals(file.size, MIB);
    const expected = pattern(MIB);
    expected.fill(0, MIB / 4, MIB / 4 * 3);
    const bytes = new Uint8Array(MIB);
    file.readAt(0, bytes);
    assertEquals(bytes, expected);
  });
});

linuxTest("FsBlockFile.punchHole() takes any range and never changes the length", () => {
  withFile(pattern(100_000), (path) => {
    using file = FsBlockFile.open(path, { writable: true });
    assertEquals(file.punchHole(4097, 10_000), true);
    assertEquals(file.punchHole(99_999, 2 ** 40), true);
    assertEquals(file.punchHole(200_000, 10), true);
    assertEquals(file.punchHole(0, 0), true);
    const expected = pattern(100_000);
    expected.fill(0, 4097, 14_097).fill(0, 99_999);
    assertEquals(Deno.readFileSync(path), expected);
  });
});

linuxTest("FsBlockFile.copyFrom() copies what another file holds, as far as that goes", () => {
  withFile(pattern(MIB + 100), (sourcePath) => {
    withFile(pattern(5000).reverse(), (path) => {
      using source = FsBlockFile.open(sourcePath);
      using file = FsBlockFile.open(path, { writable: true });
      assertEquals(file.copyFrom(source, 4096, 8192, 65536), 65536);
      assertEquals(file.copyFrom(source, 7, 1001, 13), 13);
      assertEquals(file.copyFrom(source, MIB, 100_000, 65536), 100);
      assertEquals(file.copyFrom(source, 2 * MIB, 0, 10), 0);
      assertEquals(file.copyFrom(new MemoryBlockFile(), 0, 0, 10), 0);
      assertEquals(file.size, 100_100);
      file.writeAt(3, new Uint8Array([9]));
      const expected = new Uint8Array(100_100);
      expected.set(pattern(5000).reverse());
      expected.set(pattern(MIB + 100).subarray(4096, 4096 + 65536), 8192);
      expected.set(pattern(MIB + 100).subarray(7, 20), 1001);
      expected.set(pattern(MIB + 100).subarray(MIB), 100_000);
      expected[3] = 9;
      assertEquals(Deno.readFileSync(path), expected);
      assertCode("read-only", () => source.copyFrom(file, 0, 0, 1));
      file.close();
      assertCode("closed", () => file.copyFrom(source, 0, 0, 1));
    });
  });
});

linuxTest("FsBlockFile.startSync() changes nothing that can be seen, and wants an open file", () => {
  withFile(new Uint8Array(), (path) => {
    const file = FsBlockFile.open(path, { writable: true });
    file.writeAt(0, pattern(MIB));
    file.startSync();
    file.writeAt(100, pattern(100));
    file.sync();
    assertEquals(
      Deno.readFileSync(path),
      new Uint8Array([...pattern(100), ...pattern(100), ...pattern(MIB).subarray(200)]),
    );
    using reader = FsBlockFile.open(path);
    reader.startSync();
    file.close();
    assertCode("closed", () => file.startSync());
  });
});

linuxTest("FsBlockFile.dataExtents() leaves out the holes", () => {
  withFile(new Uint8Array(0), (path) => {
    using file = FsBlockFile.open(path, { writable: true });
    file.truncate(10 * MIB);
    file.writeAt(MIB, pattern(65536));
    file.writeAt(4 * MIB, pattern(MIB));
    assertEquals([...file.dataExtents(0, file.size)], [
      { offset: MIB, length: 65536 },
      { offset: 4 * MIB, length: MIB },
    ]);
    assertEquals([...file.dataExtents(MIB + 5, 3 * MIB)], [
      { offset: MIB + 5, length: 65531 },
      { offset: 4 * MIB, length: 5 },
    ]);
    assertEquals([...file.dataExtents(4 * MIB + 1, 7)], [{ offset: 4 * MIB + 1, length: 7 }]);
    assertEquals([...file.dataExtents(6 * MIB, 2 ** 50)], []);
    assertEquals([...file.dataExtents(2 ** 50, 5)], []);
  });
});

linuxTest("FsBlockFile.dataExtents() throws when the file is closed half-way", () => {
  withFile(new Uint8Array(0), (path) => {
    const file = FsBlockFile.open(path, { writable: true });
    file.truncate(10 * MIB);
    file.writeAt(MIB, pattern(65536));
    file.writeAt(4 * MIB, pattern(65536));
    const extents = file.dataExtents(0, file.size)[Symbol.iterator]();
    assertEquals(extents.next().value, { offset: MIB, length: 65536 });
    file.close();
    assertCode("closed", () => extents.next());
  });
});

linuxTest("FsBlockFile.preallocate() reserves space and grows the file", () => {
  withFile(pattern(10), (path) => {
    using file = FsBlockFile.open(path, { writable: true });
    assertEquals(file.preallocate(0, MIB), true);
    assertEquals(file.size, MIB);
    assertEquals(Deno.statSync(path).size, MIB);
    assert(takenSize(path) >= MIB);
    assertEquals(file.preallocate(0, 4096), true);
    assertEquals(file.size, MIB);
    const bytes = new Uint8Array(20);
    file.readAt(0, bytes);
    assertEquals(bytes, new Uint8Array([...pattern(10), ...new Uint8Array(10)]));
  });
});

linuxTest("FsBlockFile.preallocate() says where the host has no room", () => {
  withFile(pattern(10), (path) => {
    using file = FsBlockFile.open(path, { writable: true });
    assertCode("no-space", () => file.preallocate(0, 2 ** 52));
    assertEquals(file.size, Deno.statSync(path).size);
  });
});

linuxTest("FsBlockFile leaves a file alone that has taken the place of its own", () => {
  withFile(pattern(MIB), (path) => {
    using file = FsBlockFile.open(path, { writable: true });
    Deno.renameSync(path, `${path}.moved`);
    Deno.writeFileSync(path, pattern(MIB, 1));
    assertEquals(file.punchHole(0, MIB), false);
    assertEquals(file.preallocate(0, 2 * MIB), false);
    assertEquals([...file.dataExtents(0, MIB)], [{ offset: 0, length: MIB }]);
    assertEquals(Deno.readFileSync(path), pattern(MIB, 1));
    Deno.removeSync(`${path}.moved`);
  });
});

linuxTest("FsBlockFile.from() does without a path", () => {
  withFile(pattern(MIB), (path) => {
    const host = Deno.openSync(path, { read: true, write: true });
    using file = FsBlockFile.from(host, { name: "no path", writable: true });
    assertEquals(file.punchHole(0, MIB), false);
    assertEquals(Deno.readFileSync(path), pattern(MIB));
  });
});

linuxTest("FsBlockFile.open() remembers where a relative path led", () => {
  withFile(pattern(MIB), (path) => {
    const before = Deno.cwd();
    const slash = path.lastIndexOf("/");
    try {
      Deno.chdir(path.slice(0, slash));
      using file = FsBlockFile.open(path.slice(slash + 1), { writable: true });
      Deno.chdir("/");
      assertEquals(file.punchHole(0, MIB), true);
    } finally {
      Deno.chdir(before);
    }
  });
});

linuxTest("FsBlockFile.close() leaves no descriptor open", () => {
  const openCount = () => [...Deno.readDirSync("/proc/self/fd")].length;
  withFile(pattern(MIB), (path) => {
    const once = () => {
      using file = FsBlockFile.open(path, { writable: true });
      assertEquals(file.tryLock(true), true);
      assertEquals(file.punchHole(0, 4096), true);
    };
    once();
    const before = openCount();
    for (let round = 0; round < 20; round++) once();
    assertEquals(openCount(), before);
  });
});

Deno.test("FsBlockFile does its work without the permission for native calls", () => {
  const module = new URL("../../lib/storage/mod.ts", import.meta.url);
  const script = `
    import { FsBlockFile } from "${module}";
    const file = FsBlockFile.create(Deno.args[0]);
    file.truncate(1 << 20);
    file.writeAt(1 << 19, new Uint8Array([1]));
    const other = FsBlockFile.open(Deno.args[0]);
    console.log(JSON.stringify([
      file.punchHole(0, 4096), file.preallocate(0, 2 << 20), [...file.dataExtents(5, 2 << 20)], file.tryLock(true), file.size,
      "tryLockSync" in Deno.FsFile.prototype ? other.tryLock(false) : false,
    ]));
    file.sync();
    file.close();
    console.log(other.tryLock(true));
    other.close();
  `;
  withFile(new Uint8Array(0), (path) => {
    const scriptPath = `${path}.ts`;
    Deno.writeTextFileSync(scriptPath, script);
    const permissions = ["--allow-read", "--allow-write", "--deny-ffi"];
    const result = run(Deno.execPath(), [
      "run",
      "--quiet",
      "--no-check",
      "--no-config",
      ...permissions,
      scriptPath,
      path,
    ]);
    Deno.removeSync(scriptPath);
    assertEquals(result.stderr, "");
    assertEquals(result.stdout.trim().split("\n"), [
      '[false,false,[{"offset":5,"length":1048571}],true,1048576,false]',
      "true",
    ]);
  });
});
