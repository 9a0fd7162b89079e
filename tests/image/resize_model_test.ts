import { assertEquals } from "@std/assert";
import { Buffer } from "node:buffer";
import { type CreateOptions, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { KIB, MIB } from "../images.ts";
import { Random } from "../random.ts";
import { ResizeModel } from "./resize_model.ts";

interface Case {
  readonly name: string;
  readonly created: Omit<CreateOptions, "size">;
  readonly maxSize: number;
  readonly steps: number;
  readonly snapshots?: boolean;
  readonly bitmaps?: boolean;
  readonly backed?: boolean;
}

const BACKING_SIZE = 700 * KIB + 512;

const CASES: readonly Case[] = [
  {
    name: "clusters of 512 bytes",
    created: { clusterSize: 512, refcountBits: 64 },
    maxSize: 5 * MIB,
    steps: 400,
    snapshots: true,
    bitmaps: true,
  },
  {
    name: "clusters of 4 KiB over a backing file",
    created: { clusterSize: 4096 },
    maxSize: MIB,
    steps: 400,
    snapshots: true,
    bitmaps: true,
    backed: true,
  },
  {
    name: "clusters of 512 bytes and 1-bit refcounts over a backing file",
    created: { clusterSize: 512, refcountBits: 1 },
    maxSize: MIB,
    steps: 300,
    bitmaps: true,
    backed: true,
  },
  { name: "version 2", created: { clusterSize: 4096, version: 2 }, maxSize: MIB, steps: 300 },
  {
    name: "version 2 over a backing file",
    created: { clusterSize: 4096, version: 2 },
    maxSize: MIB,
    steps: 300,
    backed: true,
  },
  { name: "clusters of 64 KiB", created: {}, maxSize: 3 * MIB, steps: 300, snapshots: true, bitmaps: true },
  {
    name: "subclusters of 512 bytes",
    created: { clusterSize: 16 * KIB, extendedL2: true },
    maxSize: MIB,
    snapshots: true,
    steps: 400,
    bitmaps: true,
  },
  {
    name: "subclusters over a backing file",
    created: { clusterSize: 16 * KIB, extendedL2: true, preallocation: "metadata" },
    maxSize: MIB,
    snapshots: true,
    steps: 400,
    bitmaps: true,
    backed: true,
  },
  {
    name: "subclusters of 2 KiB",
    created: { extendedL2: true, preallocation: "full" },
    maxSize: 3 * MIB,
    snapshots: true,
    steps: 300,
    bitmaps: true,
  },
  { name: "a data file", created: { clusterSize: 4096, dataFile: "data" }, maxSize: MIB, steps: 400, bitmaps: true },
  {
    name: "a data file over a backing file",
    created: { clusterSize: 4096, dataFile: "data" },
    maxSize: MIB,
    steps: 400,
    bitmaps: true,
    backed: true,
  },
  {
    name: "a raw data file",
    created: { clusterSize: 4096, dataFile: "data", dataFileRaw: true },
    maxSize: MIB,
    steps: 400,
    bitmaps: true,
  },
  {
    name: "subclusters and a data file over a backing file",
    created: { clusterSize: 16 * KIB, extendedL2: true, dataFile: "data" },
    maxSize: MIB,
    steps: 400,
    bitmaps: true,
    backed: true,
  },
  {
    name: "subclusters and a raw data file",
    created: { extendedL2: true, dataFile: "data", dataFileRaw: true, preallocation: "falloc" },
    maxSize: 3 * MIB,
    steps: 300,
    bitmaps: true,
  },
];

for (const { name, created, maxSize, steps, backed = false, ...extras } of CASES) {
  Deno.test(`Whatever is done to an image that is resized, it holds what it should, with ${name}`, () => {
    const random = new Random(`resize ${name}`);
    for (let turn = 0; turn < 2; turn++) {
      let image = new MemoryBlockFile();
      let data = new MemoryBlockFile();
      const backing = backed ? random.bytes(BACKING_SIZE) : undefined;
      const over = backing === undefined ? {} : { backing: () => RawFile.open(MemoryBlockFile.from(backing)) };
      const size = random.between(1, Math.floor(maxSize / 512)) * 512;
      const names = backed ? { backingFile: "base.raw", backingFormat: "raw" } : {};
      Qcow2File.create(image, { size, openDataFile: () => data, ...created, ...names, ...over }).close();
      const model = new ResizeModel({
        random,
        size,
        maxSize,
        compressed: created.dataFile === undefined,
        discards: created.version !== 2 || !backed,
        ...extras,
        ...(backing === undefined ? {} : { backing }),
        open: () => {
          image = MemoryBlockFile.from(image.toBytes());
          data = MemoryBlockFile.from(data.toBytes());
          return Qcow2File.open(image, { write: true, dataFile: () => data, ...over });
        },
        examine: ({ content }) => {
          if (created.dataFile !== undefined) assertEquals(data.size, content.length);
          if (created.dataFileRaw === true) assertEquals(Buffer.compare(data.toBytes(), content), 0);
        },
      });
      model.run(steps);
    }
  });
}
