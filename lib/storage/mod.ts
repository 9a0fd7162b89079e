/**
 * What stands beneath an image: files of the host, and memory.
 *
 * @example Usage
 * ```ts
 * import { type BlockFile, MemoryBlockFile } from "@disk/qcow2/storage";
 * import { assertEquals } from "@std/assert";
 *
 * using file: BlockFile = new MemoryBlockFile();
 * file.writeAt(512, new Uint8Array([1, 2, 3]));
 * assertEquals(file.size, 515);
 * ```
 *
 * @module
 */

export type { BlockFile, DataExtent } from "./block_file.ts";
export {
  FsBlockFile,
  type FsBlockFileCreateOptions,
  type FsBlockFileFromOptions,
  type FsBlockFileOpenOptions,
} from "./fs_block_file.ts";
export { MemoryBlockFile, type MemoryBlockFileOptions } from "./memory_block_file.ts";
