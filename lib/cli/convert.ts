/**
 * `convert`: copies images into a new one of the same or another format.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import type { ImageType } from "../image/detect.ts";
import type { Durability } from "../image/options.ts";
import type { Qcow2File } from "../image/qcow2_file.ts";
import { convert as convertDisk } from "../operations/convert.ts";
import { ConcatenatedDisk } from "./concatenated_disk.ts";
import type { Context } from "./console.ts";
import { ConversionTarget } from "./conversion_target.ts";
import { type ConvertRequest, parseConvertArguments } from "./convert_arguments.ts";
import { CliError, explainIoError, messageOf } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { openImage, pathOfImage, targetFormat, withPrefix } from "./image_files.ts";
import { describeImageOptions, ImageOptions, parseOptionList } from "./image_options.ts";
import { Interruption } from "./interruption.ts";
import { createImage, openNewBacking, refuseUnsupportedOptions } from "./new_image.ts";
import { ObservedDisk } from "./observed_disk.ts";
import { type ProgressDisplay, showProgress, wantsProgress } from "./progress.ts";
import { openSnapshot, openSnapshotImage } from "./snapshot_source.ts";

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
    context.console.out(describeImageOptions(targetFormat(request.format), request.forFile));
    return 0;
  }
  using image = openSnapshotted(request);
  using source = image === undefined ? openSources(request) : openSnapshot(image, request.snapshot ?? "");
  const format = targetFormat(request.targetFormat);
  using interruption = new Interruption();
  try {
    if (request.skipCreation) await intoExisting(context, request, source, format, interruption);
    else await intoNew(context, request, source, format, interruption);
  } catch (error) {
    if (interruption.exitCode === undefined) throw error;
    return interruption.exitCode;
  }
  return 0;
}

/** The image of which a snapshot is converted, where it is a snapshot. */
function openSnapshotted(request: ConvertRequest): Qcow2File | undefined {
  const [name, ...others] = request.sources;
  if (request.snapshot === undefined || name === undefined) return undefined;
  if (others.length > 0) throw new CliError("No support for concatenating multiple snapshot");
  return openSnapshotImage(name, { format: request.sourceFormat, lock: !request.forceShare });
}

function openSources(request: ConvertRequest): Disk {
  const disks: Disk[] = [];
  try {
    for (const name of request.sources) {
      disks.push(openImage(name, { format: request.sourceFormat, lock: !request.forceShare }));
    }
    const [first] = disks;
    const joined = new ConcatenatedDisk(disks);
    return first !== undefined && disks.length === 1 ? first : joined;
  } catch (error) {
    for (const disk of disks) disk.close();
    throw error;
  }
}

async function intoNew(
  context: Context,
  request: ConvertRequest,
  source: Disk,
  format: ImageType,
  interruption: Interruption,
): Promise<void> {
  const options = new ImageOptions(format);
  // The size is that of the sources, whatever the options say.
  for (const [option, value] of parseOptionList(request.options ?? "")) options.set(option, value);
  if (request.compress && format === "raw") throw new CliError("Compression not supported for this file format");
  if (request.backingFile !== undefined) options.set("backing_file", request.backingFile);
  if (request.backingFormat !== undefined) options.set("backing_fmt", request.backingFormat);
  const size = BigInt(source.size);
  const path = pathOfImage(request.target);
  using backing = openTargetBacking(path, options);
  const prefix = `${request.target}: error while converting ${format}: `;
  withPrefix(prefix, () => refuseUnsupportedOptions(format, options, true));
  const sourcePaths = request.sources.map(pathOfImage);
  using target = withPrefix(prefix, () => ConversionTarget.prepare(path, sourcePaths));
  const { createNew } = target;
  using disk = withPrefix(prefix, () => {
    const durability = durabilityOf(request, target.replacesFile);
    return createImage(
      { path: target.path, shownPath: path, format, size, options, createNew, backing, durability },
      () => {
        target.markCreated();
      },
    );
  });
  const targetIsZero = backing === undefined;
  await copy(context, request, source, disk, { targetIsZero, skipBacking: !targetIsZero, interruption });
  closing(disk);
  try {
    target.complete();
  } catch (error) {
    throw new CliError(`${prefix}${explainIoError(error)}`);
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

async function intoExisting(
  context: Context,
  request: ConvertRequest,
  source: Disk,
  format: ImageType,
  interruption: Interruption,
): Promise<void> {
  using disk = openImage(request.target, { format, write: true });
  if (disk.size < source.size) throw new CliError("output file is smaller than input file");
  if (request.compress && format === "raw") throw new CliError("Compression not supported for this file format");
  const { targetIsZero } = request;
  await copy(context, request, source, disk, { targetIsZero, skipBacking: false, interruption });
  closing(disk);
}

/** Closes an image and says what was being done where that fails: the last of it is written only then. */
function closing(disk: Disk): void {
  try {
    disk.close();
  } catch (error) {
    throw new CliError(`error while closing the target: ${explainIoError(error)}`);
  }
}

/** Opens the backing file that the target is to have. */
function openTargetBacking(path: string, options: ImageOptions): Disk | undefined {
  const name = options.text("backing_file");
  const format = options.text("backing_fmt");
  if (name === undefined) return undefined;
  if (format === undefined) throw new CliError("Use of backing file requires explicit backing format");
  return openNewBacking(path, name, format);
}

/** What is known of the target, and what ends the copy early. */
interface CopyTerms {
  readonly targetIsZero: boolean;
  readonly skipBacking: boolean;
  readonly interruption: Interruption;
}

async function copy(
  context: Context,
  request: ConvertRequest,
  source: Disk,
  target: Disk,
  { targetIsZero, skipBacking, interruption }: CopyTerms,
): Promise<void> {
  const { sparseSize } = request;
  const when = { wanted: request.progress, quiet: request.quiet };
  const { console } = context;
  const total = wantsProgress(console, when) ? bytesToRead(source, sparseSize === 0) : 0;
  const progress: ProgressDisplay = showProgress(console, total, when);
  let done = 0;
  const observed = new ObservedDisk(source, (length) => progress.update(done += length));
  let completed = false;
  try {
    await convertDisk(observed, new ObservedDisk(target), {
      targetIsZero,
      skipBacking,
      compress: request.compress,
      signal: interruption.signal,
      ...(sparseSize === undefined ? {} : { sparseSize }),
    });
    completed = true;
  } catch (error) {
    throw error instanceof CliError ? error : new CliError(messageOf(error));
  } finally {
    await progress.stop(completed);
  }
}

function bytesToRead(source: Disk, zeroesToo: boolean): number {
  if (zeroesToo) return source.size;
  let total = 0;
  for (const { kind, length } of new ObservedDisk(source).extents(0, source.size)) {
    if (kind === "data" || kind === "compressed") total += length;
  }
  return total;
}
