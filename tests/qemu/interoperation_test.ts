import { assertEquals } from "@std/assert";
import { checkImage, type LayoutOptions, Qcow2File } from "../../mod.ts";
import { assertQemuClean, GIB, KIB, MIB, qemuImg, qemuIo, readBytes, TIB, withFolder } from "../images.ts";
import { qemuTest } from "../qemu.ts";
import { Random } from "../random.ts";

interface Case {
  readonly name: string;
  readonly layout: LayoutOptions;
  /** Where random requests lie, from the start of the disk and from its end, in bytes. */
  readonly window: number;
  readonly steps: number;
}

const CASES: readonly Case[] = [
  { name: "512-byte clusters", layout: { size: 3 * MIB, clusterSize: 512 }, window: MIB, steps: 300 },
  {
    name: "512-byte clusters, 64-bit refcounts, a size in the middle of a cluster's table",
    layout: { size: 70 * MIB + 512, clusterSize: 512, refcountBits: 64 },
    window: 2 * MIB,
    steps: 300,
  },
  {
    name: "512-byte clusters, 1-bit refcounts",
    layout: { size: 10 * MIB, clusterSize: 512, refcountBits: 1 },
    window: MIB,
    steps: 300,
  },
  { name: "4 KiB clusters", layout: { size: 40 * MIB + 512, clusterSize: 4096 }, window: 2 * MIB, steps: 300 },
  {
    name: "4 KiB clusters, 1-bit refcounts",
    layout: { size: 40 * MIB + 1536, clusterSize: 4096, refcountBits: 1 },
    window: 2 * MIB,
    steps: 300,
  },
  {
    name: "4 KiB clusters, version 2",
    layout: { size: 40 * MIB + 512, clusterSize: 4096, version: 2 },
    window: 2 * MIB,
    steps: 300,
  },
  { name: "64 KiB clusters", layout: { size: 200 * MIB + 512 }, window: 8 * MIB, steps: 120 },
  {
    name: "64 KiB clusters, 64-bit refcounts",
    layout: { size: 2 * GIB, refcountBits: 64 },
    window: 8 * MIB,
    steps: 120,
  },
  { name: "64 KiB clusters, version 2", layout: { size: 200 * MIB, version: 2 }, window: 8 * MIB, steps: 120 },
  {
    name: "2 MiB clusters",
    layout: { size: 100 * MIB + 512, clusterSize: 2 * MIB },
    window: 20 * MIB,
    steps: 40,
  },
  {
    name: "2 MiB clusters, 1-bit refcounts",
    layout: { size: 100 * MIB + 512, clusterSize: 2 * MIB, refcountBits: 1 },
    window: 20 * MIB,
    steps: 40,
  },
  { name: "64 KiB clusters, more than 2 TiB", layout: { size: 5 * TIB + 512 }, window: 8 * MIB, steps: 60 },
  {
    name: "4 KiB clusters, more than 2 TiB",
    layout: { size: 3 * TIB, clusterSize: 4096 },
    window: 2 * MIB,
    steps: 60,
  },
];

/** One request, in whole sectors, since that is what QEMU counts in. */
interface Request {
  readonly kind: "write" | "zero" | "unmap" | "discard";
  readonly offset: number;
  readonly length: number;
  readonly value: number;
}

function* requests({ window, steps }: Case, size: number, clusterSize: number, random: Random): Generator<Request> {
  const sector = 512;
  for (let step = 0; step < steps; step++) {
    const span = Math.min(window, size);
    const at = random.below(span / sector) * sector;
    let offset = random.oneIn(2) ? at : size - span + at;
    if (random.oneIn(3)) offset -= offset % clusterSize;
    const longest = random.pick([sector, 4 * KIB, clusterSize, 5 * clusterSize]);
    const length = Math.min(random.between(1, longest / sector) * sector, size - offset);
    const kind = random.pick(["write", "write", "write", "write", "zero", "unmap", "discard"] as const);
    yield { kind, offset, length, value: random.between(1, 255) };
  }
}

function imageOptions(layout: LayoutOptions): string {
  const { version = 3, clusterSize = 65536, refcountBits = 16 } = layout;
  return `compat=${version === 2 ? "0.10" : "1.1"},cluster_size=${clusterSize},refcount_bits=${refcountBits}`;
}

/** A request for `qemu-io`. */
function command({ kind, offset, length, value }: Request): string {
  switch (kind) {
    case "write":
      return `write -P ${value} ${offset} ${length}`;
    case "zero":
      return `write -z ${offset} ${length}`;
    case "unmap":
      return `write -z -u ${offset} ${length}`;
    case "discard":
      return `discard ${offset} ${length}`;
  }
}

