/**
 * Tells image formats apart by their first bytes.
 *
 * @module
 */

import { MAGIC } from "../format/header.ts";
import { viewOf } from "../format/uint64.ts";
import type { BlockFile } from "../storage/block_file.ts";
import { acquireFile, type FileSource } from "./host_file.ts";

/** An image format that this package reads and writes. */
export type ImageType = "raw" | "qcow2";

/**
 * Guesses the format of an image: `qcow2` where it begins with the magic and a version that exists, `raw` otherwise.
 *
 * It is a guess. Whoever writes to a raw disk can make it look like qcow2, so a disk that strangers write to must be opened
 * with the format it is known to have.
 *
 * @param source Path of the image.
 * @returns The format it looks like.
 * @throws {Qcow2Error} With code `not-found`, `permission-denied` or `io` where the file cannot be read.
 *
 * @example Usage
 * ```ts
 * import { detectImageType } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * Deno.writeFileSync(path, new Uint8Array(3));
 * assertEquals(detectImageType(path), "raw");
 * Deno.removeSync(path);
 * ```
 */
export function detectImageType(source: string | URL): ImageType {
  using file = acquireFile(source satisfies FileSource, { write: false, lock: false });
  return imageTypeOf(file);
}

/**
 * Guesses the format of an image that was opened, as {@linkcode detectImageType} does.
 *
 * @param file The image's file.
 * @returns The format it looks like.
 */
export function imageTypeOf(file: BlockFile): ImageType {
  // Magic and version.
  const start = new Uint8Array(8);
  if (file.readAt(0, start) < start.length) return "raw";
  const view = viewOf(start);
  return view.getUint32(0) === MAGIC && view.getUint32(4) >= 2 ? "qcow2" : "raw";
}
