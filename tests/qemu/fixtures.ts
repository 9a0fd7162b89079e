/**
 * Images that are unusual or damaged in one way each: made by QEMU, then edited by hand.
 *
 * @module
 */

import { constants, deflateRawSync, deflateSync } from "node:zlib";
import type { BlockFile } from "../../mod.ts";
import { FsBlockFile } from "../../lib/storage/mod.ts";
import { filled, getUint64, KIB, MIB, qemuImg, qemuIo, setUint32, setUint64 } from "../images.ts";
import { Random } from "../random.ts";

/** An image that is unusual in one way. */
export interface Fixture {
  /** What it is. */
  readonly name: string;
  /** Makes it in an empty folder, as `disk.qcow2`. */
  readonly make: (folder: string) => void;
  /** Where this package differs from QEMU 7.2, and why. */
  readonly differs?: {
    /** It is refused. */
    readonly open?: string;
    /** It is written. */
    readonly write?: string;
    /** A check counts something else. */
    readonly check?: string;
  };
}

const CLUSTER = 64 * KIB;
/** Where structures stand in an image that QEMU has made with clusters of 64 KiB. */
const REFCOUNT_BLOCK = 2 * CLUSTER;
const L1_TABLE = 3 * CLUSTER;
const L2_TABLE = 4 * CLUSTER;
const DATA = 5 * CLUSTER;
const OFFSET_MASK = 0x00fffffffffffe00n;

const INCOMPATIBLE = 72;
const COMPATIBLE = 80;
const AUTOCLEAR = 88;
const HEADER_LENGTH = 100;

/** Makes an image with a few clusters of data, and edits it. */
function image(options: string, edit: (file: BlockFile) => void = () => undefined, size = "64M") {
  return (folder: string): void => {
    const path = `${folder}/disk.qcow2`;
    qemuImg("create", "-q", "-f", "qcow2", "-o", options, path, size);
    qemuIo(path, ["write -P 1 0 128k", "write -P 2 256k 64k"]);
    editFile(path, edit);
  };
}

function editFile(path: string, edit: (file: BlockFile) => void): void {
  using file = FsBlockFile.open(path, { writable: true });
  edit(file);
}

/** Gives the header of version 3 another length; what stands behind it moves along. */
function resizeHeader(file: BlockFile, length: number, added = 0): void {
  const extensions = new Uint8Array(4096);
  file.readAt(112, extensions);
  if (length > 112) file.writeAt(112, filled(length - 112, added));
  file.writeAt(length, extensions);
  setUint32(file, HEADER_LENGTH, length);
}

/** Puts a stream in the place of a compressed cluster, or some bytes behind it, and zeroes up to the end of the sector. */
function replaceStream(stream: Uint8Array, shift = 0): (folder: string) => void {
  return (folder) => {
    const path = `${folder}/disk.qcow2`;
    qemuImg("create", "-q", "-f", "qcow2", path, "64M");
    Deno.writeFileSync(`${folder}/noise`, halfNoise("replaced stream"));
    qemuIo(path, [`write -c -s ${folder}/noise 0 64k`, "write -P 2 256k 64k"]);
    Deno.removeSync(`${folder}/noise`);
    editFile(path, (file) => {
      const offset = Number(getUint64(file, L2_TABLE) & ((1n << 54n) - 1n)) + shift;
      const sectors = Math.ceil((offset % 512 + stream.length) / 512);
      file.writeAt(offset, filled(sectors * 512 - offset % 512, 0));
      file.writeAt(offset, stream);
      setUint64(file, L2_TABLE, (1n << 62n) | (BigInt(sectors - 1) << 54n) | BigInt(offset));
    });
  };
}

/** A cluster of which one half cannot be compressed. */
function halfNoise(name: string): Uint8Array<ArrayBuffer> {
  const bytes = filled(CLUSTER, 3);
  bytes.set(new Random(name, 1).bytes(CLUSTER / 2));
  return bytes;
}

/** A cluster that repeats itself 30 KiB behind, and nowhere nearer. */
function farMatches(): Uint8Array<ArrayBuffer> {
  const block = new Random("far matches", 1).bytes(30 * KIB);
  const bytes = new Uint8Array(CLUSTER);
  for (let offset = 0; offset < CLUSTER; offset += block.length) {
    bytes.set(block.subarray(0, Math.min(block.length, CLUSTER - offset)), offset);
  }
  return bytes;
}

