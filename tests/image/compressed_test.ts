import { assert, assertEquals } from "@std/assert";
import { Qcow2File } from "../../mod.ts";
import { copyOf, emptyImage, filled, getUint64, KIB, MIB, readBytes } from "../images.ts";
import { Random } from "../random.ts";

const CLUSTER = 64 * KIB;
const L2_TABLE = 4 * CLUSTER;

/** A cluster of which a given part cannot be compressed. */
function cluster(random: Random, noise: number): Uint8Array<ArrayBuffer> {
  const bytes = filled(CLUSTER, 7);
  bytes.set(random.bytes(noise));
  return bytes;
}

/** Where the bytes of a compressed cluster of 64 KiB stand: the first one, and the end of the last sector. */
function placeOf(descriptor: bigint): [start: number, end: number] {
  assertEquals(descriptor >> 62n, 1n, "It is compressed, and never the disk's alone");
  const start = Number(descriptor & ((1n << 54n) - 1n));
  const sectors = Number((descriptor >> 54n) & 0xffn) + 1;
  return [start, start - start % 512 + sectors * 512];
}

Deno.test("Compressed clusters are packed, and each host cluster counts all entries that touch it", () => {
  const random = new Random("packed");
  const file = emptyImage({ size: 4 * MIB });
  const disk = Qcow2File.open(file, { write: true });
  const contents = Array.from({ length: 40 }, () => cluster(random, random.between(100, 30 * KIB)));
  contents.forEach((content, index) => disk.writeCompressedAt(index * CLUSTER, content));
  disk.flush();
  const references = new Map<number, number>();
  let crossing = 0;
  contents.forEach((_, index) => {
    const [start, end] = placeOf(getUint64(file, L2_TABLE + index * 8));
    const [first, last] = [Math.floor(start / CLUSTER), Math.floor((end - 1) / CLUSTER)];
    if (last > first) crossing++;
    for (let host = first; host <= last; host++) references.set(host, (references.get(host) ?? 0) + 1);
  });
  assert(references.size < 15, `${references.size} host clusters hold 40 compressed ones`);
  assert(crossing > 0, "Some cross into the next host cluster");
  for (const [host, count] of references) assertEquals(disk.refcountAt(host * CLUSTER), count, `cluster ${host}`);
  contents.forEach((content, index) => assertEquals(readBytes(disk, index * CLUSTER, CLUSTER), content));
  // Each of them takes its own references away, and the last one the cluster.
  for (let index = 0; index < 40; index += 2) disk.discardAt(index * CLUSTER, CLUSTER);
  disk.writeAt(CLUSTER + 100, filled(10, 1));
  for (let index = 3; index < 40; index += 2) {
    assertEquals(readBytes(disk, index * CLUSTER, CLUSTER), contents[index]);
    disk.writeZeroesAt(index * CLUSTER, CLUSTER, { unmap: true });
  }
  disk.flush();
  for (const host of references.keys()) {
    assert(disk.refcountAt(host * CLUSTER) <= 1, `cluster ${host} is free, or the cluster of the partial write`);
  }
  const { corruptions, leaks } = disk.check();
  assertEquals([corruptions, leaks], [0, 0]);
  disk.close();
});

Deno.test("The cluster that the end of the disk cuts is compressed whole, with zeroes behind the end", () => {
  const file = emptyImage({ size: CLUSTER + 10 * KIB });
  {
    using disk = Qcow2File.open(file, { write: true });
    disk.writeCompressedAt(CLUSTER, filled(10 * KIB, 7));
    assertEquals([...disk.extents(CLUSTER)].map(({ kind }) => kind), ["compressed"]);
  }
  using disk = Qcow2File.open(copyOf(file), { write: true });
  disk.resize(2 * CLUSTER);
  assertEquals(readBytes(disk, CLUSTER, CLUSTER), filled(CLUSTER, 0).fill(7, 0, 10 * KIB));
});

Deno.test("Clusters that compression would not make smaller are written as they are", () => {
  const noise = new Uint8Array(
    Uint32Array.from(
      { length: CLUSTER / 4 },
      (() => {
        const random = new Random("as they are");
        return () => random.next();
      })(),
    ).buffer,
  );
  const file = emptyImage({ size: MIB });
  using disk = Qcow2File.open(file, { write: true });
  disk.writeCompressedAt(0, noise);
  assertEquals([...disk.extents(0, CLUSTER)].map(({ kind }) => kind), ["data"]);
  assertEquals(readBytes(disk, 0, CLUSTER), noise);
});
