import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  checkImage,
  commit,
  type CommitOptions,
  type CreateOptions,
  DiskError,
  Qcow2Error,
  Qcow2File,
  RawFile,
} from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { copyOf, filled, GIB, KIB, MIB, readBytes, RecordingFile } from "../images.ts";
import { Random } from "../random.ts";

type Base = Qcow2File | RawFile;

/** An image over a disk. */
function overlayOf(backing: Base, options: Partial<CreateOptions> = {}, file = new MemoryBlockFile()): Qcow2File {
  return Qcow2File.create(file, {
    backingFile: "base",
    backingFormat: backing instanceof RawFile ? "raw" : "qcow2",
    backing: () => backing,
    ...options,
  });
}

function raw(bytes: Uint8Array<ArrayBuffer>): RawFile {
  return RawFile.open(MemoryBlockFile.from(bytes), { write: true });
}

Deno.test("commit() leaves the content where it was and nothing in the image, whatever the formats are", async () => {
  const random = new Random("commit");
  for (let round = 0; round < 40; round++) {
    const format = () => {
      const extendedL2 = random.oneIn(4);
      return {
        extendedL2,
        version: extendedL2 || random.oneIn(2) ? 3 : 2,
        clusterSize: 2 ** random.between(extendedL2 ? 14 : 9, 17),
        size: random.between(1, 1500) * 512,
      } as const;
    };
    const change = (disk: Base) => {
      for (let count = 0; count < 4; count++) {
        const offset = random.below(disk.size);
        const length = Math.min(disk.size - offset, random.between(1, 60 * KIB));
        if (random.oneIn(3)) disk.writeZeroesAt(offset, length, { unmap: random.oneIn(2) });
        else disk.writeAt(offset, random.bytes(length));
      }
    };
    const lowest = raw(random.bytes(random.between(1, 1000) * 512));
    const base = random.oneIn(2) ? lowest : overlayOf(lowest, format());
    const image = overlayOf(base, format());
    if (base !== lowest) change(base);
    change(image);
    const content = readBytes(image, 0, image.size);
    const oldSize = base.size;
    await commit(image);
    assertEquals(readBytes(image, 0, image.size), content);
    assertEquals(readBytes(base, 0, image.size), content);
    assertEquals(base.size, Math.max(oldSize, image.size));
    assert([...image.extents()].every(({ depth, kind }) => depth > 0 || kind === "unallocated"));
    for (const disk of [image, base]) {
      if (!(disk instanceof Qcow2File)) continue;
      const { corruptions, leaks } = disk.check();
      assertEquals([corruptions, leaks], [0, 0]);
    }
    image.close();
  }
});

Deno.test("commit() past an image that is shorter brings its end as zeroes", async () => {
  const base = raw(filled(3 * MIB, 1));
  const middle = overlayOf(base, { size: MIB });
  middle.writeAt(0, filled(KIB, 2));
  const image = overlayOf(middle, { size: 2 * MIB });
  image.writeAt(64 * KIB, filled(KIB, 3));
  const content = readBytes(image, 0, 2 * MIB);
  const { copiedBytes, zeroedBytes } = await commit(image, { base });
  assertEquals([copiedBytes, zeroedBytes], [128 * KIB, MIB]);
  assertEquals(readBytes(base, 0, 2 * MIB), content);
  assertEquals(readBytes(base, 2 * MIB, MIB), filled(MIB, 1));
  // The image keeps what it has, since the one between may say something else.
  assertEquals(readBytes(image, 0, 2 * MIB), content);
  assertEquals([...image.extents()].find(({ depth }) => depth === 0)?.offset, 64 * KIB);
  image.close();
});

Deno.test("commit() that keeps the image needs it for reading only", async () => {
  const bytes = new MemoryBlockFile();
  const made = overlayOf(raw(filled(MIB, 1)), {}, bytes);
  made.writeAt(0, filled(KIB, 2));
  made.close();
  const base = raw(filled(MIB, 1));
  const image = Qcow2File.open(copyOf(bytes), { backing: () => base });
  const error = await assertRejects(() => commit(image), Qcow2Error);
  assertEquals([error.code, readBytes(base, 0, 1)[0]], ["read-only", 1]);
  assertEquals((await commit(image, { keep: true })).copiedBytes, 65536);
  assertEquals(readBytes(base, 0, KIB), filled(KIB, 2));
  image.close();
});

