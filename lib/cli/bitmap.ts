/**
 * `bitmap`: changes the persistent bitmaps of an image.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { type Arguments, type GivenOption, parseArguments } from "./arguments.ts";
import { BITMAP_ACTIONS, COMMAND_OPTIONS } from "./command_options.ts";
import type { Context } from "./console.ts";
import { causedBy, CliError, explainIoError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { imageRequest, openImage, withPrefix } from "./image_files.ts";
import { refuseInconsistentBitmap } from "./inconsistent_bitmaps.ts";
import { readSecrets } from "./secrets.ts";
import { parseSizeArgument } from "./sizes.ts";

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `bitmap`.
 * @returns The exit status.
 * @throws {CliError} Where it fails.
 */
export function bitmap(context: Context, args: readonly string[]): number {
  const parsed = parseArguments("bitmap", args, COMMAND_OPTIONS.bitmap);
  if (parsed.has("help")) {
    context.console.out(commandHelp("bitmap", context.programName));
    return 0;
  }
  readSecrets(parsed.all("object"));
  const granularity = parsed.all("granularity").map((text) => parseSizeArgument("granularity", text)).at(-1);
  const actions = parsed.sequence.filter(({ name }) => BITMAP_ACTIONS.includes(name));
  checkArguments(parsed, actions, granularity);
  const [fileName = "", bitmapName = ""] = parsed.operands;
  using image = openImage(context, { ...imageRequest(parsed, fileName), write: true, backing: false });
  const sourceName = parsed.last("source-file");
  using source = sourceName === undefined
    ? undefined
    : openImage(context, { name: sourceName, format: parsed.last("source-format"), backing: false });
  for (const action of actions) {
    const request: Request = {
      action,
      name: bitmapName,
      image,
      source: source ?? image,
      granularity: Number(granularity ?? 0),
    };
    withPrefix(`Operation ${action.name} on bitmap ${bitmapName} failed: `, () => act(request));
  }
  try {
    image.close();
  } catch (error) {
    throw causedBy(error, `Could not write '${fileName}': ${explainIoError(error)}`);
  }
  return 0;
}

function checkArguments(parsed: Arguments, actions: readonly GivenOption[], granularity: bigint | undefined): void {
  if (actions.length === 0) {
    throw new CliError("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge");
  }
  if ((granularity ?? 0n) !== 0n && !parsed.has("add")) throw new CliError("granularity only supported with --add");
  const hasSource = parsed.last("source-file") !== undefined;
  if (parsed.has("source-format") && !hasSource) throw new CliError("-F only supported with -b");
  if (hasSource && !parsed.has("merge")) throw new CliError("Merge bitmap source file only supported with --merge");
  if (parsed.operands.length !== 2) throw new CliError("Expecting filename and bitmap name");
}

interface Request {
  readonly action: GivenOption;
  /** Name of the bitmap. */
  readonly name: string;
  readonly image: Disk;
  /** The image that holds the bitmap to merge. */
  readonly source: Disk;
  /** 0 where nothing was said. */
  readonly granularity: number;
}

function act(request: Request): void {
  try {
    if (request.action.name === "add") add(request);
    else change(request);
  } catch (error) {
    if (error instanceof CliError) throw error;
    throw causedBy(error, explainIoError(error));
  }
}

function add({ name, image, granularity }: Request): void {
  if (name === "") throw new CliError("Bitmap name cannot be empty");
  if (granularity !== 0 && !isGranularity(granularity)) {
    throw new CliError("Granularity must be power of 2 and at least 512");
  }
  if (!(image instanceof Qcow2File)) throw new CliError("Can't store persistent bitmaps in a raw image");
  try {
    image.addBitmap(name, granularity === 0 ? {} : { granularity });
  } catch (error) {
    if (error instanceof Qcow2Error && error.code === "already-exists") {
      throw new CliError(`Bitmap already exists: ${name}`);
    }
    throw error;
  }
}

function isGranularity(bytes: number): boolean {
  const bits = Math.log2(bytes);
  return Number.isInteger(bits) && bits >= 9 && bits <= 31;
}

function change({ action, name, image, source }: Request): void {
  const target = qcow2With(image, name);
  if (action.name === "remove") return target.removeBitmap(name);
  if (action.name === "merge") {
    const sourceName = action.value ?? "";
    const from = qcow2With(source, sourceName);
    refuseInconsistentBitmap(target, name);
    refuseInconsistentBitmap(from, sourceName);
    return target.mergeBitmap(sourceName, name, { from });
  }
  refuseInconsistentBitmap(target, name);
  if (action.name === "clear") target.clearBitmap(name);
  else if (action.name === "enable") target.enableBitmap(name);
  else target.disableBitmap(name);
}

/** The image as one that has bitmaps, and this one among them. */
function qcow2With(image: Disk, name: string): Qcow2File {
  if (image instanceof Qcow2File && image.bitmaps.some((candidate) => candidate.name === name)) return image;
  throw new CliError(`Dirty bitmap '${name}' not found`);
}
