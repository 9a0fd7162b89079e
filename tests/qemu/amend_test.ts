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

qemuTest("Snapshots with zero clusters read the same in version 2", async () => {
  await withFolder((folder) => {
    qemuImg("create", "-q", "-f", "raw", `${folder}/base.raw`, "3M");
    qemuIo(`${folder}/base.raw`, ["write -P 5 0 3M"], "raw");
    for (const base of [[], ["-b", "base.raw", "-F", "raw"]]) {
      for (const clusterSize of ["512", "4k", "64k"]) {
        const path = `${folder}/disk.qcow2`;
        qemuImg("create", "-q", "-f", "qcow2", "-o", `cluster_size=${clusterSize}`, ...base, path, "4M");
        qemuIo(path, ["write -P 1 0 1M", "write -P 1 2M 1M"]);
        qemuImg("snapshot", "-c", "data", path);
        qemuIo(path, ["write -P 2 512k 256k", "write -z 512k 128k", "write -z -u 1M 1536k"]);
        for (const name of ["zeroes", "the same", "and again"]) qemuImg("snapshot", "-c", name, path);
        qemuIo(path, ["write -P 3 600k 2M", "write -z 700k 64k"]);
        const before = qemuContents(folder, path);
        {
          using disk = Qcow2File.open(path, { write: true, backing: "allow" });
          disk.amend({ version: 2 });
        }
        assertClean(path);
        assertEquals(described(path).slice(0, 1), ["0.10"]);
        assertEquals(qemuContents(folder, path), before);
        qemuImg("snapshot", "-a", "the same", path);
        qemuImg("snapshot", "-d", "data", path);
        qemuIo(path, ["write -P 7 1M 1M"]);
        assertClean(path);
        assertEquals(qemuContents(folder, path)[0], before[3]?.fill(7, MIB, 2 * MIB));
      }
    }
  });
});

/** What a disk and its snapshots hold, as QEMU reads them. */
function qemuContents(folder: string, path: string): Uint8Array[] {
  const { snapshots = [] } = JSON.parse(qemuImg("info", "--output=json", path));
  const selections: string[][] = [[], ...snapshots.map(({ id }: { id: string }) => ["-l", `snapshot.id=${id}`])];
  return selections.map((selection) => {
    qemuImg("convert", "-f", "qcow2", "-O", "raw", ...selection, path, `${folder}/read.raw`);
    return Deno.readFileSync(`${folder}/read.raw`);
  });
}

qemuTest("What QEMU made version 2 of, with zero clusters in a snapshot, is read and changed here", async () => {
  await withFolder((folder) => {
    qemuImg("create", "-q", "-f", "raw", `${folder}/base.raw`, "3M");
    qemuIo(`${folder}/base.raw`, ["write -P 5 0 3M"], "raw");
    const path = `${folder}/disk.qcow2`;
    qemuImg("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "base.raw", "-F", "raw", path, "4M");
    qemuIo(path, ["write -P 1 0 1M", "write -z -u 512k 1M"]);
    qemuImg("snapshot", "-c", "zeroes", path);
    qemuIo(path, ["write -P 3 0 3M"]);
    const before = qemuContents(folder, path);
    qemuImg("amend", "-o", "compat=0.10", path);
    assertClean(path);
    using disk = Qcow2File.open(path, { write: true, backing: "allow" });
    assertEquals([disk, disk.openSnapshot("zeroes")].map((side) => readBytes(side, 0, 4 * MIB)), before);
    disk.applySnapshot("zeroes");
    disk.deleteSnapshot("zeroes");
    disk.amend({ version: 3 });
    assertEquals(readBytes(disk, 0, 4 * MIB), before[1]);
    disk.close();
    assertClean(path);
  });
});

qemuTest("Images with subclusters and snapshots go on being QEMU's after they were amended here", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    qemuImg("create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=16k", path, "20M");
    qemuIo(path, ["write -P 1 3k 2M", "write -z 4k 6k"]);
    qemuImg("snapshot", "-c", "one", path);
    for (const [theirs, ours] of [[64, 2], [32, 8], [4, 16]] as const) {
      qemuImg("amend", "-o", `refcount_bits=${theirs},lazy_refcounts=on`, path);
      {
        using disk = Qcow2File.open(path, { write: true });
        disk.amend({ refcountBits: ours, lazyRefcounts: false });
        disk.writeAt(10 * MIB + 700, filled(MIB, ours));
      }
      assertClean(path);
      assertEquals(described(path), ["1.1", false, ours, 20 * MIB]);
      qemuIo(path, [
        "read -P 0 0 3k",
        "read -P 1 3k 1k",
        "read -P 0 4k 6k",
        "read -P 1 10k 2040k",
        `read -P ${ours} 10486460 1M`,
      ]);
    }
    qemuImg("snapshot", "-a", "one", path);
    qemuIo(path, ["read -P 1 10k 2040k", "read -P 0 10M 2M"]);
    assertClean(path);
  });
});

qemuTest("A data file that was named anew here is QEMU's, and the other way round", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    const [first, second, third] = ["first", "second", "third"].map((name) => `${folder}/${name}.raw`);
    if (first === undefined || second === undefined || third === undefined) return;
    qemuImg("create", "-q", "-f", "qcow2", "-o", `data_file=${first},data_file_raw=on`, path, "8M");
    qemuIo(path, ["write -P 1 0 3M"]);
    {
      using disk = Qcow2File.open(path, { write: true, dataFile: "allow" });
      disk.amend({ dataFile: second, dataFileRaw: false, refcountBits: 64, lazyRefcounts: true });
    }
    Deno.renameSync(first, second);
    const { "format-specific": { data } } = JSON.parse(qemuImg("info", "--output=json", path));
    assertEquals([data["data-file"], data["data-file-raw"], data["refcount-bits"]], [second, false, 64]);
    qemuIo(path, ["read -P 1 0 3M", "write -P 2 1M 1M"]);
    assertQemuClean(path);
    qemuImg("amend", "-o", `data_file=${third}`, path);
    Deno.renameSync(second, third);
    using disk = Qcow2File.open(path, { write: true, dataFile: "allow" });
    assertEquals(readBytes(disk, MIB, MIB), filled(MIB, 2));
    assertEquals(readBytes(disk, 2 * MIB, MIB), filled(MIB, 1));
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
