/**
 * Jobs over whole images: convert, compare, commit, rebase, check, repair, resize, amend, measure, info, map and inspect.
 *
 * ```ts
 * import { convert } from "@disk/qcow2/operations";
 * ```
 *
 * @module
 */

export * from "./amend.ts";
export * from "./check.ts";
export * from "./compare.ts";
export * from "./commit.ts";
export * from "./compressible_disk.ts";
export * from "./convert.ts";
export { type DiskAction, DiskError } from "./disk_error.ts";
export {
  type BitmapInfo,
  type EncryptionInfo,
  type ImageInfo,
  imageInfo,
  type ImageInfoOptions,
  type LuksInfo,
  type LuksSlot,
  type Qcow2Info,
} from "./info.ts";
export * from "./inspect.ts";
export * from "./map.ts";
export * from "./measure.ts";
export * from "./rebase.ts";
export * from "./resize.ts";
export * from "./salvage.ts";
export * from "./untrusted.ts";
export type { Progress } from "../metadata/steps.ts";
