/** Opening and closing: it must not depend on the size of the disk, nor on how much of it is allocated. */

import { Qcow2File } from "../mod.ts";
import { dataOf, GIB, MetadataOnlyFile, MIB, pathOf, plainFile } from "./_fixtures.ts";

const small = pathOf("open_small.qcow2");
const large = pathOf("open_large.qcow2");
const full = pathOf("open_full.qcow2");
plainFile("open.raw").close();
Qcow2File.create(small, { size: GIB }).close();
Qcow2File.create(large, { size: 1024 * GIB }).close();
{
  // A million clusters of 64 KiB. Their bytes do not matter here and are left out.
  const data = dataOf(MIB);
  using disk = Qcow2File.create(new MetadataOnlyFile(data, full), { size: 64 * GIB, durability: "none" });
  for (let offset = 0; offset < 64 * GIB; offset += MIB) disk.writeAt(offset, data);
}

Deno.bench("plain file: open and close", { group: "open", baseline: true }, () => {
  Deno.openSync(pathOf("open.raw")).close();
});

for (
  const [label, path] of [["1 GiB, empty", small], ["1 TiB, empty", large], [
    "64 GiB, a million clusters",
    full,
  ]] as const
) {
  for (const write of [false, true]) {
    Deno.bench(`qcow2: open and close ${label}, for ${write ? "writing" : "reading"}`, { group: "open" }, () => {
      Qcow2File.open(path, { write }).close();
    });
  }
}
