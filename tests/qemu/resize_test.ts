import { assertEquals } from "@std/assert";
import { checkImage, Qcow2File } from "../../mod.ts";
import { assertQemuClean, filled, KIB, MIB, qemuImg, qemuIo, readBytes, withFolder } from "../images.ts";
import { qemuTest } from "../qemu.ts";

const GEOMETRIES = ["512", "4k", "64k", "2M"].flatMap((clusterSize) =>
  [1, 16, 64].map((refcountBits) => `cluster_size=${clusterSize},refcount_bits=${refcountBits}`)
);

function virtualSize(path: string): number {
  return JSON.parse(qemuImg("info", "--output=json", path))["virtual-size"];
}

function assertClean(path: string): void {
  assertQemuClean(path);
  const { corruptions, leaks } = checkImage(path);
  assertEquals([corruptions, leaks], [0, 0]);
}

qemuTest("QEMU finds nothing in images that were resized here", async () => {
  await withFolder((folder) => {
    for (const options of GEOMETRIES) {
      const path = `${folder}/disk.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", options, path, "3M");
      qemuIo(path, ["write -P 1 0 1M", "write -P 2 2M 1M"]);
      {
        using disk = Qcow2File.open(path, { write: true });
        disk.resize(300 * MIB);
        disk.writeAt(299 * MIB, filled(MIB, 3));
      }
      assertClean(path);
      assertEquals(virtualSize(path), 300 * MIB);
      qemuIo(path, ["read -P 1 0 1M", "read -P 0 1M 1M", "read -P 2 2M 1M", "read -P 0 3M 296M", "read -P 3 299M 1M"]);
      {
        using disk = Qcow2File.open(path, { write: true });
        disk.resize(2 * MIB + 512, { shrink: true });
        disk.resize(4 * MIB, { preallocation: "metadata" });
      }
      assertClean(path);
      qemuIo(path, ["read -P 1 0 1M", "read -P 2 2M 512", "read -P 0 2097664 1047040", "write -P 4 3M 1M"]);
      assertClean(path);
    }
  });
});

qemuTest("Images that QEMU resized and preallocated are read and resized here", async () => {
  await withFolder((folder) => {
    for (const options of GEOMETRIES) {
      const path = `${folder}/disk.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", `${options},preallocation=metadata`, path, "1M");
      qemuIo(path, ["write -P 1 0 1M"]);
      qemuImg("resize", "-q", "--preallocation=falloc", path, "20M");
      qemuImg("resize", "-q", "--shrink", path, "512k");
      qemuImg("resize", "-q", path, "30M");
      {
        using disk = Qcow2File.open(path, { write: true });
        assertEquals(readBytes(disk, 0, 512 * KIB), filled(512 * KIB, 1));
        disk.resize(40 * MIB);
        disk.resize(MIB / 4, { shrink: true });
      }
      assertClean(path);
      qemuIo(path, ["read -P 1 0 256k"]);
    }
  });
});

qemuTest("Resizing leaves snapshots as they are", async () => {
  await withFolder((folder) => {
    for (
      const options of ["cluster_size=512,refcount_bits=64", "cluster_size=4k,refcount_bits=2", "cluster_size=64k"]
    ) {
      const path = `${folder}/disk.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", options, path, "8M");
      qemuIo(path, ["write -P 1 0 6M"]);
      qemuImg("snapshot", "-c", "before", path);
      {
        using disk = Qcow2File.open(path, { write: true });
        disk.resize(MIB + 512, { shrink: true });
      }
      assertClean(path);
      {
        using disk = Qcow2File.open(path, { write: true });
        disk.resize(30 * MIB, { preallocation: "metadata" });
        disk.writeAt(0, filled(512, 2));
        disk.writeAt(20 * MIB, filled(MIB, 2));
      }
      assertClean(path);
      qemuIo(path, ["read -P 2 0 512", "read -P 1 512 1M", "read -P 0 1049088 1047040", "read -P 2 20M 1M"]);
      qemuImg("snapshot", "-a", "before", path);
      assertEquals(virtualSize(path), 8 * MIB);
      qemuIo(path, ["read -P 1 0 6M", "read -P 0 6M 2M"]);
      qemuImg("snapshot", "-d", "before", path);
      assertClean(path);
    }
  });
});

qemuTest("QEMU reads zeroes where an overlay grew over a longer backing file", async () => {
  await withFolder((folder) => {
    qemuImg("create", "-q", "-f", "raw", `${folder}/base.raw`, "4M");
    qemuIo(`${folder}/base.raw`, ["write -P 5 0 4M"], "raw");
    qemuImg("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", `${folder}/base.qcow2`);
    for (const base of ["base.raw -F raw", "base.qcow2 -F qcow2"]) {
      for (
        const options of ["compat=0.10,cluster_size=4k", "cluster_size=512", "cluster_size=64k", "cluster_size=2M"]
      ) {
        const path = `${folder}/disk.qcow2`;
        qemuImg("create", "-q", "-f", "qcow2", "-o", options, "-b", ...base.split(" "), path, "1049088");
        {
          using disk = Qcow2File.open(path, { write: true, backing: "allow" });
          disk.resize(6 * MIB);
        }
        assertClean(path);
        qemuIo(path, ["read -P 5 0 1049088", "read -P 0 1049088 5242368"]);
      }
    }
  });
});

qemuTest("Preallocated images are laid out as QEMU lays them out", async () => {
  await withFolder((folder) => {
    const [theirs, ours] = [`${folder}/theirs.qcow2`, `${folder}/ours.qcow2`];
    for (const [options, size] of [["4k", 20 * MIB], ["64k", 700 * MIB + 512], ["2M", 100 * MIB]] as const) {
      for (const preallocation of ["metadata", "falloc", "full"] as const) {
        if (preallocation !== "metadata" && size > 100 * MIB) continue;
        const clusterSize = { "4k": 4096, "64k": 65536, "2M": 2 * MIB }[options];
        qemuImg(
          "create",
          "-q",
          "-f",
          "qcow2",
          "-o",
          `cluster_size=${options},preallocation=${preallocation}`,
          theirs,
          `${size}`,
        );
        Qcow2File.create(ours, { size, clusterSize, preallocation }).close();
        assertClean(ours);
        assertEquals(qemuImg("compare", theirs, ours), "Images are identical.\n");
        const described = (path: string) => {
          const { "allocated-clusters": allocated } = JSON.parse(qemuImg("check", "--output=json", path));
          const extents: { present: boolean; start: number; length: number }[] = JSON.parse(
            qemuImg("map", "--output=json", path),
          );
          const mapped = extents.filter(({ present }) => present).reduce((sum, { length }) => sum + length, 0);
          return { allocated, mapped };
        };
        assertEquals(described(ours), described(theirs), `${options} ${preallocation}`);
        const [a, b] = [Deno.statSync(ours), Deno.statSync(theirs)];
        assertEquals(a.size, b.size, `${options} ${preallocation}`);
        if (preallocation !== "metadata") assertEquals((a.blocks ?? 0) * 512 >= size, true);
        Deno.removeSync(ours);
      }
    }
  });
});
