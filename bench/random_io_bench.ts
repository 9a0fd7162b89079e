/** Random requests of 4 KiB on a disk of 1 GiB that is full, beside seek and read or write on a plain file. */

import { Qcow2File } from "../mod.ts";
import { dataOf, GIB, MIB, pathOf, plainFile, scatteredOffsets } from "./_fixtures.ts";

const REQUESTS = 10_000;
const plain = plainFile("random.raw");
const disk = Qcow2File.create(pathOf("random.qcow2"), { size: GIB, durability: "none" });
const mebibyte = dataOf(MIB);
for (let offset = 0; offset < GIB; offset += MIB) {
  plain.writeSync(mebibyte);
  disk.writeAt(offset, mebibyte);
}
disk.flush();

const offsets = scatteredOffsets(REQUESTS, 4096, GIB);
const block = dataOf(4096);

Deno.bench("plain file: 10,000 random 4 KiB reads", { group: "random reads", baseline: true }, () => {
  for (const offset of offsets) {
    plain.seekSync(offset, Deno.SeekMode.Start);
    plain.readSync(block);
  }
});

Deno.bench("qcow2: 10,000 random 4 KiB reads", { group: "random reads" }, () => {
  for (const offset of offsets) disk.readAt(offset, block);
});

Deno.bench("plain file: 10,000 random 4 KiB rewrites", { group: "random rewrites", baseline: true }, () => {
  for (const offset of offsets) {
    plain.seekSync(offset, Deno.SeekMode.Start);
    plain.writeSync(block);
  }
});

Deno.bench("qcow2: 10,000 random 4 KiB rewrites", { group: "random rewrites" }, () => {
  for (const offset of offsets) disk.writeAt(offset, block);
});
