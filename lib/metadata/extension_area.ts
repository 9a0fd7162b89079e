/**
 * Changes the header extensions of an image in place, so that a crash leaves the old ones or the new ones.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { alignUp } from "../format/geometry.ts";
import { encodeHeaderExtensions, type HeaderExtension } from "../format/header_extensions.ts";
import { HEADER_LENGTH_V2 } from "../format/header.ts";
import { readUint64, viewOf, writeUint64 } from "../format/uint64.ts";
import type { OrderedFile } from "./ordered_file.ts";

/** What a host writes whole or not at all, in bytes. */
const SECTOR_SIZE = 512;
/** Length of the type and length in front of an extension's data, and of the mark behind the last extension. */
const HEAD_LENGTH = 8;
/** The type of an extension that was given up and could not be taken out at once. Nobody knows it, so nobody reads it. */
export const VACANT_TYPE = 0x76616374;
const BACKING_NAME_POSITION = 8;

/** The list of extensions in the first cluster of an image, and how it is changed. */
export class ExtensionArea {
  readonly #file: OrderedFile;
  readonly #cluster: Uint8Array<ArrayBuffer>;
  readonly #start: number;

  /**
   * Reads the first cluster.
   *
   * @param file The host file.
   * @param clusterSize Bytes in a cluster.
   */
  constructor(file: OrderedFile, clusterSize: number) {
    this.#file = file;
    this.#cluster = new Uint8Array(clusterSize);
    file.file.readAt(0, this.#cluster);
    const view = viewOf(this.#cluster);
    this.#start = view.getUint32(4) === 2 ? HEADER_LENGTH_V2 : view.getUint32(100);
  }

  /**
   * Whether the data of an extension can be replaced by other data of the same length in one piece of work. Where it cannot,
   * the caller must make sure that nobody trusts the data before all of it is durable.
   *
   * @param extensions The extensions in the file.
   * @param type The type of one of them.
   * @returns Whether its data lies in one sector of the host.
   */
  replacesAtOnce(extensions: readonly HeaderExtension[], type: number): boolean {
    const index = extensions.findIndex((extension) => extension.type === type);
    const start = this.#headOf(extensions, index) + HEAD_LENGTH;
    return sectorOf(start) === sectorOf(start + (extensions[index]?.data.length ?? 0) - 1);
  }

  /**
   * Replaces the data of an extension by other data of the same length.
   *
   * @param extensions The extensions in the file.
   * @param replacement The extension with its new data.
   * @returns The extensions as they are now, not yet durable.
   */
  replace(extensions: readonly HeaderExtension[], replacement: HeaderExtension): HeaderExtension[] {
    const index = extensions.findIndex(({ type }) => type === replacement.type);
    this.#write(this.#headOf(extensions, index) + HEAD_LENGTH, replacement.data);
    return extensions.with(index, replacement);
  }

  /**
   * Puts an extension behind the others; where the name of the backing file stands in the way, it is moved.
   *
   * @param extensions The extensions in the file.
   * @param added The new one.
   * @returns The extensions as they are now, not yet durable.
   * @throws {Qcow2Error} With code `no-space` where the first cluster has no room for it.
   */
  append(extensions: readonly HeaderExtension[], added: HeaderExtension): HeaderExtension[] {
    const all = [...extensions, added];
    const list = encodeHeaderExtensions(all);
    const end = this.#start + list.length;
    const head = this.#headOf(extensions, extensions.length);
    if (sectorOf(head) !== sectorOf(head + HEAD_LENGTH - 1)) {
      throw new Qcow2Error("unsupported", "Header extensions do not begin at a multiple of 8 bytes", { offset: head });
    }
    const changed = this.#cluster.slice();
    const inTheWay = this.#moveBackingName(changed, end);
    changed.set(list.subarray(0, changed.length - this.#start), this.#start);
    if (end <= changed.length && inTheWay !== "no room" && this.#differsInOneSector(changed)) {
      this.#writeSector(changed);
      return all;
    }
    if (end > changed.length) throw noRoom(end, changed.length);
    if (inTheWay !== "no") this.#moveBackingNameDurably(Math.max(end, this.#backingName().end));
    // Behind the mark of the end nobody reads: the extension is there when its head replaces the mark.
    this.#write(head + HEAD_LENGTH, list.subarray(head + HEAD_LENGTH - this.#start));
    this.#file.sync();
    this.#write(head, list.subarray(head - this.#start, head - this.#start + HEAD_LENGTH));
    return all;
  }

  /**
   * Takes an extension out.
   *
   * @param extensions The extensions in the file.
   * @param type The type of the one to take out.
   * @returns The extensions as they are now, not yet durable.
   */
  remove(extensions: readonly HeaderExtension[], type: number): HeaderExtension[] {
    const index = extensions.findIndex((extension) => extension.type === type);
    const head = this.#headOf(extensions, index);
    const rest = extensions.toSpliced(index, 1);
    if (index === extensions.length - 1) {
      this.#write(head, new Uint8Array(HEAD_LENGTH));
      return rest;
    }
    const changed = this.#cluster.slice();
    changed.fill(0, this.#start, this.#start + encodeHeaderExtensions(extensions).length);
    changed.set(encodeHeaderExtensions(rest), this.#start);
    if (this.#differsInOneSector(changed)) {
      this.#writeSector(changed);
      return rest;
    }
    // Those behind it cannot be moved at once, so it stays with a type that means nothing.
    const vacant = new Uint8Array(4);
    viewOf(vacant).setUint32(0, VACANT_TYPE);
    this.#write(head, vacant);
    const { data } = extensions[index] ?? { data: new Uint8Array() };
    return extensions.with(index, { type: VACANT_TYPE, data });
  }

  /** Where the head of an extension stands; of the mark behind the last one where the index is their number. */
  #headOf(extensions: readonly HeaderExtension[], index: number): number {
    return this.#start + encodeHeaderExtensions(extensions.slice(0, index)).length - HEAD_LENGTH;
  }

  #backingName(): { readonly offset: number; readonly length: number; readonly end: number } {
    const view = viewOf(this.#cluster);
    const offset = readUint64(view, BACKING_NAME_POSITION, "Backing file name offset");
    const length = offset === 0 ? 0 : view.getUint32(16);
    return { offset, length, end: offset + length };
  }

  /** Moves the name in a copy of the cluster where it begins before an offset. */
  #moveBackingName(cluster: Uint8Array, firstOffset: number): "no" | "moved" | "no room" {
    const { offset, length, end } = this.#backingName();
    if (offset === 0 || offset >= firstOffset) return "no";
    const target = alignUp(firstOffset, 8);
    if (target + length > cluster.length) return "no room";
    cluster.set(this.#cluster.subarray(offset, end), target);
    writeUint64(viewOf(cluster), BACKING_NAME_POSITION, target);
    return "moved";
  }

  /** Moves the name to a place where neither the old one nor anything else stands: first the name, then the pointer to it. */
  #moveBackingNameDurably(firstOffset: number): void {
    const moved = this.#cluster.slice();
    if (this.#moveBackingName(moved, firstOffset) !== "moved") throw noRoom(firstOffset, moved.length);
    const target = readUint64(viewOf(moved), BACKING_NAME_POSITION, "Backing file name offset");
    this.#write(target, moved.subarray(target, target + this.#backingName().length));
    this.#file.sync();
    this.#write(BACKING_NAME_POSITION, moved.subarray(BACKING_NAME_POSITION, BACKING_NAME_POSITION + 8));
    this.#file.sync();
  }

  #differsInOneSector(changed: Uint8Array): boolean {
    const first = changed.findIndex((byte, position) => byte !== this.#cluster[position]);
    const last = changed.findLastIndex((byte, position) => byte !== this.#cluster[position]);
    return first < 0 || sectorOf(first) === sectorOf(last);
  }

  /** Writes the one sector in which a copy of the cluster differs. */
  #writeSector(changed: Uint8Array): void {
    const first = changed.findIndex((byte, position) => byte !== this.#cluster[position]);
    if (first < 0) return;
    const start = sectorOf(first) * SECTOR_SIZE;
    this.#write(start, changed.subarray(start, start + SECTOR_SIZE));
  }

  #write(offset: number, data: Uint8Array): void {
    this.#file.writeAt(offset, data);
    this.#cluster.set(data, offset);
  }
}

function sectorOf(offset: number): number {
  return Math.floor(offset / SECTOR_SIZE);
}

function noRoom(needed: number, clusterSize: number): Qcow2Error {
  return new Qcow2Error("no-space", `Header and extensions need ${needed} bytes, expected at most one cluster`, {
    offset: 0,
    found: needed,
    expected: `at most ${clusterSize}`,
  });
}
