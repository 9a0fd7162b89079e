/**
 * {@linkcode Qcow2File}: a qcow2 image as a disk.
 *
 * @module
 */

import type { Closer, ReaderSync, SeekerSync, WriterSync } from "@std/io/types";
import type { Decompressor, Disk, Extent, ExtentOptions, HostBytes, WriteZeroesOptions } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { COMPRESSED_FLAG, COPIED_FLAG, entryOffset } from "../format/table_entries.ts";
import { type CompressionType, hasDataFile, hasExtendedL2, type Header } from "../format/header.ts";
import { createLayout, type Layout } from "../format/layout.ts";
import type { Snapshot } from "../format/snapshot_table.ts";
import { getRefcount } from "../format/refcount_entries.ts";
import { viewOf } from "../format/uint64.ts";
import { checkMetadata, type CheckResult, type RepairKind } from "../metadata/check.ts";
import { ImageMetadata, readHeader } from "../metadata/image_metadata.ts";
import { applySnapshot, createSnapshot, deleteSnapshot } from "../metadata/snapshot_changes.ts";
import { findSnapshot, readSnapshotTable } from "../metadata/snapshots.ts";
import { allAtOnce, type Progress, type Steps } from "../metadata/steps.ts";
import type { BlockFile } from "../storage/block_file.ts";
import { type AddBitmapOptions, type Bitmap, Bitmaps, type DirtyExtent } from "./bitmaps.ts";
import { amendImage, type AmendOptions, type AmendProgress, type AmendTarget } from "./amend.ts";
import { allowedBacking, backingReference, withBackingFile } from "./backing.ts";
import { checkRange, seekTo } from "./cursor.ts";
import { createDataFile, type NewDataFile, openDataFile } from "./data_file.ts";
import { GuestIo } from "./guest_io.ts";
import { GuestZeroes } from "./guest_zeroes.ts";
import { acquireFile, createFile, type FileSource } from "./host_file.ts";
import { realPath } from "./local_name.ts";
import type { CreateOptions, OpenOptions, SnapshotOptions } from "./options.ts";
import { checkedPreallocation, preallocateGuestRange } from "./preallocation.ts";
import { resizeImage, type ResizeOptions } from "./resize.ts";
import { RawFile } from "./raw_file.ts";
import { type RevertOptions, revertToBacking } from "./revert.ts";
import { SnapshotDisk } from "./snapshot_disk.ts";

/** The files that an image names and that were opened with it. */
interface OtherFiles {
  readonly backing: Disk | undefined;
  readonly dataFile: BlockFile | undefined;
}

/** What an L2 entry or L1 entry points to, for inspection. */
export interface TableEntry {
  /** Host offset in bytes; 0 where there is none. For a compressed cluster the descriptor, not an offset. */
  readonly hostOffset: number;
  /** Whether the cluster's refcount is exactly one, as the entry says. */
  readonly copied: boolean;
  /** Whether the entry is a compressed cluster descriptor; never for L1 entries. */
  readonly compressed: boolean;
  /** Whether the entry reads as zeroes; never for L1 entries. */
  readonly zero: boolean;
  /** The states of the subclusters, one bit each, the first one lowest; only in L2 entries of images that have them. */
  readonly subclusters?: { readonly allocated: number; readonly zero: number };
}

/**
 * A qcow2 image, version 2 or 3, as a {@linkcode Disk}; also a `ReaderSync`, `WriterSync`, `SeekerSync` and `Closer`, so that
 * it can stand where a `Deno.FsFile` stands.
 *
 * All calls are synchronous. What was written is durable after {@linkcode Qcow2File.flush} and after
 * {@linkcode Qcow2File.close}. A crash in between leaves an image that `check` finds sound, and everything flushed intact.
 *
 * @example Usage
 * ```ts
 * import { Qcow2File } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile({ suffix: ".qcow2" });
 * {
 *   using disk = Qcow2File.create(path, { size: 10 * 1024 ** 3 });
 *   disk.writeAt(1_000_000, new Uint8Array([1, 2, 3]));
 * }
 * using disk = Qcow2File.open(path);
 * const bytes = new Uint8Array(3);
 * disk.readAt(1_000_000, bytes);
 * assertEquals([...bytes], [1, 2, 3]);
 * disk.close();
 * Deno.removeSync(path);
 * ```
 */
export class Qcow2File implements Disk, ReaderSync, WriterSync, SeekerSync, Closer {
  readonly #file: BlockFile;
  readonly #options: Omit<OpenOptions, "dataFile">;
  #metadata: ImageMetadata;
  #io: GuestIo;
  #zeroes: GuestZeroes;
  #bitmaps: Bitmaps;
  readonly #backing: Disk | undefined;
  readonly #dataFile: BlockFile | undefined;
  readonly #write: boolean;
  readonly #openSnapshots = new Set<SnapshotDisk>();
  #cursor = 0;
  #closed = false;
  /** What is being done in steps, if anything. */
  #work: Disposable | undefined;

