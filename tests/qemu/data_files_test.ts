import { assertEquals } from "@std/assert";
import { Qcow2File } from "../../mod.ts";
import { filled, getUint64, KIB, MIB, qemuImg, readBytes, withFolder } from "../images.ts";
import { FsBlockFile } from "../../lib/storage/mod.ts";
import { qemuTest } from "../qemu.ts";
import { Random } from "../random.ts";
import { exchange } from "./exchange.ts";

const OPEN = { backing: "allow", dataFile: "allow" } as const;

for (const clusterSize of [512, 64 * KIB]) {
  for (const raw of [false, true]) {
    for (const maker of ["QEMU", "this package"]) {
      const kind = `${raw ? "raw data file" : "data file"} and ${clusterSize}-byte clusters`;
      qemuTest(`An image made by ${maker} goes back and forth, with a ${kind}`, () =>
        withFolder((folder) => {
          const image = `${folder}/disk.qcow2`;
          const data = `${folder}/disk.data`;
          const size = 20 * clusterSize + 512;
          if (maker === "QEMU") {
            const options = `cluster_size=${clusterSize},data_file=${data},data_file_raw=${raw ? "on" : "off"}`;
            qemuImg("create", "-q", "-f", "qcow2", "-o", options, image, String(size));
          } else {
            Qcow2File.create(image, { size, clusterSize, dataFile: data, dataFileRaw: raw }).close();
          }
          const model = new Uint8Array(size);
          exchange({
            image,
            twin: `${folder}/twin.raw`,
            model,
            clusterSize,
            random: new Random(`data file ${maker} ${kind}`),
            open: OPEN,
            afterRound: () => {
              // QEMU fills the last cluster up, also where the disk ends before.
              if (raw) assertEquals(Deno.readFileSync(data).subarray(0, size), model);
            },
          });
        }));
    }
  }
}

qemuTest("An image with a data file and a backing file goes back and forth", () =>
  withFolder((folder) => {
    const clusterSize = 64 * KIB;
    const size = 20 * clusterSize;
    Qcow2File.create(`${folder}/base.qcow2`, { size: size - 1024, dataFile: `${folder}/base.data` }).close();
    {
      using base = Qcow2File.open(`${folder}/base.qcow2`, { ...OPEN, write: true });
      base.writeAt(0, filled(size - 1024, 7));
    }
    const image = `${folder}/disk.qcow2`;
    Qcow2File.create(image, {
      size,
      dataFile: `${folder}/disk.data`,
      backingFile: "base.qcow2",
      backingFormat: "qcow2",
    }).close();
    const model = new Uint8Array(size).fill(7, 0, size - 1024);
    const random = new Random("data file with backing file");
    exchange({ image, twin: `${folder}/twin.raw`, model, clusterSize, random, open: OPEN });
  }));

qemuTest("A raw data file is mapped by QEMU and here in the same way", () =>
  withFolder((folder) => {
    const theirs = `${folder}/theirs.qcow2`;
    const ours = `${folder}/ours.qcow2`;
    const options = `data_file=${folder}/theirs.data,data_file_raw=on`;
    qemuImg("create", "-q", "-f", "qcow2", "-o", options, theirs, "1M");
    Qcow2File.create(ours, { size: MIB, dataFile: `${folder}/ours.data`, dataFileRaw: true }).close();
    for (const path of [theirs, ours]) {
      using file = FsBlockFile.open(path, { writable: false });
      assertEquals(getUint64(file, 0x40000), 0x8000000000000000n);
      assertEquals(getUint64(file, 0x40078), 0x80000000000f0000n);
      assertEquals(getUint64(file, 0x40080), 0n);
    }
  }));

qemuTest("A raw image becomes the data file of an image without being copied", () =>
  withFolder((folder) => {
    const data = `${folder}/disk.raw`;
    Deno.writeFileSync(data, filled(MIB, 3));
    const image = `${folder}/disk.qcow2`;
    Qcow2File.create(image, { size: MIB, dataFile: data, dataFileRaw: true, existingDataFile: "reuse" }).close();
    qemuImg("compare", "-q", "-f", "qcow2", "-F", "raw", image, data);
    using disk = Qcow2File.open(image, OPEN);
    assertEquals(readBytes(disk, 0, MIB), filled(MIB, 3));
  }));
