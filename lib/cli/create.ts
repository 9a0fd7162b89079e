/**
 * `create`: makes an empty image.
 *
 * @module
 */

import type { ImageType } from "../image/detect.ts";
import { parseArguments } from "./arguments.ts";
import { BlockOptions } from "./block_options.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import type { Context } from "./console.ts";
import { creatableFormat } from "./drivers.ts";
import { CliError, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { withPrefix } from "./image_files.ts";
import { fullBackingName, pathOfImage } from "./image_names.ts";
import { ImageNode } from "./image_node.ts";
import { asksForHelp, describeImageOptions, ImageOptions, joinOptionLists, parseOptionList } from "./image_options.ts";
import { NewDataFile } from "./new_data_file.ts";
import { createImage, refuseEncryption } from "./new_image.ts";
import { readSecrets } from "./secrets.ts";
import { parseSizeArgument } from "./sizes.ts";

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `create`.
 * @returns The exit status.
 * @throws {CliError} Where it fails.
 */
export function create(context: Context, args: readonly string[]): number {
  const parsed = parseArguments("create", args, COMMAND_OPTIONS.create);
  if (parsed.has("help")) {
    context.console.out(commandHelp("create", context.programName));
    return 0;
  }
  readSecrets(parsed.all("object"));
  const list = joinOptionLists(parsed.all("options"));
  const [name, sizeText, unexpected] = parsed.operands;
  const formatName = parsed.last("format") ?? "raw";
  if (list !== undefined && asksForHelp(list)) {
    context.console.out(describeImageOptions(creatableFormat(formatName), name !== undefined));
    return 0;
  }
  if (name === undefined) throw new UsageError("Expecting image file name");
  const sizeArgument = sizeText === undefined ? undefined : parseSizeArgument("image size", sizeText);
  if (unexpected !== undefined) throw new UsageError(`Unexpected argument: ${unexpected}`);
  withPrefix(`${name}: `, () => {
    createNamed(context, {
      name,
      formatName,
      list,
      sizeArgument,
      backingFile: parsed.last("backing-file"),
      backingFormat: parsed.last("backing-format"),
      unsafe: parsed.has("unsafe"),
      quiet: parsed.has("quiet"),
    });
  });
  return 0;
}

interface CreateRequest {
  readonly name: string;
  readonly formatName: string;
  readonly list: string | undefined;
  readonly sizeArgument: bigint | undefined;
  readonly backingFile: string | undefined;
  readonly backingFormat: string | undefined;
  readonly unsafe: boolean;
  readonly quiet: boolean;
}

function createNamed(context: Context, request: CreateRequest): void {
  const { name, sizeArgument } = request;
  const format = creatableFormat(request.formatName);
  const path = pathOfImage(name);
  const options = new ImageOptions(format);
  for (const [option, value] of parseOptionList(request.list ?? "")) options.set(option, value);
  if (sizeArgument !== undefined) {
    if (options.text("size") !== undefined) throw new CliError("The image size must be specified only once");
    options.set("size", String(sizeArgument));
  }
  setBackingFile(format, options, request);
  refuseEncryption(format, options);
  const backingSize = sizeOfBacking(context, name, options, request.unsafe);
  if (backingSize !== undefined && options.text("size") === undefined) options.set("size", String(backingSize));
  const size = options.number("size");
  if (size === undefined) throw new CliError("Image creation needs a size parameter");
  if (!request.quiet) {
    context.console.out(`Formatting '${name}', fmt=${format}${options}\n`);
    context.console.flush?.();
  }
  if (options.text("backing_fmt") !== undefined && options.text("backing_file") === undefined) {
    throw new CliError("Backing format cannot be used without backing file");
  }
  using dataFile = new NewDataFile(path);
  createImage({ path, shownPath: path, format, size, options, createNew: false, dataFile }).close();
  dataFile.keep();
}

/** Brings what `-b` and `-F` say to the other options. */
function setBackingFile(format: ImageType, options: ImageOptions, request: CreateRequest): void {
  const { backingFile, backingFormat } = request;
  if (format === "raw" && (backingFile !== undefined || backingFormat !== undefined)) {
    throw new CliError(`Backing file${backingFile === undefined ? " format" : ""} not supported for file format 'raw'`);
  }
  if (backingFile !== undefined) options.set("backing_file", backingFile);
  if (backingFormat !== undefined) options.set("backing_fmt", backingFormat);
}

/** Opens the backing file that an image is to have, to see that it is there and how large its disk is. */
function sizeOfBacking(
  context: Context,
  imageName: string,
  options: ImageOptions,
  unsafe: boolean,
): number | undefined {
  const name = options.text("backing_file");
  const format = options.text("backing_fmt");
  if (name === undefined) return undefined;
  if (name === imageName) {
    throw new CliError("Error: Trying to create an image with the same filename as the backing file");
  }
  if (name === "") throw new CliError("Expected backing file name, got empty string");
  if (unsafe) {
    if (format === undefined) throw new CliError("Backing file specified without backing format");
    return undefined;
  }
  const description = new BlockOptions(format === undefined ? [] : [["driver", format]]);
  try {
    using node = ImageNode.find(fullBackingName(imageName, name), description, {
      write: false,
      lock: false,
      backing: true,
      context,
    });
    using disk = node.openDisk();
    if (format !== undefined) return disk.size;
    throw new MissingBackingFormat(node.format);
  } catch (error) {
    if (!(error instanceof CliError) || error instanceof MissingBackingFormat) throw error;
    throw new CliError(error.message, error.exitCode, { ...error.details, hint: "Could not open backing image.\n" });
  }
}

/** Says which format the backing file seems to have, where it was not given. */
class MissingBackingFormat extends CliError {
  /** @param detected The format that it seems to have. */
  constructor(detected: string) {
    super("Backing file specified without backing format", 1, { hint: `Detected format of ${detected}.` });
  }
}
