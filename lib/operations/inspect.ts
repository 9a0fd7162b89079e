/**
 * Looks at an image from all sides: what it is, what the disk and the file consist of, and whether it is sound.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { Qcow2Error, type Qcow2ErrorCode } from "../errors.ts";
import { allowedBacking, type BackingReference, backingReferenceOf } from "../image/backing.ts";
import type { ImageType } from "../image/detect.ts";
import { acquireFile, type FileSource } from "../image/host_file.ts";
import { realPath } from "../image/local_name.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { RawFile } from "../image/raw_file.ts";
import { type CheckFinding, checkMetadata, type CheckResult } from "../metadata/check.ts";
import { ImageMetadata } from "../metadata/image_metadata.ts";
import type { BlockFile } from "../storage/block_file.ts";
import type { Bin, BinnedMap } from "./binned_map.ts";
import { type Fragmentation, GUEST_KINDS, type GuestKind, mapDisk, mapGuest } from "./guest_map.ts";
import { HOST_KINDS, type HostKind, HostUses } from "./host_map.ts";
import { type ImageInfo, imageInfo, infoOfFile } from "./info.ts";

export { type Bin, type BinnedMap, type Fragmentation, GUEST_KINDS, type GuestKind, HOST_KINDS, type HostKind };

/** How {@linkcode inspectImage} looks at an image. */
export interface InspectOptions {
  /** The format. Without it, the first bytes decide, as `detectImageType` does. */
  readonly format?: ImageType;
  /**
   * Whether to lock the file.
   *
   * @default {true}
   */
  readonly lock?: boolean;
  /**
   * Whether to open backing files: local ones, with the format that the image names. Without them it is not known which part
   * of what they may hold is data.
   *
   * @default {"refuse"}
   */
  readonly backing?: "refuse" | "allow";
  /**
   * How many bytes of tables to look at, at most: what is beyond is `unknown`. A terabyte that is full takes 160 MiB of them, in
   * clusters of 64 KiB.
   *
   * @default {1073741824}
   */
  readonly maxTableLength?: number;
}

/** An image of the chain that a disk is read from. */
export interface ChainLink {
  /** Path of the file, or the name that the image above it gives it where that leads to no local file. */
  readonly path: string;
  /** What it is, where it was opened. */
  readonly info?: ImageInfo;
  /** Why it was not opened. */
  readonly problem?: string;
}

/** What {@linkcode inspectImage} found out about the soundness of an image. */
export interface Soundness {
  /** What the check found; `undefined` where it was not carried to the end. */
  readonly result: CheckResult | undefined;
  /** The first findings. */
  readonly findings: readonly CheckFinding[];
  /** Why the check was not carried to the end. */
  readonly problem?: string;
}

/** What {@linkcode inspectImage} found. */
export interface Inspection {
  /** What the image is. */
  readonly info: ImageInfo;
  /** Length of its file in bytes, holes included. */
  readonly fileSize: number;
  /** The image, its backing file, and so on. */
  readonly chain: readonly ChainLink[];
  /** What the disk consists of. */
  readonly guest: BinnedMap<GuestKind>;
  /** In how many pieces the data stands on the host. */
  readonly fragmentation: Fragmentation;
  /** What the file is used for; only qcow2 images have metadata in theirs. */
  readonly host: BinnedMap<HostKind> | undefined;
  /** Whether the metadata is sound; only qcow2 images have some. */
  readonly soundness: Soundness | undefined;
  /** What was passed over since it is damaged, or was not looked at: one line each. */
  readonly problems: readonly string[];
}

const DEFAULT_MAX_TABLE_LENGTH = 1024 ** 3;
/** The first findings tell what kind of damage it is; `check` lists them all. */
const MAX_FINDING_COUNT = 20;
/** With so many errors no picture is worth the time that finding more would take. */
const MAX_CORRUPTION_COUNT = 1_000_000;
/** How a check ends that cannot go on. */
const DAMAGE_CODES: ReadonlySet<Qcow2ErrorCode> = new Set(["corrupt", "limit-exceeded", "invalid-header"]);

/**
 * Looks at an image from all sides. It is read only, need not be sound, and may be encrypted.
 *
 * Time and memory follow the tables of the image, never its virtual size. Damaged tables are passed over and named.
 *
 * @param source Path of the image, or a file that was opened; it is closed at the end.
 * @param options Format, and what may be opened.
 * @returns What it is and what it consists of.
 * @throws {Qcow2Error} As `imageInfo` does, where the file cannot be had or its header is none.
 *
 * @example Usage
 * ```ts
 * import { inspectImage, Qcow2File } from "@disk/qcow2";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile();
 * const disk = Qcow2File.create(path, { size: 1 << 30 });
 * disk.writeAt(1 << 20, new Uint8Array(65536).fill(1));
 * disk.close();
 * const { guest, host, soundness } = inspectImage(path);
 * assertEquals([guest.totals.data, guest.totals.unallocated], [65536, (1 << 30) - 65536]);
 * assertEquals([host?.totals["L2 table"], host?.totals.data], [65536, 65536]);
 * assertEquals(soundness?.result?.corruptions, 0);
 * Deno.removeSync(path);
 * ```
 */
