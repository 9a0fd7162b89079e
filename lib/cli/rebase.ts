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
import { type Arguments, type OptionDefinition, parseArguments } from "./arguments.ts";
import { checkCacheMode, IMAGE_OPTIONS } from "./common_options.ts";
import type { Context } from "./console.ts";
import { CliError, explainIoError, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { imageRequest, openImage } from "./image_files.ts";
import { fullBackingName } from "./image_names.ts";
import { Interruption } from "./interruption.ts";
import { PercentProgress } from "./progress.ts";
import { readSecrets } from "./secrets.ts";

const OPTIONS: readonly OptionDefinition[] = [
  ...IMAGE_OPTIONS,
  { name: "backing-file", short: "b", shortOnly: true, takesValue: true },
  { name: "backing-format", short: "F", shortOnly: true, takesValue: true },
  { name: "unsafe", short: "u", shortOnly: true },
  { name: "progress", short: "p", shortOnly: true },
  { name: "cache", short: "t", shortOnly: true, takesValue: true },
  { name: "source-cache", short: "T", shortOnly: true, takesValue: true },
  { name: "quiet", short: "q", shortOnly: true },
];

/** What QEMU takes for the format of a backing file, be it a format or a protocol. */
const DRIVERS: ReadonlySet<string> = new Set([
  ...["raw", "qcow2", "blkdebug", "blklogwrites", "blkverify", "bochs", "cloop", "compress", "copy-before-write"],
  ...["copy-on-read", "dmg", "file", "host_cdrom", "host_device", "luks", "nbd", "null-aio", "null-co", "nvme"],
  ...["parallels", "preallocate", "qcow", "qed", "quorum", "replication", "snapshot-access", "throttle", "vdi", "vhdx"],
  ...["vmdk", "vpc", "vvfat"],
]);

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
  const parsed = parseArguments("rebase", args, OPTIONS);
  const { console, programName } = context;
  if (parsed.has("help")) {
    console.out(commandHelp("rebase", programName));
    return 0;
  }
  const [name, ...others] = parsed.operands;
  if (name === undefined || others.length > 0) throw new UsageError("Expecting one image file name");
  if (!parsed.has("unsafe") && !parsed.has("backing-file")) {
    throw new UsageError("Must specify backing file (-b) or use unsafe mode (-u)");
  }
  readSecrets(parsed.all("object"));
  const when = { wanted: parsed.has("progress"), quiet: parsed.has("quiet") };
  const progress = new PercentProgress(console, when, PROGRESS_STEP_PERCENT);
  using interruption = new Interruption();
  try {
    progress.set(0);
    checkCacheMode(parsed.last("cache"), "cache");
    checkCacheMode(parsed.last("source-cache"), "source cache");
    using image = openRebased(context, name, parsed);
    checkBackingFormat(parsed.last("backing-format"));
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
  /** Path of its file. */
  readonly path: string;
  readonly disk: Qcow2File | RawFile;
  /** Paths of the images beneath, from the top down. */
  readonly #below: readonly string[];

  constructor(path: string, disk: Qcow2File | RawFile, below: readonly string[]) {
    this.path = path;
    this.disk = disk;
    this.#below = below;
  }

  /** The disk of a file that the image reads from, where it is one of those. */
  diskOf(path: string): Disk | undefined {
    const index = this.#below.findIndex((below) => realPath(below) === realPath(path));
    let layer: Disk | undefined = this.disk;
    for (let depth = 0; depth <= index; depth++) layer = layer instanceof Qcow2File ? layer.backing : undefined;
    return index < 0 ? undefined : layer;
  }

  [Symbol.dispose](): void {
    this.disk.close();
  }
}

function openRebased(context: Context, name: string, parsed: Arguments): RebasedImage {
  const paths: string[] = [];
  // Where the names are believed, the old backing file need not even be there.
  // It is written, so it is locked in any case: -U speaks of the new backing file alone.
  const request = { ...imageRequest(parsed, name), forceShare: false, write: true, backing: !parsed.has("unsafe") };
  const disk = openImage(context, request, (path) => paths.push(path));
  const [path = name, ...below] = paths;
  return new RebasedImage(path, disk, below);
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
  const known = isSafe && name !== undefined ? image.diskOf(fullBackingName(image.path, name)) : undefined;
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
function openNewBacking(context: Context, { path }: RebasedImage, name: string, parsed: Arguments): Disk {
  const fullName = fullBackingName(path, name);
  try {
    return openImage(context, {
      name: fullName,
      format: parsed.last("backing-format"),
      forceShare: parsed.has("force-share"),
    });
  } catch (error) {
    if (!(error instanceof CliError)) throw error;
    const prefix = `Could not open '${fullName}': `;
    const reason = error.message.startsWith(prefix) ? error.message.slice(prefix.length) : error.message;
    throw new CliError(`Could not open new backing file '${name}': ${reason}`);
  }
}

function checkBackingFormat(format: string | undefined): void {
  if (format !== undefined && !DRIVERS.has(format)) throw new CliError(`Invalid format name: '${format}'`);
}

function explain({ disk, action, cause }: DiskError): CliError {
  if (action === "read") return new CliError(`error while reading from ${disk}`);
  const doing = action === "list" ? "error while reading image metadata" : "Error while writing to COW image";
  return new CliError(`${doing}: ${explainIoError(cause)}`);
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Qcow2Error) || error.cause !== undefined) return explainIoError(error);
  if (error.code === "no-space") return "No space left in the file header";
  return error.expected === undefined ? error.message : "Invalid argument";
}
