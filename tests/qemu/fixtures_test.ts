import { Buffer } from "node:buffer";
import { assert, assertEquals } from "@std/assert";
import { checkImage, Qcow2Error, Qcow2File } from "../../mod.ts";
import { programNamed } from "../cli/_program.ts";
import { assertQemuClean, KIB, withFolder } from "../images.ts";
import { qemuTest, run } from "../qemu.ts";
import { DAMAGED, type Fixture, SOUND } from "./fixtures.ts";

const OPEN = { backing: "allow", dataFile: "allow" } as const;
const SECTOR_SIZE = 512;
/** How much of a disk is compared. */
const WINDOW = 512 * KIB;

/** What can be read of the start and the end of a disk, zeroes in place of what cannot, and whether all of it could. */
interface Reading {
  readonly bytes: readonly Uint8Array[];
  readonly whole: boolean;
}

/** What reading an image gives here; nothing where it does not open. */
function readHere(path: string): Reading | undefined {
  const disk = openOrNothing(path, false);
  if (disk === undefined) return undefined;
  let whole = true;
  const bytes = windowsOf(disk.size).map(([offset, length]) => {
    const into = new Uint8Array(length);
    for (let done = 0; done < length; done += SECTOR_SIZE) {
      try {
        disk.readAt(offset + done, into.subarray(done, done + SECTOR_SIZE));
      } catch (error) {
        if (!(error instanceof Qcow2Error)) throw error;
        into.fill(0, done, done + SECTOR_SIZE);
        whole = false;
      }
    }
    return into;
  });
  disk.close();
  return { bytes, whole };
}

function openOrNothing(path: string, write: boolean): Qcow2File | undefined {
  try {
    return Qcow2File.open(path, { ...OPEN, write });
  } catch (error) {
    if (error instanceof Qcow2Error) return undefined;
    throw error;
  }
}

function windowsOf(size: number): [offset: number, length: number][] {
  const length = Math.min(size, WINDOW);
  return [[0, length], [size - length, length]];
}

/** What reading an image gives to QEMU. */
function readByQemu(path: string, raw: string): Reading | undefined {
  const convert = (...args: string[]) => run("qemu-img", ["convert", ...args, "-f", "qcow2", "-O", "raw", path, raw]);
  const whole = convert().code === 0;
  if (!whole && convert("--salvage").code !== 0) return undefined;
  using file = Deno.openSync(raw);
  const bytes = windowsOf(file.statSync().size).map(([offset, length]) => {
    const into = new Uint8Array(length);
    file.seekSync(offset, Deno.SeekMode.Start);
    for (let done = 0; done < length;) done += file.readSync(into.subarray(done)) ?? length;
    return into;
  });
  return { bytes, whole };
}

function assertSameReading(found: Reading | undefined, expected: Reading | undefined, about: string): void {
  assertEquals(
    found === undefined ? "does not open" : { whole: found.whole, lengths: found.bytes.map(({ length }) => length) },
    expected === undefined
      ? "does not open"
      : { whole: expected.whole, lengths: expected.bytes.map(({ length }) => length) },
    about,
  );
  found?.bytes.forEach((bytes, index) => {
    const other = expected?.bytes[index] ?? new Uint8Array();
    assertEquals(Buffer.compare(bytes, other), 0, `${about}, window ${index}`);
  });
}

/** Runs our program and QEMU's, each on its own copy, and expects the same output and status. */
async function assertSameCheck(ours: string, theirs: string, args: readonly string[]): Promise<void> {
  const found = await programNamed("qemu-img", ["check", "-f", "qcow2", ...args, ours]);
  const expected = run("qemu-img", ["check", "-f", "qcow2", ...args, theirs]);
  const told = ({ code, stdout }: { code: number; stdout: string }, path: string) => ({
    code,
    stdout: stdout.replaceAll(path, "IMAGE"),
  });
  assertEquals(told(found, ours), told(expected, theirs), args.join(" "));
}

/** Where is written: into a cluster that most images have, and into one that most do not have. */
function writesTo(path: string): number[] {
  using disk = openOrNothing(path, false);
  const size = disk?.size ?? 0;
  return [0, 768 * KIB + 4096].filter((offset) => offset === 0 || offset < size);
}

/** Writes to a disk, and tells whether that was allowed. */
function writeHere(path: string, offsets: readonly number[]): boolean {
  const disk = openOrNothing(path, true);
  if (disk === undefined) return false;
  try {
    for (const offset of offsets) disk.writeAt(offset, new Uint8Array(SECTOR_SIZE).fill(9));
    return true;
  } catch (error) {
    if (error instanceof Qcow2Error) return false;
    throw error;
  } finally {
    disk.close();
  }
}

