/**
 * Where a zstd frame ends.
 *
 * A compressed cluster may consist of several frames, and bytes of another cluster may stand behind the last one. The
 * decompressor takes exactly one frame, so its length has to be known beforehand; it follows from the headers of its blocks.
 *
 * @module
 */

import { viewOf } from "./uint64.ts";

const MAGIC = 0xfd2fb528;
const MAGIC_LENGTH = 4;
const BLOCK_HEADER_LENGTH = 3;
const CHECKSUM_LENGTH = 4;
const RUN_LENGTH_BLOCK = 1;
/** Bytes of the dictionary's identifier, by the two bits that announce it. */
const DICTIONARY_LENGTHS = [0, 1, 2, 4] as const;
/** Bytes of the content's size, by the two bits that announce it; the first one depends on another bit. */
const CONTENT_SIZE_LENGTHS = [0, 2, 4, 8] as const;

/**
 * The length of the frame at the beginning of some bytes.
 *
 * @param bytes What begins with a frame.
 * @returns The length in bytes, or `undefined` where no whole frame stands there.
 */
export function zstdFrameLength(bytes: Uint8Array): number | undefined {
  const view = viewOf(bytes);
  if (bytes.length <= MAGIC_LENGTH || view.getUint32(0, true) !== MAGIC) return undefined;
  const descriptor = view.getUint8(MAGIC_LENGTH);
  const singleSegment = (descriptor & 0x20) !== 0;
  const contentSizeLength = CONTENT_SIZE_LENGTHS[descriptor >>> 6] || (singleSegment ? 1 : 0);
  let position = MAGIC_LENGTH + 1 + (singleSegment ? 0 : 1) + (DICTIONARY_LENGTHS[descriptor & 3] ?? 0) +
    contentSizeLength;
  for (let last = false; !last;) {
    if (position + BLOCK_HEADER_LENGTH > bytes.length) return undefined;
    const header = view.getUint16(position, true) + view.getUint8(position + 2) * 0x10000;
    last = (header & 1) !== 0;
    // A block of one repeated byte holds that byte alone, whatever its size says.
    const length = ((header >>> 1) & 3) === RUN_LENGTH_BLOCK ? 1 : header >>> 3;
    position += BLOCK_HEADER_LENGTH + length;
  }
  if ((descriptor & 4) !== 0) position += CHECKSUM_LENGTH;
  return position <= bytes.length ? position : undefined;
}
