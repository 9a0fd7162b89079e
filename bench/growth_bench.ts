/**
 * How cost grows: everything that can be large is doubled, and the smallest of each is the reference. Opening, reading, writing and
 * flushing must not notice how large the disk is or how much of it is allocated; a flush grows with the tables that have changed, a
 * check with the clusters that there are, and a chain of backing files or a list of snapshots costs what its length says.
 */

import { Qcow2File } from "../mod.ts";
import { dataOf, GIB, MetadataOnlyFile, MIB, pathOf, scatteredOffsets } from "./_fixtures.ts";

const REQUESTS = 1000;
const TIB = 1024 * GIB;
const block = dataOf(4096);
const piece = dataOf(16 * MIB);

/** What is doubled, and the images for it. */
interface Series {
  readonly name: string;
  readonly steps: readonly { readonly label: string; readonly path: string; readonly data: number }[];
}

/** Makes an image with so much data from its beginning on; the data itself is left out. */
function makeImage(name: string, size: number, allocated: number): string {
  const path = pathOf(`${name}.qcow2`);
  using disk = Qcow2File.create(new MetadataOnlyFile(piece, path), { size, durability: "none" });
  for (let offset = 0; offset < allocated; offset += piece.length) disk.writeAt(offset, piece);
  return path;
}

function makeChain(depth: number): string {
  let backingFile = makeImage(`chain_${depth}_0`, 64 * GIB, GIB);
  for (let layer = 1; layer <= depth; layer++) {
    const path = pathOf(`chain_${depth}_${layer}.qcow2`);
    Qcow2File.create(path, { backingFile, backingFormat: "qcow2" }).close();
    backingFile = path;
  }
  return backingFile;
}

function makeSnapshots(count: number): string {
  const path = makeImage(`snapshots_${count}`, 64 * GIB, GIB);
  using disk = Qcow2File.open(path, { write: true, durability: "none" });
  for (let index = 0; index < count; index++) disk.createSnapshot(`snapshot ${index}`);
  // Clusters of the disk's own again, to be rewritten in place.
  for (const offset of scatteredOffsets(REQUESTS, 4096, GIB)) disk.writeAt(offset, block);
  return path;
}

const series: readonly Series[] = [
  {
    name: "size of the disk",
    steps: [256, 512, 1024, 2048, 4096].map((gibibytes) => ({
      label: `${gibibytes} GiB`,
      path: makeImage(`size_${gibibytes}`, gibibytes * GIB, GIB),
      data: GIB,
    })),
  },
  {
    name: "allocated data",
    steps: [16, 32, 64, 128, 256].map((gibibytes) => ({
      label: `${gibibytes} GiB`,
      path: makeImage(`allocated_${gibibytes}`, TIB, gibibytes * GIB),
      data: gibibytes * GIB,
    })),
  },
  {
    name: "depth of the chain",
    steps: [1, 2, 4, 8, 16].map((depth) => ({ label: `depth ${depth}`, path: makeChain(depth), data: GIB })),
  },
  {
    name: "number of snapshots",
    steps: [1, 2, 4, 8, 16].map((count) => ({ label: `snapshots ${count}`, path: makeSnapshots(count), data: GIB })),
  },
];

for (const { name, steps } of series) {
  steps.forEach(({ label, path, data }, index) => {
    const baseline = index === 0;
    const offsets = scatteredOffsets(REQUESTS, 4096, data);
    const open = (write: boolean): Qcow2File => {
      return Qcow2File.open(path, { write, lock: false, durability: "none", backing: "allow" });
    };
    const bench = (what: string, run: (b: Deno.BenchContext) => void): void => {
      Deno.bench(`${what}, ${label}`, { group: `${name}: ${what}`, baseline }, run);
    };

    bench("open and close", () => open(false).close());

    bench("1,000 reads of 4 KiB", (b) => {
      using disk = open(false);
      for (const offset of offsets) disk.readAt(offset, block);
      b.start();
      for (const offset of offsets) disk.readAt(offset, block);
      b.end();
    });

    // What goes to the image of a chain is copied there first; after that it is its own.
    bench("1,000 rewrites of 4 KiB and a flush", (b) => {
      using disk = open(true);
      for (const offset of offsets) disk.writeAt(offset, block);
      disk.flush();
      b.start();
      for (const offset of offsets) disk.writeAt(offset, block);
      disk.flush();
      b.end();
    });

    bench("check", (b) => {
      using disk = open(false);
      b.start();
      disk.check();
      b.end();
    });
  });
}

for (const count of [16, 32, 64, 128, 256]) {
  const group = "changed tables: flush";
  Deno.bench(`flush of ${count} changed L2 tables`, { group, baseline: count === 16 }, (b) => {
    using disk = Qcow2File.create(new MetadataOnlyFile(piece), { size: TIB, durability: "none" });
    for (let table = 0; table < count; table++) disk.writeAt(table * 512 * MIB, block);
    b.start();
    disk.flush();
    b.end();
  });
}
