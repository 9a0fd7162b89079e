/**
 * What each part of an image's file is used for, in a bounded number of bins.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { alignDown, alignUp } from "../format/geometry.ts";
import type { HostUse } from "../metadata/reference_counter.ts";
import { ReferenceCounts } from "../metadata/reference_counts.ts";
import { type BinnedMap, MapBuilder } from "./binned_map.ts";

/**
 * What a cluster of an image's file is used for.
 *
 * - `header`, `encryption header`, `L1 table`, `L2 table`, `refcount table`, `refcount block`: metadata of the disk.
 * - `snapshots`: tables of snapshots; `bitmaps`: directory, tables and bits of persistent bitmaps.
 * - `data`, `compressed`: what the disk holds; `shared data`: what it shares with snapshots; `snapshot data`: what only
 *   snapshots hold.
 * - `free`: unused. `leaked`: unused, but not free, since its refcount says otherwise.
 * - `overlap`: used for two things that cannot stand in one place.
 * - `unknown`: was not looked at, since the tables are larger than the limit.
 */
export type HostKind =
  | "header"
  | "encryption header"
  | "refcount table"
  | "refcount block"
  | "L1 table"
  | "L2 table"
  | "snapshots"
  | "bitmaps"
  | "data"
  | "shared data"
  | "compressed"
  | "snapshot data"
  | "free"
  | "leaked"
  | "overlap"
  | "unknown";

/** All kinds, from the one that matters most, since it is rare or wrong, down. */
export const HOST_KINDS: readonly HostKind[] = [
  "overlap",
  "leaked",
  "header",
  "encryption header",
  "L1 table",
  "refcount table",
  "refcount block",
  "L2 table",
  "bitmaps",
  "snapshots",
  "snapshot data",
  "shared data",
  "compressed",
  "data",
  "unknown",
  "free",
];

/** A bit for each use: what a cluster is used for is the sum of its bits. */
const USE_BITS: Readonly<Record<HostUse, number>> = {
  "header": 0x1,
  "encryption header": 0x2,
  "refcount table": 0x4,
  "refcount block": 0x8,
  "active L1 table": 0x10,
  "active L2 table": 0x20,
  "snapshot table": 0x40,
  "inactive L1 table": 0x80,
  "inactive L2 table": 0x100,
  "bitmap directory": 0x200,
  "bitmap table": 0x400,
  "bitmap data": 0x800,
  "data": 0x1000,
  "compressed data": 0x2000,
  "inactive data": 0x4000,
  "inactive compressed data": 0x8000,
};

/** What uses may stand in one cluster, and what it counts as. */
const KIND_OF_BITS: ReadonlyMap<number, HostKind> = new Map<number, HostKind>([
  [USE_BITS["header"], "header"],
  [USE_BITS["encryption header"], "encryption header"],
  [USE_BITS["refcount table"], "refcount table"],
  [USE_BITS["refcount block"], "refcount block"],
  [USE_BITS["active L1 table"], "L1 table"],
  [USE_BITS["active L2 table"], "L2 table"],
  [USE_BITS["active L2 table"] + USE_BITS["inactive L2 table"], "L2 table"],
  [USE_BITS["snapshot table"], "snapshots"],
  [USE_BITS["inactive L1 table"], "snapshots"],
  [USE_BITS["inactive L2 table"], "snapshots"],
  [USE_BITS["bitmap directory"], "bitmaps"],
  [USE_BITS["bitmap table"], "bitmaps"],
  [USE_BITS["bitmap data"], "bitmaps"],
  [USE_BITS["data"], "data"],
  [USE_BITS["data"] + USE_BITS["inactive data"], "shared data"],
  [USE_BITS["inactive data"], "snapshot data"],
  [USE_BITS["compressed data"], "compressed"],
  [USE_BITS["compressed data"] + USE_BITS["inactive compressed data"], "compressed"],
  [USE_BITS["inactive compressed data"], "snapshot data"],
]);

