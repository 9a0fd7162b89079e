/**
 * What files of other formats have at fixed places, so that they are not taken for something else.
 *
 * @module
 */

/** What a format's files have at some place. */
interface Signature {
  /** Name of the format, as QEMU calls it. */
  readonly format: string;
  /** Where it stands in bytes: from the start of the file, or from its end where negative. */
  readonly offset: number;
  /** The bytes, written as Latin-1 characters. */
  readonly bytes: string;
}

/** Formats of disk images. */
const IMAGE_SIGNATURES: readonly Signature[] = [
  { format: "qcow", offset: 0, bytes: "QFI\xfb\0\0\0\x01" },
  { format: "qed", offset: 0, bytes: "QED\0" },
  { format: "vmdk", offset: 0, bytes: "KDMV" },
  { format: "vmdk", offset: 0, bytes: "COWD" },
  { format: "vmdk", offset: 0, bytes: "# Disk DescriptorFile" },
  { format: "vhdx", offset: 0, bytes: "vhdxfile" },
  { format: "vpc", offset: 0, bytes: "conectix" },
  { format: "luks", offset: 0, bytes: "LUKS\xba\xbe" },
  { format: "parallels", offset: 0, bytes: "WithoutFreeSpace" },
  { format: "parallels", offset: 0, bytes: "WithouFreSpacExt" },
  { format: "bochs", offset: 0, bytes: "Bochs Virtual HD Image\0" },
  { format: "cloop", offset: 0, bytes: "#!/bin/sh\n#V2.0 Format\n" },
  { format: "vdi", offset: 0x40, bytes: "\x7f\x10\xda\xbe" },
];

/** Formats of disk images whose mark is at the end, which hardly anybody looks at. */
const FOOTER_SIGNATURES: readonly Signature[] = [
  { format: "vpc", offset: -512, bytes: "conectix" },
  { format: "dmg", offset: -512, bytes: "koly" },
];

/** What stands on a disk, and so in a raw image of one. */
const DISK_SIGNATURES: readonly Signature[] = [
  { format: "gpt", offset: 512, bytes: "EFI PART" },
  { format: "gpt", offset: 4096, bytes: "EFI PART" },
  { format: "iso", offset: 0x8001, bytes: "CD001" },
];

/** How many bytes {@linkcode findImageFormat} and {@linkcode findAllFormats} look at from the start of a file. */
export const SIGNATURE_START_LENGTH = 0x8006;
/** How many bytes {@linkcode findAllFormats} looks at before the end of a file. */
export const SIGNATURE_END_LENGTH = 512;

const PARTITION_TABLE_OFFSET = 446;
const PARTITION_ENTRY_LENGTH = 16;
const PARTITION_COUNT = 4;

/**
 * Guesses which format of another kind an image has.
 *
 * @param start The first bytes of the file, at least 512 where it has as many.
 * @returns Name of the format, or `undefined` where it looks like none.
 */
export function findImageFormat(start: Uint8Array): string | undefined {
  return IMAGE_SIGNATURES.find((signature) => matches(signature, start))?.format;
}

/** What {@linkcode findAllFormats} found. */
export interface FoundFormats {
  /** Formats of disk images other than qcow2. */
  readonly images: readonly string[];
  /** What a disk begins with: `mbr`, `gpt`, `iso`. A raw image may well have it. */
  readonly disks: readonly string[];
}

/**
 * Finds every format that a file could be taken for.
 *
 * @param start The first {@linkcode SIGNATURE_START_LENGTH} bytes of the file, or all that it has.
 * @param end Its last {@linkcode SIGNATURE_END_LENGTH} bytes, or all that it has.
 * @returns The formats.
 */
export function findAllFormats(start: Uint8Array, end: Uint8Array): FoundFormats {
  const images = [
    ...IMAGE_SIGNATURES.filter((signature) => matches(signature, start)),
    ...FOOTER_SIGNATURES.filter((signature) => matches(signature, end)),
  ].map(({ format }) => format);
  const disks = DISK_SIGNATURES.filter((signature) => matches(signature, start)).map(({ format }) => format);
  if (hasPartitionTable(start)) disks.push("mbr");
  return { images: [...new Set(images)], disks: [...new Set(disks)] };
}

function matches({ offset, bytes }: Signature, part: Uint8Array): boolean {
  const first = offset < 0 ? part.length + offset : offset;
  return first >= 0 && [...bytes].every((byte, index) => part[first + index] === byte.charCodeAt(0));
}

/** The mark at the end of a boot sector, and entries in front of it that can be a partition table. */
function hasPartitionTable(start: Uint8Array): boolean {
  if (start[510] !== 0x55 || start[511] !== 0xaa) return false;
  let used = 0;
  for (let index = 0; index < PARTITION_COUNT; index++) {
    const position = PARTITION_TABLE_OFFSET + index * PARTITION_ENTRY_LENGTH;
    const status = start[position];
    if (status !== 0 && status !== 0x80) return false;
    if (start[position + 4] !== 0) used++;
  }
  return used > 0;
}
