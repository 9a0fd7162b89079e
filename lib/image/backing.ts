/**
 * The backing file that an image names: what may be opened, and where it is.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { EXTENSION } from "../format/header_extensions.ts";
import { extensionText, type Header } from "../format/header.ts";
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
 * names, a function opens what it likes. The disk that it returns belongs to the image and is closed with it.
 */
export type BackingPolicy = "refuse" | "allow" | ((reference: BackingReference) => Disk);

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
