/**
 * Guest data that says where it belongs: each sector carries the number of the write and its own place on the disk, so that a
 * sector that turns up anywhere else, or at another time, is seen.
 *
 * @module
 */

import type { Random } from "../random.ts";
import { SECTOR_SIZE } from "./flat_file.ts";

/** The first word of each piece of a tag, as the machine stores it. */
const MAGIC = 0x51544147;
/** The magic, the number of the write, the sector, and all of them mixed. */
const WORDS_PER_PIECE = 4;
/** What stands in space that was never written. */
const POISON = 0xde;

/**
 * Tagged bytes for a range of the disk, which need not begin or end at a sector.
 *
 * @param write Number of the write.
 * @param offset Guest offset in bytes.
 * @param length Length in bytes.
 */
export function taggedBytes(write: number, offset: number, length: number): Uint8Array<ArrayBuffer> {
  const first = Math.floor(offset / SECTOR_SIZE);
  const last = Math.ceil((offset + length) / SECTOR_SIZE);
  const words = new Uint32Array((last - first) * SECTOR_SIZE / 4);
  let word = 0;
  for (let sector = first; sector < last; sector++) {
    const mixed = (MAGIC ^ Math.imul(write, 0x9e3779b1) ^ sector) >>> 0;
    for (const end = word + SECTOR_SIZE / 4; word < end; word += WORDS_PER_PIECE) {
      words[word] = MAGIC;
      words[word + 1] = write;
      words[word + 2] = sector;
      words[word + 3] = mixed;
    }
  }
  const start = offset - first * SECTOR_SIZE;
  return new Uint8Array(words.buffer, start, length);
}

/**
 * Tagged bytes of which a part is noise, so that compression saves some of them and not all.
 *
 * @param write Number of the write.
 * @param offset Guest offset in bytes.
 * @param length Length in bytes.
 * @param random Where the noise comes from.
 */
export function noisyBytes(write: number, offset: number, length: number, random: Random): Uint8Array<ArrayBuffer> {
  const bytes = taggedBytes(write, offset, length);
  const noiseLength = random.pick([0, 100, 300, 400, 512]);
  for (let start = 0; start < length; start += SECTOR_SIZE) {
    bytes.set(random.bytes(Math.min(noiseLength, length - start)), start);
  }
  return bytes;
}

/** Bytes as a disk may hold them where nothing was ever written: no tables, no data, no zeroes. */
export function poison(length: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(length).fill(POISON);
}

/** What a sector holds, in words. */
export function describeSector(bytes: Uint8Array): string {
  if (bytes.every((byte) => byte === 0)) return "zeroes";
  if (bytes.every((byte) => byte === POISON)) return "poison, which was never written";
  const tags = new Set<string>();
  let other = 0;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let position = 0; position + 16 <= bytes.length; position += 16) {
    if (view.getUint32(position, true) !== MAGIC) other++;
    else tags.add(`sector ${view.getUint32(position + 8, true)} of write ${view.getUint32(position + 4, true)}`);
  }
  if (other > 0) tags.add(`${other} pieces of something else`);
  return [...tags].join(", ");
}
