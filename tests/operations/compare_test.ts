import { assert, assertEquals, assertRejects } from "@std/assert";
import { compare, type CreateOptions, type Disk, DiskError, Qcow2Error, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { filled, GIB, KIB, MIB, readBytes, RecordingFile, setUint64 } from "../images.ts";
import { Random } from "../random.ts";

function raw(size: number): RawFile {
  return RawFile.create(new MemoryBlockFile(), { size });
}

function qcow2(size: number, options: Partial<CreateOptions> = {}): Qcow2File {
  return Qcow2File.create(new MemoryBlockFile(), { size, ...options });
}

Deno.test("compare() finds disks alike however they are stored", async () => {
  using first = qcow2(3 * MIB, { clusterSize: 512 });
  using second = qcow2(3 * MIB, { clusterSize: 2 * MIB, version: 2 });
  using third = raw(3 * MIB);
  for (const disk of [first, second, third]) disk.writeAt(MIB - 700, filled(100 * KIB, 3));
  first.writeZeroesAt(0, 100 * KIB);
  second.writeAt(2 * MIB, filled(5000, 0));
  for (const other of [first, second, third]) {
    assertEquals(await compare(first, other), { identical: true, sizesDiffer: false });
    assertEquals(await compare(other, first), { identical: true, sizesDiffer: false });
  }
});

Deno.test("compare() tells the first sector that differs, wherever it is", async () => {
  const random = new Random("compare");
  using first = qcow2(5 * MIB, { clusterSize: 4096 });
  using second = raw(5 * MIB);
  const bytes = random.bytes(3 * MIB);
  for (const disk of [first, second]) disk.writeAt(MIB, bytes);
  for (let round = 0; round < 50; round++) {
    const offset = random.below(5 * MIB);
    const [old = 0] = readBytes(first, offset, 1);
    first.writeAt(offset, Uint8Array.of(old ^ 1));
    for (const [one, other] of [[first, second], [second, first]] as const) {
      const { difference, offset: found } = await compare(one, other);
      assertEquals([difference, found], ["content", offset - offset % 512]);
    }
    first.writeAt(offset, Uint8Array.of(old));
  }
  assertEquals((await compare(first, second)).identical, true);
});

Deno.test("compare() takes what is longer for the same only where it reads as zeroes", async () => {
  using short = qcow2(MIB);
  using long = qcow2(4 * MIB);
  long.writeAt(2 * MIB, filled(100, 0));
  assertEquals(await compare(short, long), { identical: true, sizesDiffer: true });
  assertEquals(await compare(short, long, { strict: true }), {
    identical: false,
    sizesDiffer: true,
    difference: "size",
  });
  long.writeAt(3 * MIB + 600, filled(1, 1));
  for (const [one, other] of [[short, long], [long, short]] as const) {
    const { difference, offset } = await compare(one, other);
    assertEquals([difference, offset], ["content", 3 * MIB + 512]);
  }
});

Deno.test("compare() strictly tells where something is allocated in one disk only", async () => {
  using first = qcow2(MIB);
  using second = qcow2(MIB);
  assertEquals((await compare(first, second, { strict: true })).identical, true);
  second.writeAt(192 * KIB, filled(64 * KIB, 0));
  assertEquals((await compare(first, second)).identical, true);
  // Nothing is said of the beginning in either of them, but one says it of more.
  const { difference, offset } = await compare(first, second, { strict: true });
  assertEquals([difference, offset], ["allocation", 0]);
});

Deno.test("compare() reads nothing that is zero or unallocated in both disks", async () => {
  const files = [0, 1].map(() => new RecordingFile(new MemoryBlockFile()));
  const disks = files.map((file) => Qcow2File.create(file, { size: 500 * GIB, clusterSize: 65536 }));
  const [first, second] = disks;
  assert(first !== undefined && second !== undefined);
  for (const disk of disks) {
    disk.writeAt(300 * GIB, filled(64 * KIB, 1));
    disk.writeZeroesAt(2 * GIB, GIB);
  }
  for (const file of files) file.calls.length = 0;
  assertEquals((await compare(first, second)).identical, true);
  for (const file of files) {
    const read = file.calls.filter(({ call }) => call === "read").reduce((sum, { length }) => sum + length, 0);
    assert(read < MIB, `${read} bytes were read`);
  }
});

Deno.test("compare() tells how far it is, piece by piece up to the end of the longer disk", async () => {
  using first = raw(9 * MIB);
  using second = qcow2(10 * MIB);
  first.writeAt(0, filled(9 * MIB, 1));
  second.writeAt(0, filled(9 * MIB, 1));
  const told: number[] = [];
  await compare(first, second, { onProgress: ({ done, total }) => told.push(done / total) });
  assertEquals(told, [0.2, 0.4, 0.6, 0.8, 0.9, 1]);
});

Deno.test("compare() ends when its signal says so, before and amid the work", async () => {
  using first = raw(64 * MIB);
  using second = qcow2(64 * MIB);
  for (const disk of [first, second]) disk.writeAt(0, filled(64 * MIB, 1));
  const aborted = await assertRejects(() => compare(first, second, { signal: AbortSignal.abort() }), Qcow2Error);
  assertEquals(aborted.code, "aborted");
  const controller = new AbortController();
  let read = 0;
  const slow: Disk = Object.create(first, {
    size: { value: first.size },
    extents: { value: (offset: number, length: number) => first.extents(offset, length) },
    readAt: {
      value: (offset: number, into: Uint8Array) => {
        // Longer than the event loop may have to wait.
        const start = performance.now();
        while (performance.now() - start < 30);
        read += into.length;
        controller.abort();
        first.readAt(offset, into);
      },
    },
  });
  const error = await assertRejects(() => compare(slow, second, { signal: controller.signal }), Qcow2Error);
  assertEquals(error.code, "aborted");
  // The piece at hand.
  assertEquals(read, 2 * MIB);
});

Deno.test("compare() reads nothing of what was only allocated, and is as strict about it as ever", async () => {
  const file = new RecordingFile(new MemoryBlockFile());
  using first = Qcow2File.create(file, { size: 64 * MIB, preallocation: "metadata" });
  using second = qcow2(64 * MIB);
  for (const disk of [first, second]) disk.writeAt(20 * MIB, filled(MIB, 1));
  file.calls.length = 0;
  assertEquals((await compare(first, second)).identical, true);
  const bytesRead = file.calls.filter(({ call }) => call === "read").reduce((sum, { length }) => sum + length, 0);
  assert(bytesRead < 2 * MIB, `${bytesRead} bytes`);
  assertEquals((await compare(first, second, { strict: true })).difference, "allocation");
});

Deno.test("compare() tells which disk cannot be read while both are", async () => {
  for (const broken of [0, 1]) {
    const disks = [0, 1].map((index) => {
      const file = new RecordingFile(MemoryBlockFile.from(filled(4 * MIB, 1)));
      const fail = index === broken;
      if (fail) {
        file.onCall = ({ call }) => {
          if (call === "read") throw new Qcow2Error("io", "broken");
        };
      }
      return RawFile.open(file);
    });
    const [first, second] = disks;
    assert(first !== undefined && second !== undefined);
    const error = await assertRejects(() => compare(first, second), DiskError);
    assertEquals([error.disk, error.action, error.code], [broken === 0 ? "first disk" : "second disk", "read", "io"]);
    for (const disk of disks) disk.close();
  }
});

Deno.test("compare() says which disk cannot be read, and whether it is its content or its tables", async () => {
  using sound = raw(2 * GIB);
  const file = new RecordingFile(new MemoryBlockFile());
  using damaged = Qcow2File.create(file, { size: 2 * GIB });
  damaged.writeAt(GIB, filled(100, 1));
  damaged.flush();
  file.onCall = ({ call, length }) => {
    if (call === "read" && length > 4096) throw new Qcow2Error("io", "Cannot read");
  };
  const content = await assertRejects(() => compare(sound, damaged), DiskError);
  assertEquals([content.disk, content.action, content.code, content.offset], ["second disk", "read", "io", GIB]);
  file.onCall = undefined;
  damaged.close();

  const image = new MemoryBlockFile();
  const made = Qcow2File.create(image, { size: 2 * GIB });
  const { l1TableOffset } = made.header;
  made.close();
  const broken = MemoryBlockFile.from(image.toBytes());
  setUint64(broken, l1TableOffset + 8, 0x8000000000000200n);
  using disk = Qcow2File.open(broken);
  const allocation = await assertRejects(() => compare(disk, sound), DiskError);
  assertEquals([allocation.disk, allocation.action, allocation.code, allocation.offset], [
    "first disk",
    "list",
    "corrupt",
    GIB / 2,
  ]);
});
