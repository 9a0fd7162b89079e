import { assertEquals } from "@std/assert";
import { type CreateOptions, Qcow2File } from "../../mod.ts";
import { FsBlockFile } from "../../lib/storage/mod.ts";
import { assertQemuClean, filled, getUint64, KIB, qemuImg, qemuIo, withFolder } from "../images.ts";
import { qemuTest } from "../qemu.ts";

const CLUSTER = 64 * KIB;
/** In the middle of the last cluster. */
const SIZE = 7 * CLUSTER + 20 * KIB;
const L1_TABLE = 0x30000;
const OFFSET_MASK = 0x00fffffffffffe00n;

/** What a side does to an image; offsets and lengths in KiB. */
type Step = readonly [kind: "write" | "zero" | "unmap" | "discard", offset: number, length: number];

const CASES: readonly (readonly Step[])[] = [
  [["write", 0, 128], ["zero", 0, 64]],
  [["write", 0, 128], ["unmap", 0, 64]],
  [["write", 0, 128], ["discard", 0, 64]],
  [["zero", 0, 64], ["unmap", 64, 64], ["discard", 128, 64]],
  // Parts of clusters.
  [["write", 0, 192], ["zero", 4, 100]],
  [["write", 0, 192], ["unmap", 4, 150]],
  [["write", 0, 192], ["discard", 4, 150]],
  [["write", 0, 192], ["discard", 68, 4]],
  // A cluster that is kept in reserve is used where it is; one that is not gets a new one.
  [["write", 0, 128], ["zero", 0, 128], ["write", 10, 4]],
  [["write", 0, 128], ["unmap", 0, 128], ["write", 10, 4]],
  [["write", 0, 128], ["discard", 0, 128], ["write", 10, 4]],
  // Twice the same.
  [["write", 0, 64], ["zero", 0, 64], ["zero", 0, 64]],
  [["write", 0, 64], ["zero", 0, 64], ["unmap", 0, 64]],
  [["write", 0, 64], ["zero", 0, 64], ["discard", 0, 64]],
  [["discard", 0, 64], ["discard", 0, 64]],
  // The cluster that the end of the disk cuts is whole where its end is reached.
  [["write", 448, 20], ["zero", 448, 20]],
  [["write", 448, 20], ["unmap", 448, 20]],
  [["write", 448, 20], ["discard", 448, 20]],
  [["write", 448, 20], ["discard", 448, 10]],
];

const WORDS = { write: "write -P 205", zero: "write -z", unmap: "write -z -u", discard: "discard" } as const;

const STATES = ["nothing", "zeroes", "data", "zeroes, with a place"] as const;

/** What the entries of the only L2 table say, without the place; a table that is not there says nothing. */
function statesOf(path: string): string[] {
  using file = FsBlockFile.open(path, { writable: false });
  const table = Number(getUint64(file, L1_TABLE) & OFFSET_MASK);
  return Array.from({ length: 8 }, (_, index) => {
    const entry = table === 0 ? 0n : getUint64(file, table + index * 8);
    const hasPlace = (entry & OFFSET_MASK) !== 0n;
    assertEquals(entry >> 63n, hasPlace ? 1n : 0n, "Each place belongs to this disk alone");
    return STATES[(hasPlace ? 2 : 0) + Number(entry & 1n)] ?? "";
  });
}

for (const version of [2, 3] as const) {
  for (const backed of [false, true]) {
    qemuTest(
      `L2 entries of version ${version} become what QEMU makes of them${backed ? ", over a backing file" : ""}`,
      () =>
        withFolder((folder) => {
          Deno.writeFileSync(`${folder}/base.raw`, filled(SIZE - CLUSTER, 7));
          CASES.forEach((steps, index) => {
            // Where nothing lies below, version 2 can say zero by saying nothing; this package keeps the place and zeroes it.
            if (version === 2 && !backed && steps.some(([kind]) => kind === "zero")) return;
            const theirs = `${folder}/theirs${index}.qcow2`;
            const ours = `${folder}/ours${index}.qcow2`;
            const base = backed ? ["-b", "base.raw", "-F", "raw"] : [];
            const compat = `compat=${version === 2 ? "0.10" : "1.1"}`;
            qemuImg("create", "-q", "-f", "qcow2", "-o", compat, ...base, theirs, String(SIZE));
            qemuIo(theirs, steps.map(([kind, offset, length]) => `${WORDS[kind]} ${offset}k ${length}k`));
            {
              const backing: Partial<CreateOptions> = backed ? { backingFile: "base.raw", backingFormat: "raw" } : {};
              using disk = Qcow2File.create(ours, { size: SIZE, version, ...backing });
              for (const [kind, kibOffset, kibLength] of steps) {
                const [offset, length] = [kibOffset * KIB, kibLength * KIB];
                if (kind === "write") disk.writeAt(offset, filled(length, 205));
                else if (kind === "discard") disk.discardAt(offset, length);
                else disk.writeZeroesAt(offset, length, { unmap: kind === "unmap" });
              }
            }
            // What reads as zeroes anyhow gets no entry here.
            const expected = statesOf(theirs).map((state) => state === "zeroes" && !backed ? "nothing" : state);
            const found = statesOf(ours).map((state) => state === "zeroes" && !backed ? "nothing" : state);
            assertEquals(found, expected, JSON.stringify(steps));
            qemuImg("compare", "-q", ours, theirs);
            assertQemuClean(ours);
          });
        }),
    );
  }
}
