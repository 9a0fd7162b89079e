import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  amend,
  type AmendOptions,
  type AmendProgress,
  type CreateOptions,
  Qcow2Error,
  Qcow2File,
  RawFile,
} from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { assertCode, copyOf, filled, KIB, MIB, readBytes } from "../images.ts";
import { Random } from "../random.ts";

const backing = () => RawFile.open(MemoryBlockFile.from(filled(MIB, 5)));
const OVER = { backingFile: "b.raw", backingFormat: "raw", backing };

const CASES: Readonly<Record<string, readonly [created: Partial<CreateOptions>, options: AmendOptions]>> = {
  "wider refcounts": [{ clusterSize: 512 }, { refcountBits: 64 }],
  "narrower refcounts": [{ clusterSize: 4096, refcountBits: 64 }, { refcountBits: 2 }],
  "version 3 to 2": [{ clusterSize: 512 }, { version: 2 }],
  "version 3 to 2 over a backing file": [{ clusterSize: 4096, ...OVER }, { version: 2 }],
  "all that version 3 can say": [{ version: 2, clusterSize: 512 }, {
    version: 3,
    refcountBits: 64,
    lazyRefcounts: true,
    size: 4 * MIB,
  }],
  "all that version 2 can say": [{ clusterSize: 512, refcountBits: 8 }, {
    version: 2,
    refcountBits: 16,
    size: 2 * MIB,
  }],
};

for (const [name, [created, options]] of Object.entries(CASES)) {
  Deno.test(`amend() that is ended early leaves a sound image with the same content: ${name}`, async () => {
    const random = new Random(name);
    const file = new MemoryBlockFile();
    const over = created.backing === undefined ? {} : { backing };
    const contentsOf = (disk: Qcow2File): Uint8Array[] => [
      readBytes(disk, 0, MIB),
      ...disk.snapshots.map(({ id }) => readBytes(disk.openSnapshot(id), 0, MIB)),
    ];
    let contents: Uint8Array[] = [];
    {
      using disk = Qcow2File.create(file, { size: MIB, ...created });
      disk.writeAt(100 * KIB, random.bytes(500 * KIB));
      disk.writeZeroesAt(200 * KIB, 100 * KIB);
      // Snapshots forbid another size in version 2.
      if (options.version !== 2 || options.size === undefined) disk.createSnapshot("one");
      disk.writeZeroesAt(250 * KIB, 100 * KIB);
      disk.writeAt(400 * KIB, random.bytes(10 * KIB));
      contents = contentsOf(disk);
    }
    const changes = new Set<string>();
    let ended = true;
    for (let step = 1; ended; step += 1 + Math.floor(step / 16)) {
      const image = copyOf(file);
      const disk = Qcow2File.open(image, { write: true, ...over });
      const controller = new AbortController();
      let steps = 0;
      const onProgress = ({ change, done, total }: AmendProgress) => {
        if (++steps === step) controller.abort();
        changes.add(change);
        assert(done <= total);
        assertCode("busy", () => disk.writeAt(0, new Uint8Array(1)));
      };
      try {
        await amend(disk, { ...options, signal: controller.signal, onProgress });
        ended = false;
        const { version, size, refcountOrder } = disk.header;
        if (options.version !== undefined) assertEquals(version, options.version);
        if (options.size !== undefined) assertEquals(size, options.size);
        if (options.refcountBits !== undefined) assertEquals(2 ** refcountOrder, options.refcountBits);
      } catch (error) {
        if (!(error instanceof Qcow2Error) || error.code !== "aborted") throw error;
        assertEquals(steps, step);
      }
      assertEquals(contentsOf(disk), contents, `step ${step}`);
      const { corruptions, leaks } = disk.check();
      assertEquals([corruptions, leaks], [0, 0], `step ${step}`);
      // What is left is as good as any image, and the rest can be done later.
      disk.writeAt(300 * KIB, filled(400 * KIB, 9));
      disk.amend(options);
      assertEquals(disk.check().corruptions, 0);
      disk.close();
      using again = Qcow2File.open(copyOf(image), { ...over });
      assertEquals(readBytes(again, 300 * KIB, 400 * KIB), filled(400 * KIB, 9));
      assertEquals(again.check().corruptions, 0);
    }
    assertEquals(changes.size, Object.keys(options).filter((key) => key !== "lazyRefcounts").length);
  });
}

Deno.test("amend() that is ended while refcounts are written leaves the file as long as it was", async () => {
  const file = new MemoryBlockFile();
  using disk = Qcow2File.create(file, { size: MIB });
  disk.writeAt(0, filled(MIB, 1));
  disk.flush();
  const { size } = file;
  const controller = new AbortController();
  const onProgress = ({ done, total }: AmendProgress) => done > total * 0.9 && controller.abort();
  await assertRejects(() => amend(disk, { refcountBits: 32, signal: controller.signal, onProgress }), Qcow2Error);
  assertEquals(file.size, size);
});
