/**
 * The backing file that an image names: what may be opened, and where it is.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { AUTOCLEAR } from "../format/feature_bits.ts";
import { EXTENSION } from "../format/header_extensions.ts";
import { encodeHeader, extensionText, type Header } from "../format/header.ts";
import { MAX_BACKING_FILE_NAME_LENGTH } from "../format/limits.ts";
import type { ImageType } from "./detect.ts";
import { localPath, realPath } from "./local_name.ts";

/** What an image says of its backing file. */
export interface BackingReference {
  /** The name as it stands in the image. */
  readonly name: string;
  /** The format as it stands in the image, or `undefined` where the image does not say. */
  readonly format: string | undefined;
  /**
   * Path of the file: a relative name begins in the folder of the image that names it. `undefined` where the name is no local
   * file's, or where the image's own path is not known.
   */
  readonly path: string | undefined;
}

/**
 * Whether a backing file is opened, and how: `refuse` opens nothing, `allow` opens local files with the format that the image
 * names, a function opens what it likes, or nothing: then unallocated clusters read as zeroes. A disk stands in for whatever the
 * image names. The disk belongs to the image and is closed with it.
 */
export type BackingPolicy = "refuse" | "allow" | Disk | ((reference: BackingReference) => Disk | undefined);

/** The deepest chain of images. */
export const MAX_BACKING_DEPTH = 200;

/**
 * What an image says of its backing file.
 *
 * @param header The image's header.
 * @param imagePath Path of the image, or another name where it has none.
 * @returns The reference, or `undefined` where the image has no backing file.
 */
export function backingReference(header: Header, imagePath: string): BackingReference | undefined {
  if (header.backingFile === undefined) return undefined;
  return backingReferenceOf(header.backingFile, extensionText(header, EXTENSION.backingFormat), imagePath);
}

/**
 * What a name and a format mean that stand in an image, or shall stand in one.
 *
 * @param name Name of the backing file.
 * @param format Its format, where it is said.
 * @param imagePath Path of the image.
 * @returns The reference.
 */
export function backingReferenceOf(name: string, format: string | undefined, imagePath: string): BackingReference {
  return { name, format, path: localPath(name, imagePath) };
}

/**
 * What `allow` opens.
 *
 * @param reference What the image says.
 * @param chain Real paths of the images above, the one that names this file last.
 * @returns Path and format of the file.
 * @throws {Qcow2Error} With code `unsupported` where the name is no local file's or the format is missing or unknown,
 * `corrupt` where the chain comes back to itself, `limit-exceeded` where it is too deep.
 */
export function allowedBacking(
  reference: BackingReference,
  chain: readonly string[],
): { readonly path: string; readonly format: ImageType } {
  const { name, format, path } = reference;
  if (path === undefined) {
    throw new Qcow2Error("unsupported", `Backing file "${name}" is no local file`, { found: name });
  }
  if (format !== "raw" && format !== "qcow2") {
    const found = format === undefined ? "no format" : `the format ${format}`;
    throw new Qcow2Error("unsupported", `Image names ${found} for its backing file "${name}", expected raw or qcow2`, {
      found: format ?? "none",
      expected: "raw or qcow2",
    });
  }
  if (chain.length >= MAX_BACKING_DEPTH) {
    throw new Qcow2Error("limit-exceeded", `Chain of backing files is deeper than ${MAX_BACKING_DEPTH}`, {
      found: chain.length,
      expected: `at most ${MAX_BACKING_DEPTH}`,
    });
  }
  if (chain.includes(realPath(path))) {
    throw new Qcow2Error("corrupt", `Backing file "${name}" leads back to an image that stands above it`, {
      found: name,
    });
  }
  return { path, format };
}

/**
 * What changes in a header when it names another backing file.
 *
 * @param header The header.
 * @param name Name of the new backing file, or `undefined` for none.
 * @param format Its format; says nothing without a name.
 * @returns The fields that change. Unknown extensions stay as they are.
 * @throws {Qcow2Error} With code `invalid-argument` where the name is empty or too long or its format is missing, or where the
 * data file is a raw image of the disk; `no-space` where it does not fit into the first cluster.
 */
export function withBackingFile(
  header: Header,
  name: string | undefined,
  format: string | undefined,
): Pick<Header, "backingFile" | "extensions"> {
  const others = header.extensions.filter(({ type }) => type !== EXTENSION.backingFormat);
  if (name === undefined) return { backingFile: undefined, extensions: others };
  const nameLength = new TextEncoder().encode(name).length;
  if (nameLength === 0 || nameLength > MAX_BACKING_FILE_NAME_LENGTH) {
    const expected = `1 to ${MAX_BACKING_FILE_NAME_LENGTH}`;
    throw new Qcow2Error("invalid-argument", `Name of the backing file has ${nameLength} bytes, expected ${expected}`, {
      found: nameLength,
      expected,
    });
  }
  if (format === undefined) {
    throw new Qcow2Error("invalid-argument", `Backing file "${name}" was given without its format`, {
      expected: "backingFormat",
    });
  }
  if ((header.autoclearFeatures & AUTOCLEAR.rawDataFile) !== 0n) {
    throw new Qcow2Error("invalid-argument", "Backing file and raw data file cannot be used at the same time", {
      expected: "no raw data file",
    });
  }
  const data = new TextEncoder().encode(format);
  const changed = { backingFile: name, extensions: [{ type: EXTENSION.backingFormat, data }, ...others] };
  const length = encodeHeader({ ...header, ...changed, backingFile: undefined }).length + nameLength;
  if (length > 2 ** header.clusterBits) {
    throw new Qcow2Error("no-space", `Header and name of the backing file need ${length} bytes, expected one cluster`, {
      found: length,
      expected: `at most ${2 ** header.clusterBits}`,
    });
  }
  return changed;
}
