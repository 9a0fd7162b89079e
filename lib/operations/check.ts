/**
 * Checks an image file, and repairs it.
 *
 * @module
 */

import { acquireFile, type FileSource } from "../image/host_file.ts";
import {
  type CheckFinding,
  type CheckResult,
  checkSteps,
  type FindingKind,
  type RepairKind,
} from "../metadata/check.ts";
import { ImageMetadata } from "../metadata/image_metadata.ts";
import { allAtOnce, type Progress, type Steps } from "../metadata/steps.ts";
import type { AllocationStatistics } from "../metadata/table_walk.ts";
import type { BlockFile } from "../storage/block_file.ts";
import { inSlices } from "./time_slice.ts";

export type { AllocationStatistics, CheckFinding, CheckResult, FindingKind, RepairKind };

/** How {@linkcode check} checks. */
export interface CheckOptions {
  /** Called with each finding as it is found; one that is mended afterwards is told again, as fixed. */
  readonly onFinding?: (finding: CheckFinding) => void;
  /**
   * Whether to lock the file.
   *
   * @default {true}
   */
  readonly lock?: boolean;
  /** Called after each step, of some milliseconds at most, and at the end: how many entries of the uppermost tables are done. */
  readonly onProgress?: (progress: Progress) => void;
  /** Ends the operation early when it is aborted. */
  readonly signal?: AbortSignal;
}

/** How {@linkcode repair} repairs. */
export interface RepairOptions extends CheckOptions {
  /**
   * What to mend: `leaks` gives unused clusters back, `all` mends refcounts and flags as well.
   *
   * @default {"all"}
   */
  readonly kind?: RepairKind;
  /** Called once something was mended, with what was found until then, before all is checked again. */
  readonly onRepaired?: (result: CheckResult) => void;
}

/** How {@linkcode checkImage} checks. */
export interface CheckImageOptions extends Pick<CheckOptions, "onFinding" | "lock">, Pick<RepairOptions, "onRepaired"> {
  /** What to mend: `leaks` gives unused clusters back, `all` mends refcounts and flags as well. Nothing without it. */
  readonly repair?: RepairKind;
}

/**
 * Checks the metadata of a qcow2 image: that every cluster is counted as often as it is used. Nothing but the named file is
 * opened, so an image with a backing file or a data file can be checked; one that is marked as corrupt or dirty as well.
 *
 * The work is cut into slices, between which the event loop runs, so that a signal can end it. {@linkcode checkImage} does it all at
 * once.
 *
 * @param source Path of the image, or a file that was opened; it is closed at the end.
 * @param options Whom to tell, and what ends it early.
 * @returns What was found.
 * @throws {Qcow2Error} With the codes of `Qcow2File.open` where the file is no image that can be checked; `limit-exceeded`,
 * `invalid-header` or `corrupt` where the snapshot table or the bitmap directory cannot be read; `aborted` where the signal says so.
 *
 * @example Usage
 * ```ts
 * import { check, Qcow2File } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * Qcow2File.create(path, { size: 1 << 30 }).close();
 * const { corruptions, leaks } = await check(path, { signal: AbortSignal.timeout(60_000) });
 * assertEquals([corruptions, leaks], [0, 0]);
 * Deno.removeSync(path);
 * ```
 */
export async function check(source: FileSource, options: CheckOptions = {}): Promise<CheckResult> {
  using file = acquireFile(source, { write: false, lock: options.lock ?? true });
  return await inSlices(fileSteps(file, options), options);
}

/**
 * Repairs the metadata of a qcow2 image, and checks all of it again. What the disk reads stays as it is, but for what was contradicting
 * itself.
 *
 * Whatever ends the operation early, a crash included, leaves the image no worse than it was: at worst with more leaks. The work is cut
 * into slices, between which the event loop runs, so that a signal can end it.
 *
 * @param source Path of the image, or a file that was opened for writing; it is closed at the end.
 * @param options What to mend, whom to tell, and what ends it early.
 * @returns How much was mended, and what is left.
 * @throws {Qcow2Error} As {@linkcode check} does; `corrupt` also where only leaks were to be mended and the refcounts have to be
 * built anew.
 *
 * @example Usage
 * ```ts
 * import { Qcow2File, repair } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * const disk = Qcow2File.create(path, { size: 1 << 30 });
 * disk.writeAt(0, new Uint8Array(65536));
 * const { hostOffset } = disk.l2Table(0)?.[0] ?? {};
 * disk.close();
 * // The refcount of the cluster is lost: the first refcount block stands behind the refcount table.
 * using file = Deno.openSync(path, { write: true });
 * file.seekSync(131072 + (hostOffset ?? 0) / 65536 * 2, Deno.SeekMode.Start);
 * file.writeSync(new Uint8Array(2));
 *
 * const { corruptions, corruptionsFixed } = await repair(path);
 * assertEquals([corruptions, corruptionsFixed], [0, 1]);
 * Deno.removeSync(path);
 * ```
 */
export async function repair(source: FileSource, options: RepairOptions = {}): Promise<CheckResult> {
  const { kind = "all", lock = true } = options;
  using file = acquireFile(source, { write: true, lock });
  return await inSlices(fileSteps(file, { ...options, repair: kind }), options);
}

/**
 * Does what {@linkcode check} does, or {@linkcode repair} where it is told what to mend, and returns when it is done.
 *
 * @param source Path of the image, or a file that was opened; it is closed at the end.
 * @param options What to mend, and whom to tell.
 * @returns What was found, and how much of it was mended; what is left after a repair.
 * @throws {Qcow2Error} As {@linkcode repair} does, but for `aborted`.
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
  const { repair, lock = true } = options;
  using file = acquireFile(source, { write: repair !== undefined, lock });
  return allAtOnce(fileSteps(file, options));
}

function* fileSteps(
  file: BlockFile,
  { repair, onFinding, onRepaired }: CheckImageOptions,
): Steps<Progress, CheckResult> {
  const told = onFinding === undefined ? {} : { onFinding };
  const write = repair !== undefined;
  const metadata = ImageMetadata.open(file, { write, durability: "full", tolerant: true });
  const steps = checkSteps(metadata, { ...told, ...(repair === undefined ? {} : { repair }) });
  // A repair checks twice.
  const result = yield* partOf(steps, 0, write ? 2 : 1);
  if (write) metadata.flushForGood();
  const { corruptionsFixed, leaksFixed } = result;
  if (corruptionsFixed + leaksFixed === 0) return result;
  onRepaired?.(result);
  const mended = ImageMetadata.open(file, { write: false, durability: "full", tolerant: true });
  return { ...yield* partOf(checkSteps(mended, told), 1, 2), corruptionsFixed, leaksFixed };
}

/** Tells of work as one of several equal parts. */
function* partOf<Result>(steps: Steps<Progress, Result>, index: number, count: number): Steps<Progress, Result> {
  for (;;) {
    const step = steps.next();
    if (step.done === true) return step.value;
    const { done, total } = step.value;
    yield { done: index * total + done, total: count * total };
  }
}
