import { assert, assertEquals } from "@std/assert";
import { FsBlockFile } from "../../lib/storage/mod.ts";
import { qemuTest, run } from "../qemu.ts";
import { assertCode, pattern, withDirectory, withFile } from "./_files.ts";

/** Without a lock that does not wait, neither the runtime's nor a native one, there is nothing to see. */
const locksKnown = "tryLockSync" in Deno.FsFile.prototype || Deno.build.os !== "windows";

function lockTest(name: string, fn: () => void): void {
  Deno.test({ name, ignore: !locksKnown, fn });
}

lockTest("FsBlockFile.tryLock() keeps everybody away from one who writes", () => {
  withFile(pattern(10), (path) => {
    using writer = FsBlockFile.open(path, { writable: true });
    using other = FsBlockFile.open(path, { writable: true });
    assertEquals(writer.tryLock(true), true);
    assertEquals(writer.tryLock(true), true);
    assertEquals(other.tryLock(true), false);
    assertEquals(other.tryLock(false), false);
    writer.close();
    assertEquals(other.tryLock(true), true);
  });
});

lockTest("FsBlockFile.tryLock() lets many read", () => {
  withFile(pattern(10), (path) => {
    using one = FsBlockFile.open(path);
    using two = FsBlockFile.open(path);
    using writer = FsBlockFile.open(path, { writable: true });
    assertEquals(one.tryLock(false), true);
    assertEquals(two.tryLock(false), true);
    assertEquals(writer.tryLock(true), false);
    one.close();
    assertEquals(writer.tryLock(true), false);
    two.close();
    assertEquals(writer.tryLock(true), true);
  });
});

lockTest("FsBlockFile.tryLock() changes one kind into the other", () => {
  withFile(pattern(10), (path) => {
    using one = FsBlockFile.open(path, { writable: true });
    using two = FsBlockFile.open(path, { writable: true });
    assertEquals(one.tryLock(true), true);
    assertEquals(one.tryLock(false), true);
    assertEquals(two.tryLock(false), true);
    // It keeps what it had.
    assertEquals(one.tryLock(true), false);
    assertEquals(two.tryLock(true), false);
    one.close();
    assertEquals(two.tryLock(true), true);
    using three = FsBlockFile.open(path);
    assertEquals(three.tryLock(false), false);
  });
});

lockTest("FsBlockFile.create() leaves a file alone that somebody has locked", () => {
  withFile(pattern(10), (path) => {
    using reader = FsBlockFile.open(path);
    assertEquals(reader.tryLock(false), true);
    const error = assertCode("locked", () => FsBlockFile.create(path));
    assertEquals(error.message, `Cannot create "${path}": somebody else has it open`);
    assertEquals(Deno.readFileSync(path), pattern(10));
    reader.close();
    using file = FsBlockFile.create(path);
    assertEquals(file.size, 0);
    using late = FsBlockFile.open(path);
    assertEquals(late.tryLock(false), false);
  });
});

Deno.test({
  name: "FsBlockFile.tryLock() takes the bytes that QEMU looks at, and no others",
  ignore: Deno.build.os !== "linux",
  fn() {
    withFile(pattern(10), (path) => {
      using file = FsBlockFile.open(path, { writable: true });
      const inode = Deno.statSync(path).ino;
      // A line is such as `7: OFDLCK ADVISORY READ -1 fe:00:4711 100 100`; neighbouring bytes are one range.
      const ranges = () =>
        Deno.readTextFileSync("/proc/locks").split("\n").map((line) => line.trim().split(/\s+/))
          .filter((fields) => fields[1] === "OFDLCK" && fields[5]?.endsWith(`:${inode}`))
          .map((fields) => `${fields[3]} ${fields[6]}-${fields[7]}`).sort();
      file.tryLock(true);
      assertEquals(ranges(), ["READ 100-101", "READ 103-103", "READ 201-201", "READ 203-203"]);
      file.tryLock(false);
      assertEquals(ranges(), ["READ 100-100", "READ 201-201", "READ 203-203"]);
      file.close();
      assertEquals(ranges(), []);
    });
  },
});

