/**
 * `convert`: copies images into a new one of the same or another format.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import type { ImageType } from "../image/detect.ts";
import type { Durability } from "../image/options.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { RawFile } from "../image/raw_file.ts";
import { isZeroExtent } from "../operations/chain.ts";
import { convert as convertDisk } from "../operations/convert.ts";
import { SalvagedDisk } from "../operations/salvage.ts";
import { BlockOptions } from "./block_options.ts";
import { checkCacheMode } from "./common_options.ts";
import { ConcatenatedDisk } from "./concatenated_disk.ts";
import { type Context, report } from "./console.ts";
import { ConversionTarget } from "./conversion_target.ts";
import { type ConvertRequest, parseConvertArguments } from "./convert_arguments.ts";
import { creatableFormat } from "./drivers.ts";
import { causedBy, CliError, explainIoError, failureOf, messageOf } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { openImage, withPrefix } from "./image_files.ts";
import { fullBackingName, pathOfImage } from "./image_names.ts";
import { ImageNode } from "./image_node.ts";
import { describeImageOptions, ImageOptions, parseOptionList } from "./image_options.ts";
import { Interruption } from "./interruption.ts";
import { NewDataFile } from "./new_data_file.ts";
import { createImage, refuseEncryption } from "./new_image.ts";
import { ObservedDisk } from "./observed_disk.ts";
import { type ProgressDisplay, showProgress, wantsProgress } from "./progress.ts";
import { openSnapshot } from "./snapshot_source.ts";

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `convert`.
 * @returns The exit status; 130 or 143 where a signal has ended it.
 * @throws {CliError} Where it fails; a target that was begun is gone then.
 */
export async function convert(context: Context, args: readonly string[]): Promise<number> {
  const request = parseConvertArguments(args);
  if (request.kind === "help") {
    context.console.out(commandHelp("convert", context.programName));
    return 0;
  }
  if (request.kind === "options-help") {
    context.console.out(describeImageOptions(creatableFormat(request.format), request.forFile));
    return 0;
  }
  // Whoever sees the first line may interrupt.
  using interruption = new Interruption();
  const progress = showProgress(context.console, 0, { wanted: request.progress, quiet: request.quiet, inBytes: true });
  let completed = false;
  try {
    using sources = openSources(context, request);
    if (request.skipCreation) await intoExisting(context, request, sources, { progress, interruption });
    else await intoNew(context, request, sources, { progress, interruption });
    completed = true;
  } catch (error) {
    if (interruption.exitCode === undefined) throw error;
    return interruption.exitCode;
  } finally {
    await progress.stop(completed);
  }
  return 0;
}

/** Who follows the work, and what ends it early. */
interface Watch {
  readonly progress: ProgressDisplay;
  readonly interruption: Interruption;
}

/** What is converted: the images, and what is read of them as one disk. */
interface Sources extends Disposable {
  readonly images: readonly (Qcow2File | RawFile)[];
  /** Paths of all files that are read, backing files included. */
  readonly paths: readonly string[];
  readonly disk: Disk;
}

function openSources(context: Context, request: ConvertRequest): Sources {
  using opened = new DisposableStack();
  const { sources, sourceFormat: format, imageOpts, forceShare, snapshot } = request;
  const paths: string[] = [];
  const images = sources.map((name) => {
    return opened.use(
      openImage(context, { name, format, imageOpts, forceShare, locksRaw: true }, (path) => paths.push(path)),
    );
  });
  const [first, ...others] = images;
  if (first === undefined) throw new CliError("Must specify image file name");
  if (snapshot !== undefined && others.length > 0) {
    throw new CliError("No support for concatenating multiple snapshot");
  }
  const disk = snapshot !== undefined
    ? openSnapshot(first, snapshot)
    : others.length === 0
    ? first
    : new ConcatenatedDisk(images);
  const kept = opened.move();
  return { images, paths, disk, [Symbol.dispose]: () => kept.dispose() };
}

async function intoNew(
  context: Context,
  request: ConvertRequest,
  sources: Sources,
  watch: Watch,
): Promise<void> {
  const format = creatableFormat(request.targetFormat ?? "raw");
  const path = pathOfImage(request.target);
  const options = new ImageOptions(format);
  // The size is that of the sources, whatever the options say.
  for (const [option, value] of parseOptionList(request.options ?? "")) options.set(option, value);
  setBackingOptions(options, format, request);
  checkTargetOptions(options, format, request);
  checkBitmaps(request, sources);
  const size = BigInt(sources.disk.size);
  const prefix = `${request.target}: error while converting ${format}: `;
  withPrefix(prefix, () => refuseEncryption(format, options));
  checkCacheMode(request.targetCache, "cache");
  using target = withPrefix(prefix, () => ConversionTarget.prepare(path, sources.paths));
  using backing = openTargetBacking(context, request.target, options);
  const { createNew } = target;
  using dataFile = new NewDataFile(path);
  using disk = withPrefix(prefix, () => {
    const durability = durabilityOf(request, target.replacesFile);
    const place = { path: target.path, shownPath: path, createNew };
    return createImage({ ...place, format, size, options, backing, dataFile, durability }, () => target.markCreated());
  });
  checkBitmapTarget(request, disk);
  const targetIsZero = backing === undefined;
  await copy(context, request, sources.disk, disk, { targetIsZero, skipBacking: !targetIsZero, watch });
  copyBitmaps(context, request, sources, disk);
  closing(disk);
  try {
    target.complete();
    dataFile.keep();
  } catch (error) {
    throw causedBy(error, `${prefix}${explainIoError(error)}`);
  }
}

