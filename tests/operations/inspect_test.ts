import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  type BinnedMap,
  type CreateOptions,
  type Header,
  inspectImage,
  judgeUntrustedImage,
  Qcow2Error,
  Qcow2File,
  RawFile,
} from "../../mod.ts";
import { FsBlockFile } from "../../lib/storage/mod.ts";
import {
  assertCode,
  filled,
  getUint64,
  GIB,
  KIB,
  MIB,
  qemuImg,
  qemuIo,
  setUint64,
  TIB,
  withFolder,
} from "../images.ts";
import { qemuTest } from "../qemu.ts";
import { Random } from "../random.ts";

const CLUSTER = 64 * KIB;
const OFFSET_MASK = 0x00fffffffffffe00n;

function makeImage(path: string, options: CreateOptions, fill: (disk: Qcow2File) => void): void {
  using disk = Qcow2File.create(path, options);
  fill(disk);
}

/** What there is something of. */
function present(map: BinnedMap<string> | undefined): Record<string, number> {
  return Object.fromEntries(Object.entries(map?.totals ?? {}).filter(([, bytes]) => bytes > 0));
}

/** Every bin holds as much as it is long, and the totals are the sums of the bins. */
function assertWhole(map: BinnedMap<string> | undefined): void {
  assert(map !== undefined);
  const sums: Record<string, number> = {};
  let position = 0;
  for (const bin of map.bins) {
    const parts = Object.entries(bin);
    const length = Math.min(map.binSize, map.size - position);
    assertEquals(parts.reduce((sum, [, bytes]) => sum + (bytes ?? 0), 0), length);
    for (const [kind, bytes] of parts) sums[kind] = (sums[kind] ?? 0) + (bytes ?? 0);
    position += length;
  }
  assertEquals(position, map.size);
  assertEquals(sums, present(map));
}

function headerOf(path: string): Header {
  using disk = Qcow2File.open(path, { lock: false });
  return disk.header;
}

function patch(path: string, change: (file: FsBlockFile) => void): void {
  using file = FsBlockFile.open(path, { writable: true });
  change(file);
}

Deno.test("inspectImage() finds nothing but metadata in an empty image", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    makeImage(path, { size: TIB }, () => {});
    const { guest, host, fragmentation, soundness, problems, fileSize } = inspectImage(path);
    assertEquals(present(guest), { unallocated: TIB });
    assertEquals(present(host), {
      "header": CLUSTER,
      "L1 table": CLUSTER,
      "refcount table": CLUSTER,
      "refcount block": CLUSTER,
    });
    assertEquals(fragmentation, { pieces: 0, dataLength: 0, longestPiece: 0 });
    assertEquals([soundness?.result?.corruptions, soundness?.result?.leaks, soundness?.findings], [0, 0, []]);
    assertEquals(problems, []);
    assertEquals(fileSize, Deno.statSync(path).size);
  });
});

Deno.test("inspectImage() tells data, zeroes and compressed clusters apart, in their places", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    makeImage(path, { size: 4096 * CLUSTER }, (disk) => {
      disk.writeAt(0, filled(2 * CLUSTER, 1));
      disk.writeAt(5 * CLUSTER, filled(3 * CLUSTER, 1));
      disk.writeZeroesAt(5 * CLUSTER, 3 * CLUSTER, { unmap: true });
      disk.writeCompressedAt(100 * CLUSTER, filled(CLUSTER, 7));
      disk.writeAt(4095 * CLUSTER, filled(CLUSTER, 2));
    });
    const { guest, host } = inspectImage(path);
    assertEquals(guest.binSize, CLUSTER);
    assertEquals(present(guest), {
      data: 3 * CLUSTER,
      zero: 3 * CLUSTER,
      compressed: CLUSTER,
      unallocated: 4089 * CLUSTER,
    });
    const kinds = [0, 1, 2, 5, 7, 8, 100, 4094, 4095].map((index) => Object.keys(guest.bins[index] ?? {}).join());
    assertEquals(kinds, [
      "data",
      "data",
      "unallocated",
      "zero",
      "zero",
      "unallocated",
      "compressed",
      "unallocated",
      "data",
    ]);
    assertEquals([host?.totals.data, host?.totals.compressed, host?.totals["L2 table"]], [
      3 * CLUSTER,
      CLUSTER,
      CLUSTER,
    ]);
  });
});