/** A deflate stream of which no block says that it is the last. */
function unfinished(bytes: Uint8Array): Uint8Array {
  return deflateRawSync(bytes, { windowBits: 12, finishFlush: constants.Z_SYNC_FLUSH });
}

const SIZES: readonly Fixture[] = [512, 1024, 4096, 16384, 65536, 262144, MIB, 2 * MIB].map((size) => ({
  name: `clusters of ${size} bytes`,
  make: image(`cluster_size=${size}`),
}));

const WIDTHS: readonly Fixture[] = [1, 2, 4, 8, 16, 32, 64].map((bits) => ({
  name: `refcounts of ${bits} bits`,
  make: image(`refcount_bits=${bits}`),
}));

/** Those that any reader and writer takes. */
export const SOUND: readonly Fixture[] = [
  {
    name: "nothing in it",
    make: (folder) => void qemuImg("create", "-q", "-f", "qcow2", `${folder}/disk.qcow2`, "1G"),
  },
  {
    name: "version 2, a backing file and its format",
    make: (folder) => {
      Deno.writeFileSync(`${folder}/base.raw`, filled(MIB, 7));
      const options = ["-o", "compat=0.10", "-b", "base.raw", "-F", "raw"];
      qemuImg("create", "-q", "-f", "qcow2", ...options, `${folder}/disk.qcow2`);
    },
  },
  ...SIZES,
  ...WIDTHS,
  { name: "zstd", make: compressedBy("zstd") },
  { name: "zlib", make: compressedBy("zlib") },
  { name: "a stream that looks back 30 KiB", make: replaceStream(deflateRawSync(farMatches(), { windowBits: 15 })) },
  { name: "a compressed cluster at an odd offset", make: replaceStream(deflateRawSync(halfNoise("odd")), 1) },
  {
    name: "a file that ends in the middle of its last cluster",
    make: image("compat=1.1", (file) => file.truncate(file.size - 40 * KIB)),
  },
  {
    name: "rubbish behind its end",
    make: image("compat=1.1", (file) => file.writeAt(file.size, filled(5 * CLUSTER, 0x5a))),
  },
  {
    name: "an extension of 5000 bytes that nobody knows, in front of the others",
    make: (folder) => {
      Deno.writeFileSync(`${folder}/base.raw`, filled(MIB, 7));
      const path = `${folder}/disk.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", path);
      editFile(path, (file) => {
        const area = new Uint8Array(4096);
        file.readAt(112, area);
        file.writeAt(112, filled(8 + 5000, 0x5a));
        setUint64(file, 112, 0x12345678_00001388n);
        file.writeAt(112 + 8 + 5000, area);
        setUint64(file, 8, getUint64(file, 8) + 8n + 5000n);
      });
    },
  },
  {
    name: "a cluster with some subclusters",
    make: (folder) => {
      const path = `${folder}/disk.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", path, "1M");
      qemuIo(path, ["write -P 1 2k 2k", "write -z 8k 4k"]);
    },
  },
  {
    name: "a raw data file",
    make: (folder) => {
      const path = `${folder}/disk.qcow2`;
      qemuImg("create", "-q", "-f", "qcow2", "-o", `data_file=${folder}/disk.data,data_file_raw=on`, path, "1M");
      qemuIo(path, ["write -P 1 64k 64k"]);
    },
  },
  {
    name: "a snapshot of another size",
    make: (folder) => {
      const path = `${folder}/disk.qcow2`;
      image("compat=1.1")(folder);
      qemuImg("snapshot", "-c", "small", path);
      qemuImg("resize", "-q", path, "600M");
      qemuIo(path, ["write -P 4 599M 1M"]);
    },
  },
  {
    name: "a snapshot in version 2",
    make: (folder) => {
      image("compat=0.10")(folder);
      qemuImg("snapshot", "-c", "first", `${folder}/disk.qcow2`);
      qemuIo(`${folder}/disk.qcow2`, ["write -P 4 64k 64k"]);
    },
  },
  { name: "a size of 1000 bytes", make: image("compat=1.1", (file) => setUint64(file, 24, 1000n)) },
  ...([["longer", "96k"], ["shorter", "4M"]] as const).map(([how, size]) => ({
    name: `a backing file that is ${how}`,
    make: (folder: string): void => {
      Deno.writeFileSync(`${folder}/base.raw`, filled(MIB + 512, 7));
      qemuImg("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", `${folder}/disk.qcow2`, size);
      qemuIo(`${folder}/disk.qcow2`, ["write -P 1 70k 1k"]);
    },
  })),
];

