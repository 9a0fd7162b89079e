/**
 * The qcow2 format as bytes and values: pure functions over `Uint8Array` and `DataView`, without any file.
 *
 * ```ts
 * import { decodeHeader } from "@disk/qcow2/format";
 * ```
 *
 * @module
 */

export * from "./feature_bits.ts";
export * from "./geometry.ts";
export * from "./header.ts";
export * from "./header_extensions.ts";
export * from "./layout.ts";
export * from "./limits.ts";
export * from "./refcount_entries.ts";
export * from "./snapshot_table.ts";
export * from "./bitmap_directory.ts";
export * from "./table_entries.ts";
