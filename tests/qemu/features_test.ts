import { assert, assertEquals } from "@std/assert";
import { checkImage, Qcow2File } from "../../mod.ts";
import {
  assertCode,
  assertQemuClean,
  filled,
  GIB,
  MIB,
  qemuCheck,
  qemuImg,
  qemuIo,
  readBytes,
  withFolder,
} from "../images.ts";
import { qemuTest, run } from "../qemu.ts";

/** Changes one 64-bit field of an image on disk. */
function changeField(path: string, offset: number, change: (value: bigint) => bigint): void {
  using file = Deno.openSync(path, { read: true, write: true });
  const bytes = new Uint8Array(8);
  const view = new DataView(bytes.buffer);
  file.seekSync(offset, Deno.SeekMode.Start);
  file.readSync(bytes);
  view.setBigUint64(0, change(view.getBigUint64(0)));
  file.seekSync(offset, Deno.SeekMode.Start);
  file.writeSync(bytes);
}

const INCOMPATIBLE_OFFSET = 72;
const COMPATIBLE_OFFSET = 80;
const AUTOCLEAR_OFFSET = 88;

/** An image with 4 MiB of data, made by QEMU. */
function makeImage(path: string, options = "compat=1.1", size = "64M"): void {
  qemuImg("create", "-q", "-f", "qcow2", "-o", options, path, size);
  qemuIo(path, ["write -P 1 0 4M"]);
}

qemuTest("An image is clean to qemu-img check after it was opened and written here", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    makeImage(image);
    {
      using disk = Qcow2File.open(image, { write: true });
      disk.writeAt(32 * MIB, filled(MIB, 2));
    }
    assertQemuClean(image);
    qemuIo(image, ["read -P 1 0 4M", "read -P 2 32M 1M"]);
  }));

qemuTest("Opening an image for writing and closing it changes nothing", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    makeImage(image);
    const before = Deno.readFileSync(image);
    Qcow2File.open(image, { write: true }).close();
    assertEquals(Deno.readFileSync(image), before);
  }));

qemuTest("A hundred sessions that write leak nothing", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    makeImage(image);
    for (let session = 0; session < 100; session++) {
      using disk = Qcow2File.open(image, { write: true });
      disk.writeAt((session % 10) * MIB, filled(65536, session));
      if (session % 3 === 0) disk.discardAt((session % 7) * MIB, 65536);
    }
    assertQemuClean(image);
    assert(Deno.statSync(image).size < 16 * MIB);
  }));

qemuTest(
  "Zero clusters read as zeroes, whatever stands in the host cluster that they keep",
  () =>
    withFolder((folder) => {
      const image = `${folder}/disk.qcow2`;
      makeImage(image);
      qemuIo(image, ["write -z 1M 1M", "write -z -u 2M 1M"]);
      {
        using disk = Qcow2File.open(image);
        assertEquals(readBytes(disk, 0, MIB), filled(MIB, 1));
        assertEquals(readBytes(disk, MIB, 2 * MIB), filled(2 * MIB, 0));
        assertEquals([...disk.extents(0, 4 * MIB)].map(({ kind, length }) => [kind, length]), [
          ["data", MIB],
          ["zero", MIB],
          ["zero", MIB],
          ["data", MIB],
        ]);
      }
      {
        // Writing elsewhere in the same table leaves the flags alone; a write into such a cluster shows zeroes around it.
        using disk = Qcow2File.open(image, { write: true });
        disk.writeAt(0, filled(512, 3));
        disk.writeAt(8 * MIB, filled(512, 3));
        disk.writeAt(MIB + 70000, filled(512, 4));
        disk.writeAt(2 * MIB + 70000, filled(512, 5));
      }
      assertQemuClean(image);
      qemuIo(image, [
        "read -P 0 1M 70000",
        `read -P 4 ${MIB + 70000} 512`,
        `read -P 0 ${MIB + 70512} ${MIB - 70512}`,
        "read -P 0 2M 70000",
        `read -P 5 ${2 * MIB + 70000} 512`,
        `read -P 0 ${2 * MIB + 70512} ${MIB - 70512}`,
        "read -P 1 3M 1M",
      ]);
    }),
);

