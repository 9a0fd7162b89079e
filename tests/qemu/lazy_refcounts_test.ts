import { assert, assertEquals } from "@std/assert";
import { checkImage, Qcow2File } from "../../mod.ts";
import { assertQemuClean, filled, MIB, qemuCheck, qemuImg, qemuIo, readBytes, withFolder } from "../images.ts";
import { qemuTest, run } from "../qemu.ts";

/** Lets QEMU write to an image and kills it before it brings the refcounts to the file; says how many are wrong then. */
function writeAndKill(path: string, commands: readonly string[]): number {
  const words = [...commands, "flush", "sigraise 9"].flatMap((command) => ["-c", command]);
  run("qemu-io", ["-f", "qcow2", ...words, path]);
  const info = JSON.parse(qemuImg("info", "--output=json", path));
  assertEquals(info["dirty-flag"], true);
  return qemuCheck(path).corruptions;
}

const CASES = [
  "cluster_size=512",
  "cluster_size=4k,refcount_bits=1",
  "cluster_size=4k,refcount_bits=64",
  "cluster_size=64k",
  "cluster_size=2M",
];

qemuTest("An image that QEMU left dirty is read as it is, and repaired when it is written", async () => {
  await withFolder((folder) => {
    let corruptions = 0;
    for (const options of CASES) {
      const path = `${folder}/disk.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", `lazy_refcounts=on,${options}`, path, "16M");
      qemuIo(path, ["write -P 1 0 2M"]);
      corruptions += writeAndKill(path, ["write -P 2 1M 2M", "write -P 3 8M 1M", "write -z -u 0 1M"]);
      const before = Deno.readFileSync(path);
      {
        using disk = Qcow2File.open(path);
        assertEquals(readBytes(disk, MIB, 2 * MIB), filled(2 * MIB, 2));
        assertEquals(readBytes(disk, 8 * MIB, MIB), filled(MIB, 3));
        assertEquals(disk.header.incompatibleFeatures, 1n);
      }
      assertEquals(Deno.readFileSync(path), before, "reading changes nothing");
      {
        using disk = Qcow2File.open(path, { write: true });
        assertEquals(disk.header.incompatibleFeatures, 0n);
        assertEquals(disk.header.compatibleFeatures, 1n);
        disk.writeAt(4 * MIB, filled(MIB, 4));
        disk.flush();
        // Refcounts are never delayed here, and so the image is never dirty.
        const { corruptions, leaks } = checkImage(path, { lock: false });
        assertEquals([corruptions, leaks], [0, 0], options);
        assertEquals(JSON.parse(qemuImg("info", "-U", "--output=json", path))["dirty-flag"], false);
      }
      assertQemuClean(path);
      qemuIo(path, [
        "read -P 0 0 1M",
        "read -P 2 1M 2M",
        "read -P 0 3M 1M",
        "read -P 4 4M 1M",
        "read -P 3 8M 1M",
      ]);
      assertQemuClean(path);
    }
    assert(corruptions > 0, "QEMU brought all refcounts to the file in time");
  });
});

qemuTest("An image with snapshots that QEMU left dirty keeps them through the repair", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    qemuImg("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on,cluster_size=4k", path, "16M");
    qemuIo(path, ["write -P 1 0 2M"]);
    qemuImg("snapshot", "-c", "one", path);
    writeAndKill(path, ["write -P 2 1M 2M"]);
    Qcow2File.open(path, { write: true }).close();
    assertQemuClean(path);
    qemuIo(path, ["read -P 1 0 1M", "read -P 2 1M 2M"]);
    qemuImg("snapshot", "-a", "one", path);
    qemuIo(path, ["read -P 1 0 2M", "read -P 0 2M 1M"]);
    assertQemuClean(path);
  });
});
