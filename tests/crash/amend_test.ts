import { Buffer } from "node:buffer";
import { assert, assertEquals } from "@std/assert";
import { type AmendOptions, checkImage, type CreateOptions, Qcow2File, RawFile } from "../../mod.ts";
import { EXTENSION, extensionText } from "../../lib/format/mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { assertCode, filled, KIB, MIB, readBytes } from "../images.ts";
import { Random } from "../random.ts";
import { everyCrash } from "./every_crash.ts";
import { hostFault, Recorder } from "./recorder.ts";

const BACKING = filled(300 * KIB, 5);
const backing = () => RawFile.open(MemoryBlockFile.from(BACKING));
const OVER: Partial<CreateOptions> = { backingFile: "b.raw", backingFormat: "raw", backing };

const LONG_NAME = "a name that is longer than a sector ".repeat(16);

const CASES: readonly (readonly [name: string, created: Partial<CreateOptions>, options: AmendOptions])[] = [
  ["wider refcounts", { clusterSize: 512 }, { refcountBits: 64 }],
  ["narrower refcounts", { clusterSize: 4096, refcountBits: 64 }, { refcountBits: 1 }],
  ["version 2 to 3", { version: 2, clusterSize: 8192, ...OVER }, { version: 3, lazyRefcounts: true }],
  ["version 3 to 2", { clusterSize: 8192 }, { version: 2 }],
  ["version 3 to 2 over a backing file", { clusterSize: 8192, ...OVER }, { version: 2 }],
  ["version 3 to 2 with a long name of the backing file", { ...OVER, backingFile: LONG_NAME }, { version: 2 }],
  ["version 2 to 3 with a long name of the backing file", {
    ...OVER,
    version: 2,
    backingFile: LONG_NAME,
    clusterSize: 4096,
  }, { version: 3 }],
  ["refcounts of an image with subclusters", { extendedL2: true, clusterSize: 16 * KIB }, {
    refcountBits: 2,
    lazyRefcounts: true,
  }],
  ["version 3 to 2 with small clusters", { clusterSize: 512, refcountBits: 8 }, { refcountBits: 16, size: 600 * KIB }],
];

for (const [name, created, options] of CASES) {
  Deno.test(`A crash while amending leaves a sound image with the same content: ${name}`, () => {
    const random = new Random(`amend ${name}`);
    const over = created.backing === undefined ? {} : { backing };
    const file = new MemoryBlockFile();
    let image = new Uint8Array();
    let model = new Uint8Array();
    {
      using disk = Qcow2File.create(file, { size: 500 * KIB, ...created });
      disk.writeAt(100 * KIB, random.bytes(150 * KIB));
      disk.writeZeroesAt(0, 50 * KIB);
      disk.writeZeroesAt(120 * KIB, 30 * KIB);
      disk.flush();
      model = readBytes(disk, 0, disk.size);
      image = file.toBytes();
    }
    const states = everyCrash(image, random, (recorder) => {
      using disk = Qcow2File.open(recorder, { write: true, ...over });
      disk.amend(options);
    }, (state, what) => {
      assertEquals(checkImage(state).corruptions, 0, what);
      using disk = Qcow2File.open(state, { write: true, ...over });
      assertEquals(readBytes(disk, 0, model.length), model, what);
      assertEquals(disk.header.backingFile, created.backingFile, what);
      // What is left is as good as any image.
      disk.writeAt(0, filled(40 * KIB, 9));
      disk.flush();
      assertEquals(disk.check().corruptions, 0, what);
    });
    assert(states > 4, `${states} states`);
  });
}

const SNAPSHOT_CASES: readonly (readonly [name: string, created: Partial<CreateOptions>])[] = [
  ["small clusters", { clusterSize: 512 }],
  ["4 KiB clusters over a backing file", { clusterSize: 4096, ...OVER }],
  ["64 KiB clusters over a backing file", OVER],
];

