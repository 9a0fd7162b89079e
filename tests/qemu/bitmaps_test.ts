import { assertEquals } from "@std/assert";
import { checkImage, type DirtyExtent, imageInfo, Qcow2File } from "../../mod.ts";
import { assertQemuClean, filled, GIB, KIB, MIB, qemuImg, qemuIo, withFolder } from "../images.ts";
import { qemuTest, run } from "../qemu.ts";
import { dirtyAccordingToQemu } from "./dirty_extents.ts";

function assertNoDamage(path: string): void {
  assertQemuClean(path);
  const { corruptions, leaks } = checkImage(path);
  assertEquals([corruptions, leaks], [0, 0]);
}

function extentsHere(path: string, name: string): DirtyExtent[] {
  using disk = Qcow2File.open(path);
  return [...disk.dirtyExtents(name)];
}

const SHAPES = [
  { cluster: "512", options: "", size: 5 * MIB + 512, granularities: ["512", "4k", "1M"] },
  { cluster: "512", options: ",refcount_bits=64", size: 40 * MIB + 1536, granularities: ["512", "2G"] },
  { cluster: "4k", options: ",refcount_bits=1", size: 33 * MIB + 3 * KIB, granularities: ["512", "64k"] },
  { cluster: "64k", options: "", size: 300 * MIB + 5 * 512, granularities: ["512", "64k", "16M"] },
  { cluster: "64k", options: ",extended_l2=off", size: 3 * GIB + 512, granularities: ["512", "2G"] },
];

for (const { cluster, options, size, granularities } of SHAPES) {
  qemuTest(
    `Bitmaps of QEMU are read and kept here, with clusters of ${cluster} and ${size} bytes${options}`,
    () =>
      withFolder((folder) => {
        const image = `${folder}/disk.qcow2`;
        qemuImg("create", "-q", "-f", "qcow2", "-o", `cluster_size=${cluster}${options}`, image, `${size}`);
        for (const granularity of granularities) {
          qemuImg("bitmap", "--add", "-g", granularity, image, `auto ${granularity}`);
        }
        qemuIo(image, ["write -P 1 1000k 70k", "write -z 3M 1M", `write -P 2 ${size - 512} 512`, "discard 2M 64k"]);
        qemuImg("bitmap", "--add", "--disable", image, "still");
        qemuImg("bitmap", "--merge", `auto ${granularities[0]}`, image, "still");
        {
          using disk = Qcow2File.open(image, { write: true });
          disk.writeAt(4 * MIB + 100, filled(10_000, 3));
          disk.writeZeroesAt(64 * KIB, 100_000);
          disk.discardAt(512 * KIB, 128 * KIB);
          disk.writeAt(size - 1024, filled(1024, 4));
        }
        assertNoDamage(image);
        qemuIo(image, ["write -P 5 0 512"]);
        for (const granularity of granularities) {
          const name = `auto ${granularity}`;
          qemuImg("bitmap", "--disable", image, name);
          const theirs = dirtyAccordingToQemu(image, name);
          if (theirs !== undefined) {
            assertEquals(extentsHere(image, name), theirs, name);
          }
        }
        const still = dirtyAccordingToQemu(image, "still");
        if (still !== undefined) {
          assertEquals(extentsHere(image, "still"), still);
        }
        assertNoDamage(image);
      }),
  );

  qemuTest(
    `Bitmaps made here are used by QEMU, with clusters of ${cluster} and ${size} bytes${options}`,
    () =>
      withFolder((folder) => {
        const image = `${folder}/disk.qcow2`;
        const refcountBits = Number(/refcount_bits=(\d+)/.exec(options)?.[1] ?? 16);
        const clusterSize = cluster.endsWith("k") ? parseInt(cluster) * KIB : Number(cluster);
        {
          using disk = Qcow2File.create(image, { size, clusterSize, refcountBits });
          disk.addBitmap("fine", { granularity: 512 });
          disk.addBitmap("coarse", { granularity: 2 ** 31, disabled: true });
          disk.writeAt(MIB - 700, filled(100_001, 1));
          disk.addBitmap("auto");
          disk.writeZeroesAt(2 * MIB, MIB, { unmap: true });
          disk.disableBitmap("fine");
          disk.writeAt(size - 100, filled(100, 2));
          disk.mergeBitmap("fine", "coarse");
        }
        assertNoDamage(image);
        const info: {
          "format-specific": { data: { bitmaps: { name: string; flags: string[]; granularity: number }[] } };
        } = JSON.parse(qemuImg("info", "--output=json", image));
        const told = info["format-specific"].data.bitmaps.map((
          { name, flags, granularity },
        ) => [name, flags, granularity]);
        const byDefault = Math.min(65536, Math.max(4096, clusterSize));
        assertEquals(told, [["fine", [], 512], ["coarse", [], 2 ** 31], ["auto", ["auto"], byDefault]]);
        assertEquals(imageInfo(image).qcow2?.bitmaps.length, 3);
        qemuIo(image, ["write -P 3 4M 4k"]);
        qemuImg("bitmap", "--disable", "--merge", "fine", image, "auto");
        for (const name of ["fine", "coarse", "auto"]) {
          const theirs = dirtyAccordingToQemu(image, name);
          if (theirs !== undefined) assertEquals(extentsHere(image, name), theirs, name);
        }
        qemuImg("bitmap", "--remove", image, "coarse");
        qemuImg("bitmap", "--clear", image, "fine");
        assertEquals(extentsHere(image, "fine"), []);
        {
          using disk = Qcow2File.open(image, { write: true });
          for (const { name } of disk.bitmaps) disk.removeBitmap(name);
        }
        assertNoDamage(image);
        qemuImg("bitmap", "--add", image, "again");
        qemuIo(image, ["write -P 4 0 64k"]);
        assertNoDamage(image);
      }),
  );
}

