/**
 * Compares what this package reads with the plain disk.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { assertEquals } from "@std/assert";
import type { CheckResult, Disk, Qcow2File } from "../../mod.ts";
import { readBytes } from "../images.ts";
import type { PlainDisk } from "./plain_disk.ts";
import type { SparseBytes } from "./sparse_bytes.ts";

/** How much is compared at once, in bytes. */
const PIECE_SIZE = 1024 * 1024;

/** Asserts that a range reads as it should. */
export function assertReads(
  disk: Pick<Disk, "readAt">,
  content: SparseBytes,
  offset: number,
  length: number,
  what = "disk",
): void {
  for (let done = 0; done < length; done += PIECE_SIZE) {
    const from = offset + done;
    const pieceLength = Math.min(PIECE_SIZE, length - done);
    const found = readBytes(disk, from, pieceLength);
    const expected = content.read(from, pieceLength);
    if (Buffer.compare(found, expected) === 0) continue;
    const at = found.findIndex((byte, index) => byte !== expected[index]);
    throw new Error(`Byte ${from + at} of the ${what} is ${found[at]}, expected ${expected[at]}`);
  }
}

/** Asserts that the extents of a range cover it, and that all that they call empty is. */
export function assertExtents(disk: Disk, content: SparseBytes, offset: number, length: number): void {
  const stretches = content.stretches();
  let position = offset;
  for (const extent of disk.extents(offset, length)) {
    if (extent.offset !== position) throw new Error(`Extent begins at ${extent.offset}, expected ${position}`);
    position += extent.length;
    if (extent.kind === "data" || extent.kind === "compressed") continue;
    for (const { offset: start, length: stretchLength } of stretches) {
      const from = Math.max(start, extent.offset);
      const to = Math.min(start + stretchLength, position);
      if (from < to && content.read(from, to - from).some((byte) => byte !== 0)) {
        throw new Error(`Extent of kind ${extent.kind} at ${extent.offset} holds data behind ${from}`);
      }
    }
  }
  assertEquals(position, offset + length, "Extents end with the range");
}

/** Asserts that a disk holds what it should, everywhere. */
export function assertHolds(disk: Disk, content: SparseBytes, what = "disk"): void {
  assertEquals(disk.size, content.size, `Size of the ${what}`);
  assertExtents(disk, content, 0, disk.size);
  for (const { offset, length } of content.stretches()) assertReads(disk, content, offset, length, what);
  for (const { kind, offset, length } of disk.extents(0, disk.size)) {
    if (kind === "data" || kind === "compressed") assertReads(disk, content, offset, length, what);
  }
}

/** Asserts that all snapshots are there, in their order, with what they hold. */
export function assertSnapshots(disk: Qcow2File, { snapshots }: PlainDisk): void {
  assertEquals(
    disk.snapshots.map(({ id, name, diskSize }) => ({ id, name, diskSize })),
    snapshots.map(({ id, name, content }) => ({ id, name, diskSize: content.size })),
  );
  for (const { id, name, content } of snapshots) assertHolds(disk.openSnapshot(id), content, `snapshot ${name}`);
}

/** Asserts that all bitmaps are there, in their order, with the bits that they should have. */
export function assertBitmaps(disk: Qcow2File, { bitmaps, size }: PlainDisk): void {
  assertEquals(
    disk.bitmaps,
    bitmaps.map(({ name, granularity, auto }) => ({
      name,
      granularity,
      auto,
      inUse: false,
      inconsistent: false,
      unusable: undefined,
    })),
  );
  for (const bitmap of bitmaps) {
    assertEquals([...disk.dirtyExtents(bitmap.name)], bitmap.extents(size), `bitmap ${bitmap.name}`);
  }
}

/** Asserts that a check found nothing. */
export function assertSound({ corruptions, leaks }: CheckResult): void {
  assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
}
