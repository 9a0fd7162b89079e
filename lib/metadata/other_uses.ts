/**
 * Clusters of tables that something else is kept in as well.
 *
 * @module
 */

import { countReferences } from "./host_references.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import { ReferenceCounts } from "./reference_counts.ts";
import { type HostUse, inWholeClusters } from "./reference_counter.ts";
import type { SnapshotTable } from "./snapshots.ts";
import { allAtOnce } from "./steps.ts";

/** Tables that a repair changes in place. */
export type MendedTable = "L1 table" | "L2 table";

const USES: Readonly<Record<MendedTable, readonly HostUse[]>> = {
  "L1 table": ["active L1 table"],
  "L2 table": ["active L2 table", "inactive L2 table"],
};

/**
 * Tells whether a table stands alone in its clusters. Where an entry is wrong, what it takes for a table may be anything, and would be
 * destroyed by a repair.
 */
export class OtherUses {
  readonly #metadata: ImageMetadata;
  readonly #snapshotTable: SnapshotTable;
  /** How often clusters are used for anything but a kind of table, once somebody asks. */
  readonly #counts = new Map<MendedTable, ReferenceCounts>();

  /**
   * @param metadata The image.
   * @param snapshotTable Its snapshots.
   */
  constructor(metadata: ImageMetadata, snapshotTable: SnapshotTable) {
    this.#metadata = metadata;
    this.#snapshotTable = snapshotTable;
  }

  /**
   * Whether a cluster of a table is used for anything else.
   *
   * @param kind What kind of table it is.
   * @param hostOffset An offset in the cluster, in bytes.
   * @returns Whether it is.
   */
  has(kind: MendedTable, hostOffset: number): boolean {
    const { clusterSize } = this.#metadata.geometry;
    let counts = this.#counts.get(kind);
    if (counts === undefined) this.#counts.set(kind, counts = this.#count(USES[kind]));
    return counts.get(Math.floor(hostOffset / clusterSize)) > 0;
  }

  #count(own: readonly HostUse[]): ReferenceCounts {
    const { clusterSize } = this.#metadata.geometry;
    const counts = new ReferenceCounts();
    const counting = countReferences(this.#metadata, {
      snapshotTable: this.#snapshotTable,
      report: () => {},
      onReference: (use, offset, length) => {
        if (own.includes(use)) return;
        const { offset: first, length: whole } = inWholeClusters({ offset, length }, clusterSize);
        for (let position = first; position < first + whole; position += clusterSize) {
          counts.add(position / clusterSize);
        }
      },
    });
    allAtOnce(counting);
    return counts;
  }
}
