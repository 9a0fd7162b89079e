/**
 * `measure`: tells how large an image would be.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import type { ImageType } from "../image/detect.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { measure as measureImage, type Measurement, type MeasureOptions } from "../operations/measure.ts";
import { type Arguments, parseArguments } from "./arguments.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import { type Context, report } from "./console.ts";
import { CliError, ioError, notSupported } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { creatableFormat } from "./drivers.ts";
import { imageRequest, openImage } from "./image_files.ts";
import { ImageOptions, joinOptionLists, parseOptionList } from "./image_options.ts";
import { formatJson, type JsonValue } from "./json.ts";
import { clusterSizeOf, PREALLOCATION_MODES } from "./new_image.ts";
import { outputFormatOf } from "./output_format.ts";
import { readSecrets } from "./secrets.ts";
import { parseSizeArgument } from "./sizes.ts";
import { openSnapshot, parseSnapshotChoice } from "./snapshot_source.ts";

const VERSIONS: Readonly<Record<string, 2 | 3>> = { "0.10": 2, "1.1": 3 };

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `measure`.
 * @returns The exit status.
 * @throws {CliError} Where it fails.
 */
export async function measure(context: Context, args: readonly string[]): Promise<number> {
  const parsed = parseArguments("measure", args, COMMAND_OPTIONS.measure);
  const { console, programName } = context;
  if (parsed.has("help")) {
    console.out(commandHelp("measure", programName));
    return 0;
  }
  readSecrets(parsed.all("object"));
  const snapshot = parsed.all("snapshot").map(parseSnapshotChoice).at(-1);
  const list = joinOptionLists(parsed.all("options"));
  const output = outputFormatOf(parsed);
  const size = parsed.all("size").map((text) => parseSizeArgument("image size", text)).at(-1);
  const name = sourceName(parsed, size);
  using image = name === undefined ? undefined : openImage(context, imageRequest(parsed, name));
  const source = image === undefined || snapshot === undefined ? image : openSnapshot(image, snapshot);
  const format = creatableFormat(parsed.last("target-format") ?? "raw");
  const options = imageOptions(context, format, list);
  if (size !== undefined) options.set("size", String(size));
  const wanted = format === "raw" ? { format } : measureOptions(options);
  // A size that was given must fit even where it is not the one that counts.
  const empty = await measuring(Number(options.number("size") ?? 0n), wanted);
  const withBitmaps = snapshot !== undefined && image instanceof Qcow2File ? { ...wanted, bitmapsOf: image } : wanted;
  const result = source === undefined ? empty : await measuring(source, withBitmaps);
  console.out(output === "human" ? formatHuman(result) : `${formatJson(toJson(result))}\n`);
  return 0;
}

/** The name of the image that is measured; none where it is a size. */
function sourceName(parsed: Arguments, size: bigint | undefined): string | undefined {
  const [name, ...others] = parsed.operands;
  if (others.length > 0) throw new CliError("At most one filename argument is allowed.");
  if (name === undefined && ["image-opts", "format", "snapshot"].some((option) => parsed.has(option))) {
    throw new CliError("--image-opts, -f, and -l require a filename argument.");
  }
  if (name !== undefined && size !== undefined) {
    throw new CliError("--size N cannot be used together with a filename.");
  }
  if (name === undefined && size === undefined) {
    throw new CliError("Either --size N or one filename must be specified.");
  }
  return name;
}

function imageOptions(context: Context, format: ImageType, list: string | undefined): ImageOptions {
  const options = new ImageOptions(format);
  try {
    for (const [option, value] of parseOptionList(list ?? "")) options.set(option, value);
  } catch (error) {
    if (!(error instanceof CliError)) throw error;
    report(context, error.message);
    throw new CliError(`Invalid options for file format '${format}'`);
  }
  return options;
}

/** Reads the options in QEMU's order, so that of several mistakes the same one is told. */
function measureOptions(options: ImageOptions): MeasureOptions {
  const clusterSize = clusterSizeOf(options);
  const compat = options.text("compat") ?? "1.1";
  const version = Object.hasOwn(VERSIONS, compat) ? VERSIONS[compat] : undefined;
  if (version === undefined) throw new CliError(`Invalid compatibility level: '${compat}'`);
  const preallocation = PREALLOCATION_MODES.find((mode) => mode === (options.text("preallocation") ?? "off"));
  if (preallocation === undefined) {
    throw new CliError(`invalid parameter value: ${options.text("preallocation")}`);
  }
  if (options.text("encrypt.format") === "luks") throw notSupported("Encryption");
  return {
    version,
    preallocation,
    clusterSize,
    refcountBits: Number(options.number("refcount_bits")),
    extendedL2: options.isOn("extended_l2"),
    hasBackingFile: options.text("backing_file") !== undefined,
  };
}

async function measuring(source: Disk | number, options: MeasureOptions): Promise<Measurement> {
  try {
    return await measureImage(source, options);
  } catch (error) {
    if (error instanceof Qcow2Error && error.code === "invalid-argument") {
      // QEMU does not say what it has found.
      throw new CliError(error.message.replace(/, found .*/, "").replace("version 3", "compat=1.1"));
    }
    throw ioError("Unable to get block status: ", error);
  }
}

function formatHuman({ required, fullyAllocated, bitmaps }: Measurement): string {
  return `required size: ${BigInt(required)}\nfully allocated size: ${BigInt(fullyAllocated)}\n` +
    (bitmaps === undefined ? "" : `bitmaps size: ${bitmaps}\n`);
}

function toJson({ required, fullyAllocated, bitmaps }: Measurement): JsonValue {
  // QEMU prints the upper half of what 64 bits can hold as negative numbers here.
  return {
    ...(bitmaps === undefined ? {} : { bitmaps }),
    required: BigInt.asIntN(64, BigInt(required)),
    "fully-allocated": BigInt.asIntN(64, BigInt(fullyAllocated)),
  };
}