for (const [name, created] of SNAPSHOT_CASES) {
  Deno.test(`A crash while snapshots with zero clusters become version 2 costs none of them anything, with ${name}`, () => {
    const random = new Random(`amend snapshots ${name}`);
    const over = created.backing === undefined ? {} : { backing };
    const contents = (disk: Qcow2File): Uint8Array[] => [
      readBytes(disk, 0, disk.size),
      ...disk.snapshots.map(({ id }) => readBytes(disk.openSnapshot(id), 0, disk.size)),
    ];
    const file = new MemoryBlockFile();
    let expected: Uint8Array[] = [];
    let image = new Uint8Array();
    {
      using disk = Qcow2File.create(file, { size: 500 * KIB, ...created });
      disk.writeAt(100 * KIB, random.bytes(250 * KIB));
      disk.createSnapshot("data");
      disk.writeZeroesAt(90 * KIB, 150 * KIB);
      disk.writeAt(130 * KIB, random.bytes(64 * KIB));
      disk.writeZeroesAt(128 * KIB, 128 * KIB);
      for (const title of ["zeroes", "the same", "and again"]) disk.createSnapshot(title);
      disk.writeAt(200 * KIB, random.bytes(100 * KIB));
      disk.flush();
      expected = contents(disk);
      image = file.toBytes();
    }
    const versions = new Set<number>();
    const states = everyCrash(image, random, (recorder) => {
      using disk = Qcow2File.open(recorder, { write: true, ...over });
      disk.amend({ version: 2 });
    }, (state, what) => {
      assertEquals(checkImage(state).corruptions, 0, what);
      using disk = Qcow2File.open(state, { write: true, ...over });
      versions.add(disk.header.version);
      contents(disk).forEach((content, index) =>
        assert(Buffer.compare(content, expected[index] ?? content) === 0, what)
      );
      // What is left is as good as any image.
      disk.applySnapshot("2");
      disk.writeAt(0, filled(400 * KIB, 9));
      disk.deleteSnapshot("1");
      disk.flush();
      assertEquals(disk.check().corruptions, 0, what);
    });
    assert(states > 20, `${states} states`);
    assertEquals([...versions].sort(), [2, 3]);
  });

  Deno.test(`A host that is full while snapshots become version 2 costs none of them anything, with ${name}`, () => {
    const random = new Random(`amend snapshots ${name}`);
    const over = created.backing === undefined ? {} : { backing };
    const file = new MemoryBlockFile();
    const disk = Qcow2File.create(file, { size: 500 * KIB, ...created });
    disk.writeAt(100 * KIB, random.bytes(250 * KIB));
    disk.createSnapshot("data");
    disk.writeZeroesAt(64 * KIB, 200 * KIB);
    disk.createSnapshot("zeroes");
    disk.writeAt(64 * KIB, random.bytes(200 * KIB));
    disk.close();
    const image = file.toBytes();
    const whole = new Recorder(image);
    Qcow2File.open(whole, { write: true, ...over }).amend({ version: 2 });
    for (let failing = 0; failing < whole.counts.write; failing += Math.ceil(whole.counts.write / 40)) {
      const recorder = new Recorder(image);
      const broken = Qcow2File.open(recorder, { write: true, ...over });
      const before = readBytes(broken.openSnapshot("zeroes"), 0, broken.size);
      recorder.onCall = (call, number) => {
        if (call === "write" && number >= failing) throw hostFault("no-space", call);
      };
      assertCode("no-space", () => broken.amend({ version: 2 }));
      recorder.onCall = undefined;
      assertEquals(readBytes(broken.openSnapshot("zeroes"), 0, broken.size), before);
      broken.close();
      assertEquals(checkImage(MemoryBlockFile.from(recorder.content().slice())).corruptions, 0, `write ${failing}`);
    }
  });
}

const NAMES: readonly (readonly [from: string, to: string, clusterSize: number])[] = [
  ["old.raw", "a longer name.raw", 65536],
  ["old.raw", LONG_NAME, 65536],
  [LONG_NAME, `${LONG_NAME}${LONG_NAME}`, 65536],
  [LONG_NAME, "new.raw", 4096],
  [LONG_NAME, "", 8192],
];

for (const [from, to, clusterSize] of NAMES) {
  Deno.test(`A crash while the data file is named anew leaves one of the names: ${from.length} to ${to.length} bytes`, () => {
    const random = new Random(`names ${from.length} ${to.length}`);
    const file = new MemoryBlockFile();
    const data = new MemoryBlockFile();
    const openDataFile = () => MemoryBlockFile.from(data.toBytes());
    const names = new Set<string>();
    const created = { size: MIB, clusterSize, dataFile: from, backingFile: "b.raw", backingFormat: "raw", backing };
    Qcow2File.create(file, { ...created, openDataFile: () => data }).close();
    const states = everyCrash(file.toBytes(), random, (recorder) => {
      using disk = Qcow2File.open(recorder, { write: true, dataFile: openDataFile, backing });
      disk.amend({ dataFile: to });
    }, (state, what) => {
      assertEquals(checkImage(state).corruptions, 0, what);
      using disk = Qcow2File.open(state, { dataFile: openDataFile, backing });
      names.add(extensionText(disk.header, EXTENSION.dataFile) ?? "");
      assertEquals(disk.header.backingFile, "b.raw");
    });
    assert(states > 4, `${states} states`);
    assertEquals([...names].sort(), [from, to].sort());
  });
}

Deno.test("A header that the host lets be written in part is known as the file has it", () => {
  for (const [from, to] of [["old.raw", "new.raw"], [LONG_NAME, `${LONG_NAME}!`]] as const) {
    const file = new MemoryBlockFile();
    const openDataFile = () => new MemoryBlockFile();
    Qcow2File.create(file, { size: MIB, dataFile: from, openDataFile }).close();
    const image = file.toBytes();
    const whole = new Recorder(image);
    Qcow2File.open(whole, { write: true, dataFile: openDataFile }).amend({ dataFile: to });
    for (let failing = 0; failing < whole.counts.write; failing++) {
      for (const failedWrites of ["nothing", "all"] as const) {
        const recorder = new Recorder(image);
        recorder.failedWrites = failedWrites;
        const disk = Qcow2File.open(recorder, { write: true, dataFile: openDataFile });
        recorder.onCall = (call, number) => {
          if (call === "write" && number >= failing) throw hostFault("no-space", call);
        };
        assertCode("no-space", () => disk.amend({ dataFile: to }));
        recorder.onCall = undefined;
        const name = extensionText(disk.header, EXTENSION.dataFile);
        assert(name === from || name === to);
        // What is added to the extensions stands behind those that are there.
        disk.addBitmap("after");
        disk.close();
        using again = Qcow2File.open(MemoryBlockFile.from(recorder.content().slice()), { dataFile: openDataFile });
        assertEquals(extensionText(again.header, EXTENSION.dataFile), name);
        assertEquals(again.bitmaps.map(({ name }) => name), ["after"]);
        assertEquals(again.check().corruptions, 0);
      }
    }
  }
});
