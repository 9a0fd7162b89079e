import { assert, assertEquals } from "@std/assert";
import { Buffer } from "node:buffer";
import { type BlockFile, type CreateOptions, type LayoutOptions, Qcow2Error, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { filled, GIB, KIB, MIB, readBytes } from "../images.ts";
import { everyCrashOfPair } from "./every_crash.ts";
import { Random } from "../random.ts";
import { check } from "./examine.ts";
import { type FaultyCall, hostFault, Recorder } from "./recorder.ts";
import { Watch } from "./watch.ts";

const LAYOUTS: readonly LayoutOptions[] = [
  { size: 0 },
  { size: GIB },
  { size: MIB, version: 2 },
  { size: 300 * KIB, clusterSize: 512, refcountBits: 64 },
  { size: 40 * MIB, clusterSize: 512, refcountBits: 1 },
  { size: 16 * MIB, clusterSize: 4096, refcountBits: 32 },
];

const BACKING = filled(200 * KIB, 5);
const backing = () => RawFile.open(MemoryBlockFile.from(BACKING));
const ALLOCATED: readonly CreateOptions[] = [
  { size: 300 * KIB, clusterSize: 512, refcountBits: 64, preallocation: "metadata" },
  { size: 300 * KIB, clusterSize: 4096, preallocation: "full" },
  { size: 300 * KIB, clusterSize: 16 * KIB, extendedL2: true, preallocation: "falloc" },
  {
    size: 300 * KIB,
    clusterSize: 16 * KIB,
    extendedL2: true,
    preallocation: "metadata",
    backingFile: "base.raw",
    backingFormat: "raw",
    backing,
  },
  { size: 300 * KIB, clusterSize: 4096, dataFile: "data", preallocation: "full" },
  { size: 300 * KIB, clusterSize: 4096, dataFile: "data", dataFileRaw: true },
];

/** Asserts that a file is no image yet, or one that is as it should be. */
function assertImageOrNone(file: BlockFile): void {
  let disk: Qcow2File;
  try {
    disk = Qcow2File.open(file, { lock: false });
  } catch (error) {
    assert(error instanceof Qcow2Error && error.code === "not-qcow2", String(error));
    return;
  }
  const { problem, leaks } = check(file);
  assertEquals(problem, undefined);
  assertEquals(leaks, 0);
  assertEquals(disk.seekData(0), null);
}

/** Creates an image, judges every state that a power cut could leave meanwhile, and tells how many there were. */
function create(layout: LayoutOptions, prepare: (recorder: Recorder) => void): number {
  const recorder = new Recorder(new Uint8Array());
  const limits = { listed: 50, subsets: 50, torn: 100 };
  const watch = new Watch(recorder, new Random("create"), limits, assertImageOrNone);
  prepare(recorder);
  try {
    Qcow2File.create(recorder, { ...layout, lock: false });
  } finally {
    recorder.onCall = undefined;
    watch.show();
  }
  return watch.states;
}

Deno.test("A power cut while an image is created leaves an image or none", () => {
  let states = 0;
  for (const layout of LAYOUTS) states += create(layout, () => {});
  console.log(`Crashes: ${LAYOUTS.length} images created, ${states} states, 0 findings`);
});

Deno.test("A created image is durable, at once or when it is closed", () => {
  for (const options of [...LAYOUTS, ...ALLOCATED]) {
    const [file, data] = [new Recorder(new Uint8Array()), new Recorder(new Uint8Array())];
    const disk = Qcow2File.create(file, { ...options, lock: false, openDataFile: () => data });
    assertEquals([file.changes, data.changes], [[], []]);
    disk.close();
    const [lateFile, lateData] = [new Recorder(new Uint8Array()), new Recorder(new Uint8Array())];
    const late = { durability: "none", lock: false, openDataFile: () => lateData } as const;
    Qcow2File.create(lateFile, { ...options, ...late }).close();
    assertEquals([lateFile.changes, lateData.changes], [[], []]);
    assertEquals(lateFile.counts.sync, 1);
  }
});

Deno.test("A power cut while an image is preallocated leaves an image or none, which reads as if nothing was allocated", () => {
  for (const options of ALLOCATED) {
    const expected = new Uint8Array(options.size ?? 0);
    if (options.backingFile !== undefined) expected.set(BACKING);
    const over = options.backingFile === undefined ? {} : { backing };
    let images = 0;
    const nothing = new Uint8Array();
    everyCrashOfPair([nothing, nothing], new Random("preallocate"), ([file, data]) => {
      Qcow2File.create(file, { ...options, lock: false, openDataFile: () => data });
    }, ([file, data], what) => {
      let disk: Qcow2File;
      try {
        disk = Qcow2File.open(file, { lock: false, dataFile: () => data, ...over });
      } catch (error) {
        assert(error instanceof Qcow2Error && error.code === "not-qcow2", `${what}: ${error}`);
        return;
      }
      images++;
      assertEquals(check(file).problem, undefined, what);
      assertEquals(Buffer.compare(readBytes(disk, 0, disk.size), expected), 0, what);
    });
    assert(images > 5, `${images} images`);
  }
});

Deno.test("A host that fails while an image is created leaves an image or none, and says so", () => {
  let count = 0;
  for (const layout of LAYOUTS) {
    for (const call of ["truncate", "write", "sync"] satisfies FaultyCall[]) {
      let wentThrough = false;
      for (let index = 0; !wentThrough; index++) {
        try {
          create(layout, (recorder) => {
            recorder.onCall = (made, nth) => {
              if (made === call && nth === index) throw hostFault(index % 2 === 0 ? "io" : "no-space", call);
            };
          });
          wentThrough = true;
        } catch (error) {
          assert(error instanceof Qcow2Error, String(error));
          assert(error.code === "io" || error.code === "no-space", error.message);
          count++;
        }
      }
    }
  }
  console.log(`Faults: ${count} while images were created`);
});