/**
 * When a new target is made durable. As `qemu-img` does it, that is left to the host unless a cache mode asks for it. A file that the
 * target replaces was durable, so the target is before it takes its place.
 */
function durabilityOf({ targetCache }: ConvertRequest, replacesFile: boolean): Durability {
  if (targetCache === undefined) return replacesFile ? "none" : "unsafe";
  return targetCache === "unsafe" ? "unsafe" : "none";
}

/** Brings what `-B` and `-F` say to the other options. */
function setBackingOptions(options: ImageOptions, format: ImageType, request: ConvertRequest): void {
  const { backingFile, backingFormat } = request;
  if (format === "raw" && (backingFile !== undefined || backingFormat !== undefined)) {
    throw new CliError(`Backing file${backingFile === undefined ? " format" : ""} not supported for file format 'raw'`);
  }
  if (backingFile !== undefined) options.set("backing_file", backingFile);
  if (backingFormat !== undefined) options.set("backing_fmt", backingFormat);
}

function checkTargetOptions(options: ImageOptions, format: ImageType, request: ConvertRequest): void {
  const hasBacking = options.text("backing_file") !== undefined;
  if (hasBacking && request.sources.length > 1) {
    throw new CliError(
      "Having a backing file for the target makes no sense when concatenating multiple input images",
    );
  }
  if (hasBacking && options.text("backing_fmt") === undefined) {
    throw new CliError("Use of backing file requires explicit backing format");
  }
  if (!request.compress) return;
  if (format === "raw") throw new CliError("Compression not supported for this file format");
  if (options.isOn("encryption") || options.text("encrypt.format") !== undefined) {
    throw new CliError("Compression and encryption not supported at the same time");
  }
  if ((options.text("preallocation") ?? "off") !== "off") {
    throw new CliError("Compression and preallocation not supported at the same time");
  }
}

async function intoExisting(
  context: Context,
  request: ConvertRequest,
  sources: Sources,
  watch: Watch,
): Promise<void> {
  const { targetIsZero, target: name, targetFormat, targetImageOpts: imageOpts } = request;
  if (targetIsZero && request.backingFile !== undefined) {
    throw new CliError("Cannot use --target-is-zero when the destination image has a backing file");
  }
  checkBitmaps(request, sources);
  checkCacheMode(request.targetCache, "cache");
  using disk = openImage(context, { name, format: targetFormat, imageOpts, write: true });
  checkBitmapTarget(request, disk);
  if (request.compress && disk instanceof RawFile) {
    throw new CliError("Compression not supported for this file format");
  }
  if (disk.size < sources.disk.size) throw new CliError("output file is smaller than input file");
  await copy(context, request, sources.disk, disk, { targetIsZero, skipBacking: false, watch });
  copyBitmaps(context, request, sources, disk);
  closing(disk);
}

/** Finds out whether the bitmaps can be copied, before anything is. */
function checkBitmaps({ bitmaps, skipBrokenBitmaps }: ConvertRequest, { images }: Sources): void {
  const [image, ...others] = images;
  if (!bitmaps) return;
  if (others.length > 0) throw new CliError("Copying bitmaps only possible with single source");
  if (!canHaveBitmaps(image)) throw new CliError("Source lacks bitmap support");
  const broken = image.bitmaps.findLast(({ inconsistent }) => inconsistent);
  if (broken === undefined || skipBrokenBitmaps) return;
  throw new CliError(`Cannot copy inconsistent bitmap '${broken.name}'`, 1, {
    hint: "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it\n",
  });
}

/** Finds out whether the target can hold bitmaps. */
function checkBitmapTarget({ bitmaps }: ConvertRequest, target: Disk): void {
  if (!bitmaps || canHaveBitmaps(target)) return;
  const format = target instanceof Qcow2File ? "qcow2" : "raw";
  throw new CliError(`Format driver '${format}' does not support bitmaps`);
}

function canHaveBitmaps(disk: Disk | undefined): disk is Qcow2File {
  return disk instanceof Qcow2File && disk.header.version === 3;
}