  private constructor(
    file: BlockFile,
    options: Omit<OpenOptions, "dataFile">,
    { backing, dataFile }: OtherFiles,
  ) {
    this.#file = file;
    this.#write = options.write ?? false;
    this.#options = options;
    this.#metadata = openMetadata(file, options, dataFile);
    this.#backing = backing;
    this.#dataFile = dataFile;
    this.#io = new GuestIo(this.#metadata, backing);
    this.#zeroes = new GuestZeroes(this.#metadata, this.#io, backing);
    this.#bitmaps = new Bitmaps(this.#metadata);
    if (this.#write) this.#prepareForWriting();
  }

  /**
   * Opens an image. The cost does not depend on the image's size.
   *
   * Nothing but the named file is opened unless `backing` or `dataFile` allows it: otherwise an image with a backing file or
   * an external data file is refused.
   *
   * @param source Path of the image, or a file that was opened (for reading and writing, to write). The file is the image's
   * from here on: it is closed with it, and where opening fails.
   * @param options How to open it.
   * @returns The image.
   * @throws {Qcow2Error} With code `not-found`, `permission-denied`, `locked` or `io` where the file cannot be had;
   * `not-qcow2`, `unsupported-version`, `unknown-feature`, `unsupported`, `encrypted`, `backing-refused`,
   * `data-file-refused`, `invalid-header`, `limit-exceeded` or `corrupt` where the image cannot be read; `marked-corrupt`
   * where it shall be written and carries the corrupt bit. An image that was not closed properly (the dirty bit) is repaired
   * first where it shall be written.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * Qcow2File.create(path, { size: 4096 }).close();
   * using disk = Qcow2File.open(path, { write: true });
   * assertEquals(disk.size, 4096);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  static open(source: FileSource, options: OpenOptions = {}): Qcow2File {
    return Qcow2File.#openInChain(source, options, []);
  }

  static #openInChain(source: FileSource, options: OpenOptions, chain: readonly string[]): Qcow2File {
    const file = acquireFile(source, { write: options.write ?? false, lock: options.lock ?? true });
    const { write = false, lock = true } = options;
    let backing: Disk | undefined;
    let dataFile: BlockFile | undefined;
    try {
      const header = readHeader(file);
      refuseWhatCannotBeRead(header, write);
      dataFile = openDataFile(header, file.name, { policy: options.dataFile ?? "refuse", write, lock });
      backing = Qcow2File.#openBacking(header, file.name, options, chain);
      return new Qcow2File(file, options, { backing, dataFile });
    } catch (error) {
      backing?.close();
      dataFile?.close();
      file.close();
      throw error;
    }
  }

  /**
   * Creates an empty image and opens it for writing. A file that is there already is replaced, unless `createNew` is set or
   * somebody has it open.
   *
   * @param target Path of the image, or an empty file that was opened for reading and writing.
   * @param options Size and format.
   * @returns The image.
   * @throws {Qcow2Error} With code `invalid-argument` where the options contradict the format, `already-exists`,
   * `permission-denied`, `locked`, `no-space` or `io` where the file cannot be written.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1024 ** 4, clusterSize: 2 * 1024 ** 2 });
   * assertEquals(disk.header.clusterBits, 21);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  static create(target: FileSource, options: CreateOptions): Qcow2File {
    const name = nameOf(target);
    if (options.backingFile !== undefined && options.backingFormat === undefined) {
      throw new Qcow2Error("invalid-argument", `Backing file "${options.backingFile}" was given without its format`, {
        expected: "backingFormat",
      });
    }
    // Everything that can be wrong with the options is found before the file is touched.
    const preallocation = checkedPreallocation(options.preallocation);
    if (preallocation !== "off" && options.backingFile !== undefined && options.extendedL2 !== true) {
      throw new Qcow2Error(
        "invalid-argument",
        "Backing file and preallocation can only be used at the same time if L2 entries are extended",
        { found: preallocation, expected: "off" },
      );
    }
    const planned = createLayout({ ...options, size: options.size ?? 0 });
    const { backing: policy = "allow", lock = true, existingDataFile: existing = "refuse" } = options;
    // Whoever lets a chain be opened means the data files in it as well.
    const chainOptions = { ...options, backing: policy, dataFile: policy === "refuse" ? policy : "allow" } as const;
    const backing = Qcow2File.#openBacking(planned.header, name, chainOptions, []);
    let dataFile: NewDataFile | undefined;
    try {
      const size = options.size ?? backing?.size;
      if (size === undefined) throw new Qcow2Error("invalid-argument", "Image creation needs a size");
      const { preallocation } = options;
      const wholeRefcountTable = preallocation === "falloc" || preallocation === "full";
      const layout = createLayout({ wholeRefcountTable, ...options, size });
      const openPolicy = options.openDataFile ?? "allow";
      dataFile = createDataFile(layout.header, name, { policy: openPolicy, write: true, lock, existing });
      return Qcow2File.#createEmpty(target, layout, options, backing, dataFile);
    } catch (error) {
      backing?.close();
      dataFile?.abandon();
      throw error;
    }
  }

  static #createEmpty(
    target: FileSource,
    layout: Layout,
    options: CreateOptions,
    backing: Disk | undefined,
    dataFile: NewDataFile | undefined,
  ): Qcow2File {
    const file = createFile(target, { createNew: options.createNew ?? false, lock: options.lock ?? true });
    try {
      const { header } = layout;
      const { durability = "full" } = options;
      dataFile?.prepare(header.size, options.preallocation ?? "off");
      if (durability === "full") dataFile?.file.sync();
      file.truncate(layout.fileSize);
      file.writeAt(header.refcountTableOffset, layout.refcountTable);
      file.writeAt(layout.refcountBlocksOffset, layout.refcountBlocks);
      // The header comes last, when everything that it points to is durable: until it is there, the file is no image.
      if (durability === "full") file.sync();
      file.writeAt(0, layout.headerCluster);
      if (durability === "full") file.sync();
      const image = new Qcow2File(file, { ...options, write: true }, { backing, dataFile: dataFile?.file });
      if (durability !== "full") image.#metadata.markUnsynced();
      image.#allocate(options, dataFile?.keepsContent ?? false);
      return image;
    } catch (error) {
      file.close();
      throw error;
    }
  }

  /** Allocates what a fresh image shall have from the start: of a raw data file everything, since it holds the whole disk. */
  #allocate({ preallocation = "off", dataFileRaw = false }: CreateOptions, keepsContent: boolean): void {
    if (preallocation === "off" && !dataFileRaw) return;
    this.#metadata.prepareForWriting();
    if (keepsContent) this.#io.mapDataFile();
    else {
      const mode = preallocation === "off" ? "metadata" : preallocation;
      allAtOnce(preallocateGuestRange(this.#metadata, 0, this.size, mode));
    }
    this.flush();
  }

  /** Opens the backing file that an image names, where the caller allows it. */
  static #openBacking(
    header: Header,
    imagePath: string,
    options: OpenOptions,
    chain: readonly string[],
  ): Disk | undefined {
    const reference = backingReference(header, imagePath);
    const { backing: policy = "refuse", lock = true } = options;
    if (typeof policy === "object") return policy;
    if (reference === undefined) return undefined;
    if (typeof policy === "function") return policy(reference);
    if (policy === "refuse") {
      throw new Qcow2Error(
        "backing-refused",
        `Image has the backing file "${reference.name}"; open it with { backing: "allow" } to read that file too`,
        { offset: 8, found: reference.name },
      );
    }
    const above = [...chain, realPath(imagePath)];
    const { path, format } = allowedBacking(reference, above);
    const cacheSize = options.cacheSize === undefined ? {} : { cacheSize: options.cacheSize };
    try {
      const dataFile = options.dataFile ?? "refuse";
      return format === "raw"
        ? RawFile.open(path, { lock })
        : Qcow2File.#openInChain(path, { backing: policy, dataFile, lock, ...cacheSize }, above);
    } catch (error) {
      if (!(error instanceof Qcow2Error)) throw error;
      throw new Qcow2Error(error.code, `Cannot open backing file "${reference.name}": ${error.message}`, {
        cause: error,
      });
    }
  }

  /** The virtual size in bytes. */
  get size(): number {
    return this.#metadata.diskSize;
  }

  /** The cluster size in bytes. */
  get allocationSize(): number {
    return this.#metadata.geometry.clusterSize;
  }

  /** How clusters are compressed, where they are. */
  get compressionType(): CompressionType {
    return this.#metadata.header.compressionType;
  }

  /** The disk that unallocated clusters read from, where there is one. */
  get backing(): Disk | undefined {
    return this.#backing;
  }

  /** Whether the image may be changed. */
  get writable(): boolean {
    return this.#write;
  }

  /** The header as it stands in the file. */
  get header(): Header {
    return this.#metadata.header;
  }

  /**
   * Fills a buffer from the disk: the whole buffer or an error, never short.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param into What to fill.
   * @throws {Qcow2Error} With code `out-of-range` where the disk ends before; `corrupt` where a table is damaged;
   * `unsupported` where a cluster is compressed in a way that the runtime does not know; `io` where the host fails.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 4096 });
   * const bytes = new Uint8Array(512).fill(1);
   * disk.readAt(512, bytes);
   * assertEquals(bytes, new Uint8Array(512));
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  readAt(offset: number, into: Uint8Array): void {
    this.#assertOpen();
    checkRange(offset, into.length, this.size);
    this.#io.read(offset, into);
  }

  /**
   * Fills a buffer as `readAt` does, while the caller goes on: what stands on the host as it is, another thread reads.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param into What to fill. Until the promise is settled it must be left alone, the range not be written and the disk not be
   * closed.
   * @param decompressor Who decompresses clusters; the thread of the caller without it.
   * @returns Settled when the buffer is full, or with the error of `readAt`.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.writeAt(0, new Uint8Array(1 << 20).fill(7));
   * const bytes = new Uint8Array(1 << 20);
   * const reading = disk.readAhead(0, bytes);
   * // Something else is done here.
   * await reading;
   * assertEquals(bytes[0], 7);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  async readAhead(offset: number, into: Uint8Array, decompressor?: Decompressor): Promise<void> {
    this.#assertOpen();
    checkRange(offset, into.length, this.size);
    await this.#io.readAhead(offset, into, decompressor);
  }

  /**
   * Writes all bytes of a buffer to the disk.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param data What to write.
   * @throws {Qcow2Error} With code `read-only`, `out-of-range`, `no-space`, `corrupt`, `marked-corrupt`, `unsupported`,
   * `failed` or `io`. Where the host fails in the middle, a part of the range may have been written.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 30 });
   * disk.writeAt(512, new Uint8Array(100_000));
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  writeAt(offset: number, data: Uint8Array): void {
    this.#assertWritable();
    checkRange(offset, data.length, this.size);
    this.#bitmaps.record(offset, data.length);
    this.#io.write(offset, data);
  }

  /**
   * Where the host has bytes of the disk as they are, here or in a backing file.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param length How many are of interest at most, in bytes.
   * @returns The bytes, or undefined where the first of them stands nowhere as it is: it reads as zero, or is compressed.
   * @throws {Qcow2Error} With code `out-of-range`, `corrupt` or `io`.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.writeAt(0, new Uint8Array(65536).fill(7));
   * assertEquals(disk.hostBytesAt(512, 1 << 18)?.length, 65536 - 512);
   * assertEquals(disk.hostBytesAt(65536, 1 << 18), undefined);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  hostBytesAt(offset: number, length: number): HostBytes | undefined {
    this.#assertOpen();
    checkRange(offset, length, this.size);
    return length === 0 ? undefined : this.#io.hostBytes(offset, length);
  }

  /**
   * Writes bytes that stand in another file of the host without reading them, as far as the host can copy them, or share their space,
   * and they fill whole clusters.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param bytes What to write.
   * @returns How many were written, from the first one on; those that are left are to be read and written.
   * @throws {Qcow2Error} As {@linkcode Qcow2File.writeAt} does.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File, RawFile } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const folder = await Deno.makeTempDir();
   * using source = RawFile.create(`${folder}/source.raw`, { size: 1 << 20 });
   * source.writeAt(0, new Uint8Array(1 << 20).fill(7));
   * using target = Qcow2File.create(`${folder}/target.qcow2`, { size: 1 << 20 });
   * const bytes = source.hostBytesAt(0, 1 << 20);
   * const copied = bytes === undefined ? 0 : target.copyAt(0, bytes);
   * const last = new Uint8Array(1);
   * target.readAt((1 << 20) - 1, last);
   * assertEquals(last[0], copied === 1 << 20 ? 7 : 0);
   * Deno.removeSync(folder, { recursive: true });
   * ```
   */
  copyAt(offset: number, bytes: HostBytes): number {
    this.#assertWritable();
    checkRange(offset, bytes.length, this.size);
    this.#bitmaps.record(offset, bytes.length);
    return this.#io.copy(offset, bytes);
  }

  /**
   * Writes whole clusters compressed, packed one behind the other; those that compression would not make smaller are written
   * as they are. Writing to them later in the ordinary way gives them clusters of their own.
   *
   * @param offset Where to begin on the disk, in bytes, a multiple of the cluster size.
   * @param data What to write: whole clusters, the last of which may be cut short by the end of the disk.
   * @param compressed What each of the clusters was compressed to already, by whoever has more threads, and undefined for those that
   * did not become smaller. It is taken on trust.
   * @throws {Qcow2Error} With code `invalid-argument` where it is not whole clusters, `unsupported` where the runtime cannot
   * compress with zstd; otherwise as {@linkcode Qcow2File.writeAt} does.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.writeCompressedAt(0, new Uint8Array(65536).fill(7));
   * assertEquals([...disk.extents(0, 65536)].map(({ kind }) => kind), ["compressed"]);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  writeCompressedAt(offset: number, data: Uint8Array, compressed?: readonly (Uint8Array | undefined)[]): void {
    this.#assertWritable();
    checkRange(offset, data.length, this.size);
    if (this.#dataFile !== undefined) {
      throw new Qcow2Error("unsupported", "Clusters in an external data file cannot be compressed");
    }
    const unit = this.allocationSize;
    if (offset % unit !== 0 || (data.length % unit !== 0 && offset + data.length !== this.size)) {
      throw new Qcow2Error(
        "invalid-argument",
        `Range of ${data.length} bytes at ${offset} is not whole clusters of ${unit}`,
        {
          offset,
          found: data.length,
          expected: `multiples of ${unit}`,
        },
      );
    }
    this.#bitmaps.record(offset, data.length);
    this.#io.writeCompressed(offset, data, compressed);
  }

  /**
   * Makes a range read as zeroes. Version 3 images note it in their tables, without writing zeroes.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param length How far, in bytes.
   * @param options Whether space may be given back.
   * @throws {Qcow2Error} As {@linkcode Qcow2File.writeAt} does.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 30 });
   * disk.writeZeroesAt(0, 1 << 30, { unmap: true });
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  writeZeroesAt(offset: number, length: number, options: WriteZeroesOptions = {}): void {
    this.#assertWritable();
    checkRange(offset, length, this.size);
    this.#bitmaps.record(offset, length);
    this.#zeroes.write(offset, length, options);
  }

  /**
   * Gives the whole clusters of a range back: they read as zeroes afterwards, and the space in the host file is given back
   * where the host can. Parts of clusters keep their content, as QEMU does it.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param length How far, in bytes.
   * @throws {Qcow2Error} As {@linkcode Qcow2File.writeAt} does.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.writeAt(0, new Uint8Array(65536).fill(7));
   * disk.discardAt(0, 65536);
   * assertEquals(disk.seekData(0), null);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  discardAt(offset: number, length: number): void {
    this.#assertWritable();
    checkRange(offset, length, this.size);
    this.#bitmaps.record(offset, length);
    this.#zeroes.discard(offset, length);
  }

  /**
   * Makes a range read as zeroes and gives its space back: `writeZeroesAt` with `unmap`, under the name that a hole in a file
   * has.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param length How far, in bytes.
   * @throws {Qcow2Error} As {@linkcode Qcow2File.writeAt} does.
   */
  punchHole(offset: number, length: number): void {
    this.writeZeroesAt(offset, length, { unmap: true });
  }

  /**
   * Makes the disk longer or shorter. What is added reads as zeroes, also where a backing file is longer than the disk was.
   * A data file becomes as long as the disk; bitmaps lose the bits of what is lost, and those of what is added are clear. The
   * change is durable on return. A crash leaves the old size or the new one, and bitmaps that fit it or are inconsistent.
   *
   * @param size The new virtual size in bytes, rounded up to a multiple of 512.
   * @param options Whether the disk may become shorter, and what is allocated of a range that is added.
   * @throws {Qcow2Error} With code `invalid-argument` where the disk would become shorter without `shrink: true`,
   * `unsupported` where the image has snapshots in version 2, or a bitmap that is inconsistent, cannot be used or would become
   * too large, `limit-exceeded` where the size needs larger clusters; otherwise as {@linkcode Qcow2File.writeAt} does. Bitmaps
   * that are all inconsistent, for want of the autoclear bit, stay as they are.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.resize(1 << 30);
   * disk.resize(1 << 16, { shrink: true });
   * assertEquals(disk.size, 65536);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  resize(size: number, options: ResizeOptions = {}): void {
    allAtOnce(this.resizeInSteps(size, options));
  }

  /**
   * Does what {@linkcode Qcow2File.resize} does, a step each time it is asked for a value, so that the caller can do something else in
   * between; `resize` of the operations does that with the event loop. Until the last step nothing else can be done with the image: it
   * fails with code `busy`.
   *
   * Where it is ended early, a disk that was to grow has its old size. One that was to shrink has its new size once a step has told of
   * something done, and what stood behind its end may take space until it grows again.
   *
   * @param size The new virtual size in bytes, rounded up to a multiple of 512.
   * @param options Whether the disk may become shorter, and what is allocated of a range that is added.
   * @returns How far it is after each step, in bytes of what is added or taken away.
   * @throws {Qcow2Error} As {@linkcode Qcow2File.resize} does; `closed` where the image was closed meanwhile.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * for (const { done, total } of disk.resizeInSteps(1 << 30, { preallocation: "metadata" })) {
   *   console.log(`${done} of ${total} bytes`);
   * }
   * assertEquals(disk.size, 1 << 30);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  resizeInSteps(size: number, options: ResizeOptions = {}): Generator<Progress, void, void> {
    return this.#alone(() => resizeImage(this.#parts(), size, options));
  }

  /**
   * Changes what the image was created with: format version, refcount width, lazy refcounts, size, and which file its external
   * data file is. The changes are durable on return; a crash leaves an image with some of them. Unknown header fields and header
   * extensions are kept.
   *
   * @param options What to change.
   * @throws {Qcow2Error} With code `invalid-argument` where the options contradict the format or what the image is, or the disk
   * would become shorter without `shrink: true`; `unsupported` where version 2 cannot say what the image holds; `refcount-overflow` where a
   * refcount does not fit into the new width; otherwise as {@linkcode Qcow2File.writeAt} does. Where the host fails while
   * the changed metadata is read again, the image is closed.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20, version: 2 });
   * disk.amend({ version: 3, refcountBits: 64 });
   * assertEquals([disk.header.version, disk.header.refcountOrder], [3, 6]);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  amend(options: AmendOptions): void {
    allAtOnce(this.amendInSteps(options));
  }

  /**
   * Does what {@linkcode Qcow2File.amend} does, a step each time it is asked for a value, so that the caller can do something else in
   * between; `amend` of the operations does that with the event loop. Until the last step nothing else can be done with the image: it
   * fails with code `busy`.
   *
   * Where it is ended early, each of the changes was made or was not, but for the size, as {@linkcode Qcow2File.resizeInSteps} says; the
   * disk reads as before.
   *
   * @param options What to change.
   * @returns How far it is after each step.
   * @throws {Qcow2Error} As {@linkcode Qcow2File.amend} does; `closed` where the image was closed meanwhile.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * for (const { change, done, total } of disk.amendInSteps({ refcountBits: 64 })) {
   *   console.log(`${change}: ${done} of ${total}`);
   * }
   * assertEquals(disk.header.refcountOrder, 6);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  amendInSteps(options: AmendOptions): Generator<AmendProgress, void, void> {
    return this.#alone(() => {
      this.#bitmaps.save();
      return amendImage(this.#parts(), options);
    });
  }

  /** What is resized and amended. The parts are those that the image has when they are asked for. */
  #parts(): AmendTarget {
    const metadata = (): ImageMetadata => this.#metadata;
    const io = (): GuestIo => this.#io;
    const zeroes = (): GuestZeroes => this.#zeroes;
    const bitmaps = (): Bitmaps => this.#bitmaps;
    return {
      get metadata() {
        return metadata();
      },
      get io() {
        return io();
      },
      get zeroes() {
        return zeroes();
      },
      get bitmaps() {
        return bitmaps();
      },
      path: this.#file.name,
      backing: this.#backing,
      reopen: () => this.#reopen(),
    };
  }

