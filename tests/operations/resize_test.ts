import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  type CreateOptions,
  type Progress,
  Qcow2Error,
  Qcow2File,
  RawFile,
  resize,
  type ResizeOptions,
} from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { assertCode, copyOf, filled, KIB, MIB, readBytes } from "../images.ts";
import { Random } from "../random.ts";

const BACKING = filled(3 * MIB, 5);
const backing = () => RawFile.open(MemoryBlockFile.from(BACKING));
const OVER = { backingFile: "b.raw", backingFormat: "raw", backing };

interface Case {
  readonly created?: Partial<CreateOptions>;
  readonly size: number;
  readonly options?: ResizeOptions;
  readonly hasDataFile?: boolean;
}

const CASES: Readonly<Record<string, Case>> = {
  "growth with metadata": { created: { clusterSize: 512 }, size: 2 * MIB, options: { preallocation: "metadata" } },
  "growth with zeroes": { created: { clusterSize: 4096 }, size: 40 * MIB, options: { preallocation: "full" } },
  "growth with subclusters": {
    created: { clusterSize: 16 * KIB, extendedL2: true },
    size: 30 * MIB,
    options: { preallocation: "falloc" },
  },
  "growth of a data file": {
    created: { dataFile: "data" },
    size: 5 * MIB,
    options: { preallocation: "full" },
    hasDataFile: true,
  },
  "growth over a backing file in version 2": { created: { clusterSize: 512, version: 2, ...OVER }, size: 40 * MIB },
  "shrinking": { created: { clusterSize: 512 }, size: 100 * KIB, options: { shrink: true } },
  "shrinking over a backing file": {
    created: { clusterSize: 512, ...OVER },
    size: 100 * KIB,
    options: { shrink: true },
  },
};

const SIZE = MIB + 512;

for (const [name, { created, size, options, hasDataFile = false }] of Object.entries(CASES)) {
  Deno.test(`resize() that is ended early leaves a sound disk with the old or the new size: ${name}`, async () => {
    const random = new Random(name);
    const file = new MemoryBlockFile();
    const dataFile = new MemoryBlockFile();
    const over = created?.backing === undefined ? {} : { backing };
    let content = new Uint8Array();
    {
      using disk = Qcow2File.create(file, {
        size: SIZE,
        ...created,
        ...(hasDataFile ? { openDataFile: () => dataFile } : {}),
      });
      for (let offset = 0; offset < SIZE - 9 * KIB; offset += 20 * KIB) disk.writeAt(offset, random.bytes(9 * KIB));
      content = readBytes(disk, 0, SIZE);
    }
    const sizes = new Set<number>();
    let stepCount = 0;
    let ended = true;
    for (let step = 1; ended; step += 1 + Math.floor(step / 8)) {
      const image = copyOf(file);
      const data = copyOf(dataFile);
      using disk = Qcow2File.open(image, { write: true, ...over, ...(hasDataFile ? { dataFile: () => data } : {}) });
      const controller = new AbortController();
      const told: Progress[] = [];
      const onProgress = (progress: Progress) => {
        if (told.push(progress) === step) controller.abort();
        assertCode("busy", () => disk.readAt(0, new Uint8Array(1)));
      };
      try {
        await resize(disk, size, { ...options, signal: controller.signal, onProgress });
        ended = false;
        assertEquals(disk.size, size);
        assertEquals(told.at(-1), { done: Math.abs(size - SIZE), total: Math.abs(size - SIZE) });
        stepCount = told.length;
      } catch (error) {
        if (!(error instanceof Qcow2Error) || error.code !== "aborted") throw error;
        assertEquals(told.length, step);
      }
      told.forEach(({ done }, index) => assert(done >= (told[index - 1]?.done ?? 0)));
      sizes.add(disk.size);
      const { corruptions, leaks } = disk.check();
      assertEquals([corruptions, leaks], [0, 0], `step ${step}`);
      const kept = Math.min(SIZE, disk.size);
      assertEquals(readBytes(disk, 0, kept), content.subarray(0, kept));
      // What is left is as good as any disk: whatever stands behind its end never comes to light.
      disk.resize(Math.max(disk.size, 3 * MIB));
      assertEquals(readBytes(disk, kept, disk.size - kept), new Uint8Array(disk.size - kept));
      disk.writeAt(2 * MIB, filled(MIB, 9));
      assertEquals(disk.check().corruptions, 0);
    }
    assert(stepCount > 1, `${stepCount} steps`);
    assertEquals([...sizes].sort(), (size < SIZE ? [size] : [SIZE, size]).sort());
  });
}

Deno.test("resize() that is ended early leaves no room behind a disk that did not grow", async () => {
  for (const preallocation of ["metadata", "full"] as const) {
    const file = new MemoryBlockFile();
    using disk = Qcow2File.create(file, { size: 64 * KIB });
    disk.writeAt(0, filled(64 * KIB, 1));
    disk.flush();
    const { size } = file;
    const controller = new AbortController();
    const onProgress = ({ done }: Progress) => done > 40 * MIB && controller.abort();
    await assertRejects(
      () => resize(disk, 100 * MIB, { preallocation, signal: controller.signal, onProgress }),
      Qcow2Error,
    );
    assertEquals(file.size, size);
  }
});

Deno.test("resize() of a raw disk that is ended early leaves it as it was", async () => {
  const file = MemoryBlockFile.from(filled(512, 1));
  using disk = RawFile.open(file, { write: true });
  const controller = new AbortController();
  const onProgress = () => controller.abort();
  const options = { preallocation: "full", signal: controller.signal, onProgress } as const;
  const { code } = await assertRejects(() => resize(disk, 10 * MIB, options), Qcow2Error);
  assertEquals(code, "aborted");
  assertEquals([disk.size, file.size], [512, 512]);
  const told: Progress[] = [];
  await resize(disk, 10 * MIB, { preallocation: "full", onProgress: (progress) => told.push(progress) });
  assertEquals(told.at(-1), { done: 10 * MIB - 512, total: 10 * MIB - 512 });
  assertEquals(readBytes(disk, 0, 1024), new Uint8Array([...filled(512, 1), ...new Uint8Array(512)]));
});

Deno.test("An image that is closed while it is resized has its old size", async () => {
  const file = new MemoryBlockFile();
  const disk = Qcow2File.create(file, { size: MIB });
  const onProgress = ({ done }: Progress) => done > 40 * MIB && disk.close();
  const work = () => resize(disk, 100 * MIB, { preallocation: "full", onProgress });
  const { code } = await assertRejects(work, Qcow2Error);
  assertEquals(code, "closed");
  using again = Qcow2File.open(copyOf(file));
  assertEquals(again.size, MIB);
  const { corruptions, leaks } = again.check();
  assertEquals([corruptions, leaks], [0, 0]);
});
