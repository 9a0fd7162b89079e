/**
 * The feature bits of a version 3 header and their names.
 *
 * @module
 */

import { viewOf } from "./uint64.ts";

/** Incompatible feature bits: an image with one that a program does not know must not be opened. */
export const INCOMPATIBLE = {
  /** Refcounts may be stale: they are rebuilt before the image is written. */
  dirty: 1n << 0n,
  /** A table was found damaged: the image may only be read until it is repaired. */
  corrupt: 1n << 1n,
  /** Guest clusters stand in another file. */
  dataFile: 1n << 2n,
  /** Compressed clusters use another method than deflate. */
  compressionType: 1n << 3n,
  /** L2 entries have subclusters. */
  extendedL2: 1n << 4n,
} as const;

/** Compatible feature bits: they may be ignored. */
export const COMPATIBLE = {
  /** A writer may delay refcounts as long as it sets the dirty bit. */
  lazyRefcounts: 1n << 0n,
} as const;

/** Autoclear feature bits: a writer that does not know one clears it. */
export const AUTOCLEAR = {
  /** The bitmaps extension agrees with the disk's content. */
  bitmaps: 1n << 0n,
  /** The external data file can be read as a raw image. */
  rawDataFile: 1n << 1n,
} as const;

/** All incompatible bits that the format defines and this package knows. */
export const KNOWN_INCOMPATIBLE: bigint = INCOMPATIBLE.dirty | INCOMPATIBLE.corrupt | INCOMPATIBLE.dataFile |
  INCOMPATIBLE.compressionType | INCOMPATIBLE.extendedL2;
/** All autoclear bits that this package knows and keeps truthful. */
export const KNOWN_AUTOCLEAR: bigint = AUTOCLEAR.bitmaps | AUTOCLEAR.rawDataFile;

/** One line of the feature name table. */
export interface FeatureName {
  /** Which field the bit belongs to. */
  readonly kind: "incompatible" | "compatible" | "autoclear";
  /** The bit's number, 0 to 63. */
  readonly bit: number;
  /** Its name, at most 46 bytes in UTF-8. */
  readonly name: string;
}

/** The names that are written into every new image of version 3, so that older programs can say what they lack. */
export const FEATURE_NAMES: readonly FeatureName[] = [
  { kind: "incompatible", bit: 0, name: "dirty bit" },
  { kind: "incompatible", bit: 1, name: "corrupt bit" },
  { kind: "incompatible", bit: 2, name: "external data file" },
  { kind: "incompatible", bit: 3, name: "compression type" },
  { kind: "incompatible", bit: 4, name: "extended L2 entries" },
  { kind: "compatible", bit: 0, name: "lazy refcounts" },
  { kind: "autoclear", bit: 0, name: "bitmaps" },
  { kind: "autoclear", bit: 1, name: "raw external data" },
];

const FEATURE_ENTRY_LENGTH = 48;
const FEATURE_NAME_LENGTH = 46;
const FEATURE_KINDS = ["incompatible", "compatible", "autoclear"] as const;

/**
 * Decodes the data of the feature name table extension. Entries of a kind that the format does not define are left out.
 *
 * @param data The extension's data.
 * @returns The names it holds.
 */
export function decodeFeatureNames(data: Uint8Array): FeatureName[] {
  const names: FeatureName[] = [];
  for (let start = 0; start + FEATURE_ENTRY_LENGTH <= data.length; start += FEATURE_ENTRY_LENGTH) {
    const kind = FEATURE_KINDS[data[start] ?? FEATURE_KINDS.length];
    if (kind === undefined) continue;
    const nameField = data.subarray(start + 2, start + 2 + FEATURE_NAME_LENGTH);
    const end = nameField.indexOf(0);
    const name = new TextDecoder().decode(end < 0 ? nameField : nameField.subarray(0, end));
    names.push({ kind, bit: data[start + 1] ?? 0, name });
  }
  return names;
}

/**
 * Encodes the data of the feature name table extension.
 *
 * @param names What to write.
 * @returns 48 bytes for each name.
 */
export function encodeFeatureNames(names: readonly FeatureName[]): Uint8Array<ArrayBuffer> {
  const data = new Uint8Array(names.length * FEATURE_ENTRY_LENGTH);
  const view = viewOf(data);
  names.forEach(({ kind, bit, name }, index) => {
    const start = index * FEATURE_ENTRY_LENGTH;
    view.setUint8(start, FEATURE_KINDS.indexOf(kind));
    view.setUint8(start + 1, bit);
    new TextEncoder().encodeInto(name, data.subarray(start + 2, start + 2 + FEATURE_NAME_LENGTH));
  });
  return data;
}

/**
 * Names the incompatible bits that this package does not know, the way QEMU words it.
 *
 * @param features The incompatible feature field.
 * @param names The image's own feature name table.
 * @returns The names, separated by commas; a bit without a name is `Unknown incompatible feature: 80` with its mask in
 * hexadecimal. Empty where every bit is known.
 */
export function describeUnknownFeatures(features: bigint, names: readonly FeatureName[]): string {
  let rest = features & ~KNOWN_INCOMPATIBLE;
  const found: string[] = [];
  for (const { kind, bit, name } of names) {
    if (kind !== "incompatible" || (rest & (1n << BigInt(bit))) === 0n) continue;
    found.push(name);
    rest &= ~(1n << BigInt(bit));
  }
  if (rest !== 0n) found.push(`Unknown incompatible feature: ${rest.toString(16)}`);
  return found.join(", ");
}
