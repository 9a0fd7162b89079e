/** Bytes to values and back: header, L2 entries, refcounts of each width. The reference is a loop over the same bytes. */

import {
  createLayout,
  decodeHeader,
  encodeHeader,
  entryLower,
  entryOffset,
  entryUpper,
  getRefcount,
  setRefcount,
} from "../lib/format/mod.ts";

const ENTRIES = 8192;
const table = new DataView(new ArrayBuffer(ENTRIES * 8));
const layout = createLayout({ size: 1024 ** 4 });
let sink = 0;

Deno.bench("reference: 8,192 reads of 64 bits", { group: "codec", baseline: true }, () => {
  for (let index = 0; index < ENTRIES; index++) sink ^= table.getUint32(index * 8) ^ table.getUint32(index * 8 + 4);
});

Deno.bench("header decoded", { group: "codec" }, () => {
  sink ^= decodeHeader(layout.headerCluster).clusterBits;
});

Deno.bench("header encoded", { group: "codec" }, () => {
  sink ^= encodeHeader(layout.header).length;
});

Deno.bench("8,192 L2 entries encoded", { group: "codec" }, () => {
  for (let index = 0; index < ENTRIES; index++) {
    table.setUint32(index * 8, entryUpper(index * 65536, 0x80000000));
    table.setUint32(index * 8 + 4, entryLower(index * 65536));
  }
});

Deno.bench("8,192 L2 entries decoded", { group: "codec" }, () => {
  for (let index = 0; index < ENTRIES; index++) {
    sink ^= entryOffset(table.getUint32(index * 8), table.getUint32(index * 8 + 4)) % 7;
  }
});

for (const order of [0, 3, 4, 6]) {
  const block = new DataView(new ArrayBuffer(65536));
  Deno.bench(`8,192 refcounts of ${2 ** order} bits set and read`, { group: "codec" }, () => {
    for (let index = 0; index < ENTRIES; index++) setRefcount(block, index, order, 1);
    for (let index = 0; index < ENTRIES; index++) sink ^= getRefcount(block, index, order);
  });
}

addEventListener("unload", () => {
  if (Number.isNaN(sink)) throw new Error("Nothing was computed");
});
