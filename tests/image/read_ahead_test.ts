import { assert, assertEquals, assertRejects } from "@std/assert";
import { type BlockFile, Qcow2Error, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { emptyImage, filled, KIB, MIB, readBytes, RecordingFile, withFolder } from "../images.ts";
import { Random } from "../random.ts";

/** A file whose background reads end when they are told to. */
class SlowFile extends RecordingFile {
  readonly waiting: (() => void)[] = [];
  readonly #file: BlockFile;

  constructor(file: BlockFile) {
    super(file);
    this.#file = file;
  }

  async readAhead(offset: number, into: Uint8Array): Promise<number> {
    await new Promise<void>((resolve) => this.waiting.push(resolve));
    return this.#file.readAt(offset, into);
  }
}

Deno.test("readAhead() reads what readAt() reads: data, compressed clusters, zeroes, backing files, the end of a short one", () =>
  withFolder(async (folder) => {
    const random = new Random("read ahead");
    const size = 4 * MIB + 512;
    {
      using base = Qcow2File.create(`${folder}/base.qcow2`, { size: 3 * MIB + 1024 });
      for (let offset = 0; offset < 2.5 * MIB; offset += 300 * KIB) base.writeAt(offset, random.bytes(200 * KIB));
      base.writeCompressedAt(MIB, filled(256 * KIB, 9));
    }
    using disk = Qcow2File.create(`${folder}/disk.qcow2`, {
      size,
      clusterSize: 4096,
      backingFile: "base.qcow2",
      backingFormat: "qcow2",
    });
    for (let count = 0; count < 30; count++) {
      const data = random.bytes(random.between(1, 150 * KIB));
      disk.writeAt(random.below(size - data.length), data);
    }
    disk.writeCompressedAt(2 * MIB, filled(128 * KIB, 5));
    disk.writeZeroesAt(500 * KIB, 300 * KIB);
    const expected = readBytes(disk, 0, size);
    const whole = new Uint8Array(size).fill(1);
    await disk.readAhead(0, whole);
    assertEquals(whole, expected);
    for (let count = 0; count < 100; count++) {
      const offset = random.below(size);
      const bytes = new Uint8Array(random.between(1, size - offset)).fill(1);
      await disk.readAhead(offset, bytes);
      assertEquals(bytes, expected.subarray(offset, offset + bytes.length));
    }
  }));

Deno.test("readAhead() of a raw disk reads what readAt() reads, the sector that the end of the file cuts included", async () => {
  using disk = RawFile.open(MemoryBlockFile.from(filled(1000, 3)));
  const bytes = new Uint8Array(1024).fill(1);
  await disk.readAhead(0, bytes);
  assertEquals(bytes, new Uint8Array([...filled(1000, 3), ...filled(24, 0)]));
});

Deno.test("readAhead() leaves the disk usable while it goes on", async () => {
  const file = new SlowFile(emptyImage({ size: 4 * MIB }));
  using disk = Qcow2File.open(file, { write: true });
  disk.writeAt(0, filled(4 * MIB, 7));
  const bytes = new Uint8Array(MIB);
  const reading = disk.readAhead(0, bytes);
  assertEquals(file.waiting.length, 1);
  assertEquals(readBytes(disk, 2 * MIB, 10), filled(10, 7));
  disk.writeAt(3 * MIB, filled(10, 8));
  assertEquals(bytes[0], 0);
  file.waiting[0]?.();
  await reading;
  assertEquals(bytes, filled(MIB, 7));
});

Deno.test("readAhead() fails as readAt() does, and only once nothing uses the buffer any more", async () => {
  const file = new SlowFile(emptyImage({ size: 4 * MIB }));
  using disk = Qcow2File.open(file, { write: true });
  disk.writeAt(0, filled(MIB, 7));
  // Two stretches of the host, of which the first one fails.
  disk.writeAt(3 * MIB, filled(MIB, 7));
  disk.writeAt(MIB, filled(MIB, 7));
  let failing = true;
  const inner = file.readAhead.bind(file);
  file.readAhead = (offset, into) => {
    if (!failing) return inner(offset, into);
    failing = false;
    return Promise.reject(new Qcow2Error("io", "broken"));
  };
  let over = false;
  const reading = disk.readAhead(MIB / 2, new Uint8Array(MIB)).finally(() => over = true);
  const rejected = assertRejects(() => reading, Qcow2Error);
  for (let turn = 0; turn < 10; turn++) await Promise.resolve();
  assert(!over);
  for (const end of file.waiting) end();
  assertEquals((await rejected).code, "io");
  await assertRejects(() => disk.readAhead(4 * MIB, new Uint8Array(1)), Qcow2Error);
});
