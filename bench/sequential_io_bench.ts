/** Sequential reads and rewrites of a disk of 512 MiB that is full, beside the same on a plain file. */

import { Qcow2File } from "../mod.ts";
import { dataOf, MIB, pathOf, plainFile } from "./_fixtures.ts";

const SIZE = 512 * MIB;
/** Where the image has its data: the host's memory for a file is in larger pieces the better what is written is aligned. */
const DATA_OFFSET = 5 * 65536;
const plain = plainFile("sequential.raw");
const disk = Qcow2File.create(pathOf("sequential.qcow2"), { size: SIZE, durability: "none" });
const mebibyte = dataOf(MIB);
plain.seekSync(DATA_OFFSET, Deno.SeekMode.Start);
for (let offset = 0; offset < SIZE; offset += MIB) {
  plain.writeSync(mebibyte);
  disk.writeAt(offset, mebibyte);
}
disk.flush();

for (const [label, length] of [["64 KiB", 65536], ["1 MiB", MIB]] as const) {
  const buffer = dataOf(length);

  Deno.bench(`plain file: 512 MiB of ${label} reads`, { group: `sequential ${label} reads`, baseline: true }, () => {
    plain.seekSync(DATA_OFFSET, Deno.SeekMode.Start);
    for (let offset = 0; offset < SIZE; offset += length) plain.readSync(buffer);
  });

  Deno.bench(`qcow2: 512 MiB of ${label} reads`, { group: `sequential ${label} reads` }, () => {
    for (let offset = 0; offset < SIZE; offset += length) disk.readAt(offset, buffer);
  });

  Deno.bench(
    `plain file: 512 MiB of ${label} rewrites`,
    { group: `sequential ${label} rewrites`, baseline: true },
    () => {
      plain.seekSync(DATA_OFFSET, Deno.SeekMode.Start);
      for (let offset = 0; offset < SIZE; offset += length) plain.writeSync(buffer);
    },
  );

  Deno.bench(`qcow2: 512 MiB of ${label} rewrites`, { group: `sequential ${label} rewrites` }, () => {
    for (let offset = 0; offset < SIZE; offset += length) disk.writeAt(offset, buffer);
  });
}
