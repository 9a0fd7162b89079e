/**
 * Judges an image that comes from a stranger: whether it can be used without harm.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import {
  AUTOCLEAR,
  COMPATIBLE,
  decodeFeatureNames,
  describeUnknownFeatures,
  INCOMPATIBLE,
  KNOWN_AUTOCLEAR,
} from "../format/feature_bits.ts";
import {
  decodeHeader,
  type Header,
  HEADER_LENGTH_V2,
  headerClusterSize,
  MAGIC,
  MIN_HEADER_LENGTH_V3,
} from "../format/header.ts";
import { EXTENSION } from "../format/header_extensions.ts";
import { findAllFormats, SIGNATURE_END_LENGTH, SIGNATURE_START_LENGTH } from "../format/signatures.ts";
import { viewOf } from "../format/uint64.ts";
import type { ImageType } from "../image/detect.ts";
import { acquireFile } from "../image/host_file.ts";
import { readBitmaps } from "../metadata/bitmaps.ts";
import { type CheckFinding, checkMetadata } from "../metadata/check.ts";
import { ImageMetadata } from "../metadata/image_metadata.ts";
import { readSnapshotTable } from "../metadata/snapshots.ts";
import type { BlockFile } from "../storage/block_file.ts";
import { HostUses } from "./host_map.ts";

/**
 * What {@linkcode judgeUntrustedImage} looks for.
 *
 * | rule | what it means |
 * |---|---|
 * | `backing-file` | the image names another file to read from |
 * | `data-file` | the image names another file for its data |
 * | `encryption` | the content cannot be looked at |
 * | `unknown-feature` | a feature bit or header field that is not known here |
 * | `unknown-extension` | a header extension that is not known here |
 * | `ambiguous-format` | the file can be taken for two formats at once |
 * | `format-mismatch` | the format is another one than was declared |
 * | `foreign-format` | an image format that is not known here, which may name other files |
 * | `unsupported-version` | a qcow2 version other than 2 and 3 |
 * | `virtual-size` | a disk, or a snapshot of it, that is larger than allowed |
 * | `inflation` | a small file that becomes a very large amount of data |
 * | `damaged-header` | the header contradicts the format |
 * | `damaged-tables` | tables contradict the format or each other, or stand outside of the file |
 * | `excessive-tables` | tables that are larger than any use of them |
 * | `marked-dirty` | the image says that it was not closed properly |
 * | `marked-corrupt` | the image says that it is damaged |
 * | `leaks` | space in the file that belongs to nobody |
 * | `snapshots` | content beside that of the disk |
 * | `bitmaps` | persistent bitmaps |
 * | `guessed-format` | no format was declared, and nothing but first bytes tells it |
 */
export type UntrustedRule =
  | "backing-file"
  | "data-file"
  | "encryption"
  | "unknown-feature"
  | "unknown-extension"
  | "ambiguous-format"
  | "format-mismatch"
  | "foreign-format"
  | "unsupported-version"
  | "virtual-size"
  | "inflation"
  | "damaged-header"
  | "damaged-tables"
  | "excessive-tables"
  | "marked-dirty"
  | "marked-corrupt"
  | "leaks"
  | "snapshots"
  | "bitmaps"
  | "guessed-format";

/** One thing that was found. */
export interface UntrustedFinding {
  /** Which rule found it. */
  readonly rule: UntrustedRule;
  /** `refuse`: the image must not be used as it is. `note`: worth knowing, without harm. */
  readonly severity: "refuse" | "note";
  /** One line for people. It may hold text from the image. */
  readonly message: string;
  /** Where in the file, in bytes. */
  readonly offset?: number;
  /** What was found there. */
  readonly found?: string | number;
  /** What would have been right. */
  readonly expected?: string | number;
}

/** How {@linkcode judgeUntrustedImage} judges. */
export interface UntrustedOptions {
  /** The format that the image is declared to have. */
  readonly format?: ImageType;
  /**
   * The largest disk in bytes that is allowed. Without it, that is 1 TiB, or a thousand times the length of the file where that is
   * more.
   */
  readonly maxVirtualSize?: number;
  /**
   * Whether to lock the file.
   *
   * @default {true}
   */
  readonly lock?: boolean;
}

