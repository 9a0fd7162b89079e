/**
 * Checks an image file, and repairs it.
 *
 * @module
 */

import { acquireFile, type FileSource } from "../image/host_file.ts";
import {
  type CheckFinding,
  checkMetadata,
  type CheckResult,
  type FindingKind,
  type RepairKind,
} from "../metadata/check.ts";
import { ImageMetadata } from "../metadata/image_metadata.ts";
import type { AllocationStatistics } from "../metadata/table_walk.ts";

export type { AllocationStatistics, CheckFinding, CheckResult, FindingKind, RepairKind };

/** How {@linkcode checkImage} checks. */
export interface CheckImageOptions {
  /** What to mend: `leaks` gives unused clusters back, `all` mends refcounts and flags as well. Nothing without it. */
  readonly repair?: RepairKind;
  /** Called with each finding as it is found; one that is mended afterwards is told again, as fixed. */
  readonly onFinding?: (finding: CheckFinding) => void;
  /** Called once a repair has mended something, with what was found until then, before all is checked again. */
  readonly onRepaired?: (result: CheckResult) => void;
  /**
   * Whether to lock the file.
   *
   * @default {true}
   */
  readonly lock?: boolean;
}

/**
 * Checks the metadata of a qcow2 image: that every cluster is counted as often as it is used. Nothing but the named file is
 * opened, so an image with a backing file or a data file can be checked; one that is marked as corrupt or dirty as well. After a
 * repair all is checked again.
 *
 * @param source Path of the image, or a file that was opened; it is closed at the end.
 * @param options What to mend, and whom to tell.
 * @returns What was found, and how much of it was mended; what is left after a repair.
 * @throws {Qcow2Error} With the codes of `Qcow2File.open` where the file is no image that can be checked; `limit-exceeded`,
 * `invalid-header` or `corrupt` where the snapshot table or the bitmap directory cannot be read; `corrupt` where only leaks were
 * to be mended and the refcounts have to be built anew.
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
  const { repair, onRepaired, lock = true } = options;
  const onFinding = options.onFinding === undefined ? {} : { onFinding: options.onFinding };
  const write = repair !== undefined;
  using file = acquireFile(source, { write, lock });
  const metadata = ImageMetadata.open(file, { write, durability: "full", tolerant: true });
  const result = checkMetadata(metadata, { ...onFinding, ...(repair === undefined ? {} : { repair }) });
  if (write) metadata.flushForGood();
  const { corruptionsFixed, leaksFixed } = result;
  if (corruptionsFixed + leaksFixed === 0) return result;
  onRepaired?.(result);
  const mended = ImageMetadata.open(file, { write: false, durability: "full", tolerant: true });
  return { ...checkMetadata(mended, onFinding), corruptionsFixed, leaksFixed };
}
