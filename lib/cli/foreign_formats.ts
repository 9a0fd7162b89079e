/**
 * Image formats that are not handled here, told by their first bytes: such a file is refused rather than taken for a raw disk.
 *
 * @module
 */

import { findImageFormat } from "../format/signatures.ts";
import { FsBlockFile } from "../storage/fs_block_file.ts";

/** Names of the formats that QEMU knows and this program does not. */
export const FOREIGN_FORMATS: ReadonlySet<string> = new Set([
  "bochs",
  "cloop",
  "dmg",
  "luks",
  "parallels",
  "qcow",
  "qed",
  "vdi",
  "vhdx",
  "vmdk",
  "vpc",
]);

const START_LENGTH = 512;

/**
 * Guesses whether a file is an image of a format that is not handled here.
 *
 * @param path Path of the file.
 * @returns Name of the format, or `undefined` where it looks like none.
 * @throws {Qcow2Error} Where the file cannot be read.
 */
export function detectForeignFormat(path: string): string | undefined {
  using file = FsBlockFile.open(path);
  const start = new Uint8Array(START_LENGTH);
  file.readAt(0, start);
  return findImageFormat(start);
}