/** What {@linkcode judgeUntrustedImage} thinks. */
export interface UntrustedVerdict {
  /** Whether the image can be used: nothing was found that has to be refused. */
  readonly acceptable: boolean;
  /** The format by the first bytes: `raw`, `qcow2`, or the name of a foreign one. */
  readonly format: string;
  /** Length of the file in bytes. */
  readonly fileSize: number;
  /** The virtual size in bytes, as far as it is known. */
  readonly virtualSize: number | undefined;
  /** What was found. */
  readonly findings: readonly UntrustedFinding[];
}

const TIB = 1024 ** 4;
const GIB = 1024 ** 3;
/** How many times larger than its file a disk may be, where the caller does not say, and from how large on. */
const MAX_SIZE_RATIO = 1000;
const MAX_UNSUSPICIOUS_SIZE = TIB;
/** How much more data than the file has bytes may come out of it, and from how much on. */
const MAX_INFLATION_RATIO = 100;
const MAX_UNSUSPICIOUS_DATA = GIB;
/** A terabyte that is full takes 160 MiB of tables, in clusters of 64 KiB. */
const MAX_TABLE_LENGTH = 256 * 1024 * 1024;
/** Nothing is learnt from more. */
const MAX_CORRUPTION_COUNT = 1000;
const OPTIONAL_FIELDS_END = 112;

/**
 * Judges an image that comes from a stranger. Opens nothing but the file, reads its first cluster and its tables, and no more than a
 * bounded amount of them.
 *
 * An image without a qcow2 header is `raw`, and fine as long as it is always opened as such: a guest can write any header
 * to it later.
 *
 * @param path Path of the image.
 * @param options What the image is declared to be, and how large it may be.
 * @returns The verdict.
 * @throws {Qcow2Error} With code `not-found`, `permission-denied`, `locked` or `io` where the file cannot be read,
 * `unsupported` where it is no regular file.
 *
 * @example Usage
 * ```ts
 * import { judgeUntrustedImage, Qcow2File } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * Qcow2File.create(path, { size: 1 << 30 }).close();
 * assertEquals(judgeUntrustedImage(path, { format: "qcow2" }).acceptable, true);
 * const { acceptable, findings } = judgeUntrustedImage(path, { format: "qcow2", maxVirtualSize: 1 << 20 });
 * assertEquals([acceptable, findings[0]?.rule], [false, "virtual-size"]);
 * Deno.removeSync(path);
 * ```
 */
export function judgeUntrustedImage(path: string, options: UntrustedOptions = {}): UntrustedVerdict {
  assertRegularFile(path);
  using file = acquireFile(path, { write: false, lock: options.lock ?? true });
  return new Judge(file, options).judge();
}

/** A pipe would never answer, a device is none of a stranger's. */
function assertRegularFile(path: string): void {
  let isFile: boolean;
  try {
    isFile = Deno.statSync(path).isFile;
  } catch {
    // Opening it tells why.
    return;
  }
  if (!isFile) throw new Qcow2Error("unsupported", `"${path}" is no regular file`, { expected: "a regular file" });
}

class Judge {
  readonly #file: BlockFile;
  readonly #options: UntrustedOptions;
  readonly #findings: UntrustedFinding[] = [];
  readonly #maxVirtualSize: number;

  constructor(file: BlockFile, options: UntrustedOptions) {
    this.#file = file;
    this.#options = options;
    this.#maxVirtualSize = options.maxVirtualSize ?? Math.max(MAX_UNSUSPICIOUS_SIZE, MAX_SIZE_RATIO * file.size);
  }

