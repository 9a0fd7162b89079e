/**
 * `create`: makes an empty image.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { detectImageType, type ImageType } from "../image/detect.ts";
import { type OptionDefinition, parseArguments } from "./arguments.ts";
import { fullBackingName } from "./backing_names.ts";
import type { Context } from "./console.ts";
import { CliError, notSupported, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { pathOfImage, targetFormat, withPrefix } from "./image_files.ts";
import { asksForHelp, describeImageOptions, ImageOptions, joinOptionLists, parseOptionList } from "./image_options.ts";
import { createImage, openNewBacking, refuseUnsupportedOptions } from "./new_image.ts";
import { parseSizeArgument } from "./sizes.ts";

const OPTIONS: readonly OptionDefinition[] = [
  { name: "help", short: "h" },
  { name: "object", takesValue: true },
  { name: "format", short: "f", shortOnly: true, takesValue: true },
  { name: "backing-file", short: "b", shortOnly: true, takesValue: true },
  { name: "backing-format", short: "F", shortOnly: true, takesValue: true },
  { name: "options", short: "o", shortOnly: true, takesValue: true },
  { name: "quiet", short: "q", shortOnly: true },
  { name: "unsafe", short: "u", shortOnly: true },
];

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `create`.
 * @returns The exit status.
 * @throws {CliError} Where it fails.
 */
export function create(context: Context, args: readonly string[]): number {
  const parsed = parseArguments("create", args, OPTIONS);
  if (parsed.has("help")) {
    context.console.out(commandHelp("create", context.programName));
    return 0;
  }
  const list = joinOptionLists(parsed.all("options"));
  const [name, sizeText, unexpected] = parsed.operands;
  const formatName = parsed.last("format") ?? "raw";
  if (list !== undefined && asksForHelp(list)) {
    context.console.out(describeImageOptions(targetFormat(formatName), name !== undefined));
    return 0;
  }
  if (name === undefined) throw new UsageError("Expecting image file name");
  const sizeArgument = sizeText === undefined ? undefined : parseSizeArgument("image size", sizeText);
  if (unexpected !== undefined) throw new UsageError(`Unexpected argument: ${unexpected}`);
  refuseUnsupportedArguments(parsed.has.bind(parsed));
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

function refuseUnsupportedArguments(has: (name: string) => boolean): void {
  if (has("object")) throw notSupported("Defining objects (--object)");
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
  const format = targetFormat(request.formatName);
  const path = pathOfImage(name);
  const options = new ImageOptions(format);
  for (const [option, value] of parseOptionList(request.list ?? "")) options.set(option, value);
  if (sizeArgument !== undefined) {
    if (options.text("size") !== undefined) throw new CliError("The image size must be specified only once");
    options.set("size", String(sizeArgument));
  }
  setBackingFile(format, options, request);
  refuseUnsupportedOptions(format, options, false);
  const backing = openBackingFile(path, options, request.unsafe);
  try {
    if (backing !== undefined && options.text("size") === undefined) options.set("size", String(backing.size));
    const size = options.number("size");
    if (size === undefined) throw new CliError("Image creation needs a size parameter");
    if (!request.quiet) context.console.out(`Formatting '${name}', fmt=${format}${options}\n`);
    if (options.text("backing_fmt") !== undefined && options.text("backing_file") === undefined) {
      throw new CliError("Backing format cannot be used without backing file");
    }
    createImage({ path, shownPath: path, format, size, options, createNew: false, backing }).close();
  } finally {
    backing?.close();
  }
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

function openBackingFile(path: string, options: ImageOptions, unsafe: boolean): Disk | undefined {
  const name = options.text("backing_file");
  const format = options.text("backing_fmt");
  if (name === undefined) return undefined;
  if (name === path) {
    throw new CliError("Error: Trying to create an image with the same filename as the backing file");
  }
  if (unsafe) return undefined;
  if (format === undefined) {
    const detected = detectImageType(fullBackingName(path, name));
    throw new CliError(`Backing file specified without backing format\nDetected format of ${detected}.`);
  }
  return openNewBacking(path, name, format);
}