function writeByQemu(path: string, offsets: readonly number[]): boolean {
  const commands = offsets.flatMap((offset) => ["-c", `write -P 9 ${offset} ${SECTOR_SIZE}`]);
  const { code, stdout, stderr } = run("qemu-io", ["-f", "qcow2", ...commands, path]);
  return code === 0 && !/failed|error/i.test(stdout + stderr);
}

/** Copies an image within its folder; what it names is found from there too. */
function copy(folder: string, name: string): string {
  const path = `${folder}/${name}.qcow2`;
  Deno.copyFileSync(`${folder}/disk.qcow2`, path);
  return path;
}

/** Corruptions, leaks and what could not be checked, as QEMU counts them. */
function countsOfQemu(path: string): unknown[] {
  const { stdout } = run("qemu-img", ["check", "--output=json", "-f", "qcow2", path]);
  const report: Record<string, unknown> = stdout.startsWith("{") ? JSON.parse(stdout) : {};
  return [report["corruptions"], report["leaks"], report["check-errors"]];
}

function assertReadTheSame(folder: string): Reading | undefined {
  const path = `${folder}/disk.qcow2`;
  const before = Deno.readFileSync(path);
  const found = readHere(path);
  assertSameReading(found, readByQemu(path, `${folder}/converted.raw`), "reading");
  assertEquals(Buffer.compare(Deno.readFileSync(path), before), 0, "Reading changes nothing");
  return found;
}

function assertWrittenTheSame(folder: string, { differs }: Fixture): void {
  const ours = copy(folder, "ours");
  const theirs = copy(folder, "theirs");
  const offsets = writesTo(ours);
  const wrote = writeHere(ours, offsets);
  if (differs?.write !== undefined) {
    assertEquals(wrote, true, differs.write);
    assertQemuClean(ours);
    return;
  }
  assertEquals(wrote, writeByQemu(theirs, offsets), "Writing is allowed");
  const raw = `${folder}/converted.raw`;
  const readBack = readByQemu(ours, raw);
  assertSameReading(readBack, readByQemu(theirs, raw), "what was written");
  assertSameReading(readHere(ours), readBack, "what was written here");
  assertEquals(countsOfQemu(ours), countsOfQemu(theirs), "A check after writing");
}

async function assertRepairedTheSame(folder: string, repair: "leaks" | "all", { differs }: Fixture): Promise<void> {
  const ours = copy(folder, "ours");
  const theirs = copy(folder, "theirs");
  if (differs?.check === undefined) {
    await assertSameCheck(ours, theirs, ["-r", repair]);
    assertEquals(countsOfQemu(ours), countsOfQemu(theirs), `A check after -r ${repair}`);
  } else {
    checkImage(ours, { repair });
  }
  const first = checkImage(ours);
  let second;
  try {
    second = checkImage(ours, { repair });
  } catch (error) {
    // Leaks alone cannot be mended where refcounts have to be built anew.
    assert(repair === "leaks" && error instanceof Qcow2Error && error.code === "corrupt", String(error));
    return;
  }
  // What can be mended was mended at once.
  assertEquals([second.corruptions, second.leaks], [first.corruptions, first.leaks]);
  assertEquals([second.corruptionsFixed, second.leaksFixed], [0, 0]);
}

for (const fixture of [...SOUND, ...DAMAGED]) {
  qemuTest(`An image with ${fixture.name} is here what it is in QEMU`, () =>
    withFolder(async (folder) => {
      fixture.make(folder);
      const path = `${folder}/disk.qcow2`;
      if (fixture.differs?.open !== undefined) {
        assertEquals(readHere(path), undefined, fixture.differs.open);
        return;
      }
      const reading = assertReadTheSame(folder);
      if (fixture.differs?.check === undefined) await assertSameCheck(path, path, ["--output=json"]);
      const repairs = SOUND.includes(fixture) ? ["all"] as const : ["leaks", "all"] as const;
      for (const repair of reading === undefined ? [] : repairs) {
        await assertRepairedTheSame(folder, repair, fixture);
        const after = readHere(`${folder}/ours.qcow2`);
        assertSameReading(after, readByQemu(`${folder}/ours.qcow2`, `${folder}/converted.raw`), "after a repair");
        if (reading?.whole === true) assertSameReading(after, reading, "A repair loses nothing");
      }
      assertWrittenTheSame(folder, fixture);
    }));
}
