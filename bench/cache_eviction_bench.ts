/**
 * More L2 tables than the cache holds: 2,000 tables touched in turn with a cache of 100 slices, so that nearly every request
 * evicts. Beside it the same requests with a cache that holds them all.
 */

import { Qcow2File } from "../mod.ts";
import { OrderedFile } from "../lib/metadata/ordered_file.ts";
import { TableCache } from "../lib/metadata/table_cache.ts";
import { MemoryBlockFile } from "../lib/storage/mod.ts";
import { dataOf, pathOf } from "./_fixtures.ts";

const TABLES = 2000;
const SPAN = 512 * 1024 * 1024;
const SLICE = 4096;
const SMALL = 100 * SLICE;
const LARGE = TABLES * SLICE * 2;
const block = dataOf(4096);
const path = pathOf("eviction.qcow2");

{
  using disk = Qcow2File.create(path, { size: TABLES * SPAN, durability: "none" });
  for (let table = 0; table < TABLES; table++) disk.writeAt(table * SPAN, block);
}

for (const [label, cacheSize] of [["the cache holds all", LARGE], ["the cache holds 100", SMALL]] as const) {
  const baseline = cacheSize === LARGE;

  Deno.bench(`2,000 tables read, ${label}`, { group: "reads", baseline }, (b) => {
    using disk = Qcow2File.open(path, { cacheSize, lock: false });
    if (baseline) { for (let table = 0; table < TABLES; table++) disk.readAt(table * SPAN, block); }
    b.start();
    for (let table = 0; table < TABLES; table++) disk.readAt(table * SPAN, block);
    b.end();
  });

  Deno.bench(`2,000 tables rewritten, ${label}`, { group: "rewrites", baseline }, (b) => {
    using disk = Qcow2File.open(path, { write: true, cacheSize, durability: "none" });
    if (baseline) { for (let table = 0; table < TABLES; table++) disk.readAt(table * SPAN, block); }
    b.start();
    for (let table = 0; table < TABLES; table++) disk.writeAt(table * SPAN, block);
    b.end();
  });

  Deno.bench(`2,000 tables allocated in, ${label}`, { group: "allocating writes", baseline }, (b) => {
    using disk = Qcow2File.create(pathOf("eviction_fresh.qcow2"), {
      size: TABLES * SPAN,
      cacheSize,
      durability: "none",
    });
    b.start();
    for (let round = 0; round < 2; round++) {
      for (let table = 0; table < TABLES; table++) disk.writeAt(table * SPAN + round * 65536, block);
    }
    b.end();
  });
}

Deno.bench("2,000 tables allocated in, the cache holds 100, durable", { group: "allocating writes" }, (b) => {
  using disk = Qcow2File.create(pathOf("eviction_fresh.qcow2"), { size: TABLES * SPAN, cacheSize: SMALL });
  b.start();
  for (let round = 0; round < 2; round++) {
    for (let table = 0; table < TABLES; table++) disk.writeAt(table * SPAN + round * 65536, block);
  }
  b.end();
});

const memory = new MemoryBlockFile();
memory.truncate(TABLES * SLICE);

function cacheOf(maxSize: number): TableCache {
  const cache = new TableCache(new OrderedFile(memory, "none"), {
    sliceSize: SLICE,
    maxSize,
    writeBack: () => cache.writeDirty(),
  });
  return cache;
}

const hot = cacheOf(LARGE);
for (let slice = 0; slice < TABLES; slice++) hot.get(slice * SLICE);
const cold = cacheOf(SMALL);

Deno.bench("TableCache: 2,000 hits", { group: "the cache alone", baseline: true }, () => {
  for (let slice = 0; slice < TABLES; slice++) hot.get(slice * SLICE);
});

Deno.bench("TableCache: 2,000 misses that evict clean slices", { group: "the cache alone" }, () => {
  for (let slice = 0; slice < TABLES; slice++) cold.get(slice * SLICE);
});

Deno.bench("TableCache: 2,000 misses that evict dirty slices", { group: "the cache alone" }, () => {
  for (let slice = 0; slice < TABLES; slice++) cold.markDirty(cold.get(slice * SLICE));
});