Deno.test("inspectImage() has no more bins for a disk of a petabyte, nor takes time for it", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    makeImage(path, { size: 1024 * TIB, clusterSize: 2 * MIB }, (disk) => {
      disk.writeAt(700 * TIB, filled(10, 1));
    });
    const { guest } = inspectImage(path);
    assertWhole(guest);
    assertEquals(guest.bins.length, 4096);
    assertEquals(guest.bins.findIndex((bin) => bin.data !== undefined), 2800);
  });
});

Deno.test("inspectImage() counts the pieces in which the data stands", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    makeImage(path, { size: GIB }, (disk) => {
      // Clusters are handed out in the order of the writes: the second half of the data stands before the first.
      disk.writeAt(4 * CLUSTER, filled(4 * CLUSTER, 1));
      disk.writeAt(0, filled(4 * CLUSTER, 1));
    });
    assertEquals(inspectImage(path).fragmentation, {
      pieces: 2,
      dataLength: 8 * CLUSTER,
      longestPiece: 4 * CLUSTER,
    });
  });
});

Deno.test("inspectImage() tells what snapshots share and what only they hold", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    makeImage(path, { size: GIB }, (disk) => {
      disk.writeAt(0, filled(4 * CLUSTER, 1));
      disk.createSnapshot("first");
      disk.writeAt(0, filled(CLUSTER, 2));
      disk.addBitmap("changes");
    });
    const { host, info } = inspectImage(path);
    assertWhole(host);
    assertEquals([host?.totals["shared data"], host?.totals["snapshot data"], host?.totals.data], [
      3 * CLUSTER,
      CLUSTER,
      CLUSTER,
    ]);
    assert((host?.totals.snapshots ?? 0) > 0);
    assert((host?.totals.bitmaps ?? 0) > 0);
    assertEquals(info.qcow2?.snapshots.length, 1);
  });
});

Deno.test("inspectImage() opens backing files where it is allowed to, and tells what comes from them", async () => {
  await withFolder((folder) => {
    const base = `${folder}/base.qcow2`;
    const path = `${folder}/disk.qcow2`;
    makeImage(base, { size: 16 * CLUSTER }, (disk) => disk.writeAt(CLUSTER, filled(2 * CLUSTER, 1)));
    makeImage(path, { size: 32 * CLUSTER, backingFile: "base.qcow2", backingFormat: "qcow2" }, (disk) => {
      disk.writeAt(2 * CLUSTER, filled(CLUSTER, 2));
    });
    const allowed = inspectImage(path, { backing: "allow" });
    assertEquals(present(allowed.guest), { data: CLUSTER, backing: CLUSTER, unallocated: 30 * CLUSTER });
    assertEquals(allowed.chain.map(({ path, problem }) => [path, problem]), [[path, undefined], [base, undefined]]);

    const refused = inspectImage(path);
    assertEquals(present(refused.guest), { data: CLUSTER, backing: 31 * CLUSTER });
    assertEquals(refused.chain[1]?.problem, "Opening it was not allowed");

    Deno.removeSync(base);
    const missing = inspectImage(path, { backing: "allow" });
    assertEquals(present(missing.guest), { data: CLUSTER, backing: 31 * CLUSTER });
    assertStringIncludes(missing.chain[1]?.problem ?? "", "No such file");
  });
});

