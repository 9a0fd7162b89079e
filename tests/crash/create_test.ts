import { assert, assertEquals } from "@std/assert";
import { type BlockFile, type LayoutOptions, Qcow2Error, Qcow2File } from "../../mod.ts";
import { GIB, KIB, MIB } from "../images.ts";
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

Deno.test("A created image is durable", () => {
  for (const layout of LAYOUTS) {
    const recorder = new Recorder(new Uint8Array());
    Qcow2File.create(recorder, { ...layout, lock: false });
    assertEquals(recorder.changes, []);
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
