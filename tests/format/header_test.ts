import { assert, assertEquals } from "@std/assert";
import {
  createLayout,
  decodeHeader,
  encodeHeader,
  encodeMutableFields,
  EXTENSION,
  extensionText,
  hasDataFile,
  hasLazyRefcounts,
  type Header,
  headerClusterSize,
  MUTABLE_FIELDS_OFFSET,
} from "../../lib/format/mod.ts";
import { assertCode, GIB, MIB, TIB } from "../images.ts";
import { Random } from "../random.ts";

/** A header of version 3 with a disk of 128 GiB, byte by byte, as other programs write it. */
function validHeader(): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(65536);
  bytes.set([
    ...[0x51, 0x46, 0x49, 0xfb], // magic
    ...[0x00, 0x00, 0x00, 0x03], // version
    ...[0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00], // backing file offset
    ...[0x00, 0x00, 0x00, 0x00], // backing file size
    ...[0x00, 0x00, 0x00, 0x10], // cluster bits
    ...[0x00, 0x00, 0x00, 0x20, 0x00, 0x00, 0x00, 0x00], // size
    ...[0x00, 0x00, 0x00, 0x00], // encryption
    ...[0x00, 0x00, 0x01, 0x00], // L1 entries
    ...[0x00, 0x00, 0x00, 0x00, 0x00, 0x05, 0x00, 0x00], // L1 table offset
    ...[0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00], // refcount table offset
    ...[0x00, 0x00, 0x00, 0x03], // refcount table clusters
    ...[0x00, 0x00, 0x00, 0x00], // snapshots
    ...[0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00], // snapshot table offset
    ...[0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00], // incompatible features
    ...[0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00], // compatible features
    ...[0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00], // autoclear features
    ...[0x00, 0x00, 0x00, 0x04], // refcount order
    ...[0x00, 0x00, 0x00, 0x68], // header length
  ]);
  return bytes;
}

/** The header of version 2 with other values, byte by byte. */
function validHeaderV2(): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(512);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 0x514649fb);
  view.setUint32(4, 2);
  view.setUint32(20, 9);
  view.setBigUint64(24, 0x8000n);
  view.setUint32(36, 1);
  view.setBigUint64(40, 0x600n);
  view.setBigUint64(48, 0x200n);
  view.setUint32(56, 1);
  return bytes;
}

Deno.test("decodeHeader() reads every field of version 3", () => {
  assertEquals(decodeHeader(validHeader()), {
    version: 3,
    clusterBits: 16,
    size: 0x20_0000_0000,
    encryption: "none",
    l1EntryCount: 256,
    l1TableOffset: 0x50000,
    refcountTableOffset: 0x10000,
    refcountTableClusterCount: 3,
    snapshotCount: 0,
    snapshotTableOffset: 0,
    incompatibleFeatures: 0n,
    compatibleFeatures: 0n,
    autoclearFeatures: 0n,
    refcountOrder: 4,
    compressionType: "zlib",
    unknownFields: new Uint8Array(),
    extensions: [],
    backingFile: undefined,
  });
});

Deno.test("decodeHeader() reads every field of version 2 and knows what it implies", () => {
  assertEquals(decodeHeader(validHeaderV2()), {
    version: 2,
    clusterBits: 9,
    size: 0x8000,
    encryption: "none",
    l1EntryCount: 1,
    l1TableOffset: 0x600,
    refcountTableOffset: 0x200,
    refcountTableClusterCount: 1,
    snapshotCount: 0,
    snapshotTableOffset: 0,
    incompatibleFeatures: 0n,
    compatibleFeatures: 0n,
    autoclearFeatures: 0n,
    refcountOrder: 4,
    compressionType: "zlib",
    unknownFields: new Uint8Array(),
    extensions: [],
    backingFile: undefined,
  });
});

Deno.test("decodeHeader() takes nothing of version 3 from a header of version 2", () => {
  const bytes = validHeaderV2();
  // Behind the 72 bytes stand extensions: this one would be an unknown incompatible feature and a refcount width of 2^7.
  const view = new DataView(bytes.buffer);
  view.setUint32(72, 0x12345678);
  view.setUint32(76, 28);
  view.setUint32(96, 7);
  view.setUint32(100, 7);
  const header = decodeHeader(bytes);
  assertEquals([header.incompatibleFeatures, header.refcountOrder], [0n, 4]);
  assertEquals(header.extensions.map(({ type, data }) => [type, data.length]), [[0x12345678, 28]]);
});

