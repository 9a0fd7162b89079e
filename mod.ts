/**
 * The qcow2 disk image engine for Deno.
 *
 * {@linkcode Qcow2File} opens and creates images, {@linkcode RawFile} raw ones; both are a {@linkcode Disk}, which
 * {@linkcode convert} copies from one to the other. {@linkcode check} looks for damage and {@linkcode repair} mends it. Everything
 * throws {@linkcode Qcow2Error}.
 *
 * @example Usage
 * ```ts
 * import { Qcow2File } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile({ suffix: ".qcow2" });
 * using disk = Qcow2File.create(path, { size: 10 * 1024 ** 3 });
 * disk.writeAt(0, new TextEncoder().encode("boot"));
 * disk.flush();
 * assertEquals(disk.seekHole(0), 65536);
 * disk.close();
 * Deno.removeSync(path);
 * ```
 *
 * @module
 */

export type { Closer, ReaderSync, SeekerSync, SeekMode, WriterSync } from "@std/io/types";
export * from "./lib/disk.ts";
export * from "./lib/errors.ts";
export type { CompressionType, EncryptionMethod, Header } from "./lib/format/header.ts";
export type { HeaderExtension } from "./lib/format/header_extensions.ts";
export type { LayoutOptions } from "./lib/format/layout.ts";
export type { Snapshot } from "./lib/format/snapshot_table.ts";
export type { AmendOptions as ImageAmendOptions, AmendProgress } from "./lib/image/amend.ts";
export type { AddBitmapOptions, Bitmap, DirtyExtent } from "./lib/image/bitmaps.ts";
export type { BackingPolicy, BackingReference } from "./lib/image/backing.ts";
export type { DataFilePolicy, DataFileReference, ExistingDataFile } from "./lib/image/data_file.ts";
export { detectImageType, type ImageType } from "./lib/image/detect.ts";
export type { FileSource } from "./lib/image/host_file.ts";
export type { CreateOptions, Durability, ImageOptions, OpenOptions, SnapshotOptions } from "./lib/image/options.ts";
export type { Preallocation } from "./lib/image/preallocation.ts";
export type { ResizeOptions as ImageResizeOptions } from "./lib/image/resize.ts";
export type { RevertOptions } from "./lib/image/revert.ts";
export { Qcow2File, type TableEntry } from "./lib/image/qcow2_file.ts";
export { type RawCreateOptions, RawFile, type RawOpenOptions } from "./lib/image/raw_file.ts";
export * from "./lib/operations/mod.ts";
export type { BlockFile, DataExtent } from "./lib/storage/block_file.ts";