Deno.test("inspectImage() follows a chain that comes back to itself only once", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    makeImage(`${folder}/base.qcow2`, { size: CLUSTER }, () => {});
    makeImage(path, { size: CLUSTER, backingFile: "base.qcow2", backingFormat: "qcow2" }, () => {});
    Deno.copyFileSync(path, `${folder}/base.qcow2`);
    const { chain } = inspectImage(path, { backing: "allow" });
    assertEquals(chain.length, 3);
    assertStringIncludes(chain[2]?.problem ?? "", "leads back");
  });
});

Deno.test("inspectImage() shows damage and goes on behind it", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    makeImage(path, { size: 2 * GIB }, (disk) => {
      disk.writeAt(0, filled(3 * CLUSTER, 1));
      disk.writeAt(GIB, filled(CLUSTER, 1));
      disk.writeAt(GIB + 512 * MIB, filled(CLUSTER, 1));
    });
    patch(path, (file) => {
      const header = headerOf(path);
      const table = Number(getUint64(file, header.l1TableOffset) & OFFSET_MASK);
      // The second cluster of the disk, and the third L1 entry with 512 MiB behind it.
      setUint64(file, table + 8, getUint64(file, table + 8) + 512n);
      setUint64(file, header.l1TableOffset + 16, getUint64(file, header.l1TableOffset + 16) + 512n);
    });
    const { guest, host, soundness, problems } = inspectImage(path);
    assertWhole(guest);
    assertWhole(host);
    assertEquals(present(guest), {
      data: 3 * CLUSTER,
      damaged: 512 * MIB + CLUSTER,
      unallocated: 2 * GIB - 512 * MIB - 4 * CLUSTER,
    });
    assert((soundness?.result?.corruptions ?? 0) > 0);
    assert((soundness?.findings.length ?? 0) > 0);
    assertStringIncludes(problems.join(), "unaligned");
  });
});

Deno.test("inspectImage() shows leaked clusters and clusters that are used for two things", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    makeImage(path, { size: GIB }, (disk) => disk.writeAt(0, filled(4 * CLUSTER, 1)));
    patch(path, (file) => {
      const header = headerOf(path);
      const table = Number(getUint64(file, header.l1TableOffset) & OFFSET_MASK);
      // The first cluster of the disk is forgotten; the second one is said to stand in the L1 table.
      setUint64(file, table, 0n);
      setUint64(file, table + 8, BigInt(header.l1TableOffset));
    });
    const { host } = inspectImage(path);
    assertWhole(host);
    assertEquals([host?.totals.leaked, host?.totals.overlap, host?.totals.data], [2 * CLUSTER, CLUSTER, 2 * CLUSTER]);
  });
});

Deno.test("inspectImage() shows an image whose list of snapshots is broken", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    makeImage(path, { size: GIB }, (disk) => {
      disk.writeAt(0, filled(CLUSTER, 1));
      disk.createSnapshot("first");
    });
    patch(path, (file) => {
      const { snapshotTableOffset } = headerOf(path);
      file.writeAt(snapshotTableOffset + 36, filled(4, 0xff));
    });
    const { guest, info, problems } = inspectImage(path);
    assertEquals(guest.totals.data, CLUSTER);
    assertEquals(info.qcow2?.snapshots, []);
    assertStringIncludes(problems.join(), "extra metadata");
  });
});

Deno.test("inspectImage() stops at its limit and says what it has not looked at", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    makeImage(path, { size: 4 * GIB }, (disk) => {
      for (let offset = 0; offset < disk.size; offset += 512 * MIB) disk.writeAt(offset, filled(CLUSTER, 1));
    });
    const { guest, host, soundness, problems } = inspectImage(path, { maxTableLength: 4 * CLUSTER });
    assertWhole(guest);
    assertWhole(host);
    assertEquals([guest.totals.data, guest.totals.unknown], [4 * CLUSTER, 2 * GIB]);
    assert((host?.totals.unknown ?? 0) > 0);
    assertEquals([host?.totals.free, soundness?.result], [0, undefined]);
    assertStringIncludes(soundness?.problem ?? "", "Tables are longer");
    assertEquals(problems.length, 1);
  });
});