/** Uses whose bytes are read to find out what else there is. */
const TABLES: ReadonlySet<HostUse> = new Set<HostUse>([
  "active L1 table",
  "active L2 table",
  "inactive L1 table",
  "inactive L2 table",
  "refcount table",
  "refcount block",
  "bitmap table",
]);

const MAX_LEAK_COUNT = 2 ** 22;

/** Takes down what host clusters are used for, while a check walks over their owners. */
export class HostUses {
  readonly #clusterSize: number;
  readonly #maxTableLength: number;
  /** The bits of each cluster. */
  readonly #uses = new ReferenceCounts();
  readonly #leaks: number[] = [];
  #tableLength = 0;

  /**
   * @param clusterSize Bytes in a cluster.
   * @param maxTableLength How many bytes of tables are walked, at most.
   */
  constructor(clusterSize: number, maxTableLength: number) {
    this.#clusterSize = clusterSize;
    this.#maxTableLength = maxTableLength;
  }

  /**
   * Notes a use.
   *
   * @param use What for.
   * @param offset Host offset in bytes.
   * @param length Length in bytes.
   * @throws {Qcow2Error} With code `limit-exceeded` where the tables are larger than the limit.
   */
  note(use: HostUse, offset: number, length: number): void {
    const bit = USE_BITS[use];
    const end = offset + length;
    for (let position = alignDown(offset, this.#clusterSize); position < end; position += this.#clusterSize) {
      const cluster = position / this.#clusterSize;
      if ((this.#uses.get(cluster) & bit) !== 0) continue;
      this.#uses.add(cluster, bit);
      if (TABLES.has(use)) this.#countTable();
    }
  }

  /**
   * Notes a cluster that has a refcount although nobody uses it.
   *
   * @param offset Host offset in bytes.
   * @throws {Qcow2Error} With code `limit-exceeded` where there are more than anybody could want to know of.
   */
  noteLeak(offset: number): void {
    const uses = this.#uses.get(offset / this.#clusterSize);
    // A refcount that is too high for a cluster in use is another kind of leak.
    if (uses !== 0) return;
    if (this.#leaks.length === MAX_LEAK_COUNT) {
      throw new Qcow2Error("limit-exceeded", `More than ${MAX_LEAK_COUNT} clusters are leaked`);
    }
    this.#leaks.push(offset);
  }

  /**
   * The map of the file.
   *
   * @param fileSize Length of the file in bytes.
   * @param complete Whether all owners were asked, so that everything else is free.
   * @returns The map.
   */
  build(fileSize: number, complete: boolean): BinnedMap<HostKind> {
    const size = alignUp(fileSize, this.#clusterSize);
    const builder = new MapBuilder<HostKind>(size, this.#clusterSize, HOST_KINDS);
    for (const { first, count, uses } of this.#runs()) {
      const kind = KIND_OF_BITS.get(uses) ?? "overlap";
      builder.add(kind, first * this.#clusterSize, count * this.#clusterSize);
    }
    for (const offset of this.#leaks) builder.add("leaked", offset, this.#clusterSize);
    return builder.build(complete ? "free" : "unknown");
  }

  /** Clusters in a row that are used for the same. */
  *#runs(): Generator<{ readonly first: number; readonly count: number; readonly uses: number }> {
    let first = 0;
    let end = 0;
    let uses = 0;
    for (const cluster of this.#uses.clusters()) {
      const next = this.#uses.get(cluster);
      if (cluster !== end || next !== uses) {
        if (end > first) yield { first, count: end - first, uses };
        first = cluster;
        uses = next;
      }
      end = cluster + 1;
    }
    if (end > first) yield { first, count: end - first, uses };
  }

  #countTable(): void {
    this.#tableLength += this.#clusterSize;
    if (this.#tableLength <= this.#maxTableLength) return;
    throw new Qcow2Error("limit-exceeded", `Tables are longer than ${this.#maxTableLength} bytes in all`, {
      found: this.#tableLength,
      expected: `at most ${this.#maxTableLength}`,
    });
  }
}
