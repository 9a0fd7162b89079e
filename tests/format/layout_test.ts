import { assert, assertEquals } from "@std/assert";
import { createLayout, decodeHeader, getRefcount, type LayoutOptions } from "../../lib/format/mod.ts";
import { assertCode, GIB, KIB, MIB, TIB } from "../images.ts";
import { Random } from "../random.ts";

Deno.test("createLayout() makes the default image in version 3 of 64 KiB clusters", () => {
  const { header, fileSize } = createLayout({ size: GIB });
  assertEquals([header.version, header.clusterBits, header.refcountOrder, header.size], [3, 16, 4, GIB]);
  assertEquals([header.refcountTableOffset, header.refcountTableClusterCount], [0x10000, 1]);
  assertEquals([header.l1TableOffset, header.l1EntryCount], [0x30000, 2]);
  assertEquals(fileSize, 196624);
  assertEquals([header.incompatibleFeatures, header.compatibleFeatures, header.autoclearFeatures], [0n, 0n, 0n]);
  assertEquals(header.backingFile, undefined);
});

Deno.test("createLayout() makes version 2 without anything of version 3", () => {
  const { header, headerCluster } = createLayout({ size: GIB, version: 2 });
  assertEquals([header.version, header.refcountOrder, header.extensions.length], [2, 4, 0]);
  assert(headerCluster.length <= 80, `${headerCluster.length} bytes`);
});

Deno.test("createLayout() rounds the size up to whole sectors", () => {
  const sizes = [0, 1, 511, 512, 513, 1000].map((size) => createLayout({ size }).header.size);
  assertEquals(sizes, [0, 512, 512, 512, 1024, 1024]);
});

Deno.test("createLayout() goes up to what an L1 table of 32 MiB maps and no further", () => {
  // With 512-byte clusters 128 GiB, with 1 KiB clusters 512 GiB, as QEMU.
  for (const [clusterSize, largest] of [[512, 128 * GIB], [KIB, 512 * GIB], [4 * KIB, 8 * TIB]] as const) {
    const { header } = createLayout({ size: largest, clusterSize });
    assertEquals(header.l1EntryCount, 4 * MIB);
    assertCode("invalid-argument", () => createLayout({ size: largest + 1, clusterSize }));
  }
});

Deno.test("createLayout() refuses options that make no sense or contradict each other", () => {
  const wrong: readonly Partial<LayoutOptions>[] = [
    { size: -1 },
    { size: 0.5 },
    { size: NaN },
    { size: Infinity },
    { size: 2 ** 53 },
    { clusterSize: 256 },
    { clusterSize: 4 * MIB },
    { clusterSize: 65535 },
    { clusterSize: 0 },
    { clusterSize: NaN },
    { refcountBits: 0 },
    { refcountBits: 3 },
    { refcountBits: 128 },
    { version: 2, refcountBits: 8 },
    { version: 2, lazyRefcounts: true },
    { version: 2, compressionType: "zstd" },
  ];
  for (const options of wrong) {
    assertCode("invalid-argument", () => createLayout({ size: MIB, ...options }));
  }
});

Deno.test("createLayout() counts exactly the clusters it uses, for every geometry", () => {
  const random = new Random("layouts");
  for (let round = 0; round < 300; round++) {
    const clusterSize = 2 ** random.between(9, 16);
    const refcountBits = 2 ** random.below(7);
    const size = random.below(random.pick([MIB, GIB, 30 * GIB]));
    const layout = createLayout({ size, clusterSize, refcountBits });
    const { header, geometry, refcountTable, refcountBlocks, refcountBlocksOffset } = layout;
    assertEquals(decodeHeader(layout.headerCluster), header);
    const about = `${size} bytes, ${clusterSize}-byte clusters, ${refcountBits}-bit refcounts`;

    // Header, refcount table, refcount blocks and L1 table stand in a row without gap or overlap.
    assertEquals(header.refcountTableOffset, clusterSize, about);
    assertEquals(refcountBlocksOffset, clusterSize * (1 + header.refcountTableClusterCount), about);
    assertEquals(header.l1TableOffset, refcountBlocksOffset + refcountBlocks.length, about);
    assertEquals(layout.fileSize, header.l1TableOffset + header.l1EntryCount * 8, about);

    const used = Math.ceil(layout.fileSize / clusterSize);
    const view = new DataView(refcountBlocks.buffer);
    const counted = refcountBlocks.length * 8 / refcountBits;
    assert(counted >= used, about);
    for (let cluster = 0; cluster < counted; cluster++) {
      const expected = cluster < used ? 1 : 0;
      if (getRefcount(view, cluster, geometry.refcountOrder) !== expected) throw new Error(`${about}: ${cluster}`);
    }
    const table = new DataView(refcountTable.buffer);
    for (let block = 0; block * 8 < refcountTable.length; block++) {
      const expected = block * clusterSize < refcountBlocks.length ? refcountBlocksOffset + block * clusterSize : 0;
      if (Number(table.getBigUint64(block * 8)) !== expected) throw new Error(`${about}: block ${block}`);
    }
  }
});
