import { assert, assertEquals } from "@std/assert";
import { checkImage, type CreateOptions, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { KIB, MIB, readBytes } from "../images.ts";
import { Random } from "../random.ts";
import { everyCrash } from "./every_crash.ts";

const CASES: readonly (readonly [name: string, created: Partial<CreateOptions>])[] = [
  ["small clusters, many refcount blocks", { clusterSize: 512, refcountBits: 64 }],
  ["refcounts of one bit", { clusterSize: 512, refcountBits: 1 }],
  ["version 2", { version: 2, clusterSize: 4096 }],
  ["subclusters", { extendedL2: true, clusterSize: 16384 }],
];

for (const [name, created] of CASES) {
  Deno.test(`A crash while an image is reverted loses nothing that its backing file has: ${name}`, () => {
    const random = new Random(`revert ${name}`);
    // The backing file has all of the content already, as after a commit.
    const content = random.bytes(MIB);
    const backing = () => RawFile.open(MemoryBlockFile.from(content, { writable: false }));
    const file = new MemoryBlockFile();
    const made = Qcow2File.create(file, { backingFile: "b", backingFormat: "raw", backing, ...created });
    for (let offset = 0; offset < MIB - 100 * KIB; offset += 150 * KIB) {
      made.writeAt(offset, content.subarray(offset, offset + 100 * KIB));
    }
    if (created.refcountBits !== 1) made.createSnapshot("one");
    made.writeAt(3 * KIB, content.subarray(3 * KIB, 50 * KIB));
    made.close();
    const states = everyCrash(file.toBytes(), random, (recorder) => {
      using disk = Qcow2File.open(recorder, { write: true, backing });
      disk.revertToBacking({ contentStays: true });
    }, (state, what) => {
      assertEquals(checkImage(state).corruptions, 0, what);
      using disk = Qcow2File.open(state, { write: true, backing });
      assertEquals(readBytes(disk, 0, MIB), content, what);
      // What is free may be used.
      disk.writeAt(0, content.subarray(0, 200 * KIB));
      disk.flush();
      assertEquals(readBytes(disk, 0, MIB), content, what);
      if (disk.snapshots.length > 0) {
        assertEquals(readBytes(disk.openSnapshot("one"), 0, 100 * KIB), content.subarray(0, 100 * KIB), what);
      }
      assertEquals(disk.check().corruptions, 0, what);
    });
    assert(states > 4, `${states} states`);
  });
}