function compressedBy(type: string): (folder: string) => void {
  return (folder) => {
    const raw = `${folder}/disk.raw`;
    const bytes = new Uint8Array(MIB);
    for (const [index, content] of [halfNoise("first"), farMatches(), halfNoise("second")].entries()) {
      bytes.set(content, index * CLUSTER);
    }
    Deno.writeFileSync(raw, bytes);
    const options = ["-c", "-f", "raw", "-O", "qcow2", "-o", `compression_type=${type}`];
    qemuImg("convert", ...options, raw, `${folder}/disk.qcow2`);
    Deno.removeSync(raw);
  };
}

const MARKED: readonly Fixture[] = [
  {
    name: "two bitmaps, of which one is in use",
    make: (folder) => {
      const path = `${folder}/disk.qcow2`;
      image("compat=1.1")(folder);
      qemuImg("bitmap", "--add", path, "sound");
      qemuImg("bitmap", "--add", path, "left");
      editFile(path, (file) => {
        const directory = directoryOffset(file);
        // The second entry stands behind 24 bytes and a name of 5, padded to 8.
        setUint32(file, directory + 32 + 12, 3);
      });
    },
  },
  {
    name: "the bit of bitmaps and no bitmaps",
    make: image("compat=1.1", (file) => setUint64(file, AUTOCLEAR, 1n)),
    differs: { write: "QEMU takes the header for a bitmap directory; here the bit is cleared" },
  },
  {
    name: "bitmaps without the bit of bitmaps",
    make: (folder) => {
      image("compat=1.1")(folder);
      qemuImg("bitmap", "--add", `${folder}/disk.qcow2`, "left");
      editFile(`${folder}/disk.qcow2`, (file) => setUint64(file, AUTOCLEAR, 0n));
    },
    differs: { check: "QEMU counts them as leaks; here they can still be removed in an orderly way" },
  },
  {
    name: "the bit of raw data files and no data file",
    make: image("compat=1.1", (file) => setUint64(file, AUTOCLEAR, 2n)),
  },
  {
    name: "the bit of raw data files and a backing file",
    make: (folder) => {
      const path = `${folder}/disk.qcow2`;
      Deno.writeFileSync(`${folder}/base.raw`, filled(MIB, 7));
      const options = ["-o", `data_file=${folder}/disk.data`, "-b", "base.raw", "-F", "raw"];
      qemuImg("create", "-q", "-f", "qcow2", ...options, path);
      editFile(path, (file) => setUint64(file, AUTOCLEAR, 2n));
    },
    differs: { open: "The format does not allow it: the data file is no image of the disk" },
  },
  { name: "the dirty bit", make: image("compat=1.1", (file) => setUint64(file, INCOMPATIBLE, 1n)) },
  { name: "the corrupt bit", make: image("compat=1.1", (file) => setUint64(file, INCOMPATIBLE, 2n)) },
  { name: "an unknown compatible bit", make: image("compat=1.1", (file) => setUint64(file, COMPATIBLE, 1n << 60n)) },
  { name: "an unknown autoclear bit", make: image("compat=1.1", (file) => setUint64(file, AUTOCLEAR, 1n << 60n)) },
  {
    name: "an unknown incompatible bit",
    make: image("compat=1.1", (file) => setUint64(file, INCOMPATIBLE, 1n << 60n)),
  },
  { name: "a header of 105 bytes", make: image("compat=1.1", (file) => resizeHeader(file, 105)) },
  { name: "a header of 108 bytes", make: image("compat=1.1", (file) => resizeHeader(file, 108)) },
  { name: "a header of 120 bytes", make: image("compat=1.1", (file) => resizeHeader(file, 120)) },
  {
    name: "a header of 120 bytes with a field that nobody knows",
    make: image("compat=1.1", (file) => resizeHeader(file, 120, 5)),
  },
];

