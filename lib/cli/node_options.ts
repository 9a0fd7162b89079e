/**
 * The options that images, formats and files know when they are opened by description, and what is wrong with their values.
 *
 * @module
 */

import { alignUp, l1EntryCountFor } from "../format/geometry.ts";
import { geometryOfHeader, type Header } from "../format/header.ts";
import type { BlockOptions } from "./block_options.ts";
import { CliError } from "./errors.ts";
import { parseNumber, TRUE_WORDS, type TypedOption } from "./image_options.ts";
import { parseSize } from "./sizes.ts";

const flag = (name: string): TypedOption => ({ name, type: "bool (on/off)" });
const text = (name: string): TypedOption => ({ name, type: "str" });
const size = (name: string): TypedOption => ({ name, type: "size" });
const number = (name: string): TypedOption => ({ name, type: "num" });

const NODE_OPTIONS: readonly TypedOption[] = [
  text("node-name"),
  text("driver"),
  flag("cache.direct"),
  flag("cache.no-flush"),
  flag("read-only"),
  flag("auto-read-only"),
  text("detect-zeroes"),
  text("discard"),
  flag("force-share"),
];

const FILE_OPTIONS: readonly TypedOption[] = [
  text("filename"),
  text("aio"),
  number("aio-max-batch"),
  text("locking"),
  text("pr-manager"),
  flag("drop-cache"),
  flag("x-check-cache-dropped"),
];

const RAW_OPTIONS: readonly TypedOption[] = [size("offset"), size("size")];

const OVERLAP_CHECKS = [
  "main-header",
  "active-l1",
  "active-l2",
  "refcount-table",
  "refcount-block",
  "snapshot-table",
  "inactive-l1",
  "inactive-l2",
  "bitmap-directory",
] as const;
const OVERLAP_TEMPLATES = ["none", "constant", "cached", "all"];

const QCOW2_OPTIONS: readonly TypedOption[] = [
  flag("lazy-refcounts"),
  flag("pass-discard-request"),
  flag("pass-discard-snapshot"),
  flag("pass-discard-other"),
  text("overlap-check"),
  text("overlap-check.template"),
  ...OVERLAP_CHECKS.map((name) => flag(`overlap-check.${name}`)),
  size("cache-size"),
  size("l2-cache-size"),
  size("l2-cache-entry-size"),
  size("refcount-cache-size"),
  number("cache-clean-interval"),
];

/** What is said of any image. */
export interface NodeOptions {
  /** Whether the image may only be read. */
  readonly readOnly: boolean | undefined;
  /** Whether others may use it as they like. */
  readonly forceShare: boolean | undefined;
}

/**
 * Takes the options that every image knows.
 *
 * @param options What was given.
 * @returns What matters here.
 * @throws {CliError} Where a value is none.
 */
export function takeNodeOptions(options: BlockOptions): NodeOptions {
  const taken = options.absorb(NODE_OPTIONS);
  const discard = taken.get("discard");
  if (discard !== undefined && !["off", "ignore", "on", "unmap"].includes(discard)) {
    throw new CliError("Invalid discard option");
  }
  const detectZeroes = taken.get("detect-zeroes") ?? "off";
  checkWord(detectZeroes, ["off", "on", "unmap"]);
  if (detectZeroes === "unmap" && discard !== "on" && discard !== "unmap") {
    throw new CliError("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap");
  }
  const nodeName = taken.get("node-name");
  if (nodeName !== undefined && !/^[a-zA-Z][-._a-zA-Z0-9]*$/.test(nodeName)) {
    throw new CliError(`Invalid node-name: '${nodeName}'`);
  }
  return { readOnly: isOn(taken.get("read-only")), forceShare: isOn(taken.get("force-share")) };
}

/**
 * Takes the options of a file.
 *
 * @param options What was given.
 * @returns Its name, and whether it is locked where nobody says otherwise.
 * @throws {CliError} Where a value is none.
 */
export function takeFileOptions(
  options: BlockOptions,
): { readonly filename: string | undefined; readonly lock: boolean } {
  const taken = options.absorb(FILE_OPTIONS);
  checkWord(taken.get("aio") ?? "threads", ["threads", "native", "io_uring"]);
  checkWord(taken.get("locking") ?? "auto", ["auto", "on", "off"]);
  return { filename: taken.get("filename"), lock: taken.get("locking") !== "off" };
}

/** A part of a file that is a raw image. */
export interface RawWindow {
  /** Where it begins, in bytes. */
  readonly offset: number;
  /** How long it is, in bytes; up to the end of the file without it. */
  readonly size: number | undefined;
}

/**
 * Takes the options of a raw image.
 *
 * @param options What was given.
 * @param fileSize Length of the file in bytes.
 * @returns The part that they say, or `undefined` where they say nothing.
 * @throws {CliError} Where a value is none, or the part does not lie in the file.
 */