Deno.test("decodeHeader() refuses a wrong magic", () => {
  for (let index = 0; index < 4; index++) {
    const bytes = validHeader();
    bytes[index] = (bytes[index] ?? 0) ^ 1;
    assertEquals(assertCode("not-qcow2", () => decodeHeader(bytes)).offset, 0);
  }
});

Deno.test("decodeHeader() refuses refcounts of more than 64 bits", () => {
  for (let order = 0; order <= 6; order++) {
    const bytes = validHeader();
    bytes[99] = order;
    assertEquals(decodeHeader(bytes).refcountOrder, order);
  }
  const bytes = validHeader();
  bytes[99] = 7;
  assertEquals(assertCode("unsupported", () => decodeHeader(bytes)).offset, 96);
});

Deno.test("headerClusterSize() tells how much a header takes", () => {
  assertEquals(headerClusterSize(validHeader().subarray(0, 72)), 65536);
  assertEquals(headerClusterSize(validHeaderV2()), 512);
});

Deno.test("decodeHeader() reads header lengths that QEMU reads, and keeps the fields it does not know", () => {
  for (const length of [104, 105, 108, 112, 120, 512]) {
    const bytes = validHeader();
    const view = new DataView(bytes.buffer);
    view.setUint32(100, length);
    for (let index = 105; index < length; index++) bytes[index] = index;
    view.setUint32(length, EXTENSION.backingFormat);
    view.setUint32(length + 4, 3);
    bytes.set(new TextEncoder().encode("raw"), length + 8);
    const header = decodeHeader(bytes);
    assertEquals(header.unknownFields, bytes.slice(105, Math.max(105, length)), `length ${length}`);
    assertEquals(extensionText(header, EXTENSION.backingFormat), "raw", `length ${length}`);
    assertEquals(decodeHeader(encodeHeader(header)), header, `length ${length}`);
  }
});

Deno.test("decodeHeader() reads the compression type only where the header is long enough to have it", () => {
  const bytes = validHeader();
  bytes[104] = 1;
  // The header ends in front of the field; what stands there is an extension of a type that nobody knows.
  assertEquals(decodeHeader(bytes).compressionType, "zlib");
  const view = new DataView(bytes.buffer);
  view.setUint32(100, 112);
  view.setBigUint64(72, 8n);
  assertEquals(decodeHeader(bytes).compressionType, "zstd");
  view.setBigUint64(72, 0n);
  assertEquals(assertCode("invalid-header", () => decodeHeader(bytes)).offset, 104);
});

Deno.test("decodeHeader() reads the feature bits", () => {
  const bytes = validHeader();
  const view = new DataView(bytes.buffer);
  view.setBigUint64(72, 7n);
  view.setBigUint64(80, 0x8000000000000001n);
  view.setBigUint64(88, 0x4000000000000003n);
  const header = decodeHeader(bytes);
  assertEquals(
    [header.incompatibleFeatures, header.compatibleFeatures, header.autoclearFeatures],
    [7n, 0x8000000000000001n, 0x4000000000000003n],
  );
  assertEquals([hasDataFile(header), hasLazyRefcounts(header)], [true, true]);
});

Deno.test("decodeHeader() refuses raw external data without an external data file", () => {
  const bytes = validHeader();
  bytes[95] = 2;
  assertCode("invalid-header", () => decodeHeader(bytes));
});

Deno.test("decodeHeader() reads the name of the backing file, which is not terminated", () => {
  for (const name of ["a", "backing.qcow2", "ümläut/path with spaces", "x".repeat(1023)]) {
    const bytes = validHeader();
    const view = new DataView(bytes.buffer);
    const encoded = new TextEncoder().encode(name);
    view.setBigUint64(8, 1000n);
    view.setUint32(16, encoded.length);
    bytes.set(encoded, 1000);
    bytes[1000 + encoded.length] = 0x21;
    assertEquals(decodeHeader(bytes).backingFile, name);
  }
});

Deno.test("decodeHeader() pays no heed to the length of a backing file name that is nowhere", () => {
  const bytes = validHeader();
  new DataView(bytes.buffer).setUint32(16, 0xffffffff);
  assertEquals(decodeHeader(bytes).backingFile, undefined);
});