Deno.test("inspectImage() looks at a table as often as its limit allows, however many entries lead there", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    makeImage(path, { size: 4 * GIB }, (disk) => disk.writeAt(0, filled(CLUSTER, 1)));
    patch(path, (file) => {
      const { l1TableOffset } = headerOf(path);
      for (let index = 1; index < 8; index++) {
        setUint64(file, l1TableOffset + index * 8, getUint64(file, l1TableOffset));
      }
    });
    const { guest, host, soundness } = inspectImage(path, { maxTableLength: 5 * CLUSTER });
    assertWhole(guest);
    assertWhole(host);
    assertEquals([guest.totals.data, guest.totals.unknown], [5 * CLUSTER, 3 * 512 * MIB]);
    assertEquals([host?.totals["L2 table"], host?.totals.data], [CLUSTER, CLUSTER]);
    assert((soundness?.result?.corruptions ?? 0) > 0);
  });
});

Deno.test("inspectImage() gives up on a disk that is damaged everywhere, and says so", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    const entryCount = 20_000;
    makeImage(path, { size: entryCount * 512 * 64, clusterSize: 512 }, () => {});
    patch(path, (file) => file.writeAt(headerOf(path).l1TableOffset, filled(entryCount * 8, 0x13)));
    const { guest, problems } = inspectImage(path);
    assertWhole(guest);
    assertEquals(present(guest), { damaged: guest.size / 2, unknown: guest.size / 2 });
    assertStringIncludes(problems.join(), "damaged in 10000 places and more");
  });
});

