/**
 * What it costs to give a disk its clusters: 64 KiB writes into a fresh image, beside the same writes into a fresh plain file;
 * and the bookkeeping alone, with the host's file left out.
 */

import { Qcow2File } from "../mod.ts";
import { dataOf, GIB, MetadataOnlyFile, MIB, pathOf, plainFile, scatteredOffsets } from "./_fixtures.ts";

const SIZE = 256 * MIB;
const CLUSTER = 65536;
const COUNT = SIZE / CLUSTER;
const cluster = dataOf(CLUSTER);
const block = dataOf(4096);

Deno.bench("plain file: 4,096 sequential 64 KiB writes", { group: "allocating writes", baseline: true }, (b) => {
  const file = plainFile("allocation.raw");
  b.start();
  for (let index = 0; index < COUNT; index++) file.writeSync(cluster);
  b.end();
  file.close();
});

Deno.bench("qcow2: 4,096 sequential 64 KiB writes", { group: "allocating writes" }, (b) => {
  const disk = Qcow2File.create(pathOf("allocation.qcow2"), { size: SIZE, durability: "none" });
  b.start();
  for (let index = 0; index < COUNT; index++) disk.writeAt(index * CLUSTER, cluster);
  b.end();
  disk.close();
});

Deno.bench("qcow2: 4,096 sequential 64 KiB writes and a durable flush", { group: "allocating writes" }, (b) => {
  const disk = Qcow2File.create(pathOf("allocation.qcow2"), { size: SIZE });
  b.start();
  for (let index = 0; index < COUNT; index++) disk.writeAt(index * CLUSTER, cluster);
  disk.flush();
  b.end();
  disk.close();
});

Deno.bench("reference: 4,096 DataView entries of 8 bytes", { group: "cost per cluster", baseline: true }, () => {
  const view = new DataView(new ArrayBuffer(COUNT * 8));
  for (let index = 0; index < COUNT; index++) {
    view.setUint32(index * 8, 0x80000000);
    view.setUint32(index * 8 + 4, index);
  }
});

for (const [label, run] of [["one by one", 1], ["in runs of 16", 16], ["in runs of 256", 256]] as const) {
  const data = dataOf(CLUSTER * run);
  Deno.bench(`qcow2: 4,096 clusters ${label}, metadata only`, { group: "cost per cluster" }, (b) => {
    const disk = Qcow2File.create(new MetadataOnlyFile(data), { size: SIZE, durability: "none" });
    b.start();
    for (let index = 0; index < COUNT; index += run) disk.writeAt(index * CLUSTER, data);
    b.end();
  });
}

const offsets = scatteredOffsets(2048, 4096, 8 * GIB);

Deno.bench(
  "plain file: 2,048 scattered 4 KiB writes",
  { group: "scattered allocating writes", baseline: true },
  (b) => {
    const file = plainFile("scattered.raw");
    b.start();
    for (const offset of offsets) {
      file.seekSync(offset, Deno.SeekMode.Start);
      file.writeSync(block);
    }
    b.end();
    file.close();
  },
);

Deno.bench("qcow2: 2,048 scattered 4 KiB writes", { group: "scattered allocating writes" }, (b) => {
  const disk = Qcow2File.create(pathOf("scattered.qcow2"), { size: 8 * GIB, durability: "none" });
  b.start();
  for (const offset of offsets) disk.writeAt(offset, block);
  b.end();
  disk.close();
});