export function takeRawOptions(options: BlockOptions, fileSize: number): RawWindow | undefined {
  const taken = options.absorb(RAW_OPTIONS);
  if (taken.size === 0) return undefined;
  const offset = sizeOf(taken.get("offset")) ?? 0n;
  const length = sizeOf(taken.get("size"));
  const room = BigInt(alignUp(fileSize, SECTOR_SIZE));
  if (offset > room) {
    throw new CliError(`Offset (${offset}) cannot be greater than size of the containing file (${room})`);
  }
  if (length !== undefined && room - offset < length) {
    throw new CliError(
      `The sum of offset (${offset}) and size (${length}) has to be smaller or equal to the  actual size of the ` +
        `containing file (${room})`,
    );
  }
  if (length !== undefined && length % BigInt(SECTOR_SIZE) !== 0n) {
    throw new CliError("Specified size is not multiple of 512");
  }
  return { offset: Number(offset), size: length === undefined ? undefined : Number(length) };
}

const SECTOR_SIZE = 512;
const MIN_L2_CACHE_ENTRY_SIZE = 512n;
const DEFAULT_L2_CACHE_SIZE = 32n * 1024n * 1024n;
const MAX_INT32 = 2n ** 31n - 1n;
const MAX_UINT32 = 2n ** 32n - 1n;

/**
 * Takes the options of a qcow2 image. The size of the cache of L2 tables is followed; the others change nothing here: metadata is
 * always guarded, refcounts are always kept right.
 *
 * @param options What was given.
 * @param header The image's header.
 * @returns The size of the cache of L2 tables in bytes, where it was given.
 * @throws {CliError} Where a value is none, or does not go with the image.
 */
export function takeQcow2Options(options: BlockOptions, header: Header): number | undefined {
  const taken = options.absorb(QCOW2_OPTIONS);
  const cacheSize = l2CacheSize(taken, header);
  const interval = taken.get("cache-clean-interval");
  if (interval !== undefined && BigInt(parseNumber(interval)) > MAX_UINT32) {
    throw new CliError("Cache clean interval too big");
  }
  if (isOn(taken.get("lazy-refcounts")) === true && header.version < 3) {
    throw new CliError("Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level");
  }
  checkOverlapTemplate(taken.get("overlap-check"), taken.get("overlap-check.template"));
  return cacheSize;
}

function l2CacheSize(taken: ReadonlyMap<string, string>, header: Header): number | undefined {
  const geometry = geometryOfHeader(header);
  const { clusterSize } = geometry;
  const combined = sizeOf(taken.get("cache-size"));
  const wanted = sizeOf(taken.get("l2-cache-size"));
  const refcounts = sizeOf(taken.get("refcount-cache-size"));
  const entry = sizeOf(taken.get("l2-cache-entry-size")) ?? BigInt(clusterSize);
  if (combined !== undefined) {
    if (wanted !== undefined && refcounts !== undefined) {
      throw new CliError("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time");
    }
    if (wanted !== undefined && wanted > combined) throw new CliError("l2-cache-size may not exceed cache-size");
    if (refcounts !== undefined && refcounts > combined) {
      throw new CliError("refcount-cache-size may not exceed cache-size");
    }
  }
  if (entry < MIN_L2_CACHE_ENTRY_SIZE || entry > BigInt(clusterSize) || (entry & (entry - 1n)) !== 0n) {
    throw new CliError(
      `L2 cache entry size must be a power of two between ${MIN_L2_CACHE_ENTRY_SIZE} and the cluster size (${clusterSize})`,
    );
  }
  const all = BigInt(l1EntryCountFor(geometry, header.size)) * BigInt(clusterSize);
  const limit = wanted ?? (combined === undefined ? DEFAULT_L2_CACHE_SIZE : combined - (refcounts ?? 0n));
  const used = limit < all ? limit : all;
  if (used / entry > MAX_INT32) throw new CliError("L2 cache size too big");
  if ((refcounts ?? 0n) / BigInt(clusterSize) > MAX_INT32) throw new CliError("Refcount cache size too big");
  return wanted === undefined && combined === undefined ? undefined : Number(used);
}

function checkOverlapTemplate(plain: string | undefined, template: string | undefined): void {
  if (plain !== undefined && template !== undefined && plain !== template) {
    throw new CliError(
      `Conflicting values for qcow2 options 'overlap-check' ('${plain}') and 'overlap-check.template' ('${template}')`,
    );
  }
  const chosen = plain ?? template ?? "cached";
  if (!OVERLAP_TEMPLATES.includes(chosen)) {
    throw new CliError(
      `Unsupported value '${chosen}' for qcow2 option 'overlap-check'. Allowed are any of the following: ` +
        OVERLAP_TEMPLATES.join(", "),
    );
  }
}

function checkWord(word: string, words: readonly string[]): void {
  if (!words.includes(word)) throw new CliError(`invalid parameter value: ${word}`);
}

function isOn(word: string | undefined): boolean | undefined {
  return word === undefined ? undefined : TRUE_WORDS.includes(word);
}

/** A size that was checked before. */
function sizeOf(text: string | undefined): bigint | undefined {
  const size = text === undefined ? undefined : parseSize(text);
  return typeof size === "bigint" ? size : undefined;
}