Deno.test("inspectImage() looks at a raw image", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.raw`;
    RawFile.create(path, { size: MIB }).close();
    const { guest, host, soundness, info } = inspectImage(path);
    assertEquals(info.format, "raw");
    assertEquals((guest.totals.data ?? 0) + (guest.totals.zero ?? 0), MIB);
    assertEquals([host, soundness], [undefined, undefined]);
  });
});

Deno.test("inspectImage() refuses what has no sound header", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    assertCode("not-found", () => inspectImage(path));
    makeImage(path, { size: MIB }, () => {});
    patch(path, (file) => file.writeAt(20, filled(4, 0xff)));
    assertCode("unsupported", () => inspectImage(path));
    assertCode("not-qcow2", () => {
      Deno.writeTextFileSync(path, "some text");
      inspectImage(path, { format: "qcow2" });
    });
  });
});

Deno.test("inspectImage() looks at encrypted images, without a key", async () => {
  await withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    makeImage(path, { size: 10 * MIB }, (disk) => disk.writeAt(0, filled(CLUSTER, 1)));
    patch(path, (file) => {
      const end = Math.ceil(file.size / CLUSTER) * CLUSTER;
      file.truncate(end + CLUSTER);
      file.writeAt(end, Uint8Array.from("LUKS\xba\xbe\0\x01", (character) => character.charCodeAt(0)));
      setUint64(file, 32, (2n << 32n) | (getUint64(file, 32) & 0xffffffffn));
      // The extension comes in place of the feature names.
      setUint64(file, 112, 0x0537be77_00000010n);
      setUint64(file, 120, BigInt(end));
      setUint64(file, 128, BigInt(CLUSTER));
      setUint64(file, 136, 0n);
    });
    const { info, host, guest } = inspectImage(path);
    assertEquals(info.qcow2?.encryption?.format, "luks");
    assertEquals(host?.totals["encryption header"], CLUSTER);
    assertEquals(guest.totals.data, CLUSTER);
  });
});

qemuTest("inspectImage() looks at images whose data file is missing", async () => {
  await withFolder((folder) => {
    const external = `${folder}/external.qcow2`;
    qemuImg("create", "-q", "-f", "qcow2", "-o", `data_file=${folder}/data`, external, "10M");
    qemuIo(external, ["write -P 1 1M 1M"]);
    Deno.removeSync(`${folder}/data`);
    const withDataFile = inspectImage(external);
    assertEquals(withDataFile.guest.totals.data, MIB);
    assertEquals(withDataFile.host?.totals.data, 0);
  });
});

qemuTest("inspectImage() agrees with qemu-img map and check about random images", async () => {
  await withFolder((folder) => {
    const random = new Random("inspect");
    for (let round = 0; round < 6; round++) {
      const path = `${folder}/${round}.qcow2`;
      const clusterSize = random.pick([512, 4096, 65536, 2 * MIB]);
      const size = random.between(1, 64) * 4 * MIB;
      const extended = clusterSize >= 65536 && random.oneIn(2);
      qemuImg(
        ...["create", "-q", "-f", "qcow2", "-o", `cluster_size=${clusterSize},extended_l2=${extended ? "on" : "off"}`],
        ...[path, String(size)],
      );
      const commands = Array.from({ length: 60 }, () => {
        const offset = random.below(size / 512 - 1) * 512;
        const length = Math.min(size - offset, random.between(1, 400) * 512);
        return random.pick([
          `write -P 1 ${offset} ${length}`,
          `write -z ${offset} ${length}`,
          `discard ${offset} ${length}`,
        ]);
      });
      qemuIo(path, commands);
      const { guest, host, soundness } = inspectImage(path);
      assertWhole(guest);
      assertWhole(host);
      const map: { length: number; data: boolean; zero: boolean; present: boolean }[] = JSON.parse(
        qemuImg("map", "--output=json", path),
      );
      const sum = (select: (entry: (typeof map)[number]) => boolean): number => {
        return map.filter(select).reduce((total, { length }) => total + length, 0);
      };
      assertEquals(guest.totals.data, sum(({ data }) => data), commands.join("\n"));
      assertEquals(guest.totals.zero, sum(({ data, present }) => !data && present));
      assertEquals(guest.totals.unallocated, sum(({ present }) => !present));
      using disk = Qcow2File.open(path);
      let used = 0;
      for (let offset = 0; offset < (host?.size ?? 0); offset += clusterSize) {
        if (disk.refcountAt(offset) > 0) used += clusterSize;
      }
      assertEquals((host?.size ?? 0) - (host?.totals.free ?? 0), used);
      assertEquals(soundness?.result?.corruptions, 0);
    }
  });
});

Deno.test("inspectImage() and judgeUntrustedImage() survive every change of an image's tables", async () => {
  await withFolder((folder) => {
    const random = new Random("inspect damage");
    const [sound, path] = [`${folder}/sound.qcow2`, `${folder}/disk.qcow2`];
    makeImage(sound, { size: 4 * MIB, clusterSize: 4096 }, (disk) => {
      disk.writeAt(0, random.bytes(40 * 4096));
      disk.createSnapshot("one");
      disk.addBitmap("changes");
      disk.writeAt(MIB, random.bytes(40 * 4096));
      disk.writeCompressedAt(2 * MIB, filled(4096, 1));
    });
    const bytes = Deno.readFileSync(sound);
    for (let round = 0; round < 400; round++) {
      const damaged = bytes.slice();
      for (let count = random.between(1, 6); count > 0; count--) {
        const position = random.oneIn(2) ? random.below(200) : random.below(damaged.length / 8) * 8 + random.below(8);
        damaged[position] = random.pick([0, 1, 0x80, 0xff, random.below(256)]);
      }
      Deno.writeFileSync(path, random.oneIn(10) ? damaged.subarray(0, random.below(damaged.length)) : damaged);
      try {
        const { guest, host } = inspectImage(path);
        assertWhole(guest);
        if (host !== undefined) assertWhole(host);
      } catch (error) {
        assert(error instanceof Qcow2Error, `${error}`);
      }
      const { acceptable, findings } = judgeUntrustedImage(path, { format: "qcow2" });
      assertEquals(acceptable, findings.every(({ severity }) => severity === "note"));
    }
  });
});