qemuTest(
  "Lazy refcounts alone do not make an image dirty: nothing is rebuilt and the feature stays",
  () =>
    withFolder((folder) => {
      const image = `${folder}/disk.qcow2`;
      makeImage(image, "lazy_refcounts=on", "4G");
      // Data in several refcount blocks' worth of tables, and a snapshot that a rebuild could forget.
      qemuImg("snapshot", "-c", "kept", image);
      const before = Deno.readFileSync(image);
      {
        using disk = Qcow2File.open(image);
        assertEquals(readBytes(disk, 0, 4 * MIB), filled(4 * MIB, 1));
      }
      Qcow2File.open(image, { write: true }).close();
      assertEquals(Deno.readFileSync(image), before);
      {
        using disk = Qcow2File.open(image, { write: true });
        disk.writeAt(0, filled(MIB, 2));
        disk.writeAt(3 * GIB, filled(MIB, 3));
        assertEquals(disk.header.compatibleFeatures, 1n);
      }
      assertQemuClean(image);
      qemuIo(image, ["read -P 2 0 1M", "read -P 1 1M 3M", "read -P 3 3G 1M"]);
      qemuImg("snapshot", "-a", "kept", image);
      qemuIo(image, ["read -P 1 0 4M", "read -P 0 3G 1M"]);
    }),
);

/** Makes an image that QEMU has left dirty: lazy refcounts, data, and a process that ended at once. */
function makeDirty(path: string): void {
  qemuImg("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path, "4G");
  run("qemu-io", [
    "-f",
    "qcow2",
    "-c",
    "write -P 1 0 4M",
    "-c",
    "write -P 2 3G 4M",
    "-c",
    "flush",
    "-c",
    "abort",
    path,
  ]);
  const info = qemuImg("info", "-U", path);
  assert(info.includes("lazy refcounts: true"), info);
}

qemuTest("A dirty image can be read, and stays dirty and untouched", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    makeDirty(image);
    const before = Deno.readFileSync(image);
    {
      using disk = Qcow2File.open(image);
      assertEquals(disk.header.incompatibleFeatures, 1n);
      assertEquals(readBytes(disk, 0, 4 * MIB), filled(4 * MIB, 1));
      assertEquals(readBytes(disk, 3 * GIB, 4 * MIB), filled(4 * MIB, 2));
    }
    assertEquals(Deno.readFileSync(image), before);
  }));

qemuTest(
  "A dirty image is repaired when it is opened for writing, and the dirty bit goes",
  () =>
    withFolder((folder) => {
      const image = `${folder}/disk.qcow2`;
      makeDirty(image);
      assert(qemuCheck(image).corruptions > 0);
      {
        using disk = Qcow2File.open(image, { write: true });
        assertEquals(disk.header.incompatibleFeatures, 0n);
        disk.writeAt(GIB, filled(4 * MIB, 3));
      }
      assertQemuClean(image);
      qemuIo(image, ["read -P 1 0 4M", "read -P 2 3G 4M", "read -P 3 1G 4M"]);
    }),
);

qemuTest("A dirty image with snapshots keeps them when it is repaired", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    makeImage(image, "lazy_refcounts=on");
    qemuImg("snapshot", "-c", "kept", image);
    run("qemu-io", ["-f", "qcow2", "-c", "write -P 5 0 2M", "-c", "flush", "-c", "abort", image]);
    {
      using disk = Qcow2File.open(image, { write: true });
      disk.writeAt(2 * MIB, filled(MIB, 6));
      disk.writeAt(20 * MIB, filled(8 * MIB, 7));
    }
    assertQemuClean(image);
    qemuIo(image, ["read -P 5 0 2M", "read -P 6 2M 1M", "read -P 1 3M 1M", "read -P 7 20M 8M"]);
    qemuImg("snapshot", "-a", "kept", image);
    qemuIo(image, ["read -P 1 0 4M", "read -P 0 20M 8M"]);
    assertQemuClean(image);
  }));