  /** Does work that nothing else may come between. */
  *#alone<Told>(begin: () => Steps<Told, void>): Steps<Told, void> {
    this.#assertWritable();
    using work = begin();
    this.#work = work;
    try {
      for (;;) {
        const step = work.next();
        if (step.done === true) return;
        yield step.value;
        if (this.#closed) throw this.#closedError();
      }
    } finally {
      this.#work = undefined;
    }
  }

  /**
   * Names another backing file in the image, or none. Nothing else changes: the new backing file is expected to read as the old one
   * wherever the image has nothing of its own. Where it does not, use `rebase`, which copies what differs first.
   *
   * It is durable on return, after everything written before; a crash in between leaves the old name or the new one. Until the
   * image is opened again, it reads from the disk that it was opened with.
   *
   * @param backingFile Name of the backing file, as it shall stand in the image: relative to the image's folder, or absolute; at
   * most 1023 bytes in UTF-8. `undefined` for none.
   * @param backingFormat Its format, such as `raw` or `qcow2`; must be said where there is a name.
   * @throws {Qcow2Error} With code `invalid-argument` where the name or format makes no sense, or where the image has a raw data
   * file; `no-space` where the first cluster has no room for the name; otherwise as {@linkcode Qcow2File.writeAt} does.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File, RawFile } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const folder = await Deno.makeTempDir();
   * RawFile.create(`${folder}/base.raw`, { size: 1 << 20 }).close();
   * const backing = { backingFile: "base.raw", backingFormat: "raw" };
   * const disk = Qcow2File.create(`${folder}/disk.qcow2`, backing);
   * Deno.renameSync(`${folder}/base.raw`, `${folder}/moved.raw`);
   * disk.changeBackingFile("moved.raw", "raw");
   * disk.close();
   * using again = Qcow2File.open(`${folder}/disk.qcow2`, { backing: "allow" });
   * assertEquals(again.header.backingFile, "moved.raw");
   * again.close();
   * Deno.removeSync(folder, { recursive: true });
   * ```
   */
  changeBackingFile(backingFile: string | undefined, backingFormat?: string): void {
    this.#assertWritable();
    const changes = withBackingFile(this.header, backingFile, backingFormat);
    this.#metadata.flush();
    this.#metadata.rewriteHeader(changes);
  }

