/**
 * What a disk image is to everybody who uses one: the {@linkcode Disk} interface, and the {@linkcode Extent}s it is made of.
 *
 * @module
 */

/**
 * What a stretch of a disk consists of.
 *
 * - `data`: bytes stand in the host file, uncompressed.
 * - `zero`: reads as zeroes, and the image says so itself.
 * - `unallocated`: this image holds nothing here; reads as the backing disk does, or as zeroes without one.
 * - `compressed`: bytes stand in the host file as compressed clusters.
 */
export type ExtentKind = "data" | "zero" | "unallocated" | "compressed";

/** A stretch of a disk of one kind, as long as it could be made. */
export interface Extent {
  /** Where it begins on the disk, in bytes. */
  readonly offset: number;
  /** How long it is, in bytes, at least 1. */
  readonly length: number;
  /** What it consists of. */
  readonly kind: ExtentKind;
  /**
   * Where its first byte stands in the host file, in bytes: for `data`, and for `zero` and `unallocated` where clusters are
   * kept in place (preallocated ones). The whole extent is contiguous there.
   */
  readonly hostOffset?: number;
  /** How many backing files below the image it stands in; 0 is the image itself. */
  readonly depth: number;
  /** Whether the host's file has a hole there, so that the data reads as zeroes: only where {@linkcode ExtentOptions} ask for it. */
  readonly hole?: boolean;
}

/** What {@linkcode Disk.extents} looks at. */
export interface ExtentOptions {
  /**
   * Whether to tell the holes of the host's file in `data`, in an image of which many clusters were allocated before they are
   * written, and where the host knows of them.
   *
   * @default {false}
   */
  readonly hostHoles?: boolean;
}

/** A part of a compressed cluster that is to be decompressed. */
export interface CompressedPart {
  /** Where the cluster's compressed bytes begin among the others of the job. */
  readonly position: number;
  /** How many they are, at most: they may end before. */
  readonly length: number;
  /** Where they stand in the host file, in bytes, for messages. */
  readonly hostOffset: number;
  /** Where the part begins in the cluster. */
  readonly inCluster: number;
  /** How long it is, in bytes. */
  readonly count: number;
  /** Where to put it. */
  readonly target: number;
}

/** Clusters to decompress. */
export interface DecompressJob {
  /** How they are compressed. */
  readonly type: "zlib" | "zstd";
  /** Bytes in a cluster. */
  readonly clusterSize: number;
  /** The compressed bytes, and perhaps others between them. */
  readonly bytes: Uint8Array;
  /** The parts of clusters that are of interest. */
  readonly parts: readonly CompressedPart[];
  /** Where they go. */
  readonly into: Uint8Array;
}

/** Decompresses clusters on other threads, for {@linkcode Disk.readAhead}. */
export interface Decompressor {
  /**
   * Decompresses clusters.
   *
   * @param job Which, and how. All of its memory is to be left alone until the promise is settled.
   * @returns Settled when the parts are where they shall be.
   */
  decompress(job: DecompressJob): Promise<void>;
}

/** A file of the host. What it is, the disks know that stand on it. */
export interface HostFile {
  /** Its name, for messages. */
  readonly name: string;
  /** Where it can be opened once more, where that is known. */
  readonly place?: FilePlace | undefined;
}

/** Where a file of the host can be opened once more, and what tells that it is still the same. */
export interface FilePlace {
  /** The path from the root. */
  readonly path: string;
  /** The number of the device that it is on. */
  readonly device: number;
  /** Its number there. */
  readonly inode: number;
}

/** Bytes of a disk as they stand in a file of the host. */
export interface HostBytes {
  /** The file. */
  readonly file: HostFile;
  /** Where they begin there, in bytes. */
  readonly offset: number;
  /** How many there are. */
  readonly length: number;
}