qemuTest(
  "Many bitmaps with long names make a directory of several clusters that QEMU reads",
  () =>
    withFolder((folder) => {
      for (const clusterSize of [512, 4096]) {
        const image = `${folder}/disk.qcow2`;
        const names = Array.from({ length: 40 }, (_, index) => `${index}`.padEnd(index * 25 + 2, "n"));
        {
          using disk = Qcow2File.create(image, { size: 10 * MIB, clusterSize, refcountBits: 64 });
          for (const name of names) disk.addBitmap(name, { granularity: 512 });
          disk.writeAt(5 * MIB, filled(MIB, 1));
        }
        assertNoDamage(image);
        for (const name of [names[0] ?? "", names[39] ?? ""]) {
          qemuImg("bitmap", "--disable", image, name);
          const theirs = dirtyAccordingToQemu(image, name);
          if (theirs !== undefined) assertEquals(extentsHere(image, name), theirs);
        }
        qemuImg("bitmap", "--remove", image, names[20] ?? "");
        using disk = Qcow2File.open(image, { write: true });
        assertEquals(disk.bitmaps.length, 39);
        for (const { name } of disk.bitmaps) disk.removeBitmap(name);
        disk.close();
        assertNoDamage(image);
      }
    }),
);

qemuTest(
  "A session that did not end leaves bitmaps that QEMU calls inconsistent as well",
  () =>
    withFolder((folder) => {
      const image = `${folder}/disk.qcow2`;
      const crashed = `${folder}/crashed.qcow2`;
      using disk = Qcow2File.create(image, { size: 10 * MIB });
      disk.addBitmap("auto");
      disk.addBitmap("still", { disabled: true });
      disk.writeAt(0, filled(512, 1));
      disk.flush();
      Deno.copyFileSync(image, crashed);
      assertEquals(run("qemu-img", ["bitmap", "--clear", crashed, "auto"]).code, 1);
      qemuImg("bitmap", "--clear", crashed, "still");
      qemuImg("bitmap", "--remove", crashed, "auto");
      assertNoDamage(crashed);
    }),
);

qemuTest("Names of a backing file survive bitmaps that come and go", () =>
  withFolder((folder) => {
    const base = `${folder}/${"base".repeat(50)}.qcow2`;
    const image = `${folder}/disk.qcow2`;
    qemuImg("create", "-q", "-f", "qcow2", base, "10M");
    qemuIo(base, ["write -P 7 1M 64k"]);
    qemuImg("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image);
    {
      using disk = Qcow2File.open(image, { write: true, backing: "allow" });
      disk.addBitmap("here");
      disk.writeAt(0, filled(512, 1));
    }
    qemuIo(image, ["read -P 7 1M 64k", "write -P 8 2M 64k"]);
    qemuImg("bitmap", "--add", image, "there");
    {
      using disk = Qcow2File.open(image, { write: true, backing: "allow" });
      assertEquals([...disk.dirtyExtents("here")], [{ offset: 0, length: 65536 }, { offset: 2 * MIB, length: 65536 }]);
      for (const { name } of disk.bitmaps) disk.removeBitmap(name);
    }
    qemuIo(image, ["read -P 7 1M 64k", "read -P 8 2M 64k"]);
    assertNoDamage(image);
  }));