  /**
   * Gives back everything that the disk has of its own, so that it reads as its backing file does, or as zeroes without one, and
   * the file shrinks. Snapshots keep what they hold. It is durable on return; a crash in between leaves a part.
   *
   * @param options Whether the backing file holds the content already.
   * @throws {Qcow2Error} With code `unsupported` where the image has a raw data file, which always holds the whole disk; otherwise
   * as {@linkcode Qcow2File.writeAt} does.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.writeAt(0, new Uint8Array(65536).fill(7));
   * disk.revertToBacking();
   * assertEquals(disk.seekData(0), null);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  revertToBacking(options: RevertOptions = {}): void {
    this.#assertWritable();
    if (this.#metadata.hasRawDataFile) {
      throw new Qcow2Error("unsupported", "Disk in a raw data file cannot be reverted to its backing file");
    }
    if (options.contentStays !== true) this.#bitmaps.record(0, this.size);
    revertToBacking(this.#metadata);
  }

  /** Reads the metadata anew. Where that fails, what is in memory must not reach the file any more: the image is closed. */
  #reopen(): void {
    try {
      this.#metadata.flushForGood();
      this.#metadata = openMetadata(this.#file, this.#options, this.#dataFile);
      this.#io = new GuestIo(this.#metadata, this.#backing);
      this.#zeroes = new GuestZeroes(this.#metadata, this.#io, this.#backing);
      this.#bitmaps = new Bitmaps(this.#metadata);
      // They would read through what is no longer there.
      for (const disk of this.#openSnapshots) disk.close();
      this.#openSnapshots.clear();
      this.#metadata.prepareForWriting();
    } catch (error) {
      this.#closed = true;
      this.#file.close();
      this.#dataFile?.close();
      this.#backing?.close();
      throw error;
    }
  }