for (const testCase of CASES) {
  const { name, layout } = testCase;
  const { clusterSize = 65536 } = layout;

  qemuTest(`QEMU reads what was written here, with ${name}`, () =>
    withFolder((folder) => {
      const random = new Random(`here ${name}`);
      const image = `${folder}/here.qcow2`;
      const twin = `${folder}/twin.raw`;
      Deno.createSync(twin).close();
      qemuImg("create", "-q", "-f", "raw", twin, String(layout.size));
      using raw = Deno.openSync(twin, { read: true, write: true });
      const writeRaw = (offset: number, bytes: Uint8Array): void => {
        raw.seekSync(offset, Deno.SeekMode.Start);
        raw.writeSync(bytes);
      };
      let disk = Qcow2File.create(image, layout);
      let step = 0;
      for (const { kind, offset, length, value } of requests(testCase, disk.size, clusterSize, random)) {
        const bytes = new Uint8Array(length);
        if (kind === "write") {
          bytes.fill(value);
          disk.writeAt(offset, bytes);
          writeRaw(offset, bytes);
        } else if (kind === "discard") {
          disk.discardAt(offset, length);
          const end = offset + length;
          const first = Math.ceil(offset / clusterSize) * clusterSize;
          const last = end === disk.size ? end : Math.floor(end / clusterSize) * clusterSize;
          if (first < last) writeRaw(first, new Uint8Array(last - first));
        } else {
          disk.writeZeroesAt(offset, length, { unmap: kind === "unmap" });
          writeRaw(offset, bytes);
        }
        // What one session wrote is the next one's ground.
        if (++step % 100 === 0) {
          disk.close();
          assertQemuClean(image);
          disk = Qcow2File.open(image, { write: true });
        }
      }
      disk.close();
      assertQemuClean(image);
      qemuImg("compare", "-f", "qcow2", "-F", "raw", image, twin);
    }));

  qemuTest(`What QEMU wrote is read and written on here, with ${name}`, () =>
    withFolder((folder) => {
      const random = new Random(`there ${name}`);
      const image = `${folder}/there.qcow2`;
      const twin = `${folder}/twin.raw`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", imageOptions(layout), image, String(layout.size));
      const size = sizeOf(image);
      // QEMU's discards are QEMU's business; what its disk reads as afterwards is told by QEMU itself.
      qemuIo(image, [...requests(testCase, size, clusterSize, random)].map(command));
      qemuImg("convert", "-f", "qcow2", "-O", "raw", image, twin);
      assertSame(image, twin, testCase);
      const { corruptions, leaks } = checkImage(image);
      assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
      {
        using raw = Deno.openSync(twin, { read: true, write: true });
        using disk = Qcow2File.open(image, { write: true });
        for (const { offset, length } of requests(testCase, size, clusterSize, random)) {
          const bytes = random.bytes(length);
          disk.writeAt(offset, bytes);
          raw.seekSync(offset, Deno.SeekMode.Start);
          raw.writeSync(bytes);
        }
      }
      assertQemuClean(image);
      qemuImg("compare", "-f", "qcow2", "-F", "raw", image, twin);
    }));
}

function sizeOf(image: string): number {
  using disk = Qcow2File.open(image);
  return disk.size;
}

/** Compares the parts of an image that random requests can have reached with its raw twin. */
function assertSame(image: string, twin: string, { window }: Case): void {
  using disk = Qcow2File.open(image);
  using raw = Deno.openSync(twin);
  for (const offset of [0, Math.max(0, disk.size - window)]) {
    const expected = new Uint8Array(Math.min(window, disk.size));
    raw.seekSync(offset, Deno.SeekMode.Start);
    for (let done = 0; done < expected.length;) done += raw.readSync(expected.subarray(done)) ?? expected.length;
    assertEquals(readBytes(disk, offset, expected.length), expected);
  }
}

for (const size of [0, 512, 1000, 1024, 65535, 65536, 65537]) {
  qemuTest(`A disk of ${size} bytes made here is one to QEMU, and the other way round`, () =>
    withFolder((folder) => {
      for (const version of [2, 3] as const) {
        const here = `${folder}/here${version}.qcow2`;
        const rounded = Math.ceil(size / 512) * 512;
        {
          using disk = Qcow2File.create(here, { size, version });
          assertEquals(disk.size, rounded);
          if (rounded > 0) disk.writeAt(rounded - 1, new Uint8Array([7]));
        }
        assertQemuClean(here);
        const info: { "virtual-size": number } = JSON.parse(qemuImg("info", "--output=json", here));
        assertEquals(info["virtual-size"], rounded);
        if (rounded > 0) qemuIo(here, [`read -P 7 ${rounded - 1} 1`]);

        const there = `${folder}/there${version}.qcow2`;
        const compat = `compat=${version === 2 ? "0.10" : "1.1"}`;
        qemuImg("create", "-q", "-f", "qcow2", "-o", compat, there, String(size));
        if (rounded > 0) qemuIo(there, [`write -P 9 ${rounded - 512} 512`]);
        using disk = Qcow2File.open(there, { write: true });
        assertEquals(disk.size, rounded);
        if (rounded > 0) assertEquals(readBytes(disk, rounded - 512, 512), new Uint8Array(512).fill(9));
        disk.close();
        assertQemuClean(there);
      }
    }));
}

