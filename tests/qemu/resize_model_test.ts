import { assertEquals } from "@std/assert";
import { Buffer } from "node:buffer";
import { type CreateOptions, Qcow2File } from "../../mod.ts";
import { assertQemuClean, KIB, MIB, qemuImg, qemuIo, withFolder } from "../images.ts";
import { qemuTest } from "../qemu.ts";
import { Random } from "../random.ts";
import { ResizeModel } from "../resize_model.ts";

interface Case {
  readonly name: string;
  readonly created: Omit<CreateOptions, "size">;
  readonly maxSize: number;
  readonly snapshots?: boolean;
  readonly backed?: boolean;
}

const STEPS = 150;
const BACKING_SIZE = 300 * KIB + 512;

const CASES: readonly Case[] = [
  { name: "clusters of 512 bytes", created: { clusterSize: 512, refcountBits: 64 }, maxSize: 4 * MIB, snapshots: true },
  {
    name: "clusters of 4 KiB over a backing file",
    created: { clusterSize: 4096 },
    maxSize: MIB,
    snapshots: true,
    backed: true,
  },
  { name: "clusters of 64 KiB", created: { preallocation: "metadata" }, maxSize: 2 * MIB, snapshots: true },
  {
    name: "subclusters of 512 bytes",
    created: { clusterSize: 16 * KIB, extendedL2: true },
    snapshots: true,
    maxSize: MIB,
  },
  {
    name: "subclusters over a backing file",
    created: { clusterSize: 16 * KIB, extendedL2: true, preallocation: "falloc" },
    snapshots: true,
    maxSize: MIB,
    backed: true,
  },
  {
    name: "a data file over a backing file",
    created: { clusterSize: 4096, dataFile: "disk.data" },
    maxSize: MIB,
    backed: true,
  },
  { name: "a raw data file", created: { dataFile: "disk.data", dataFileRaw: true }, maxSize: 2 * MIB },
  {
    name: "subclusters and a data file",
    created: { clusterSize: 16 * KIB, extendedL2: true, dataFile: "disk.data", preallocation: "full" },
    maxSize: MIB,
  },
  {
    name: "subclusters and a raw data file",
    created: { extendedL2: true, dataFile: "disk.data", dataFileRaw: true },
    maxSize: 2 * MIB,
  },
];

for (const { name, created, maxSize, snapshots = false, backed = false } of CASES) {
  qemuTest(
    `QEMU and this package resize an image in turn, and find what they should, with ${name}`,
    () =>
      withFolder((folder) => {
        const random = new Random(`resize with QEMU ${name}`);
        const [image, twin] = [`${folder}/disk.qcow2`, `${folder}/twin.raw`] as const;
        const data = `${folder}/${created.dataFile}`;
        const backing = backed ? random.bytes(BACKING_SIZE) : undefined;
        if (backing !== undefined) Deno.writeFileSync(`${folder}/base.raw`, backing);
        const size = random.between(1, maxSize / 512) * 512;
        Qcow2File.create(image, {
          size,
          ...created,
          // QEMU looks for relative names where it runs.
          ...(created.dataFile === undefined ? {} : { dataFile: data }),
          ...(backed ? { backingFile: "base.raw", backingFormat: "raw" } : {}),
        }).close();
        const model = new ResizeModel({
          random,
          size,
          maxSize,
          snapshots,
          bitmaps: true,
          compressed: created.dataFile === undefined,
          ...(backing === undefined ? {} : { backing }),
          open: () => Qcow2File.open(image, { write: true, backing: "allow", dataFile: "allow" }),
          other: {
            // With preallocation QEMU shows what stood in clusters that were free, and cannot have free ones at the end of the file.
            resize: (from, to) => qemuImg("resize", "-q", ...(to < from ? ["--shrink"] : []), image, `${to}`),
            write: (offset, length, value) => qemuIo(image, [`write -P ${value} ${offset} ${length}`]),
          },
          examine: ({ content, bitmaps }) => {
            assertQemuClean(image);
            Deno.writeFileSync(twin, content);
            qemuImg("compare", "-q", "-f", "qcow2", "-F", "raw", image, twin);
            const info = JSON.parse(qemuImg("info", "--output=json", image));
            const told: { name: string; flags: string[]; granularity: number }[] =
              info["format-specific"].data.bitmaps ?? [];
            assertEquals(
              told.map(({ name, flags, granularity }) => [name, granularity, flags]),
              [...bitmaps].map(([name, { granularity, auto }]) => [name, granularity, auto ? ["auto"] : []]),
            );
            if (created.dataFileRaw !== true) return;
            // QEMU fills the last cluster up, also where the disk ends before.
            assertEquals(Buffer.compare(Deno.readFileSync(data).subarray(0, content.length), content), 0);
          },
        });
        model.run(STEPS);
      }),
  );
}