/** Those in which something has to be refused, repaired or left alone. */
export const DAMAGED: readonly Fixture[] = [
  ...MARKED,
  { name: "a zlib stream without an end", make: replaceStream(unfinished(halfNoise("no end"))) },
  { name: "a stream with the header of zlib", make: replaceStream(deflateSync(halfNoise("wrapped"))) },
  { name: "an L2 entry that is not aligned", make: edited((file) => addTo(file, L2_TABLE, 512n)) },
  { name: "an L2 entry with reserved bits", make: edited((file) => addTo(file, L2_TABLE, 2n)) },
  {
    name: "the zero flag in version 2",
    make: image("compat=0.10", (file) => addTo(file, L2_TABLE, 1n)),
    differs: { check: "QEMU finds nothing and then fails to read the cluster; here it is a corruption" },
  },
  { name: "an L1 table that is not aligned", make: edited((file) => addTo(file, 40, 512n)) },
  {
    name: "an L1 entry that is not aligned",
    make: edited((file) => addTo(file, L1_TABLE, 512n)),
    differs: { check: "QEMU takes what stands at the odd offset for a table and counts what it finds in there" },
  },
  { name: "an L1 entry with reserved bits", make: edited((file) => addTo(file, L1_TABLE, 1n)) },
  {
    name: "a cluster in use with refcount 0",
    make: edited((file) => setRefcount(file, DATA, 0)),
  },
  {
    name: "an L2 table with refcount 0",
    make: edited((file) => setRefcount(file, L2_TABLE, 0)),
  },
  {
    name: "the zero flag in an entry with subclusters",
    make: image("extended_l2=on", (file) => addTo(file, L2_TABLE, 1n)),
  },
  {
    name: "refcounts of 64 bits that no number holds",
    make: image("refcount_bits=64", (file) => {
      file.writeAt(REFCOUNT_BLOCK + DATA / CLUSTER * 8, filled(8, 0x7f));
      file.writeAt(REFCOUNT_BLOCK + (DATA / CLUSTER + 20) * 8, filled(8, 0x7f));
      file.truncate(DATA + 21 * CLUSTER);
    }),
  },
  {
    name: "refcounts of 0, a snapshot and compressed clusters",
    make: (folder) => {
      compressedBy("zlib")(folder);
      const path = `${folder}/disk.qcow2`;
      qemuImg("snapshot", "-c", "kept", path);
      qemuIo(path, ["write -P 4 64k 100k"]);
      editFile(path, (file) => file.writeAt(REFCOUNT_BLOCK, filled(CLUSTER, 0)));
    },
  },
  {
    name: "a leak",
    make: edited((file) => {
      setRefcount(file, 20 * CLUSTER, 1);
      file.truncate(21 * CLUSTER);
    }),
  },
  {
    name: "two L1 entries for one L2 table",
    make: image("compat=1.1", (file) => setUint64(file, L1_TABLE + 8, getUint64(file, L1_TABLE)), "1G"),
  },
  {
    name: "an L2 entry that points behind the end of the file",
    make: edited((file) => setUint64(file, L2_TABLE, (1n << 63n) | BigInt(100 * CLUSTER))),
  },
  {
    name: "an L2 entry without its COPIED flag",
    make: edited((file) => setUint64(file, L2_TABLE, getUint64(file, L2_TABLE) & OFFSET_MASK)),
  },
];

function edited(edit: (file: BlockFile) => void): (folder: string) => void {
  return image("compat=1.1", edit);
}

function addTo(file: BlockFile, offset: number, value: bigint): void {
  setUint64(file, offset, getUint64(file, offset) | value);
}

/** Sets the refcount, of 16 bits, of a cluster of 64 KiB. */
function setRefcount(file: BlockFile, hostOffset: number, refcount: number): void {
  file.writeAt(REFCOUNT_BLOCK + hostOffset / CLUSTER * 2, new Uint8Array([0, refcount]));
}

/** Where the bitmap directory stands. */
function directoryOffset(file: BlockFile): number {
  const area = new Uint8Array(1024);
  file.readAt(0, area);
  const view = new DataView(area.buffer);
  for (let at = 112; at < area.length;) {
    if (view.getUint32(at) === 0x23852875) return Number(view.getBigUint64(at + 24));
    at += 8 + Math.ceil(view.getUint32(at + 4) / 8) * 8;
  }
  throw new Error("The image has no bitmaps");
}
