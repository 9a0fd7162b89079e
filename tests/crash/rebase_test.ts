import { assert, assertEquals } from "@std/assert";
import { checkImage, type CreateOptions, type Disk, Qcow2File, RawFile, rebase } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { KIB, readBytes } from "../images.ts";
import { Random } from "../random.ts";
import { exploring } from "./every_crash.ts";

const CASES: readonly (readonly [name: string, created: Partial<CreateOptions>])[] = [
  ["small clusters", { clusterSize: 512 }],
  ["version 2", { version: 2, clusterSize: 4096 }],
  ["large clusters", {}],
  ["subclusters", { extendedL2: true, clusterSize: 16384 }],
];

for (const [name, created] of CASES) {
  Deno.test(`A crash while rebasing leaves the content over the backing file that the image names: ${name}`, async () => {
    const random = new Random(`rebase ${name}`);
    const [oldBytes, newBytes] = [random.bytes(200 * KIB), random.bytes(350 * KIB)];
    newBytes.set(oldBytes.subarray(50 * KIB, 100 * KIB), 50 * KIB);
    const backing = ({ name }: { readonly name: string }): Disk =>
      RawFile.open(MemoryBlockFile.from(name === "old" ? oldBytes : newBytes, { writable: false }));
    const file = new MemoryBlockFile();
    const named = { backingFile: "old", backingFormat: "raw", backing };
    const made = Qcow2File.create(file, { ...named, ...created, size: 400 * KIB });
    made.writeAt(90 * KIB, random.bytes(30 * KIB));
    made.writeZeroesAt(10 * KIB, 30 * KIB);
    const content = readBytes(made, 0, made.size);
    made.close();

    const names = new Set<string | undefined>();
    const { recorder, finish } = exploring(file.toBytes(), random, (state, what) => {
      const { corruptions } = checkImage(state);
      assertEquals(corruptions, 0, what);
      using disk = Qcow2File.open(state, { backing });
      names.add(disk.header.backingFile);
      assertEquals(readBytes(disk, 0, disk.size), content, what);
    });
    using image = Qcow2File.open(recorder, { write: true, backing });
    using disk = RawFile.open(MemoryBlockFile.from(newBytes));
    const { copiedBytes, zeroedBytes } = await rebase(image, { name: "new", format: "raw", disk });
    assert(copiedBytes > 0 && zeroedBytes > 0);
    image.close();
    const states = finish();
    assert(states > 20, `${states} states`);
    assertEquals(names, new Set(["old", "new"]));
  });
}
