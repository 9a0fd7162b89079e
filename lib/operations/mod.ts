/**
 * Jobs over whole images: convert and check.
 *
 * ```ts
 * import { convert } from "@disk/qcow2/operations";
 * ```
 *
 * @module
 */

export * from "./check.ts";
export * from "./convert.ts";
