import { assertEquals } from "@std/assert";
import { type AmendOptions, checkImage, Qcow2File } from "../../mod.ts";
import { assertCode, assertQemuClean, filled, MIB, qemuImg, qemuIo, readBytes, withFolder } from "../images.ts";
import { qemuTest } from "../qemu.ts";

function assertClean(path: string): void {
  assertQemuClean(path);
  const { corruptions, leaks } = checkImage(path);
  assertEquals([corruptions, leaks], [0, 0]);
}

/** What QEMU says of an image that amend can change. */
function described(path: string): unknown[] {
  const { "format-specific": { data }, "virtual-size": size } = JSON.parse(qemuImg("info", "--output=json", path));
  return [data.compat, data["lazy-refcounts"], data["refcount-bits"], size];
}

const STEPS: readonly (readonly [AmendOptions, unknown[]])[] = [
  [{ version: 3, lazyRefcounts: true }, ["1.1", true, 16, 8 * MIB]],
  [{ refcountBits: 64 }, ["1.1", true, 64, 8 * MIB]],
  [{ refcountBits: 2, lazyRefcounts: false }, ["1.1", false, 2, 8 * MIB]],
  [{ refcountBits: 16, size: 9 * MIB }, ["1.1", false, 16, 9 * MIB]],
];

qemuTest("QEMU finds nothing in images with snapshots that were amended here", async () => {
  await withFolder((folder) => {
    for (const clusterSize of ["512", "4k", "64k", "2M"]) {
      const path = `${folder}/disk.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", `compat=0.10,cluster_size=${clusterSize}`, path, "8M");
      qemuIo(path, ["write -P 1 0 3M"]);
      qemuImg("snapshot", "-c", "one", path);
      qemuIo(path, ["write -P 2 1M 1M"]);
      for (const [options, expected] of STEPS) {
        {
          using disk = Qcow2File.open(path, { write: true });
          disk.amend(options);
          disk.writeAt(7 * MIB, filled(MIB, disk.header.refcountOrder + 1));
        }
        assertClean(path);
        assertEquals(described(path), expected);
      }
      qemuIo(path, ["read -P 1 0 1M", "read -P 2 1M 1M", "read -P 1 2M 1M", "read -P 5 7M 1M", "read -P 0 8M 1M"]);
      {
        using disk = Qcow2File.open(path, { write: true });
        assertCode("refcount-overflow", () => disk.amend({ refcountBits: 1 }));
        // The snapshot is of another size.
        assertCode("unsupported", () => disk.amend({ version: 2 }));
        disk.amend({ version: 2, size: 8 * MIB, shrink: true });
      }
      assertClean(path);
      assertEquals(described(path), ["0.10", undefined, 16, 8 * MIB]);
      qemuImg("snapshot", "-a", "one", path);
      qemuIo(path, ["read -P 1 0 3M", "read -P 0 3M 5M"]);
      qemuImg("snapshot", "-d", "one", path);
      assertClean(path);
    }
  });
});

qemuTest("Zero clusters become what version 2 can say, over backing files as well", async () => {
  await withFolder((folder) => {
    qemuImg("create", "-q", "-f", "qcow2", `${folder}/base.qcow2`, "3M");
    qemuIo(`${folder}/base.qcow2`, ["write -P 5 0 3M"]);
    for (const base of [[], ["-b", "base.qcow2", "-F", "qcow2"]]) {
      for (const clusterSize of ["512", "64k"]) {
        const path = `${folder}/disk.qcow2`;
        qemuImg("create", "-q", "-f", "qcow2", "-o", `cluster_size=${clusterSize}`, ...base, path, "4M");
        qemuIo(path, ["write -P 1 0 1M", "write -z 0 512k", "write -z -u 1M 1M"]);
        {
          using disk = Qcow2File.open(path, { write: true, backing: "allow" });
          disk.amend({ version: 2 });
        }
        assertClean(path);
        const below = base.length > 0 ? 5 : 0;
        qemuIo(path, [
          "read -P 0 0 512k",
          "read -P 1 512k 512k",
          "read -P 0 1M 1M",
          `read -P ${below} 2M 1M`,
          "read -P 0 3M 1M",
        ]);
        assertEquals(described(path).slice(0, 1), ["0.10"]);
        qemuImg("amend", "-o", "compat=1.1", path);
        using disk = Qcow2File.open(path, { backing: "allow" });
        assertEquals(readBytes(disk, 2 * MIB, MIB), filled(MIB, below));
      }
    }
  });
});

qemuTest("Images that QEMU amended are read and amended here", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    qemuImg("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "4M");
    qemuIo(path, ["write -P 1 0 2M"]);
    for (const [theirs, ours] of [[64, 1], [1, 8], [32, 4]] as const) {
      qemuImg("amend", "-o", `refcount_bits=${theirs}`, path);
      {
        using disk = Qcow2File.open(path, { write: true });
        assertEquals(disk.header.refcountOrder, Math.log2(theirs));
        disk.amend({ refcountBits: ours });
        assertEquals(readBytes(disk, 0, 2 * MIB), filled(2 * MIB, 1));
      }
      assertClean(path);
    }
  });
});