qemuTest("An empty image is the same here and at QEMU", () =>
  withFolder((folder) => {
    for (const clusterSize of [4096, 65536]) {
      for (const refcountBits of [1, 2, 4, 8, 16, 32, 64]) {
        const here = `${folder}/here.qcow2`;
        const there = `${folder}/there.qcow2`;
        Qcow2File.create(here, { size: 300 * MIB, clusterSize, refcountBits }).close();
        const options = imageOptions({ size: 0, clusterSize, refcountBits });
        qemuImg("create", "-q", "-f", "qcow2", "-o", options, there, "300M");
        using a = Qcow2File.open(here);
        using b = Qcow2File.open(there);
        // Which extensions there are, and in which order tables stand, is the writer's choice.
        assertEquals(
          { ...a.header, extensions: [] },
          { ...b.header, extensions: [] },
          `${clusterSize} ${refcountBits}`,
        );
        assertEquals(a.refcountTable.slice(0, 9), b.refcountTable.slice(0, 9));
        assertEquals(a.refcountBlock(0)?.slice(0, 99), b.refcountBlock(0)?.slice(0, 99));
        assertEquals(Deno.statSync(here).size, Deno.statSync(there).size);
        assertQemuClean(here);
      }
    }
  }));

qemuTest("An empty image of small clusters and any refcount width is clean to QEMU", () =>
  withFolder((folder) => {
    const image = `${folder}/small.qcow2`;
    for (const clusterSize of [512, 1024]) {
      for (const refcountBits of [1, 2, 4, 8, 16, 32, 64]) {
        for (const size of [300 * MIB, 20 * GIB]) {
          Qcow2File.create(image, { size, clusterSize, refcountBits }).close();
          assertQemuClean(image);
        }
      }
    }
  }));

qemuTest("Images above 4 TiB and of 8 TiB keep what is written at their end", () =>
  withFolder((folder) => {
    for (const size of [4.5 * TIB, 8 * TIB, 64 * TIB]) {
      const image = `${folder}/large.qcow2`;
      {
        using disk = Qcow2File.create(image, { size });
        disk.writeAt(0, new Uint8Array(65536).fill(1));
        disk.writeAt(4.3 * TIB - 4.3 * TIB % 512, new Uint8Array(512).fill(2));
        disk.writeAt(size - 512, new Uint8Array(512).fill(3));
      }
      assertQemuClean(image);
      qemuIo(image, [
        "read -P 1 0 64k",
        `read -P 2 ${4.3 * TIB - 4.3 * TIB % 512} 512`,
        `read -P 3 ${size - 512} 512`,
      ]);
      using disk = Qcow2File.open(image);
      assertEquals(readBytes(disk, size - 512, 512), new Uint8Array(512).fill(3));
    }
  }));

qemuTest("The refcount table is as long as the header says, not as the disk would need", () =>
  withFolder((folder) => {
    // QEMU makes the table for what the file holds, which is shorter than one for all of the disk.
    for (const [clusterSize, size] of [[4096, "8G"], [512, "1G"], [1024, "1G"], [2048, "16G"]] as const) {
      const image = `${folder}/short.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", `cluster_size=${clusterSize}`, image, size);
      qemuIo(image, ["write -P 5 512M 1M"]);
      {
        using disk = Qcow2File.open(image, { write: true });
        disk.writeAt(100 * MIB, new Uint8Array(MIB).fill(6));
      }
      assertQemuClean(image);
      qemuIo(image, ["read -P 5 512M 1M", "read -P 6 100M 1M"]);
    }
  }));

qemuTest("Images with preallocated metadata are read and written", () =>
  withFolder((folder) => {
    for (const preallocation of ["metadata", "falloc", "full"]) {
      const image = `${folder}/preallocated.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", `preallocation=${preallocation}`, image, "20M");
      {
        using disk = Qcow2File.open(image, { write: true });
        assertEquals(readBytes(disk, 5 * MIB, 1000), new Uint8Array(1000));
        disk.writeAt(5 * MIB + 17, new Uint8Array(1000).fill(4));
      }
      assertQemuClean(image);
      qemuIo(image, [`read -P 4 ${5 * MIB + 17} 1000`, `read -P 0 ${5 * MIB} 17`, `read -P 0 ${5 * MIB + 1017} 64k`]);
    }
  }));
