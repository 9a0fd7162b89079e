/**
 * `snapshot`: lists, makes, applies and deletes internal snapshots.
 *
 * @module
 */

import { hasDataFile } from "../format/header.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { imageInfo } from "../operations/info.ts";
import { type Arguments, type OptionDefinition, parseArguments } from "./arguments.ts";
import { IMAGE_OPTIONS, refuseImageDescriptions } from "./common_options.ts";
import type { Context } from "./console.ts";
import { CliError, explainIoError, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { opening, resolveImage } from "./image_files.ts";
import { formatSnapshotTable } from "./snapshot_format.ts";

const ACTIONS = ["apply", "create", "delete"] as const;
type Action = (typeof ACTIONS)[number];

const OPTIONS: readonly OptionDefinition[] = [
  ...IMAGE_OPTIONS.filter(({ name }) => name !== "format"),
  { name: "list", short: "l", shortOnly: true },
  { name: "apply", short: "a", shortOnly: true, takesValue: true },
  { name: "create", short: "c", shortOnly: true, takesValue: true },
  { name: "delete", short: "d", shortOnly: true, takesValue: true },
  { name: "quiet", short: "q", shortOnly: true },
];

/** The longest name in bytes that QEMU keeps. */
const MAX_NAME_LENGTH = 255;

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `snapshot`.
 * @returns The exit status.
 * @throws {CliError} Where it fails.
 */
export function snapshot(context: Context, args: readonly string[]): number {
  const parsed = parseArguments("snapshot", args, OPTIONS);
  if (parsed.has("help")) {
    context.console.out(commandHelp("snapshot", context.programName));
    return 0;
  }
  const actions = ACTIONS.flatMap((action) => parsed.all(action).map((name) => [action, name] as const));
  const [action, ...others] = actions;
  if (others.length > 0 || (action !== undefined && parsed.has("list"))) {
    throw new UsageError("Cannot mix '-l', '-a', '-c', '-d'");
  }
  const [file, ...rest] = parsed.operands;
  if (file === undefined || rest.length > 0) throw new UsageError("Expecting one image file name");
  refuseImageDescriptions(parsed);
  if (action === undefined) list(context, file, parsed);
  else change(file, parsed, action[0], clip(action[1]));
  return 0;
}

function list(context: Context, file: string, parsed: Arguments): void {
  const image = resolveImage(file, undefined);
  const lock = !parsed.has("force-share");
  const { qcow2 } = opening(file, image.path, false, () => imageInfo(image.path, { ...image, lock }));
  const snapshots = qcow2?.snapshots ?? [];
  if (!parsed.has("list") || snapshots.length === 0) return;
  context.console.out(`Snapshot list:\n${formatSnapshotTable(snapshots).join("\n")}\n`);
}

function change(file: string, parsed: Arguments, action: Action, name: string): void {
  if (parsed.has("force-share")) {
    throw new CliError(`Could not open '${file}': force-share=on can only be used with read-only images`);
  }
  const image = resolveImage(file, undefined);
  if (image.format === "raw") {
    opening(file, image.path, false, () => imageInfo(image.path, image));
    throw notSupported(action, name, "Block driver does not support snapshots");
  }
  const options = { write: true, backing: "allow", dataFile: "allow" } as const;
  using disk = opening(file, image.path, true, () => Qcow2File.open(image.path, options));
  if (hasDataFile(disk.header)) throw notSupported(action, name, "Failed to load snapshot: Operation not supported");
  const isKnown = disk.snapshots.some((entry) => entry.name === name || (action === "apply" && entry.id === name));
  if (action === "apply" && !isKnown) throw failed(action, name, "Failed to load snapshot: No such file or directory");
  if (action === "delete" && !isKnown) throw failed(action, name, "snapshot not found");
  try {
    if (action === "create") disk.createSnapshot(name);
    else if (action === "apply") disk.applySnapshot(name);
    // An identifier is no name here, as it is for QEMU.
    else disk.deleteSnapshot(disk.snapshots.find((entry) => entry.name === name)?.id ?? name);
    disk.close();
  } catch (error) {
    throw failed(action, name, explainIoError(error));
  }
}

/** What is said of an image that can have no snapshots. */
function notSupported(action: Action, name: string, reason: string): CliError {
  if (action === "create") return failed(action, name, "-95 (Operation not supported)");
  return failed(action, name, action === "apply" ? reason : "snapshot not found");
}

function failed(action: Action, name: string, reason: string): CliError {
  return new CliError(`Could not ${action} snapshot '${name}': ${reason}`);
}

/** Cuts a name to the bytes that QEMU keeps, at the border of a character. */
function clip(name: string): string {
  const bytes = new TextEncoder().encode(name);
  if (bytes.length <= MAX_NAME_LENGTH) return name;
  let end = MAX_NAME_LENGTH;
  while (((bytes[end] ?? 0) & 0xc0) === 0x80) end--;
  return new TextDecoder().decode(bytes.subarray(0, end));
}
