/**
 * An internal snapshot as a disk that can only be read.
 *
 * @module
 */

import type { Decompressor, Disk, Extent, ExtentOptions, HostBytes } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { l1EntryCountFor } from "../format/geometry.ts";
import { MAX_L1_TABLE_LENGTH } from "../format/limits.ts";
import type { Snapshot } from "../format/snapshot_table.ts";
import type { ImageMetadata } from "../metadata/image_metadata.ts";
import { PointerTable } from "../metadata/pointer_table.ts";
import { readL1 } from "../metadata/snapshot_changes.ts";
import { checkRange } from "./cursor.ts";
import { GuestReader } from "./guest_reader.ts";

/** What {@linkcode SnapshotDisk} needs of the image around it. */
export interface SnapshotDiskOptions {
  /** What unallocated clusters read from. It is the image's, and stays open. */
  readonly backing: Disk | undefined;
  /** Throws where the image is closed. */
  readonly assertOpen: () => void;
}

/** The content of a snapshot. It reads from the image's file, as long as the image is open and has the snapshot. */
export class SnapshotDisk implements Disk {
  /** The virtual size in bytes, as it was when the snapshot was taken. */
  readonly size: number;
  /** The cluster size in bytes. */
  readonly allocationSize: number;
  /** The snapshot. */
  readonly snapshot: Snapshot;
  readonly #reader: GuestReader;
  readonly #assertImageOpen: () => void;
  #closed = false;

  /**
   * @param metadata The image's metadata.
   * @param snapshot The snapshot.
   * @param options Backing disk and callback.
   * @throws {Qcow2Error} With code `limit-exceeded` where the snapshot's size is beyond what an L1 table can map.
   */
  constructor(metadata: ImageMetadata, snapshot: Snapshot, options: SnapshotDiskOptions) {
    const { geometry } = metadata;
    this.snapshot = snapshot;
    this.size = snapshot.diskSize ?? metadata.diskSize;
    this.allocationSize = geometry.clusterSize;
    this.#assertImageOpen = options.assertOpen;
    const entryCount = Math.max(snapshot.l1EntryCount, l1EntryCountFor(geometry, this.size));
    if (entryCount * 8 > MAX_L1_TABLE_LENGTH) {
      throw new Qcow2Error("limit-exceeded", `Snapshot "${snapshot.name}" needs an L1 table of ${entryCount} entries`, {
        found: entryCount,
        expected: `at most ${MAX_L1_TABLE_LENGTH / 8}`,
      });
    }
    // What a short table does not map was never written.
    const l1 = new PointerTable(snapshot.l1TableOffset, new Uint8Array(entryCount * 8));
    l1.bytes.set(readL1(metadata, snapshot).bytes);
    this.#reader = new GuestReader(metadata, options.backing, metadata.mappingOf(l1));
  }

  /**
   * Fills a buffer from the snapshot.
   *
   * @param offset Where to begin, in bytes.
   * @param into What to fill.
   * @throws {Qcow2Error} With code `closed` where the snapshot or the image is closed; otherwise as `Qcow2File.readAt` does.
   */
  readAt(offset: number, into: Uint8Array): void {
    this.#assertOpen();
    checkRange(offset, into.length, this.size);
    this.#reader.read(offset, into);
  }

  /**
   * Fills a buffer from the snapshot while the caller goes on.
   *
   * @param offset Where to begin, in bytes.
   * @param into What to fill; to be left alone until the promise is settled.
   * @param decompressor Who decompresses clusters; the thread of the caller without it.
   * @throws {Qcow2Error} As {@linkcode SnapshotDisk.readAt} does.
   */
  async readAhead(offset: number, into: Uint8Array, decompressor?: Decompressor): Promise<void> {
    this.#assertOpen();
    checkRange(offset, into.length, this.size);
    await this.#reader.readAhead(offset, into, decompressor);
  }

  /**
   * Where the host has bytes of the snapshot as they are.
   *
   * @param offset Where to begin, in bytes.
   * @param length How many are of interest at most, in bytes.
   * @returns The bytes, or undefined where the first of them stands nowhere as it is.
   * @throws {Qcow2Error} As {@linkcode SnapshotDisk.readAt} does.
   */
  hostBytesAt(offset: number, length: number): HostBytes | undefined {
    this.#assertOpen();
    checkRange(offset, length, this.size);
    return length === 0 ? undefined : this.#reader.hostBytes(offset, length);
  }

  /**
   * The stretches that a range consists of.
   *
   * @param offset Where to begin, in bytes.
   * @param length How far, in bytes.
   * @param options What to look at.
   * @returns The extents in order, without gaps.
   * @throws {Qcow2Error} As {@linkcode SnapshotDisk.readAt} does.
   */
  extents(
    offset = 0,
    length: number = Math.max(0, this.size - offset),
    options: ExtentOptions = {},
  ): Iterable<Extent> {
    this.#assertOpen();
    checkRange(offset, length, this.size);
    return this.#reader.extents(offset, length, options);
  }

  /**
   * Refuses: a snapshot does not change.
   *
   * @param _offset Not used.
   * @param _data Not used.
   * @throws {Qcow2Error} With code `read-only`, always.
   */
  writeAt(_offset: number, _data: Uint8Array): void {
    throw readOnly();
  }

  /**
   * Refuses: a snapshot does not change.
   *
   * @param _offset Not used.
   * @param _length Not used.
   * @throws {Qcow2Error} With code `read-only`, always.
   */
  writeZeroesAt(_offset: number, _length: number): void {
    throw readOnly();
  }

  /**
   * Refuses: a snapshot does not change.
   *
   * @param _offset Not used.
   * @param _length Not used.
   * @throws {Qcow2Error} With code `read-only`, always.
   */
  discardAt(_offset: number, _length: number): void {
    throw readOnly();
  }

  /** Does nothing: there is nothing to make durable. */
  flush(): void {}

  /** Ends the use of the snapshot; the image stays open. */
  close(): void {
    this.#closed = true;
  }

  /** Closes it, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  #assertOpen(): void {
    this.#assertImageOpen();
    if (this.#closed) throw new Qcow2Error("closed", `Snapshot "${this.snapshot.name}" is closed`);
  }
}

function readOnly(): Qcow2Error {
  return new Qcow2Error("read-only", "A snapshot can only be read; apply it to write to the disk");
}
