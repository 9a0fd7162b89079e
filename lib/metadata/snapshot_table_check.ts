/**
 * Checks the snapshot table, and mends it.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { MAX_SNAPSHOT_COUNT, MAX_SNAPSHOT_EXTRA_LENGTH } from "../format/limits.ts";
import type { Findings } from "./findings.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import { rewriteSnapshotTable } from "./snapshot_changes.ts";
import { assertSnapshotTable, readSnapshotTable, type SnapshotTable, type SnapshotTableError } from "./snapshots.ts";

/** How much extra data version 3 demands of an entry, in bytes: the size of the state, and that of the disk. */
const MIN_EXTRA_LENGTH = 16;

/** The snapshot table of an image that is checked. */
export class SnapshotTableCheck {
  /** The snapshots that can be kept. */
  readonly table: SnapshotTable;
  readonly #metadata: ImageMetadata;
  readonly #findings: Findings;
  readonly #repair: boolean;
  /** How many entries can only be mended by writing the table anew. */
  #toRewrite = 0;
  #overhanging = 0;

  /**
   * Reads the table. Snapshots that are too many are dropped from the header at once: what they leave behind are leaks.
   *
   * @param metadata The image.
   * @param findings Where to note what is wrong.
   * @param repair Whether to mend it.
   * @throws {SnapshotTableError} Where it cannot be read and is not to be mended.
   */
  constructor(metadata: ImageMetadata, findings: Findings, repair: boolean) {
    this.#metadata = metadata;
    this.#findings = findings;
    this.#repair = repair;
    if (repair && metadata.header.snapshotCount > MAX_SNAPSHOT_COUNT) {
      this.#drop(metadata.header.snapshotCount - MAX_SNAPSHOT_COUNT, "");
    }
    const snapshotCount = metadata.header.snapshotCount - this.#overhanging;
    const header = { ...metadata.header, snapshotCount };
    assertSnapshotTable(header);
    const { file } = metadata.file;
    this.table = readSnapshotTable(file, header, repair ? (error) => this.#discard(error) : undefined);
    if (this.#overhanging > 0) {
      metadata.updateHeader({ snapshotCount: this.table.snapshots.length });
      findings.count("corruption", true, this.#overhanging);
    }
    if (header.version > 2) this.#findIncomplete();
  }

  /**
   * Writes the table anew where entries have too much or too little. The refcounts are right, and nothing is dirty in memory.
   *
   * @throws {Qcow2Error} With code `no-space` or `io` where the host fails.
   */
  mend(): void {
    // An image that stays marked as corrupt is not written.
    if (this.#toRewrite === 0 || !this.#repair || this.#metadata.markedCorrupt) return;
    try {
      this.#metadata.prepareForWriting();
      rewriteSnapshotTable(this.#metadata, this.table);
    } catch (cause) {
      if (!(cause instanceof Qcow2Error) || cause.code !== "corrupt") throw cause;
      const hostOffset = this.#metadata.header.snapshotTableOffset;
      this.#findings.note({ kind: "error", message: "ERROR failed to update snapshot table", hostOffset, cause });
      return;
    }
    this.#findings.count("corruption", true, this.#toRewrite);
    this.#findings.count("corruption", false, -this.#toRewrite);
  }

  #discard({ problem, index, overhanging, extraLength, offset = 0 }: SnapshotTableError): void {
    if (problem === "extra-data") {
      const lengths = `${extraLength} > ${MAX_SNAPSHOT_EXTRA_LENGTH}`;
      const message = `Discarding too much extra metadata in snapshot table entry ${index} (${lengths})`;
      this.#findings.tell({ message, hostOffset: offset, fixed: true });
      this.#findings.count("corruption", false, 1);
      this.#toRewrite++;
    } else {
      this.#drop(overhanging, " (snapshot table is too big)");
    }
  }

  #drop(count: number, reason: string): void {
    this.#findings.tell({ message: `Discarding ${count} overhanging snapshots${reason}`, hostOffset: 60, fixed: true });
    this.#overhanging += count;
  }

  #findIncomplete(): void {
    for (const [index, { extraData }] of this.table.snapshots.entries()) {
      if (extraData.length >= MIN_EXTRA_LENGTH) continue;
      const message = `${this.#repair ? "Repairing" : "ERROR"} snapshot table entry ${index} is incomplete`;
      this.#findings.tell({ message, hostOffset: this.#metadata.header.snapshotTableOffset, fixed: this.#repair });
      this.#findings.count("corruption", false, 1);
      this.#toRewrite++;
    }
  }
}
