/**
 * Checks an image file, and repairs it.
 *
 * @module
 */

import { acquireFile, type FileSource } from "../image/host_file.ts";
import { type CheckFinding, checkMetadata, type CheckResult, type RepairKind } from "../metadata/check.ts";
import type { AllocationStatistics } from "../metadata/host_references.ts";
import { ImageMetadata } from "../metadata/image_metadata.ts";

export type { AllocationStatistics, CheckFinding, CheckResult, RepairKind };

/** How {@linkcode checkImage} checks. */
export interface CheckImageOptions {
  /** What to mend: `leaks` gives unused clusters back, `all` mends refcounts and flags as well. Nothing without it. */
  readonly repair?: RepairKind;
  /** Called with each finding as it is found; one that is mended afterwards is told again, as fixed. */
  readonly onFinding?: (finding: CheckFinding) => void;
  /**
   * Whether to lock the file.
   *
   * @default {true}
   */
  readonly lock?: boolean;
}

/**
 * Checks the metadata of a qcow2 image: that every cluster is counted as often as it is used. Nothing but the named file is
 * opened, so an image with a backing file or a data file can be checked; one that is marked as corrupt or dirty as well.
 *
 * @param source Path of the image, or a file that was opened; it is closed at the end.
 * @param options What to mend, and whom to tell.
 * @returns What was found.
 * @throws {Qcow2Error} With the codes of `Qcow2File.open` where the file is no image that can be checked.
 *
 * @example Usage
 * ```ts
 * import { checkImage, Qcow2File } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * Qcow2File.create(path, { size: 1 << 30 }).close();
 * const { corruptions, leaks } = checkImage(path);
 * assertEquals([corruptions, leaks], [0, 0]);
 * Deno.removeSync(path);
 * ```
 */
export function checkImage(source: FileSource, options: CheckImageOptions = {}): CheckResult {
  const { repair, onFinding, lock = true } = options;
  const write = repair !== undefined;
  using file = acquireFile(source, { write, lock });
  const metadata = ImageMetadata.open(file, { write, durability: "full" });
  const result = checkMetadata(metadata, {
    ...(repair === undefined ? {} : { repair }),
    ...(onFinding === undefined ? {} : { onFinding }),
  });
  if (write) metadata.flushForGood();
  return result;
}
