import { assertEquals } from "@std/assert";
import { Qcow2File } from "../../mod.ts";
import { filled, getUint64, MIB, qemuImg, readBytes, withFolder } from "../images.ts";
import { FsBlockFile } from "../../lib/storage/mod.ts";
import { qemuTest } from "../qemu.ts";

const OPEN = { backing: "allow", dataFile: "allow" } as const;

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