  /**
   * The stretches that a range consists of.
   *
   * @param offset Where to begin on the disk, in bytes; 0 without it.
   * @param length How far, in bytes; to the end of the disk without it.
   * @param options What to look at.
   * @returns The extents in order, without gaps, each as long as it can be. Do not change the image while walking them.
   * @throws {Qcow2Error} With code `out-of-range` or `corrupt`.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.writeAt(65536, new Uint8Array(65536).fill(7));
   * assertEquals([...disk.extents()].map(({ kind, length }) => [kind, length]), [
   *   ["unallocated", 65536],
   *   ["data", 65536],
   *   ["unallocated", 917504],
   * ]);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  extents(
    offset = 0,
    length: number = Math.max(0, this.size - offset),
    options: ExtentOptions = {},
  ): Iterable<Extent> {
    this.#assertOpen();
    checkRange(offset, length, this.size);
    return this.#io.extents(offset, length, options);
  }

  /**
   * Finds the next data, as `lseek` with `SEEK_DATA` does.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @returns Where data stands at or behind the offset, or `null` where there is none up to the end.
   * @throws {Qcow2Error} With code `out-of-range` or `corrupt`.
   */
  seekData(offset: number): number | null {
    for (const extent of this.extents(offset)) {
      if (extent.kind === "data" || extent.kind === "compressed") return extent.offset;
    }
    return null;
  }

  /**
   * Finds the next hole, as `lseek` with `SEEK_HOLE` does. The end of the disk counts as one.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @returns Where the first bytes stand at or behind the offset that read as zeroes without being stored.
   * @throws {Qcow2Error} With code `out-of-range` or `corrupt`.
   */
  seekHole(offset: number): number {
    for (const extent of this.extents(offset)) {
      if (extent.kind === "zero" || extent.kind === "unallocated") return extent.offset;
    }
    return this.size;
  }

  /**
   * Asks the host to begin making durable what was written, so that the next {@linkcode Qcow2File.flush} takes less time: for who
   * writes much in one go. Promises nothing, and does not wait.
   *
   * @throws {Qcow2Error} With code `closed` after `close()`, `busy` while the image is resized or amended.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.writeAt(0, new Uint8Array(1 << 20));
   * disk.startFlush();
   * // Something else is done here.
   * disk.flush();
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  startFlush(): void {
    this.#assertOpen();
    if (this.#write) this.#metadata.startFlush();
  }

  /**
   * Makes everything that was written durable.
   *
   * @throws {Qcow2Error} With code `no-space` or `io` where the host fails: what was not written yet is kept, and the next
   * flush tries again. With code `failed` where a sync failed, after which nothing more can be promised.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.writeAt(0, new Uint8Array([1]));
   * disk.flush();
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  flush(): void {
    this.#assertOpen();
    if (this.#write) this.#metadata.flush();
  }

  /**
   * Flushes and closes the file. Closing twice is fine.
   *
   * @throws {Qcow2Error} As {@linkcode Qcow2File.flush} does; the file is closed all the same.
   */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    try {
      this.#work?.[Symbol.dispose]();
      if (this.#write) this.#flushForGood();
    } finally {
      this.#file.close();
      this.#dataFile?.close();
      this.#backing?.close();
    }
  }