export function inspectImage(source: FileSource, options: InspectOptions = {}): Inspection {
  const { format, lock = true, maxTableLength = DEFAULT_MAX_TABLE_LENGTH } = options;
  const problems: string[] = [];
  using file = acquireFile(source, { write: false, lock });
  const info = infoOfFile(file, {
    ...(format === undefined ? {} : { format }),
    onDamage: ({ message }) => problems.push(message),
  });
  const chain = readChain(file.name, info, options.backing ?? "refuse", lock);
  if (info.qcow2 === undefined) {
    using disk = RawFile.open(file, { lock: false });
    const { map, fragmentation } = mapDisk(disk);
    const fileSize = disk.size;
    return { info, fileSize, chain, guest: map, fragmentation, host: undefined, soundness: undefined, problems };
  }
  const metadata = ImageMetadata.open(file, { write: false, durability: "none" });
  const { host, soundness } = examineHost(file, metadata, maxTableLength);
  const { map: guest, fragmentation, problems: passedOver } = examineGuest(metadata, chain, lock, maxTableLength);
  problems.push(...passedOver);
  return { info, fileSize: file.size, chain, guest, fragmentation, host, soundness, problems };
}

/** Follows the names of backing files, as far as that is allowed and possible. */
function readChain(path: string, info: ImageInfo, policy: "refuse" | "allow", lock: boolean): ChainLink[] {
  const chain: ChainLink[] = [{ path, info }];
  const realPaths = [realPath(path)];
  let reference = referenceOf(path, info);
  while (reference !== undefined) {
    const named = reference.path ?? reference.name;
    if (policy === "refuse") {
      chain.push({ path: named, problem: "Opening it was not allowed" });
      break;
    }
    try {
      const next = allowedBacking(reference, realPaths);
      const nextInfo = imageInfo(next.path, { format: next.format, lock });
      chain.push({ path: next.path, info: nextInfo });
      realPaths.push(realPath(next.path));
      reference = referenceOf(next.path, nextInfo);
    } catch (error) {
      if (!(error instanceof Qcow2Error)) throw error;
      chain.push({ path: named, problem: error.message });
      break;
    }
  }
  return chain;
}

function referenceOf(path: string, { qcow2 }: ImageInfo): BackingReference | undefined {
  if (qcow2?.backingFile === undefined) return undefined;
  return backingReferenceOf(qcow2.backingFile, qcow2.backingFormat, path);
}

function examineGuest(
  metadata: ImageMetadata,
  chain: readonly ChainLink[],
  lock: boolean,
  maxTableLength: number,
): ReturnType<typeof mapGuest> {
  const [, first] = chain;
  if (first === undefined) return mapGuest(metadata, undefined, maxTableLength);
  if (chain.at(-1)?.info === undefined) return mapGuest(metadata, "unopened", maxTableLength);
  using backing = openBacking(first, lock);
  return mapGuest(metadata, backing ?? "unopened", maxTableLength);
}

/** Opens a backing file whose whole chain was found in order. One that cannot be read all the same is left out. */
function openBacking({ path, info }: ChainLink, lock: boolean): Disk | undefined {
  try {
    if (info?.format === "raw") return RawFile.open(path, { lock });
    return Qcow2File.open(path, { lock, backing: "allow", dataFile: "allow" });
  } catch (error) {
    if (error instanceof Qcow2Error) return undefined;
    throw error;
  }
}

function examineHost(
  file: BlockFile,
  metadata: ImageMetadata,
  maxTableLength: number,
): { readonly host: BinnedMap<HostKind>; readonly soundness: Soundness } {
  const uses = new HostUses(metadata.geometry.clusterSize, maxTableLength);
  const findings: CheckFinding[] = [];
  let corruptions = 0;
  try {
    const result = checkMetadata(metadata, {
      onReference: (use, offset, length) => uses.note(use, offset, length),
      onFinding: (finding) => {
        if (findings.length < MAX_FINDING_COUNT) findings.push(finding);
        if (finding.kind === "leak") uses.noteLeak(finding.hostOffset);
        else if (finding.kind !== "note" && ++corruptions === MAX_CORRUPTION_COUNT) {
          throw new Qcow2Error("corrupt", `There are ${corruptions} errors and more`);
        }
      },
    });
    return { host: uses.build(file.size, true), soundness: { result, findings } };
  } catch (error) {
    if (!(error instanceof Qcow2Error) || !DAMAGE_CODES.has(error.code)) throw error;
    return {
      host: uses.build(file.size, false),
      soundness: { result: undefined, findings, problem: error.message },
    };
  }
}