  judge(): UntrustedVerdict {
    const start = readAt(this.#file, 0, SIGNATURE_START_LENGTH);
    const end = readAt(this.#file, Math.max(0, this.#file.size - SIGNATURE_END_LENGTH), SIGNATURE_END_LENGTH);
    const format = this.#judgeFormat(start, end);
    let virtualSize: number | undefined;
    if (format === "qcow2") virtualSize = this.#judgeQcow2(start);
    else if (format === "raw") virtualSize = this.#file.size;
    if (virtualSize !== undefined) this.#judgeSize("Disk", virtualSize, 24);
    return {
      acceptable: this.#findings.every(({ severity }) => severity !== "refuse"),
      format,
      fileSize: this.#file.size,
      virtualSize,
      findings: this.#findings,
    };
  }

  #judgeFormat(start: Uint8Array, end: Uint8Array): string {
    const { images, disks } = findAllFormats(start, end);
    const isQcow2 = start.length >= 8 && viewOf(start).getUint32(0) === MAGIC && viewOf(start).getUint32(4) >= 2;
    const candidates = isQcow2 ? ["qcow2", ...images, ...disks] : images.length === 0 ? [] : [...images, ...disks];
    const [format = "raw"] = candidates;
    if (candidates.length > 1) {
      this.#refuse("ambiguous-format", `File can be taken for ${candidates.join(" and ")}`, {
        found: candidates.join(", "),
        expected: "one format",
      });
    }
    if (format !== "raw" && format !== "qcow2") {
      this.#refuse("foreign-format", `Image has the format ${format}, which may name other files`, {
        found: format,
        expected: "raw or qcow2",
      });
    }
    const declared = this.#options.format;
    if (declared !== undefined && declared !== format) {
      this.#refuse("format-mismatch", `Image has the format ${format}, but was declared to be ${declared}`, {
        found: format,
        expected: declared,
      });
    } else if (declared === undefined && format === "raw") {
      this.#note(
        "guessed-format",
        "No format was declared; the image is taken for raw since it looks like nothing else",
      );
    }
    return format;
  }

  /** Judges a qcow2 image; returns the virtual size where it is known. */
  #judgeQcow2(start: Uint8Array): number | undefined {
    if (start.length < HEADER_LENGTH_V2) {
      this.#refuse("damaged-header", `File is ${start.length} bytes long, shorter than a header`);
      return undefined;
    }
    const version = viewOf(start).getUint32(4);
    if (version !== 2 && version !== 3) {
      this.#refuse("unsupported-version", `Image has the version ${version}`, {
        offset: 4,
        found: version,
        expected: "2 or 3",
      });
      return undefined;
    }
    this.#judgeFields(start, version);
    const header = this.#decode(start);
    if (header === undefined) return undefined;
    this.#judgeExtensions(header);
    if (this.#judgePlaces(header)) this.#judgeTables(header);
    return header.size;
  }

  /** What single fields say, each by itself, so that all of it is told even where the header as a whole makes no sense. */
  #judgeFields(start: Uint8Array, version: 2 | 3): void {
    const view = viewOf(start);
    const backingOffset = view.getBigUint64(8);
    if (backingOffset !== 0n) {
      const name = textAt(start, backingOffset, view.getUint32(16));
      this.#refuse("backing-file", `Image names the backing file "${name}"`, {
        offset: 8,
        found: name,
        expected: "none",
      });
    }
    const encryption = view.getUint32(32);
    if (encryption !== 0) {
      const method = encryption === 1 ? "AES" : encryption === 2 ? "LUKS" : `method ${encryption}`;
      this.#refuse("encryption", `Image is encrypted (${method})`, { offset: 32, found: encryption, expected: 0 });
    }
    if (version === 3 && start.length >= MIN_HEADER_LENGTH_V3) this.#judgeFeatures(view);
  }

  #judgeFeatures(view: DataView): void {
    const incompatible = view.getBigUint64(72);
    const compatible = view.getBigUint64(80) & ~COMPATIBLE.lazyRefcounts;
    const autoclear = view.getBigUint64(88);
    if ((incompatible & INCOMPATIBLE.dataFile) !== 0n || (autoclear & AUTOCLEAR.rawDataFile) !== 0n) {
      this.#refuse("data-file", "Image has its data in another file", { offset: 72, expected: "data in the image" });
    }
    if ((incompatible & INCOMPATIBLE.dirty) !== 0n) {
      this.#refuse("marked-dirty", "Image says that it was not closed properly", { offset: 72 });
    }
    if ((incompatible & INCOMPATIBLE.corrupt) !== 0n) {
      this.#refuse("marked-corrupt", "Image says that it is damaged", { offset: 72 });
    }
    const unknown = describeUnknownFeatures(incompatible, decodeFeatureNames(new Uint8Array()));
    if (unknown !== "") this.#refuse("unknown-feature", unknown, { offset: 72, found: hexBits(incompatible) });
    if (compatible !== 0n) {
      this.#note("unknown-feature", "Image has compatible features that are not known here", {
        offset: 80,
        found: hexBits(compatible),
      });
    }
    if ((autoclear & ~KNOWN_AUTOCLEAR) !== 0n) {
      this.#note("unknown-feature", "Image has autoclear features that are not known here", {
        offset: 88,
        found: hexBits(autoclear & ~KNOWN_AUTOCLEAR),
      });
    }
  }

  #decode(start: Uint8Array): Header | undefined {
    try {
      const clusterSize = headerClusterSize(start);
      return decodeHeader(clusterSize > start.length ? readAt(this.#file, 0, clusterSize) : start);
    } catch (error) {
      // A feature that is not known was told already.
      if (!(error instanceof Qcow2Error) || error.code === "io") throw error;
      if (error.code !== "unknown-feature") this.#refuse("damaged-header", error.message, error);
      return undefined;
    }
  }

  #judgeExtensions({ extensions, incompatibleFeatures, encryption, unknownFields, backingFile }: Header): void {
    const known: ReadonlySet<number> = new Set(Object.values(EXTENSION));
    for (const { type, data } of extensions) {
      if (!known.has(type)) {
        this.#refuse("unknown-extension", `Image has the unknown header extension ${hex(type)}`, {
          found: hex(type),
          expected: "extensions that are known here",
        });
      }
      if (type === EXTENSION.dataFile) {
        const name = new TextDecoder().decode(data);
        const used = (incompatibleFeatures & INCOMPATIBLE.dataFile) !== 0n;
        this.#refuse(
          "data-file",
          `Image names the data file "${name}"${used ? "" : " without saying that it has one"}`,
          {
            found: name,
            expected: "none",
          },
        );
      }
      if (type === EXTENSION.fullDiskEncryption && encryption !== "luks") {
        this.#refuse("encryption", "Image has the header of an encryption without being encrypted");
      }
      if (type === EXTENSION.backingFormat && backingFile === undefined) {
        this.#note("backing-file", "Image names the format of a backing file without having one");
      }
    }
    // The compression type and its padding are known.
    if (unknownFields.subarray(OPTIONAL_FIELDS_END - MIN_HEADER_LENGTH_V3 - 1).some((byte) => byte !== 0)) {
      this.#note("unknown-feature", "Header has fields that are not known here", { offset: OPTIONAL_FIELDS_END });
    }
  }

  /** Whether the tables that the header points to lie in the file. */
  #judgePlaces(header: Header): boolean {
    const clusterSize = 2 ** header.clusterBits;
    const places: readonly (readonly [name: string, position: number, offset: number, length: number])[] = [
      ["L1 table", 40, header.l1TableOffset, header.l1EntryCount * 8],
      ["Refcount table", 48, header.refcountTableOffset, header.refcountTableClusterCount * clusterSize],
      ["Snapshot table", 64, header.snapshotTableOffset, header.snapshotCount * 40],
    ];
    const outside = places.filter(([, , offset, length]) => length > 0 && offset + length > this.#file.size);
    for (const [name, position, offset, length] of outside) {
      this.#refuse("damaged-tables", `${name} reaches behind the end of the file`, {
        offset: position,
        found: `${length} bytes at ${hex(offset)}`,
        expected: `at most ${this.#file.size} bytes in all`,
      });
    }
    return outside.length === 0;
  }

  #judgeTables(header: Header): void {
    try {
      this.#judgeSnapshots(header);
      const bitmaps = readBitmaps(this.#file, header);
      if (bitmaps.length > 0) this.#note("bitmaps", counted(bitmaps.length, "persistent bitmap"));
      this.#check(header);
    } catch (error) {
      if (!(error instanceof Qcow2Error) || error.code === "io") throw error;
      this.#refuse(error.code === "limit-exceeded" ? "excessive-tables" : "damaged-tables", error.message, error);
    }
  }

  #judgeSnapshots(header: Header): void {
    const { snapshots } = readSnapshotTable(this.#file, header);
    if (snapshots.length === 0) return;
    this.#note("snapshots", counted(snapshots.length, "internal snapshot"), {
      offset: 60,
      found: snapshots.length,
    });
    const largest = Math.max(...snapshots.map(({ diskSize }) => diskSize ?? 0));
    this.#judgeSize("Disk of a snapshot", largest, header.snapshotTableOffset);
  }

  #check({ clusterBits, size }: Header): void {
    const uses = new HostUses(2 ** clusterBits, MAX_TABLE_LENGTH);
    const metadata = ImageMetadata.open(this.#file, { write: false, durability: "none" });
    let first: CheckFinding | undefined;
    let corruptions = 0;
    const { leaks, allocatedClusters } = checkMetadata(metadata, {
      onReference: (use, offset, length) => uses.note(use, offset, length),
      onFinding: (finding) => {
        if (finding.kind === "leak") return uses.noteLeak(finding.hostOffset);
        first ??= finding;
        if (++corruptions === MAX_CORRUPTION_COUNT) throw new Qcow2Error("corrupt", finding.message);
      },
    });
    if (first !== undefined) {
      this.#refuse("damaged-tables", first.message, { offset: first.hostOffset, found: `${corruptions} errors` });
    }
    if (leaks > 0) {
      this.#note("leaks", `${counted(leaks, "leaked cluster")}, which nobody uses`, { found: leaks, expected: 0 });
    }
    const dataLength = Math.min(allocatedClusters * 2 ** clusterBits, size);
    if (dataLength > Math.max(MAX_UNSUSPICIOUS_DATA, MAX_INFLATION_RATIO * this.#file.size)) {
      this.#refuse("inflation", `File of ${this.#file.size} bytes becomes ${dataLength} bytes of data`, {
        found: dataLength,
        expected: `at most ${MAX_INFLATION_RATIO} times the length of the file`,
      });
    }
  }

  #judgeSize(what: string, size: number, offset: number): void {
    if (size <= this.#maxVirtualSize) return;
    this.#refuse("virtual-size", `${what} has ${size} bytes`, {
      offset,
      found: size,
      expected: `at most ${this.#maxVirtualSize}`,
    });
  }

  #refuse(rule: UntrustedRule, message: string, details: FindingDetails = {}): void {
    this.#findings.push({ rule, severity: "refuse", message, ...present(details) });
  }

  #note(rule: UntrustedRule, message: string, details: FindingDetails = {}): void {
    this.#findings.push({ rule, severity: "note", message, ...present(details) });
  }
}

/** Where something was found and what was expected; an error can tell. */
interface FindingDetails {
  readonly offset?: number | undefined;
  readonly found?: string | number | undefined;
  readonly expected?: string | number | undefined;
}

function present({ offset, found, expected }: FindingDetails): Pick<UntrustedFinding, "offset" | "found" | "expected"> {
  return {
    ...(offset === undefined ? {} : { offset }),
    ...(found === undefined ? {} : { found }),
    ...(expected === undefined ? {} : { expected }),
  };
}

function readAt(file: BlockFile, offset: number, maxLength: number): Uint8Array {
  const bytes = new Uint8Array(Math.min(maxLength, file.size - offset));
  return bytes.subarray(0, file.readAt(offset, bytes));
}

/** A name out of the header, as much of it as stands in the bytes that are there. */
function textAt(bytes: Uint8Array, offset: bigint, length: number): string {
  const start = offset > BigInt(bytes.length) ? bytes.length : Number(offset);
  return new TextDecoder().decode(bytes.subarray(start, start + Math.min(length, 1023)));
}

function counted(count: number, what: string): string {
  return `Image has ${count} ${what}${count === 1 ? "" : "s"}`;
}

function hexBits(features: bigint): string {
  return `0x${features.toString(16)}`;
}
