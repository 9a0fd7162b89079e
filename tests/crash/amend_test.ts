import { assert, assertEquals } from "@std/assert";
import { type AmendOptions, checkImage, type CreateOptions, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { filled, KIB, readBytes } from "../images.ts";
import { Random } from "../random.ts";
import { everyCrash } from "./every_crash.ts";

const BACKING = filled(300 * KIB, 5);
const backing = () => RawFile.open(MemoryBlockFile.from(BACKING));
const OVER: Partial<CreateOptions> = { backingFile: "b.raw", backingFormat: "raw", backing };

const CASES: readonly (readonly [name: string, created: Partial<CreateOptions>, options: AmendOptions])[] = [
  ["wider refcounts", { clusterSize: 512 }, { refcountBits: 64 }],
  ["narrower refcounts", { clusterSize: 4096, refcountBits: 64 }, { refcountBits: 1 }],
  ["version 2 to 3", { version: 2, clusterSize: 8192, ...OVER }, { version: 3, lazyRefcounts: true }],
  ["version 3 to 2", { clusterSize: 8192 }, { version: 2 }],
  ["version 3 to 2 over a backing file", { clusterSize: 8192, ...OVER }, { version: 2 }],
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