/** On other systems QEMU takes no locks that another program could see. */
function qemuLockTest(name: string, fn: (path: string) => void | Promise<void>): void {
  if (Deno.build.os !== "linux") return;
  qemuTest(name, () =>
    withDirectory(async (directory) => {
      const path = `${directory}/disk.qcow2`;
      assertEquals(run("qemu-img", ["create", "-q", "-f", "qcow2", path, "1M"]).code, 0);
      await fn(path);
    }));
}

/** Runs a function while `qemu-io` has a file open. */
async function whileQemuHas(path: string, args: readonly string[], fn: () => void): Promise<void> {
  const child = new Deno.Command("qemu-io", { args: [...args, path], stdin: "piped", stdout: "piped", stderr: "null" })
    .spawn();
  const reader = child.stdout.getReader();
  const writer = child.stdin.getWriter();
  try {
    // It answers only once it has the file.
    await writer.write(new TextEncoder().encode("length\n"));
    let said = "";
    while (!said.includes("1 MiB")) {
      const { value, done } = await reader.read();
      if (done) throw new Error(`qemu-io ended early: ${said}`);
      said += new TextDecoder().decode(value);
    }
    fn();
  } finally {
    await writer.close();
    while (!(await reader.read()).done);
    await child.status;
  }
}

function assertRefused(command: string, args: readonly string[]): void {
  const result = run(command, args);
  assert(
    result.code !== 0 && /Failed to get .* lock/.test(result.stderr),
    `${command} ${args.join(" ")}: ${result.stderr}`,
  );
}

function assertAllowed(command: string, args: readonly string[]): void {
  const result = run(command, args);
  assertEquals([result.code, result.stderr], [0, ""]);
}

qemuLockTest("FsBlockFile.tryLock() keeps QEMU away from one who writes", (path) => {
  using file = FsBlockFile.open(path, { writable: true });
  assertAllowed("qemu-img", ["info", path]);
  assertEquals(file.tryLock(true), true);
  assertRefused("qemu-img", ["info", path]);
  assertRefused("qemu-img", ["check", path]);
  assertRefused("qemu-io", ["-c", "write 0 512", path]);
  assertRefused("qemu-io", ["-r", "-c", "read 0 512", path]);
  assertAllowed("qemu-img", ["info", "-U", path]);
  file.close();
  assertAllowed("qemu-io", ["-c", "write 0 512", path]);
});

qemuLockTest("FsBlockFile.tryLock() lets QEMU read beside one who reads", (path) => {
  using file = FsBlockFile.open(path);
  assertEquals(file.tryLock(false), true);
  assertAllowed("qemu-img", ["info", path]);
  assertAllowed("qemu-io", ["-r", "-c", "read 0 512", path]);
  assertRefused("qemu-io", ["-c", "write 0 512", path]);
});

qemuLockTest("FsBlockFile.tryLock() finds QEMU writing", async (path) => {
  using file = FsBlockFile.open(path, { writable: true });
  await whileQemuHas(path, [], () => {
    assertEquals(file.tryLock(true), false);
    assertEquals(file.tryLock(false), false);
    assertCode("locked", () => FsBlockFile.create(path));
    // Nothing is left behind by a try that failed.
    using other = FsBlockFile.open(path, { writable: true });
    assertEquals(other.tryLock(true), false);
  });
  assertAllowed("qemu-img", ["check", "-q", path]);
  assertEquals(file.tryLock(true), true);
});

qemuLockTest("FsBlockFile.tryLock() finds QEMU reading", async (path) => {
  using file = FsBlockFile.open(path, { writable: true });
  await whileQemuHas(path, ["-r"], () => {
    assertEquals(file.tryLock(true), false);
    // Nothing is left behind by a try that failed, of no kind of lock.
    {
      using other = FsBlockFile.open(path);
      assertEquals(other.tryLock(false), true);
    }
    assertEquals(file.tryLock(false), true);
    // A reader who cannot become a writer still reads.
    assertEquals(file.tryLock(true), false);
    assertRefused("qemu-io", ["-c", "write 0 512", path]);
  });
  assertEquals(file.tryLock(true), true);
  assertRefused("qemu-img", ["info", path]);
  assertEquals(file.tryLock(false), true);
  assertAllowed("qemu-img", ["info", path]);
});