Deno.test("commit() tells the bitmaps of the base what changed, and those of the image nothing", async () => {
  const base = Qcow2File.create(new MemoryBlockFile(), { size: GIB });
  base.addBitmap("base");
  const image = overlayOf(base);
  image.writeAt(MIB, filled(100, 1));
  image.addBitmap("image");
  await commit(image);
  assertEquals([...base.dirtyExtents("base")], [{ offset: MIB, length: 65536 }]);
  assertEquals([...image.dirtyExtents("image")], []);
  image.close();
});

Deno.test("commit() refuses a base that is none", async () => {
  const alone = Qcow2File.create(new MemoryBlockFile(), { size: MIB });
  const image = overlayOf(raw(filled(MIB, 1)));
  for (
    const [disk, options] of [[alone, {}], [image, { base: image }], [image, { base: alone }]] satisfies [
      Qcow2File,
      CommitOptions,
    ][]
  ) {
    const error = await assertRejects(() => commit(disk, options), Qcow2Error);
    assertEquals(error.code, "invalid-argument");
  }
  alone.close();
  image.close();
});

Deno.test("commit() tells how far it is, in bytes to be brought, and keeps to its rate", async () => {
  const image = overlayOf(raw(filled(64 * MIB, 1)));
  image.writeAt(0, filled(5 * MIB, 2));
  image.writeZeroesAt(32 * MIB, 3 * MIB);
  const told: number[] = [];
  const start = performance.now();
  await commit(image, {
    rateLimit: 20 * MIB,
    onProgress: ({ done, total }) => {
      assertEquals(total, 8 * MIB);
      told.push(done);
    },
  });
  assert(performance.now() - start >= 240, `${performance.now() - start} ms`);
  assertEquals(told.at(-1), 8 * MIB);
  assertEquals(told, [...told].sort((a, b) => a - b));
  image.close();
});

Deno.test("commit() that is aborted or fails leaves the image with all of its content", async () => {
  const random = new Random("commit fails");
  for (const failing of ["base", "image", "resize", "signal"]) {
    const baseFile = new RecordingFile(new MemoryBlockFile());
    const base = Qcow2File.create(baseFile, { size: failing === "resize" ? MIB : 8 * MIB, version: 2 });
    if (failing === "resize") base.createSnapshot("one");
    base.flush();
    const inner = new MemoryBlockFile();
    const file = new RecordingFile(inner);
    const image = Qcow2File.create(file, {
      backingFile: "base",
      backingFormat: "qcow2",
      backing: () => base,
      size: 8 * MIB,
    });
    const bytes = random.bytes(6 * MIB);
    image.writeAt(MIB, bytes);
    image.flush();
    const failure = () => {
      throw new Qcow2Error("io", "The host is broken");
    };
    if (failing === "base") baseFile.onCall = ({ call, offset }) => call === "write" && offset > 4 * MIB && failure();
    if (failing === "image") file.onCall = ({ call, offset }) => call === "read" && offset > 4 * MIB && failure();
    const controller = new AbortController();
    const error = await assertRejects(() =>
      commit(image, {
        signal: controller.signal,
        ...(failing === "signal" ? { rateLimit: MIB, onProgress: () => controller.abort() } : {}),
      }), Qcow2Error);
    if (failing === "signal") assertEquals(error.code, "aborted");
    else assert(error instanceof DiskError && error.disk === (failing === "resize" ? "base" : failing));
    if (failing === "resize") assertEquals(error.code, "unsupported");
    file.onCall = baseFile.onCall = undefined;
    assertEquals(readBytes(image, MIB, 6 * MIB), bytes);
    const { corruptions, leaks } = base.check();
    assertEquals([corruptions, leaks], [0, 0]);
    image.close();
    assertEquals(checkImage(copyOf(inner)).corruptions, 0);
    using again = Qcow2File.open(copyOf(inner), { backing: () => raw(filled(MIB, 0)) });
    assertEquals(readBytes(again, MIB, 6 * MIB), bytes);
  }
});
