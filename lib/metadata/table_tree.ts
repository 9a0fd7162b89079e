/**
 * Everything that an L1 table leads to.
 *
 * @module
 */

import { hex } from "../errors.ts";
import { alignDown } from "../format/geometry.ts";
import { COMPRESSED_FLAG, COPIED_FLAG, decodeCompressedDescriptor, entryOffset } from "../format/table_entries.ts";
import { viewOf } from "../format/uint64.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import type { PointerTable } from "./pointer_table.ts";
import type { RefcountChanges } from "./refcount_changes.ts";

/** Reads the L2 tables of any L1 table, past the caches. Nothing of the image may be dirty. */
export class TableTree {
  /** The L2 table that was read last. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  readonly #metadata: ImageMetadata;

  /** @param metadata The image. */
  constructor(metadata: ImageMetadata) {
    this.#metadata = metadata;
    this.bytes = new Uint8Array(metadata.geometry.clusterSize);
    this.#view = viewOf(this.bytes);
  }

  /**
   * The host offset of an L2 table.
   *
   * @param l1 The L1 table.
   * @param index Index of the entry.
   * @returns The offset in bytes; 0 where there is no table.
   * @throws {Qcow2Error} With code `corrupt` where the entry is no offset of a cluster.
   */
  tableOffset(l1: PointerTable, index: number): number {
    const offset = entryOffset(l1.upper(index), l1.lower(index));
    if (offset % this.#metadata.geometry.clusterSize === 0 && offset <= Number.MAX_SAFE_INTEGER) return offset;
    throw this.#metadata.corruption(
      `L2 table offset ${hex(offset)} unaligned (L1 index: ${hex(index)})`,
      l1.offset + index * 8,
    );
  }

  /**
   * Counts one reference more, or less, for each way from an L1 table to a cluster: L2 tables, data and compressed clusters.
   *
   * @param l1 The L1 table; its own clusters are not counted.
   * @param change What to add for each.
   * @param changes Where to add it.
   * @throws {Qcow2Error} With code `corrupt` where an entry is no offset of a cluster.
   */
  count(l1: PointerTable, change: 1 | -1, changes: RefcountChanges): void {
    const { clusterSize } = this.#metadata.geometry;
    for (let index = 0; index < l1.entryCount; index++) {
      const offset = this.tableOffset(l1, index);
      if (offset === 0) continue;
      changes.add(offset / clusterSize, change);
      this.read(offset);
      this.#countTable(offset, change, changes);
    }
  }

  /**
   * Reads an L2 table into {@linkcode TableTree.bytes}.
   *
   * @param offset Host offset of the table in bytes.
   */
  read(offset: number): void {
    this.bytes.fill(0, this.#metadata.file.file.readAt(offset, this.bytes));
  }

  /**
   * Sets the COPIED flags of the L2 table that was read last.
   *
   * @param isOwn Whether a cluster is used once only.
   * @returns Whether a flag was not so before.
   */
  setFlags(isOwn: (cluster: number) => boolean): boolean {
    const { l2EntrySize, clusterSize } = this.#metadata.geometry;
    const view = this.#view;
    let changed = false;
    for (let position = 0; position < this.bytes.length; position += l2EntrySize) {
      const upper = view.getUint32(position);
      const offset = entryOffset(upper, view.getUint32(position + 4));
      if ((upper & COMPRESSED_FLAG) !== 0 || offset === 0) continue;
      const flagged = (isOwn(offset / clusterSize) ? upper | COPIED_FLAG : upper & ~COPIED_FLAG) >>> 0;
      if (flagged === upper) continue;
      view.setUint32(position, flagged);
      changed = true;
    }
    return changed;
  }

  #countTable(tableOffset: number, change: 1 | -1, changes: RefcountChanges): void {
    const { l2EntrySize, clusterSize, clusterBits } = this.#metadata.geometry;
    const view = this.#view;
    for (let position = 0; position < this.bytes.length; position += l2EntrySize) {
      const upper = view.getUint32(position);
      const lower = view.getUint32(position + 4);
      if ((upper & COMPRESSED_FLAG) !== 0) {
        const { hostOffset, length } = decodeCompressedDescriptor(upper, lower, clusterBits);
        const end = hostOffset + length;
        for (let offset = alignDown(hostOffset, clusterSize); offset < end; offset += clusterSize) {
          changes.add(offset / clusterSize, change);
        }
        continue;
      }
      const offset = entryOffset(upper, lower);
      if (offset === 0) continue;
      if (offset % clusterSize !== 0 || offset > Number.MAX_SAFE_INTEGER) {
        throw this.#metadata.corruption(
          `Cluster allocation offset ${hex(offset)} unaligned (L2 offset: ${hex(tableOffset)}, L2 index: ${
            hex(position / l2EntrySize)
          })`,
          tableOffset + position,
        );
      }
      changes.add(offset / clusterSize, change);
    }
  }
}
