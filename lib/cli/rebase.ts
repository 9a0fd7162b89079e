/**
 * `rebase`: gives an image another backing file.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { realPath } from "../image/local_name.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import type { RawFile } from "../image/raw_file.ts";
import { DiskError } from "../operations/disk_error.ts";
import { rebase as rebaseImage } from "../operations/rebase.ts";
import { type Arguments, parseArguments } from "./arguments.ts";
import { BlockOptions } from "./block_options.ts";
import { checkCacheMode } from "./common_options.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import type { Context } from "./console.ts";
import { isKnownDriver } from "./drivers.ts";
import { CliError, failureOf, ioError, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { imageRequest, openImage, withPrefix } from "./image_files.ts";
import { fullBackingName } from "./image_names.ts";
import { ImageNode } from "./image_node.ts";
import { Interruption } from "./interruption.ts";
import { PercentProgress } from "./progress.ts";
import { readSecrets } from "./secrets.ts";

const PROGRESS_STEP_PERCENT = 2;
/** The piece in which QEMU counts how far it is, in bytes. */
const PROGRESS_PIECE = 2 * 1024 * 1024;

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `rebase`.
 * @returns The exit status; 130 or 143 where a signal has ended it.
 * @throws {CliError} Where it fails; the image keeps its backing file and its content then.
 */
export async function rebase(context: Context, args: readonly string[]): Promise<number> {
  const parsed = parseArguments("rebase", args, COMMAND_OPTIONS.rebase);
  const { console, programName } = context;
  if (parsed.has("help")) {
    console.out(commandHelp("rebase", programName));
    return 0;
  }
  readSecrets(parsed.all("object"));
  const [name, ...others] = parsed.operands;
  if (name === undefined || others.length > 0) throw new UsageError("Expecting one image file name");
  if (!parsed.has("unsafe") && !parsed.has("backing-file")) {
    throw new UsageError("Must specify backing file (-b) or use unsafe mode (-u)");
  }
  const when = { wanted: parsed.has("progress"), quiet: parsed.has("quiet") };
  const progress = new PercentProgress(console, when, PROGRESS_STEP_PERCENT);
  using interruption = new Interruption();
  try {
    progress.set(0);
    checkCacheMode(parsed.last("cache"), "cache");
    checkCacheMode(parsed.last("source-cache"), "source cache");
    using image = openRebased(context, name, parsed);
    const format = parsed.last("backing-format");
    if (format !== undefined && !isKnownDriver(format)) throw new CliError(`Invalid format name: '${format}'`);
    await rebaseOpened(context, image, parsed, progress, interruption.signal);
    return 0;
  } catch (error) {
    if (interruption.exitCode === undefined) throw error;
    return interruption.exitCode;
  } finally {
    await progress.stop();
  }
}

/** The image that gets another backing file. */
class RebasedImage implements Disposable {
  readonly disk: Qcow2File | RawFile;
  /** Paths of its file and of those of the images beneath, from the top down. */
  readonly #paths: readonly string[];

  constructor(disk: Qcow2File | RawFile, paths: readonly string[]) {
    this.disk = disk;
    this.#paths = paths;
  }

  /** The name that a backing file's name in the image means. */
  fullName(backingName: string): string {
    return fullBackingName(this.#paths[0] ?? "", backingName);
  }

  /** The disk that a backing file's name means, where the image reads from it already. */
  diskBeneath(backingName: string): Disk | undefined {
    const wanted = realPath(this.fullName(backingName));
    const index = this.#paths.findIndex((path, depth) => depth > 0 && realPath(path) === wanted);
    let layer: Disk | undefined = index < 0 ? undefined : this.disk;
    for (let depth = 0; depth < index; depth++) layer = layer instanceof Qcow2File ? layer.backing : undefined;
    return layer;
  }

  [Symbol.dispose](): void {
    this.disk.close();
  }
}

function openRebased(context: Context, name: string, parsed: Arguments): RebasedImage {
  const paths: string[] = [];
  // Where the names are believed, the old backing file need not even be there.
  const backing = !parsed.has("unsafe");
  const request = { ...imageRequest(parsed, name), forceShare: false, write: true, backing };
  const disk = openImage(context, request, (path) => paths.push(path));
  return new RebasedImage(disk, paths);
}

async function rebaseOpened(
  context: Context,
  image: RebasedImage,
  parsed: Arguments,
  progress: PercentProgress,
  signal: AbortSignal,
): Promise<void> {
  const { disk } = image;
  const given = parsed.last("backing-file");
  const name = given === "" ? undefined : given;
  const format = parsed.last("backing-format");
  const isSafe = !parsed.has("unsafe");
  const known = isSafe && name !== undefined ? image.diskBeneath(name) : undefined;
  using opened = isSafe && name !== undefined && known === undefined
    ? openNewBacking(context, image, name, parsed)
    : undefined;
  const newDisk = known ?? opened;
  try {
    if (!(disk instanceof Qcow2File)) throw new Qcow2Error("unsupported", "Operation not supported");
    // Found out before anything is copied.
    if (name !== undefined && format === undefined) {
      throw new Qcow2Error("invalid-argument", "backing format must be specified");
    }
    if (!isSafe) {
      disk.changeBackingFile(name, format);
    } else {
      const hasBacking = name !== undefined && format !== undefined && newDisk !== undefined;
      const share = 100 / Math.floor(disk.size / Math.min(disk.size, PROGRESS_PIECE));
      await rebaseImage(disk, hasBacking ? { name, format, disk: newDisk } : undefined, {
        signal,
        onProgress: () => progress.add(share),
      });
    }
    disk.close();
  } catch (error) {
    if (error instanceof DiskError) throw explain(error);
    if (signal.aborted) throw error;
    progress.set(100);
    throw new CliError(`Could not change the backing file to '${given ?? "(null)"}': ${reasonOf(error)}`);
  }
  progress.set(100);
}

/** Opens the new backing file, which the image does not read from yet. */
function openNewBacking(context: Context, image: RebasedImage, name: string, parsed: Arguments): Disk {
  const options = new BlockOptions();
  const format = parsed.last("backing-format");
  if (format !== undefined) options.set("driver", format);
  if (parsed.has("force-share")) options.set("force-share", "on");
  return withPrefix(`Could not open new backing file '${name}': `, () => {
    const rules = { write: false, lock: true, backing: true, context };
    using node = ImageNode.find(image.fullName(name), options, rules);
    return node.openDisk();
  });
}

function explain({ disk, action, cause }: DiskError): CliError {
  if (action === "read") {
    return new CliError(`error while reading from ${disk}`, 1, { notice: failureOf(cause).notice, cause });
  }
  const doing = action === "list" ? "error while reading image metadata: " : "Error while writing to COW image: ";
  return ioError(doing, cause, true);
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Qcow2Error) || error.cause !== undefined) return failureOf(error).text;
  if (error.code === "no-space") return "No space left in the file header";
  return error.expected === undefined ? error.message : failureOf(error).text;
}
