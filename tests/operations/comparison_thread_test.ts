import { assert, assertEquals } from "@std/assert";
import { compare } from "../../lib/operations/compare.ts";
import { ComparisonThread } from "../../lib/operations/comparison_thread.ts";
import { RawFile } from "../../lib/image/raw_file.ts";
import { FsBlockFile } from "../../lib/storage/fs_block_file.ts";
import { MIB } from "../images.ts";

const LENGTH = 20 * MIB;

/** Two files of the same bytes, all of which are there. */
class Pair implements Disposable {
  readonly folder = Deno.makeTempDirSync();
  readonly paths = [`${this.folder}/one`, `${this.folder}/other`] as const;

  constructor(length = LENGTH) {
    const bytes = new Uint8Array(length);
    for (let index = 0; index < bytes.length; index += 512) bytes[index] = 1 + index % 251;
    for (const path of this.paths) Deno.writeFileSync(path, bytes);
  }

  /** Changes a byte of the second file. */
  change(offset: number): void {
    using file = Deno.openSync(this.paths[1], { write: true });
    file.seekSync(offset, Deno.SeekMode.Start);
    file.writeSync(new Uint8Array([255]));
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.folder, { recursive: true });
  }
}

/** A thread that is there, and compares all of both files. */
async function answerOf(
  thread: ComparisonThread,
  one: FsBlockFile,
  other: FsBlockFile,
  attempts = 500,
): Promise<boolean | undefined> {
  for (let attempt = 0; attempt < attempts; attempt++) {
    const job = thread.begin({ file: one, offset: 0, length: LENGTH }, { file: other, offset: 0, length: LENGTH });
    if (job !== undefined) return thread.areSame(job);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return undefined;
}

Deno.test("A thread tells whether two files hold the same bytes", async () => {
  using pair = new Pair();
  using one = FsBlockFile.open(pair.paths[0]);
  using other = FsBlockFile.open(pair.paths[1]);
  using thread = new ComparisonThread();
  assertEquals(await answerOf(thread, one, other), true);
  for (const offset of [LENGTH - 1, 7 * MIB, 0]) {
    pair.change(offset);
    assertEquals(await answerOf(thread, one, other), false);
  }
});

Deno.test("A thread says nothing of a file that was replaced, or is shorter than it was", async () => {
  for (const spoil of ["replace", "cut"]) {
    using pair = new Pair();
    using one = FsBlockFile.open(pair.paths[0]);
    using other = FsBlockFile.open(pair.paths[1]);
    using thread = new ComparisonThread();
    if (spoil === "cut") Deno.truncateSync(pair.paths[1], LENGTH - 1);
    else {
      Deno.copyFileSync(pair.paths[0], `${pair.folder}/new`);
      Deno.renameSync(`${pair.folder}/new`, pair.paths[1]);
    }
    assertEquals(await answerOf(thread, one, other), false, spoil);
  }
});

Deno.test("A thread that cannot be had, or never answers, leaves the work to the caller", async () => {
  using pair = new Pair();
  using one = FsBlockFile.open(pair.paths[0]);
  using other = FsBlockFile.open(pair.paths[1]);
  using missing = new ComparisonThread(new URL("data:text/javascript,onmessage = () => {};"));
  assertEquals(await answerOf(missing, one, other, 20), undefined);
  const silent = `onmessage = ({ data }) => { if ("state" in data) Atomics.store(data.state, 0, 1); };`;
  using mute = new ComparisonThread(new URL(`data:text/javascript,${encodeURIComponent(silent)}`), 50);
  assertEquals(await answerOf(mute, one, other), false);
  // From then on it is not asked any more.
  assertEquals(await answerOf(mute, one, other, 3), undefined);
});

Deno.test("compare() finds the first byte that differs in large files, be it the thread that comes upon it", async () => {
  const size = 96 * MIB;
  using pair = new Pair(size);
  const compareAll = async (): Promise<number | undefined> => {
    using one = RawFile.open(pair.paths[0]);
    using other = RawFile.open(pair.paths[1]);
    const { identical, offset } = await compare(one, other);
    assertEquals(identical, offset === undefined);
    return offset;
  };
  assertEquals(await compareAll(), undefined);
  // From behind, so that each is the first one.
  for (const offset of [size - 1, 91 * MIB + 512, 89 * MIB, 60 * MIB + 5, 18 * MIB, MIB]) {
    pair.change(offset);
    assertEquals(await compareAll(), offset - offset % 512);
  }
});

Deno.test("FsBlockFile tells where it can be opened once more", () => {
  using pair = new Pair(512);
  using file = FsBlockFile.open(pair.paths[0]);
  const { place } = file;
  assert(place !== undefined);
  const { dev, ino } = Deno.statSync(pair.paths[0]);
  assertEquals(place, { path: pair.paths[0], device: dev, inode: ino ?? 0 });
});