function copyBitmaps(context: Context, { bitmaps }: ConvertRequest, { images: [image] }: Sources, target: Disk): void {
  if (!bitmaps || !(image instanceof Qcow2File) || !(target instanceof Qcow2File)) return;
  const known = new Set(target.bitmaps.map(({ name }) => name));
  // QEMU begins with the last one, and comes to the same order.
  for (const { name, inconsistent } of image.bitmaps.toReversed()) {
    if (inconsistent) report(context, `warning: Skipping inconsistent bitmap '${name}'`);
    else if (known.has(name)) throw new CliError(`Failed to create bitmap ${name}: Bitmap already exists: ${name}`);
  }
  const empty: string[] = [];
  for (const { name, granularity, auto, inconsistent } of image.bitmaps) {
    if (inconsistent) continue;
    withPrefix(`Failed to create bitmap ${name}: `, () => {
      explaining(() => target.addBitmap(name, { granularity, disabled: !auto }));
    });
    empty.push(name);
  }
  try {
    for (const name of empty.toReversed()) {
      withPrefix(`Failed to populate bitmap ${name}: `, () => {
        explaining(() => target.mergeBitmap(name, name, { from: image }));
      });
      empty.pop();
    }
  } finally {
    for (const name of empty) target.removeBitmap(name);
  }
}

function explaining(act: () => void): void {
  try {
    act();
  } catch (error) {
    throw causedBy(error, explainIoError(error));
  }
}

/** Closes an image and says what was being done where that fails: the last of it is written only then. */
function closing(disk: Disk): void {
  try {
    disk.close();
  } catch (error) {
    throw causedBy(error, `error while closing the target: ${explainIoError(error)}`);
  }
}

/** Opens the backing file that the target is to have. */
function openTargetBacking(context: Context, target: string, options: ImageOptions): Disk | undefined {
  const name = options.text("backing_file");
  const format = options.text("backing_fmt");
  if (name === undefined || format === undefined) return undefined;
  return withPrefix(`Could not open '${target}': Could not open backing file: `, () => {
    using node = ImageNode.find(fullBackingName(pathOfImage(target), name), new BlockOptions([["driver", format]]), {
      write: false,
      lock: true,
      backing: true,
      context,
    });
    return node.openDisk();
  });
}

/** What is known of the target, and who watches. */
interface CopyTerms {
  readonly targetIsZero: boolean;
  readonly skipBacking: boolean;
  readonly watch: Watch;
}

async function copy(
  context: Context,
  request: ConvertRequest,
  disk: Disk,
  target: Disk,
  { targetIsZero, skipBacking, watch: { progress, interruption } }: CopyTerms,
): Promise<void> {
  const { sparseSize, quiet } = request;
  let onRead = (_length: number): void => {};
  const observed = new ObservedDisk(
    request.salvage ? salvaged(context, request, disk) : disk,
    (length) => onRead(length),
  );
  // Walked to the end before anything is copied: a map that cannot be read is better known now. A raw image has none.
  const isWalked = !(disk instanceof RawFile) || wantsProgress(context.console, { wanted: request.progress, quiet });
  progress.expect(isWalked ? bytesToRead(observed, request) : 0);
  let done = 0;
  onRead = (length) => progress.update(done += length);
  try {
    await convertDisk(observed, new ObservedDisk(target, () => {}, (length) => onRead(length)), {
      targetIsZero,
      skipBacking,
      compress: request.compress,
      withinHost: request.withinHost,
      ...(request.rateLimit === undefined ? {} : { rateLimit: request.rateLimit }),
      signal: interruption.signal,
      ...(sparseSize === undefined ? {} : { sparseSize }),
    });
  } catch (error) {
    throw error instanceof CliError ? error : causedBy(error, messageOf(error));
  }
}

/** A disk of which what cannot be read is told and taken for zeroes. */
function salvaged(context: Context, { quiet }: ConvertRequest, disk: Disk): SalvagedDisk {
  let isFirst = true;
  return new SalvagedDisk(disk, ({ asked, offset, error }) => {
    const { text, notice } = failureOf(error);
    // Of a broken image QEMU tells once.
    if (isFirst) context.console.err(notice);
    isFirst = false;
    const what = asked === "content" ? "reading" : "reading block status at";
    if (!quiet) report(context, `warning: error while ${what} offset ${offset}: ${text}`);
  });
}

/** What is salvaged is told of again when it is copied, as QEMU does, so that its stretches are not remembered. */
function bytesToRead(source: ObservedDisk, { salvage, sparseSize }: ConvertRequest): number {
  const options = { hostHoles: true };
  let total = 0;
  for (const extent of salvage ? source.extents(0, source.size, options) : source.walk(options)) {
    if (sparseSize === 0 || !isZeroExtent(extent)) total += extent.length;
  }
  return total;
}