qemuTest(
  "An image marked as corrupt can be read, and not be written until it is repaired",
  () =>
    withFolder((folder) => {
      const image = `${folder}/disk.qcow2`;
      makeImage(image);
      changeField(image, INCOMPATIBLE_OFFSET, (bits) => bits | 2n);
      const before = Deno.readFileSync(image);
      assertCode("marked-corrupt", () => Qcow2File.open(image, { write: true }));
      {
        using disk = Qcow2File.open(image);
        assertEquals(readBytes(disk, 0, 4 * MIB), filled(4 * MIB, 1));
      }
      assertEquals(Deno.readFileSync(image), before);
      const { corruptions, leaks } = checkImage(image, { repair: "all" });
      assertEquals([corruptions, leaks], [0, 0]);
      Qcow2File.open(image, { write: true }).close();
      assertQemuClean(image);
      qemuIo(image, ["read -P 1 0 4M"]);
    }),
);

qemuTest("Unknown incompatible features are refused by their names", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    makeImage(image);
    for (const bit of [5n, 6n, 17n, 63n]) {
      changeField(image, INCOMPATIBLE_OFFSET, () => 1n << bit);
      const error = assertCode("unknown-feature", () => Qcow2File.open(image));
      // QEMU says the same, with its own words in front.
      const { stderr } = run("qemu-img", ["info", image]);
      assert(stderr.includes(String(error.found)), `${stderr} does not include ${error.found}`);
    }
    // The image itself may know the name.
    const bytes = Deno.readFileSync(image);
    const at = 112 + 8;
    bytes.set([0, 6, ...new TextEncoder().encode("flying cars"), 0], at);
    Deno.writeFileSync(image, bytes);
    changeField(image, INCOMPATIBLE_OFFSET, () => 1n << 6n);
    const error = assertCode("unknown-feature", () => Qcow2File.open(image));
    assert(error.message.includes("flying cars"), error.message);
    assert(run("qemu-img", ["info", image]).stderr.includes("flying cars"));
  }));

qemuTest(
  "Unknown compatible features stay, unknown autoclear features go with the first session that writes",
  () =>
    withFolder((folder) => {
      const image = `${folder}/disk.qcow2`;
      makeImage(image);
      const unknown = (1n << 63n) | (1n << 9n);
      changeField(image, COMPATIBLE_OFFSET, (bits) => bits | unknown);
      changeField(image, AUTOCLEAR_OFFSET, (bits) => bits | unknown);
      {
        using disk = Qcow2File.open(image);
        assertEquals(disk.header.autoclearFeatures, unknown);
        readBytes(disk, 0, MIB);
      }
      {
        using disk = Qcow2File.open(image);
        assertEquals(disk.header.autoclearFeatures, unknown);
      }
      {
        using disk = Qcow2File.open(image, { write: true });
        disk.writeAt(0, filled(512, 2));
      }
      using disk = Qcow2File.open(image);
      assertEquals(disk.header.autoclearFeatures, 0n);
      assertEquals(disk.header.compatibleFeatures, unknown);
      disk.close();
      assertQemuClean(image);
    }),
);

qemuTest("A bitmap that is switched on is not left out of date by writes here", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    makeImage(image);
    qemuImg("bitmap", "--add", image, "backup");
    assertEquals(checkImage(image).corruptions, 0);
    assertEquals(checkImage(image).leaks, 0);
    {
      using disk = Qcow2File.open(image, { write: true });
      disk.writeAt(MIB, filled(512, 2));
    }
    using disk = Qcow2File.open(image);
    assertEquals(disk.header.autoclearFeatures & 1n, 1n);
    assertEquals([...disk.dirtyExtents("backup")], [{ offset: MIB, length: 64 * 1024 }]);
    disk.close();
    assertQemuClean(image);
  }));

qemuTest("A bitmap that is switched off stays as it is while the disk is written", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    makeImage(image);
    qemuImg("bitmap", "--add", image, "first");
    qemuIo(image, ["write -P 2 1M 64k"]);
    qemuImg("bitmap", "--disable", image, "first");
    {
      using disk = Qcow2File.open(image, { write: true });
      disk.writeAt(32 * MIB, filled(8 * MIB, 3));
      disk.discardAt(0, MIB);
    }
    assertQemuClean(image);
    const { corruptions, leaks } = checkImage(image);
    assertEquals([corruptions, leaks], [0, 0]);
    const info: {
      "format-specific": { data: { bitmaps?: { name: string; flags: string[] }[] } };
    } = JSON.parse(qemuImg("info", "--output=json", image));
    assertEquals(info["format-specific"].data.bitmaps?.map(({ name, flags }) => [name, flags]), [["first", []]]);
    qemuImg("bitmap", "--enable", image, "first");
  }));

