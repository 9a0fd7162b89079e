/**
 * Image formats that are not handled here, told by their first bytes: such a file is refused rather than taken for a raw disk.
 *
 * @module
 */

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

/** What a format's files have at some offset. Bytes are written as Latin-1 characters. */
const SIGNATURES: readonly (readonly [format: string, offset: number, bytes: string])[] = [
  ["qcow", 0, "QFI\xfb\0\0\0\x01"],
  ["qed", 0, "QED\0"],
  ["vmdk", 0, "KDMV"],
  ["vmdk", 0, "COWD"],
  ["vmdk", 0, "# Disk DescriptorFile"],
  ["vhdx", 0, "vhdxfile"],
  ["vpc", 0, "conectix"],
  ["luks", 0, "LUKS\xba\xbe"],
  ["parallels", 0, "WithoutFreeSpace"],
  ["parallels", 0, "WithouFreSpacExt"],
  ["bochs", 0, "Bochs Virtual HD Image\0"],
  ["cloop", 0, "#!/bin/sh\n#V2.0 Format\n"],
  ["vdi", 0x40, "\x7f\x10\xda\xbe"],
];
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
  return SIGNATURES.find(([, offset, bytes]) => {
    return [...bytes].every((byte, index) => start[offset + index] === byte.charCodeAt(0));
  })?.[0];
}
