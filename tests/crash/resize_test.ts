import { assert, assertEquals } from "@std/assert";
import { checkImage, type CreateOptions, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { filled, KIB, MIB, readBytes } from "../images.ts";
import { Random } from "../random.ts";
import { everyCrash } from "./every_crash.ts";

const BACKING = filled(2 * MIB, 5);
const backing = () => RawFile.open(MemoryBlockFile.from(BACKING));

const CASES: readonly (readonly [name: string, options: Omit<CreateOptions, "size">, from: number, to: number])[] = [
  ["growing with small clusters and a longer L1 table", { clusterSize: 512, refcountBits: 64 }, 300 * KIB, 8 * MIB],
  ["growing with 1-bit refcounts", { clusterSize: 512, refcountBits: 1 }, 300 * KIB, 3 * MIB],
  ["growing with preallocation", { clusterSize: 4096, preallocation: "metadata" }, 301 * KIB, 3 * MIB],
  ["shrinking small clusters", { clusterSize: 512, refcountBits: 64 }, 900 * KIB, 100 * KIB + 512],
  ["shrinking", { clusterSize: 4096 }, 9 * MIB, 301 * KIB],
  [
    "growing over a backing file",
    { clusterSize: 512, backingFile: "b", backingFormat: "raw", backing },
    300 * KIB,
    MIB,
  ],
];

for (const [name, options, from, to] of CASES) {
  Deno.test(`A crash leaves the old size or the new one and everything that was flushed: ${name}`, () => {
    const random = new Random(name);
    const { preallocation = "off", ...created } = options;
    const file = new MemoryBlockFile();
    const over = created.backingFile === undefined ? {} : { backing };
    let image = new Uint8Array();
    const content = random.bytes(Math.min(from, 200 * KIB));
    {
      using disk = Qcow2File.create(file, { ...created, size: from });
      disk.writeAt(from - content.length, content);
      disk.writeAt(0, filled(50 * KIB, 3));
      disk.flush();
      image = file.toBytes();
    }
    const model = new Uint8Array(Math.max(from, to)).fill(created.backingFile === undefined ? 0 : 5, 0, from);
    model.set(content, from - content.length);
    model.fill(3, 0, 50 * KIB);
    const grows = to > from;
    const states = everyCrash(image, random, (recorder) => {
      using disk = Qcow2File.open(recorder, { write: true, ...over });
      disk.resize(to, { shrink: true, preallocation: grows ? preallocation : "off" });
    }, (state, what) => {
      const { corruptions } = checkImage(state);
      assertEquals(corruptions, 0, what);
      using disk = Qcow2File.open(state, over);
      assert(disk.size === from || disk.size === to, `${disk.size} bytes after ${what}`);
      assertEquals(readBytes(disk, 0, disk.size), model.slice(0, disk.size), what);
    });
    assert(states > 20, `${states} states`);
  });
}

Deno.test("everyCrash() notices where syncs come to nothing", () => {
  for (const [clusterSize, from, to] of [[512, 300 * KIB, 8 * MIB], [512, 900 * KIB, 100 * KIB]] as const) {
    const file = new MemoryBlockFile();
    let image = new Uint8Array();
    {
      using disk = Qcow2File.create(file, { size: from, clusterSize, refcountBits: 64 });
      disk.writeAt(0, filled(from, 1));
      disk.flush();
      image = file.toBytes();
    }
    let broken = 0;
    everyCrash(image, new Random("merged"), (recorder) => {
      using disk = Qcow2File.open(recorder, { write: true });
      disk.resize(to, { shrink: true });
    }, (state) => {
      try {
        if (checkImage(state).corruptions > 0) broken++;
      } catch {
        broken++;
      }
    }, { mergeSyncs: true });
    assert(broken > 0, `${clusterSize}: ${from} to ${to}`);
  }
});
