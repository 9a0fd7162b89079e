/**
 * `dd`: copies a part of an image into a new one.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import type { ImageType } from "../image/detect.ts";
import { DiskError, onDisk } from "../operations/disk_error.ts";
import { CHUNK_SIZE } from "../operations/sector_comparison.ts";
import { TimeSlice } from "../operations/time_slice.ts";
import { parseArguments } from "./arguments.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import { type Context, report } from "./console.ts";
import { ConversionTarget } from "./conversion_target.ts";
import { NewDataFile } from "./new_data_file.ts";
import { creatableFormat, isKnownDriver } from "./drivers.ts";
import { causedBy, CliError, explainIoError, ioError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { imageRequest, openImage, withPrefix } from "./image_files.ts";
import { pathOfImage } from "./image_names.ts";
import { ImageOptions } from "./image_options.ts";
import { Interruption } from "./interruption.ts";
import { createImage } from "./new_image.ts";
import { readSecrets } from "./secrets.ts";
import { parseSizeArgument } from "./sizes.ts";

const MAX_BLOCK_SIZE = 2n ** 31n - 1n;

/** What the operands say. */
interface Operands {
  source?: string;
  target?: string;
  blockSize: bigint;
  count?: bigint;
  skip: bigint;
}

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `dd`.
 * @returns The exit status; 130 or 143 where a signal has ended it.
 * @throws {CliError} Where it fails; a target that was begun is gone then.
 */
export async function dd(context: Context, args: readonly string[]): Promise<number> {
  const parsed = parseArguments("dd", args, COMMAND_OPTIONS.dd);
  if (parsed.has("help")) {
    context.console.out(commandHelp("dd", context.programName));
    return 0;
  }
  readSecrets(parsed.all("object"));
  const { source: name, target, blockSize, count, skip } = readOperands(parsed.operands);
  if (name === undefined || target === undefined) throw new CliError("Must specify both input and output files");
  const paths: string[] = [];
  using source = openImage(context, imageRequest(parsed, name), (path) => paths.push(path));
  const format = targetFormat(parsed.last("target-format") ?? "raw");
  // The count begins where the image begins, and not where the copy does.
  const end = smaller(BigInt(source.size), count === undefined ? undefined : count * blockSize);
  const start = skip * blockSize;
  using interruption = new Interruption();
  try {
    const size = start < end ? end - start : 0n;
    const onCreated = () => {
      if (start > end) report(context, `${name}: cannot skip to specified offset`);
    };
    const request = { source, start: Number(start), size, format, target, sourcePaths: paths, onCreated };
    await copy(request, interruption.signal);
  } catch (error) {
    if (interruption.exitCode !== undefined) return interruption.exitCode;
    throw explain(error);
  }
  return 0;
}

function explain(error: unknown): unknown {
  if (!(error instanceof DiskError)) return error;
  const write = error.action === "write";
  return ioError(`error while ${write ? "writing to" : "reading from"} ${error.disk}: `, error.cause, write);
}

function readOperands(operands: readonly string[]): Operands {
  const read: Operands = { blockSize: 512n, skip: 0n };
  for (const operand of operands) {
    const equals = operand.indexOf("=");
    const name = equals < 0 ? operand : operand.slice(0, equals);
    const value = operand.slice(equals + 1);
    if (equals < 0) throw new CliError(`unrecognized operand ${operand}`);
    if (name === "if") read.source = value;
    else if (name === "of") read.target = value;
    else if (name === "bs") read.blockSize = parseSizeArgument("bs", value, MAX_BLOCK_SIZE, 1n);
    else if (name === "count") read.count = parseSizeArgument("count", value);
    else if (name === "skip") read.skip = parseSizeArgument("skip", value);
    else throw new CliError(`unrecognized operand ${name}`);
  }
  return read;
}

function targetFormat(name: string): ImageType {
  if (!isKnownDriver(name)) throw new CliError("Unknown file format");
  return creatableFormat(name);
}

function smaller(one: bigint, other: bigint | undefined): bigint {
  return other === undefined || one < other ? one : other;
}

/** What is copied where. */
interface CopyRequest {
  readonly source: Disk;
  /** Where to begin in the source, in bytes. */
  readonly start: number;
  /** How much, in bytes. */
  readonly size: bigint;
  readonly format: ImageType;
  /** Name of the new image. */
  readonly target: string;
  /** Paths of the files that are read. */
  readonly sourcePaths: readonly string[];
  /** Called when there is a target. */
  readonly onCreated: () => void;
}

async function copy(request: CopyRequest, signal: AbortSignal): Promise<void> {
  const { source, start, size, format, target, sourcePaths, onCreated } = request;
  const path = pathOfImage(target);
  const prefix = `${target}: error while creating output image: `;
  using place = withPrefix(prefix, () => ConversionTarget.prepare(path, sourcePaths));
  using dataFile = new NewDataFile(path);
  using disk = withPrefix(prefix, () => {
    const image = { path: place.path, shownPath: path, createNew: place.createNew, format, size, dataFile };
    return createImage({ ...image, options: new ImageOptions(format) }, () => place.markCreated());
  });
  onCreated();
  const slice = new TimeSlice(signal);
  const buffer = new Uint8Array(Math.min(CHUNK_SIZE, Number(size)));
  for (let done = 0; done < size;) {
    const piece = buffer.subarray(0, Math.min(buffer.length, Number(size) - done));
    onDisk("input image file", "read", start + done, () => source.readAt(start + done, piece));
    onDisk("output image file", "write", done, () => disk.writeAt(done, piece));
    done += piece.length;
    if (slice.isOver()) await slice.next();
  }
  try {
    disk.close();
    place.complete();
  } catch (error) {
    throw causedBy(error, `error while writing to output image file: ${explainIoError(error)}`);
  }
}
