/**
 * What becomes of a persistent bitmap when the disk gets another size.
 *
 * @module
 */

import { type BitmapEntry, withBitmapTable } from "../format/bitmap_directory.ts";
import { BitmapChanges, type BitmapChunk } from "./bitmap_changes.ts";
import { BitmapTable, type FreshBitmapTable, writeBitmapTable } from "./bitmap_table.ts";
import { type BitmapDimensions, bitmapTableEntryCount } from "./bitmaps.ts";
import type { ImageMetadata } from "./image_metadata.ts";

/** A bitmap for a disk of another size. */
export interface ResizedBitmap {
  /** Its entry in the directory. */
  readonly entry: BitmapEntry;
  /** Its new table, not yet durable; `undefined` where it keeps the old one. */
  readonly table: FreshBitmapTable | undefined;
}

/**
 * Makes a bitmap fit another size. Bits of what the disk loses are gone; bits of what it gains are clear, as QEMU has it.
 *
 * @param metadata The image's metadata.
 * @param entry The bitmap, which can be used.
 * @param from Sizes of disk and clusters as they are.
 * @param to Sizes of disk and clusters as they will be.
 * @param marksAll Whether all bits are set, since the disk becomes another one.
 * @returns The bitmap, with a new table only where the old one does not fit.
 */
export function resizeBitmap(
  metadata: ImageMetadata,
  entry: BitmapEntry,
  from: BitmapDimensions,
  to: BitmapDimensions,
  marksAll: boolean,
): ResizedBitmap {
  const tableEntryCount = bitmapTableEntryCount(to, entry.granularityBits);
  const old = new BitmapTable(metadata, entry).validated();
  const withTable = (chunkOf: (index: number) => BitmapChunk | undefined): ResizedBitmap => {
    const table = writeBitmapTable(metadata, tableEntryCount, old, chunkOf);
    return { entry: withBitmapTable(entry, { tableOffset: table.offset, tableEntryCount }), table };
  };
  if (marksAll) {
    const all = new BitmapChanges(to, entry.granularityBits);
    if (to.diskSize > 0) all.mark(0, to.diskSize);
    return withTable((index) => all.chunk(index));
  }
  const bitCount = Math.ceil(Math.min(from.diskSize, to.diskSize) / 2 ** entry.granularityBits);
  const chunkBits = to.clusterSize * 8;
  /** The bits of a cluster where they change. */
  const changedChunk = (index: number): BitmapChunk | undefined => {
    const kept = bitCount - index * chunkBits;
    if (kept >= chunkBits || index >= old.entryCount) return undefined;
    const chunk = old.read(index);
    const cut = kept <= 0 ? "none" : cutChunk(chunk, kept, to.clusterSize);
    return cut === chunk ? undefined : cut;
  };
  const lastCut = changedChunk(Math.floor(bitCount / chunkBits));
  if (tableEntryCount === old.entryCount && lastCut === undefined) return { entry, table: undefined };
  return withTable(changedChunk);
}

/** Clears the bits of a chunk from one on; the same chunk where there are none set. */
function cutChunk(chunk: BitmapChunk, bitCount: number, chunkSize: number): BitmapChunk {
  if (chunk === "none") return chunk;
  const cut = new Uint8Array(chunkSize);
  if (chunk === "all") cut.fill(0xff);
  else cut.set(chunk);
  const byte = bitCount >>> 3;
  cut[byte] = (cut[byte] ?? 0) & ((1 << (bitCount & 7)) - 1);
  cut.fill(0, byte + 1);
  return chunk !== "all" && chunk.every((value, index) => value === cut[index]) ? chunk : cut;
}