qemuTest(
  "Compressed clusters are read, overwritten and given up",
  () =>
    withFolder((folder) => {
      const raw = `${folder}/disk.raw`;
      const image = `${folder}/disk.qcow2`;
      Deno.writeFileSync(raw, filled(4 * MIB, 1));
      for (const type of ["zlib", "zstd"]) {
        qemuImg("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", `compression_type=${type}`, raw, image);
        qemuImg("resize", "-q", image, "64M");
        qemuIo(image, ["write -P 2 8M 1M"]);
        {
          using disk = Qcow2File.open(image, { write: true });
          assertEquals(readBytes(disk, 0, 4 * MIB), filled(4 * MIB, 1));
          assertEquals(readBytes(disk, 8 * MIB, MIB), filled(MIB, 2));
          assertEquals(readBytes(disk, 32 * MIB, MIB), filled(MIB, 0));
          disk.writeAt(16 * MIB, filled(MIB, 3));
          assertEquals([...disk.extents(0, 4 * MIB)].every(({ kind }) => kind === "compressed"), true);
          // Giving a compressed cluster up takes no decompressor.
          disk.discardAt(0, MIB);
          disk.writeZeroesAt(MIB, MIB);
          assertEquals(readBytes(disk, 0, 2 * MIB), filled(2 * MIB, 0));
          // Written over in part, a cluster gets a place of its own.
          disk.writeAt(2 * MIB + 100, filled(1000, 4));
        }
        assertQemuClean(image);
        qemuIo(image, [
          "read -P 0 0 2M",
          "read -P 4 2097252 1000",
          "read -P 1 2098252 1M",
          "read -P 2 8M 1M",
          "read -P 3 16M 1M",
        ]);
        const check = checkImage(image);
        assertEquals([check.corruptions, check.leaks, check.compressedClusters], [0, 0, 31]);
        assertEquals(qemuCheck(image).report["compressed-clusters"], 31);
      }
    }),
);

qemuTest("Images that need what is not here are refused with a code of their own", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    const backing = `${folder}/backing.qcow2`;
    qemuImg("create", "-q", "-f", "qcow2", backing, "64M");
    qemuImg("create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", image);
    assert(assertCode("backing-refused", () => Qcow2File.open(image)).message.includes(backing));
    qemuImg("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-b", backing, "-F", "qcow2", image);
    assertCode("backing-refused", () => Qcow2File.open(image));
    qemuImg("create", "-q", "-f", "qcow2", "-o", `data_file=${folder}/data.raw`, image, "64M");
    assertCode("data-file-refused", () => Qcow2File.open(image));
    qemuImg("create", "-q", "-f", "qcow2", "-o", `data_file=${folder}/data.raw,data_file_raw=on`, image, "64M");
    assertCode("data-file-refused", () => Qcow2File.open(image));
    const secret = ["--object", "secret,id=s,data=geheim"];
    qemuImg("create", "-q", ...secret, "-f", "qcow2", "-o", "encrypt.format=aes,encrypt.key-secret=s", image, "64M");
    assertCode("encrypted", () => Qcow2File.open(image));
    // Their refcounts can be checked all the same.
    const { corruptions, leaks } = checkImage(image);
    assertEquals([corruptions, leaks], [0, 0]);
    // The method is what counts; to make a whole LUKS image, QEMU has to measure the machine, which fails on busy ones.
    using file = Deno.openSync(image, { write: true });
    file.seekSync(35, Deno.SeekMode.Start);
    file.writeSync(new Uint8Array([2]));
    assertCode("encrypted", () => Qcow2File.open(image));
  }));

qemuTest("QEMU and this package keep each other away from an image", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    makeImage(image);
    {
      using disk = Qcow2File.open(image, { write: true });
      disk.writeAt(0, filled(512, 9));
      const { code, stdout, stderr } = run("qemu-io", ["-f", "qcow2", "-c", "write 0 512", image]);
      // Without rights to call the host natively there is nothing that QEMU would see.
      if (Deno.permissions.querySync({ name: "ffi" }).state === "granted" && Deno.build.os === "linux") {
        assertEquals(code, 1, stdout + stderr);
        assert((stdout + stderr).includes("lock"), stdout + stderr);
      }
    }
    qemuIo(image, ["write -P 4 0 512"]);
  }));
