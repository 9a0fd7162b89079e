/**
 * `resize`: makes the disk of an image longer or shorter.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import type { Preallocation } from "../image/preallocation.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import type { RawFile } from "../image/raw_file.ts";
import { resize as resizeInSlices, type ResizeOptions } from "../operations/resize.ts";
import { parseArguments } from "./arguments.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import { type Context, report } from "./console.ts";
import { causedBy, CliError, explainIoError, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { imageRequest, openImage } from "./image_files.ts";
import { refuseInconsistentBitmaps } from "./inconsistent_bitmaps.ts";
import { Interruption } from "./interruption.ts";
import { PREALLOCATION_MODES } from "./new_image.ts";
import { showProgress } from "./progress.ts";
import { readSecrets } from "./secrets.ts";
import { parseSizeParameter } from "./sizes.ts";

const SECTOR_SIZE = 512n;
const MAX_INT64 = 2n ** 63n - 1n;

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `resize`.
 * @returns The exit status; 130 or 143 where a signal has ended it.
 * @throws {CliError} Where it fails.
 */
export async function resize(context: Context, args: readonly string[]): Promise<number> {
  // The size stands last, so that one that begins with "-" is no option.
  const last = args.at(-1) ?? "";
  const asksForHelp = last === "-h" || last === "--help";
  if (args.length < 2 && !asksForHelp) throw new UsageError("Not enough arguments");
  const parsed = parseArguments("resize", asksForHelp ? args : args.slice(0, -1), COMMAND_OPTIONS.resize);
  if (parsed.has("help")) {
    context.console.out(commandHelp("resize", context.programName));
    return 0;
  }
  readSecrets(parsed.all("object"));
  const preallocation = preallocationOf(parsed.last("preallocation"));
  const [name, ...others] = parsed.operands;
  if (name === undefined || others.length > 0) throw new UsageError("Expecting image file name and size");
  const change = parseChange(last);
  using disk = openImage(context, { ...imageRequest(parsed, name), write: true });
  const size = newSize(context, BigInt(disk.size), change, preallocation, parsed.has("shrink"));
  const options = { shrink: true, preallocation, quiet: parsed.has("quiet") };
  using interruption = new Interruption();
  try {
    await resizeDisk(context, disk, size, { ...options, signal: interruption.signal });
  } catch (error) {
    if (interruption.exitCode === undefined) throw error;
    return interruption.exitCode;
  }
  if (!parsed.has("quiet")) context.console.out("Image resized.\n");
  return 0;
}

function preallocationOf(text: string | undefined): Preallocation {
  const mode = PREALLOCATION_MODES.find((candidate) => candidate === (text ?? "off"));
  if (mode === undefined) throw new CliError(`Invalid preallocation mode '${text}'`);
  return mode;
}

/** A size, or by how much it changes. */
interface SizeChange {
  readonly sign: "" | "+" | "-";
  readonly bytes: bigint;
}

function parseChange(text: string): SizeChange {
  const sign = text.startsWith("+") ? "+" : text.startsWith("-") ? "-" : "";
  return { sign, bytes: parseSizeParameter("size", text.slice(sign.length)) };
}

function newSize(
  context: Context,
  current: bigint,
  change: SizeChange,
  preallocation: Preallocation,
  shrink: boolean,
): bigint {
  // QEMU counts in 63 bits and a sign: what goes beyond turns negative.
  const amount = change.bytes > MAX_INT64 ? -1n : change.bytes;
  const size = change.sign === "" ? amount : change.sign === "+" ? current + amount : current - amount;
  if (size <= 0n || size > MAX_INT64) throw new CliError("New image size must be positive");
  if (size <= current && preallocation !== "off") {
    throw new CliError("Preallocation can only be used for growing images");
  }
  if (size < current && !shrink) {
    report(context, "Use the --shrink option to perform a shrink operation.");
    throw new CliError(
      "warning: Shrinking an image will delete all data beyond the shrunken image's end. " +
        "Before performing such an operation, make sure there is no important data there.",
    );
  }
  return size;
}

async function resizeDisk(
  { console }: Context,
  disk: Qcow2File | RawFile,
  size: bigint,
  { quiet, ...options }: ResizeOptions & { readonly quiet: boolean },
): Promise<void> {
  const isQcow2 = disk instanceof Qcow2File;
  if (isQcow2) {
    if (size % SECTOR_SIZE !== 0n) throw new CliError("The new size must be a multiple of 512");
    refuseInconsistentBitmaps(disk);
  } else if (options.preallocation === "metadata") {
    throw new CliError("Unsupported preallocation mode: metadata");
  }
  const change = Math.abs(Number(size) - disk.size);
  const progress = showProgress(console, change, { wanted: false, quiet, inBytes: true });
  let completed = false;
  try {
    await resizeInSlices(disk, Number(size), { ...options, onProgress: ({ done }) => progress.update(done) });
    disk.flush();
    completed = true;
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error;
    if (error.code === "limit-exceeded" || error.code === "invalid-argument") {
      throw causedBy(error, isQcow2 ? "Failed to grow the L1 table: File too large" : "File too large");
    }
    throw causedBy(error, error.code === "unsupported" ? error.message : `Failed to resize: ${explainIoError(error)}`);
  } finally {
    await progress.stop(completed);
  }
}