Deno.test("decodeHeader() reads sizes beyond 4 GiB exactly, up to 2^53", () => {
  for (const size of [4 * GIB, 4 * GIB + 512, 512 * TIB, 2 ** 53 - 512]) {
    const bytes = validHeader();
    const view = new DataView(bytes.buffer);
    // With clusters of 2 MiB an L1 table of 32 MiB reaches far enough.
    view.setUint32(20, 21);
    view.setUint32(36, 4 * MIB);
    view.setBigUint64(24, BigInt(size));
    view.setBigUint64(40, 0x10000000n);
    view.setBigUint64(48, 0x200000n);
    assertEquals(decodeHeader(bytes).size, size);
  }
});

Deno.test("encodeMutableFields() changes the fields it is there for and nothing else", () => {
  for (const start of [validHeader(), validHeaderV2()]) {
    const before = decodeHeader(start);
    const changed: Header = {
      ...before,
      size: before.size / 2,
      l1EntryCount: before.l1EntryCount + 1,
      l1TableOffset: before.l1TableOffset * 2,
      refcountTableOffset: before.refcountTableOffset * 4,
      refcountTableClusterCount: 2,
      snapshotCount: 1,
      snapshotTableOffset: before.l1TableOffset * 8,
      ...(before.version === 3 ? { incompatibleFeatures: 1n, compatibleFeatures: 3n, autoclearFeatures: 1n } : {}),
    };
    const bytes = start.slice();
    bytes.fill(0x11, 4096);
    const fields = encodeMutableFields(changed);
    assert(MUTABLE_FIELDS_OFFSET + fields.length <= 512, "One sector holds all of them");
    bytes.set(fields, MUTABLE_FIELDS_OFFSET);
    assertEquals(decodeHeader(bytes), changed);
  }
});

Deno.test("encodeHeader() refuses what does not fit into the first cluster", () => {
  const { header } = createLayout({ size: MIB, clusterSize: 512 });
  const extensions = [{ type: 0x1234, data: new Uint8Array(400) }];
  assertCode("invalid-argument", () => encodeHeader({ ...header, extensions }));
  assertCode("invalid-argument", () => encodeHeader({ ...header, backingFile: "x".repeat(1024) }));
});

Deno.test("Random headers are the same after encoding and decoding", () => {
  const random = new Random("headers");
  for (let round = 0; round < 500; round++) {
    const header = randomHeader(random);
    const bytes = encodeHeader(header);
    assertEquals(decodeHeader(bytes), header);
    // What stands behind it in the cluster does not matter, since the list of extensions says where it ends.
    const cluster = random.bytes(2 ** header.clusterBits);
    cluster.set(bytes);
    assertEquals(decodeHeader(cluster), header);
  }
});

/** A header that is allowed, with anything in it that may be there. */
function randomHeader(random: Random): Header {
  const version = random.oneIn(3) ? 2 : 3;
  const clusterBits = random.between(12, 16);
  const cluster = 2 ** clusterBits;
  const l2TableSpan = cluster * cluster / 8;
  const l1EntryCount = random.between(1, 4096);
  const types = [EXTENSION.backingFormat, EXTENSION.featureNames, 0x01020304, 0xffffffff].filter(() => random.oneIn(2));
  const compressionType = version === 3 && random.oneIn(2) ? "zstd" : "zlib";
  const snapshotCount = random.below(3);
  return {
    version,
    clusterBits,
    size: random.below(l1EntryCount * l2TableSpan + 1),
    encryption: random.pick(["none", "none", "aes", "luks"]),
    l1EntryCount,
    l1TableOffset: random.between(1, 2 ** 36) * cluster,
    refcountTableOffset: random.between(1, 2 ** 36) * cluster,
    refcountTableClusterCount: random.between(1, 9),
    snapshotCount,
    snapshotTableOffset: random.between(1, 2 ** 36) * cluster,
    incompatibleFeatures: version === 2 ? 0n : random.bits64() & 3n | (compressionType === "zstd" ? 8n : 0n),
    compatibleFeatures: version === 2 ? 0n : random.bits64(),
    autoclearFeatures: version === 2 ? 0n : random.bits64() & ~2n,
    refcountOrder: version === 2 ? 4 : random.below(7),
    compressionType,
    unknownFields: version === 2 ? new Uint8Array() : random.bytes(random.pick([0, 3, 7, 15, 63])),
    extensions: types.map((type) => ({
      type,
      data: type === EXTENSION.featureNames ? new Uint8Array(48) : random.bytes(random.below(40)),
    })),
    backingFile: random.oneIn(2) ? undefined : `backing ${random.next()}`,
  };
}