/** How {@linkcode Disk.writeZeroesAt} may do its work. */
export interface WriteZeroesOptions {
  /**
   * Whether space in the host file may be given back, as `qemu-io write -z -u` does.
   *
   * @default {false}
   */
  readonly unmap?: boolean;
  /**
   * Whether the image must say itself that the range is zero, also where it reads as zeroes only because there is nothing: so
   * that it stays zero when the image is given another backing file. What reads as zeroes beside it, in the same cluster, may
   * come to say so too.
   *
   * @default {false}
   */
  readonly explicit?: boolean;
}

/**
 * A disk of fixed size, read and written at byte offsets. Synchronous: on return the work is done, and only `flush()` makes
 * it durable.
 *
 * @example Usage
 * ```ts
 * import { type Disk, Qcow2File } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile({ suffix: ".qcow2" });
 * using disk: Disk = Qcow2File.create(path, { size: 1 << 20 });
 * disk.writeAt(4096, new TextEncoder().encode("hello"));
 * const bytes = new Uint8Array(5);
 * disk.readAt(4096, bytes);
 * assertEquals(new TextDecoder().decode(bytes), "hello");
 * disk.close();
 * Deno.removeSync(path);
 * ```
 */
export interface Disk extends Disposable {
  /** The virtual size in bytes. */
  readonly size: number;
  /** The granularity in bytes in which the image allocates: a cluster, or a block of the host's file system. */
  readonly allocationSize: number;
  /**
   * Fills a buffer from the disk: the whole buffer or an error, never short.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param into What to fill.
   */
  readAt(offset: number, into: Uint8Array): void;
  /**
   * Fills a buffer as {@linkcode Disk.readAt} does, while the caller goes on: where the host can, another thread reads. A disk that
   * has no way to do that lacks this call.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param into What to fill. Until the promise is settled it must be left alone, the range not be written and the disk not be
   * closed.
   * @param decompressor Who decompresses clusters; the thread of the caller without it. Other threads need a buffer that is shared.
   * @returns Settled when the buffer is full, or with the error of `readAt`.
   */
  readAhead?(offset: number, into: Uint8Array, decompressor?: Decompressor): Promise<void>;
  /**
   * Writes all bytes of a buffer to the disk.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param data What to write.
   */
  writeAt(offset: number, data: Uint8Array): void;
  /**
   * Where the host has bytes of the disk as they are, so that they can be copied there with {@linkcode Disk.copyAt}. A disk whose bytes
   * never stand anywhere as they are lacks this call.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param length How many are of interest at most, in bytes.
   * @returns The bytes, at least one, or undefined where the first of them stands nowhere as it is.
   */
  hostBytesAt?(offset: number, length: number): HostBytes | undefined;
  /**
   * Writes bytes that stand in another file of the host without reading them: the host copies them, or lets both files share their
   * space. A disk that has no way to do that lacks this call.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param bytes What to write.
   * @returns How many were written, from the first one on. Where these are not all, the host could not do it, and they are to be read
   * and written.
   */
  copyAt?(offset: number, bytes: HostBytes): number;
  /**
   * Makes a range read as zeroes, without writing them where the image can say so otherwise.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param length How far, in bytes.
   * @param options Whether space may be given back.
   */
  writeZeroesAt(offset: number, length: number, options?: WriteZeroesOptions): void;
  /**
   * Says that a range's content is of no interest any more. Whole clusters are given back; parts of clusters keep their
   * content. Use `writeZeroesAt` where zeroes are needed.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param length How far, in bytes.
   */
  discardAt(offset: number, length: number): void;
  /**
   * The stretches that a range consists of, in order, without gaps, each as long as it can be.
   *
   * @param offset Where to begin on the disk, in bytes.
   * @param length How far, in bytes.
   * @param options What to look at.
   * @returns The extents; they cover the range exactly.
   */
  extents(offset: number, length: number, options?: ExtentOptions): Iterable<Extent>;
  /**
   * Asks the host to begin making durable what was written, so that the next flush takes less time: for who writes much in one go.
   * Promises nothing. A disk that has no way to do that lacks this call.
   */
  startFlush?(): void;
  /** Makes everything that was written before durable: on return it stands on stable storage. */
  flush(): void;
  /** Flushes and gives the host file back. Closing twice is fine. */
  close(): void;
}