  /** Closes the image, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  /**
   * Reads at the cursor and moves it, as `Deno.FsFile.readSync` does.
   *
   * @param p What to fill.
   * @returns How many bytes were read, or `null` at the end of the disk.
   * @throws {Qcow2Error} As {@linkcode Qcow2File.readAt} does.
   */
  readSync(p: Uint8Array): number | null {
    this.#assertOpen();
    const length = Math.min(p.length, this.size - this.#cursor);
    if (length <= 0) return p.length === 0 ? 0 : null;
    this.readAt(this.#cursor, length === p.length ? p : p.subarray(0, length));
    this.#cursor += length;
    return length;
  }

  /**
   * Writes at the cursor and moves it, as `Deno.FsFile.writeSync` does. A disk does not grow: bytes behind its end are not
   * written.
   *
   * @param p What to write.
   * @returns How many bytes were written.
   * @throws {Qcow2Error} With code `out-of-range` where the cursor is at the end of the disk; otherwise as
   * {@linkcode Qcow2File.writeAt} does.
   */
  writeSync(p: Uint8Array): number {
    if (p.length === 0) return 0;
    // With no room at all, the whole request is what lies outside of the disk.
    const length = this.#cursor < this.size ? Math.min(p.length, this.size - this.#cursor) : p.length;
    this.writeAt(this.#cursor, length === p.length ? p : p.subarray(0, length));
    this.#cursor += length;
    return length;
  }

  /**
   * Moves the cursor, as `Deno.FsFile.seekSync` does.
   *
   * @param offset How far, in bytes.
   * @param whence From where.
   * @returns Where the cursor is now, in bytes from the start of the disk.
   * @throws {Qcow2Error} With code `invalid-argument` where that would be before the start.
   */
  seekSync(offset: number | bigint, whence: Deno.SeekMode): number {
    this.#assertOpen();
    this.#cursor = seekTo(Number(offset), whence, this.#cursor, this.size);
    return this.#cursor;
  }

  /**
   * Looks for damage in the metadata, and mends it if asked to.
   *
   * @param options What to mend: `leaks` only gives unused clusters back, `all` mends refcounts and flags as well. Without
   * it nothing is changed.
   * @returns What was found.
   * @throws {Qcow2Error} With code `read-only` where a repair is asked of an image that was opened for reading.
   */
  check(options: { readonly repair?: RepairKind } = {}): CheckResult {
    this.#assertOpen();
    if (options.repair !== undefined && !this.#write) throw readOnlyError();
    if (this.#write) this.#metadata.flush();
    return checkMetadata(this.#metadata, options);
  }

  /** The entries of the active L1 table: where the L2 tables stand. */
  get l1Table(): TableEntry[] {
    this.#assertOpen();
    const { l1 } = this.#metadata.mapping;
    return Array.from({ length: l1.entryCount }, (_, index) => l1EntryOf(l1.upper(index), l1.lower(index)));
  }

  /**
   * The entries of an L2 table.
   *
   * @param l1Index Index of the table's entry in the L1 table.
   * @returns The entries, or `undefined` where there is no table.
   * @throws {Qcow2Error} With code `out-of-range` where the index is behind the L1 table.
   */
  l2Table(l1Index: number): TableEntry[] | undefined {
    this.#assertOpen();
    const { mapping, geometry, l2Cache } = this.#metadata;
    checkIndex("L1 index", l1Index, mapping.l1.entryCount);
    const offset = entryOffset(mapping.l1.upper(l1Index), mapping.l1.lower(l1Index));
    if (offset === 0) return undefined;
    return Array.from({ length: geometry.l2EntryCount }, (_, index) => {
      const position = index * geometry.l2EntrySize;
      const slice = l2Cache.get(offset + position - position % l2Cache.sliceSize);
      const inSlice = position % l2Cache.sliceSize;
      return l2EntryOf(slice.view, inSlice, hasExtendedL2(this.header));
    });
  }

  /** The refcount table: the host offset of each refcount block in bytes, 0 where one is absent. */
  get refcountTable(): number[] {
    this.#assertOpen();
    const { refcounts } = this.#metadata;
    return Array.from({ length: refcounts.table.entryCount }, (_, index) => refcounts.blockOffset(index));
  }

  /**
   * The refcounts in a refcount block.
   *
   * @param blockIndex Index of the block in the refcount table.
   * @returns The refcounts, or `undefined` where the block is absent.
   * @throws {Qcow2Error} With code `out-of-range` where the index is behind the refcount table.
   */
  refcountBlock(blockIndex: number): number[] | undefined {
    this.#assertOpen();
    const { refcounts, geometry, refcountCache } = this.#metadata;
    checkIndex("Refcount table index", blockIndex, refcounts.table.entryCount);
    const offset = refcounts.blockOffset(blockIndex);
    if (offset === 0) return undefined;
    const bytes = new Uint8Array(geometry.clusterSize);
    for (let position = 0; position < bytes.length; position += refcountCache.sliceSize) {
      bytes.set(refcountCache.get(offset + position).bytes, position);
    }
    const view = viewOf(bytes);
    return Array.from(
      { length: geometry.refcountBlockEntryCount },
      (_, index) => getRefcount(view, index, geometry.refcountOrder),
    );
  }

  /**
   * The refcount of the host cluster that holds an offset.
   *
   * @param hostOffset Host offset in bytes.
   * @returns The refcount; 0 where no refcount block describes the cluster.
   */
  refcountAt(hostOffset: number): number {
    this.#assertOpen();
    return this.#metadata.refcounts.get(Math.floor(hostOffset / this.allocationSize));
  }

  /**
   * Finds the first host cluster that is free.
   *
   * @returns Host offset of the cluster in bytes, or `undefined` where every cluster that has a refcount block is in use.
   */
  firstZeroRefcount(): number | undefined {
    this.#assertOpen();
    const { refcounts, geometry } = this.#metadata;
    for (let block = 0; block < refcounts.table.entryCount; block++) {
      if (refcounts.blockOffset(block) === 0) continue;
      const run = refcounts.findFreeInBlock(block * geometry.refcountBlockEntryCount, 1);
      if (run !== undefined) return run.offset;
    }
    return undefined;
  }

  /** The internal snapshots in the order of the snapshot table. */
  get snapshots(): readonly Snapshot[] {
    this.#assertOpen();
    return readSnapshotTable(this.#file, this.#metadata.header).snapshots;
  }

  /**
   * Takes an internal snapshot of the disk as it is. Writes after it go to clusters of their own.
   *
   * @param name The name; several snapshots may have the same.
   * @param options When it was taken.
   * @returns The snapshot. Its identifier is the first number above those of all others.
   * @throws {Qcow2Error} With code `refcount-overflow` where a cluster has as many references as its refcount can say,
   * `unsupported` with an external data file, `limit-exceeded` where there are too many, `invalid-argument` where name or date
   * cannot be written down; otherwise as {@linkcode Qcow2File.writeAt} does. The image is as before then.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.writeAt(0, new Uint8Array([1]));
   * disk.createSnapshot("before");
   * disk.writeAt(0, new Uint8Array([2]));
   * disk.applySnapshot("before");
   * const bytes = new Uint8Array(1);
   * disk.readAt(0, bytes);
   * assertEquals(bytes[0], 1);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  createSnapshot(name: string, options: SnapshotOptions = {}): Snapshot {
    this.#assertWritable();
    return createSnapshot(this.#metadata, name, options.date ?? new Date());
  }

  /**
   * Makes the disk what it was when a snapshot was taken, its size included. What it is now is lost, unless a snapshot holds it
   * too; the snapshot stays. Bitmaps that record writes mark all of it.
   *
   * @param idOrName Identifier of the snapshot, or else its name.
   * @throws {Qcow2Error} With code `invalid-argument` where there is no such snapshot, `unsupported` where it has another size
   * and a bitmap cannot be brought to that; otherwise as {@linkcode Qcow2File.createSnapshot} does. The image is as before then.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.createSnapshot("empty");
   * disk.writeAt(0, new Uint8Array(100).fill(7));
   * disk.applySnapshot("empty");
   * assertEquals(disk.seekData(0), null);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  applySnapshot(idOrName: string): void {
    this.#assertWritable();
    const { snapshots } = this;
    const size = snapshots[findSnapshot(snapshots, idOrName)]?.diskSize ?? this.size;
    // The disk may become another one anywhere.
    if (size === this.size) {
      this.#bitmaps.record(0, size);
      applySnapshot(this.#metadata, idOrName);
      return;
    }
    this.#bitmaps.prepareResize(size);
    this.#bitmaps.resize(size, {
      switchHeader: (changes) => applySnapshot(this.#metadata, idOrName, changes),
      marksAll: true,
    });
  }

  /**
   * Deletes a snapshot. The disk and other snapshots keep their content; disks that {@linkcode Qcow2File.openSnapshot} gave
   * of this one are closed.
   *
   * @param idOrName Identifier of the snapshot, or else its name.
   * @throws {Qcow2Error} As {@linkcode Qcow2File.applySnapshot} does.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * const { id } = disk.createSnapshot("first");
   * disk.deleteSnapshot(id);
   * assertEquals(disk.snapshots, []);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  deleteSnapshot(idOrName: string): void {
    this.#assertWritable();
    const { snapshots } = this;
    const gone = snapshots[findSnapshot(snapshots, idOrName)];
    deleteSnapshot(this.#metadata, idOrName);
    for (const disk of this.#openSnapshots) {
      if (disk.snapshot.id !== gone?.id || disk.snapshot.l1TableOffset !== gone.l1TableOffset) continue;
      disk.close();
      this.#openSnapshots.delete(disk);
    }
  }

  /**
   * A snapshot as a disk that can only be read, beside the disk itself.
   *
   * @param idOrName Identifier of the snapshot, or else its name.
   * @returns The disk, of the size that it had. It can be read until the image is closed or the snapshot deleted.
   * @throws {Qcow2Error} With code `invalid-argument` where there is no such snapshot, `corrupt` or `limit-exceeded` where it
   * is damaged, `unsupported` with an external data file.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.writeAt(0, new Uint8Array([1]));
   * disk.createSnapshot("first");
   * disk.writeAt(0, new Uint8Array([2]));
   * const bytes = new Uint8Array(1);
   * disk.openSnapshot("first").readAt(0, bytes);
   * assertEquals(bytes[0], 1);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  openSnapshot(idOrName: string): Disk {
    this.#assertOpen();
    const { snapshots } = this;
    const snapshot = snapshots[findSnapshot(snapshots, idOrName)];
    if (snapshot === undefined || hasDataFile(this.#metadata.header)) {
      throw new Qcow2Error("unsupported", "Snapshots and an external data file do not go together");
    }
    const disk = new SnapshotDisk(this.#metadata, snapshot, {
      backing: this.#backing,
      assertOpen: () => this.#assertOpen(),
    });
    this.#openSnapshots.add(disk);
    return disk;
  }

  /**
   * The persistent bitmaps in the order of the bitmap directory.
   *
   * Bitmaps that record writes (`auto`) are marked as in use in the file from the first write on, and brought up to date when
   * the image is closed. An image that was not closed leaves them inconsistent.
   *
   * @throws {Qcow2Error} With code `corrupt` or `limit-exceeded` where the directory is broken.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.addBitmap("backup");
   * assertEquals(disk.bitmaps.map(({ name, granularity, auto }) => [name, granularity, auto]), [["backup", 65536, true]]);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  get bitmaps(): readonly Bitmap[] {
    this.#assertOpen();
    return this.#bitmaps.list();
  }

  /**
   * Adds a persistent bitmap without any bit set. It records writes from now on, unless it is added switched off.
   *
   * @param name Its name, 1 to 1023 bytes in UTF-8.
   * @param options Granularity, and whether it is switched off.
   * @throws {Qcow2Error} With code `already-exists`; `invalid-argument` where the name, the granularity or the bitmap's size is
   * beyond what the format or QEMU allows; `unsupported` for a version 2 image; `limit-exceeded` where there are too many;
   * otherwise as {@linkcode Qcow2File.writeAt} does.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.addBitmap("fine", { granularity: 512 });
   * disk.writeAt(1000, new Uint8Array(100));
   * assertEquals([...disk.dirtyExtents("fine")], [{ offset: 512, length: 1024 }]);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  addBitmap(name: string, options: AddBitmapOptions = {}): void {
    this.#assertWritable();
    this.#bitmaps.add(name, options);
  }

  /**
   * Removes a bitmap: the one thing that can be done with any of them, inconsistent and unusable ones included.
   *
   * @param name Its name.
   * @throws {Qcow2Error} With code `not-found`; otherwise as {@linkcode Qcow2File.writeAt} does.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.addBitmap("backup");
   * disk.removeBitmap("backup");
   * assertEquals(disk.bitmaps, []);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  removeBitmap(name: string): void {
    this.#assertWritable();
    this.#bitmaps.remove(name);
  }

  /**
   * Clears all bits of a bitmap.
   *
   * @param name Its name.
   * @throws {Qcow2Error} With code `not-found`; `unsupported` where it is inconsistent or cannot be used; otherwise as {@linkcode Qcow2File.writeAt} does.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.addBitmap("backup");
   * disk.writeAt(0, new Uint8Array(512));
   * disk.clearBitmap("backup");
   * assertEquals([...disk.dirtyExtents("backup")], []);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  clearBitmap(name: string): void {
    this.#assertWritable();
    this.#bitmaps.clear(name);
  }

  /**
   * Makes a bitmap record writes.
   *
   * @param name Its name.
   * @throws {Qcow2Error} As {@linkcode Qcow2File.clearBitmap} does.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.addBitmap("backup", { disabled: true });
   * disk.enableBitmap("backup");
   * assertEquals(disk.bitmaps[0]?.auto, true);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  enableBitmap(name: string): void {
    this.#assertWritable();
    this.#bitmaps.setAuto(name, true);
  }

  /**
   * Makes a bitmap keep its bits as they are, whatever is written.
   *
   * @param name Its name.
   * @throws {Qcow2Error} As {@linkcode Qcow2File.clearBitmap} does.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.addBitmap("backup");
   * disk.disableBitmap("backup");
   * disk.writeAt(0, new Uint8Array(512));
   * assertEquals([...disk.dirtyExtents("backup")], []);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  disableBitmap(name: string): void {
    this.#assertWritable();
    this.#bitmaps.setAuto(name, false);
  }

  /**
   * Sets in one bitmap all bits that are set in another one. The granularities may differ: parts of the disk that the target
   * cannot tell apart are marked whole.
   *
   * @param source Name of the bitmap to read.
   * @param target Name of the bitmap to change.
   * @param options The image that holds the source, where that is not this one; its disk must be as large.
   * @throws {Qcow2Error} With code `invalid-argument` where the disks are not equally large; otherwise as
   * {@linkcode Qcow2File.clearBitmap} does.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.addBitmap("monday");
   * disk.writeAt(0, new Uint8Array(512));
   * disk.addBitmap("week", { disabled: true });
   * disk.mergeBitmap("monday", "week");
   * assertEquals([...disk.dirtyExtents("week")], [{ offset: 0, length: 65536 }]);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  mergeBitmap(source: string, target: string, options: { readonly from?: Qcow2File } = {}): void {
    this.#assertWritable();
    const from = options.from ?? this;
    from.#assertOpen();
    this.#bitmaps.merge(from.#bitmaps, source, target);
  }

  /**
   * The stretches of the disk that a bitmap marks, what was written since the image was opened included.
   *
   * @param name Name of the bitmap.
   * @returns The stretches in order, in whole steps of the granularity up to the end of the disk, each as long as it can be. Do
   * not change the image while walking them.
   * @throws {Qcow2Error} With code `not-found`; `unsupported` where the bitmap is inconsistent or cannot be used; `corrupt`
   * where its table is broken.
   *
   * @example Usage
   * ```ts
   * import { Qcow2File } from "@disk/qcow2";
   * import { assertEquals } from "@std/assert";
   *
   * const path = await Deno.makeTempFile();
   * using disk = Qcow2File.create(path, { size: 1 << 20 });
   * disk.addBitmap("backup");
   * disk.writeAt(70_000, new Uint8Array([1]));
   * assertEquals([...disk.dirtyExtents("backup")], [{ offset: 65536, length: 65536 }]);
   * disk.close();
   * Deno.removeSync(path);
   * ```
   */
  dirtyExtents(name: string): Iterable<DirtyExtent> {
    this.#assertOpen();
    return this.#bitmaps.dirtyExtents(name);
  }

  #prepareForWriting(): void {
    if (this.#metadata.markedDirty && !this.#metadata.markedCorrupt) {
      const { onFinding } = this.#options;
      const told = onFinding === undefined ? {} : { onFinding };
      const { corruptions } = checkMetadata(this.#metadata, { repair: "all", ...told });
      if (corruptions > 0) {
        throw new Qcow2Error(
          "corrupt",
          `Image was not closed properly and could not be repaired: ${corruptions} errors`,
          {
            offset: 72,
            found: corruptions,
            expected: 0,
          },
        );
      }
    }
    this.#metadata.prepareForWriting();
  }

  /** What the guest wrote is made durable even where its bitmaps cannot be brought up to date. */
  #flushForGood(): void {
    try {
      // In an image that was found damaged they stay marked as in use: nothing more is built upon its tables.
      if (!this.#metadata.markedCorrupt) {
        // A snapshot or a repair may have moved tables since the last write.
        this.#metadata.prepareForWriting();
        this.#bitmaps.save();
      }
    } finally {
      this.#metadata.flushForGood();
    }
  }

  #assertOpen(): void {
    if (this.#closed) throw this.#closedError();
    if (this.#work !== undefined) {
      throw new Qcow2Error("busy", `Image "${this.#file.name}" is being resized or amended`);
    }
  }

  #closedError(): Qcow2Error {
    return new Qcow2Error("closed", `Image "${this.#file.name}" is closed`);
  }

  #assertWritable(): void {
    this.#assertOpen();
    if (!this.#write) throw readOnlyError();
    this.#metadata.prepareForWriting();
  }
}

function openMetadata(
  file: BlockFile,
  options: Omit<OpenOptions, "dataFile">,
  dataFile: BlockFile | undefined,
): ImageMetadata {
  const { write = false, durability = "full", cacheSize } = options;
  return ImageMetadata.open(file, { write, durability, cacheSize, dataFile });
}

function nameOf(source: FileSource): string {
  if (typeof source === "string") return source;
  return source instanceof URL || source instanceof Deno.FsFile ? String(source) : source.name;
}

/** Refuses what would be misread, before anything is read. */
function refuseWhatCannotBeRead(header: Header, write: boolean): void {
  if (header.encryption !== "none") {
    throw new Qcow2Error("encrypted", `Image is encrypted with ${header.encryption}, expected an unencrypted one`, {
      offset: 32,
      found: header.encryption,
      expected: "none",
    });
  }
  if (write && hasDataFile(header) && header.snapshotCount > 0) {
    // The data file holds each cluster once: what is written would change in the snapshots as well.
    throw new Qcow2Error("unsupported", "Image with an external data file has snapshots, so it can only be read", {
      offset: 60,
      found: header.snapshotCount,
      expected: 0,
    });
  }
}

function readOnlyError(): Qcow2Error {
  return new Qcow2Error("read-only", "Image was opened for reading; open it with { write: true }");
}

function checkIndex(name: string, index: number, count: number): void {
  if (Number.isInteger(index) && index >= 0 && index < count) return;
  throw new Qcow2Error("out-of-range", `${name} is ${index}, expected 0 to ${count - 1}`, {
    found: index,
    expected: `0 to ${count - 1}`,
  });
}

function l1EntryOf(upper: number, lower: number): TableEntry {
  return {
    hostOffset: entryOffset(upper, lower),
    copied: (upper & COPIED_FLAG) !== 0,
    compressed: false,
    zero: false,
  };
}

function l2EntryOf(view: DataView, position: number, extended: boolean): TableEntry {
  const upper = view.getUint32(position);
  const lower = view.getUint32(position + 4);
  const compressed = (upper & COMPRESSED_FLAG) !== 0;
  return {
    hostOffset: entryOffset(upper, lower),
    copied: (upper & COPIED_FLAG) !== 0,
    compressed,
    zero: !compressed && !extended && (lower & 1) !== 0,
    ...(extended
      ? { subclusters: { allocated: view.getUint32(position + 12), zero: view.getUint32(position + 8) } }
      : {}),
  };
}
