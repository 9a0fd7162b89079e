/**
 * `snapshot`: lists, makes, applies and deletes internal snapshots.
 *
 * @module
 */

import { hasDataFile } from "../format/header.ts";
import type { Qcow2File } from "../image/qcow2_file.ts";
import { RawFile } from "../image/raw_file.ts";
import { parseArguments } from "./arguments.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import type { Context } from "./console.ts";
import { causedBy, CliError, explainIoError, failureOf, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { imageRequest, openImage } from "./image_files.ts";
import { readSecrets } from "./secrets.ts";
import { formatSnapshotTable } from "./snapshot_format.ts";

const ACTIONS = ["apply", "create", "delete"] as const;
type Action = (typeof ACTIONS)[number];

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
  const parsed = parseArguments("snapshot", args, COMMAND_OPTIONS.snapshot);
  if (parsed.has("help")) {
    context.console.out(commandHelp("snapshot", context.programName));
    return 0;
  }
  const actions = ACTIONS.flatMap((action) => parsed.all(action).map((name) => [action, name] as const));
  const [action] = actions;
  const asked = parsed.sequence.filter(({ name }) => name === "list" || ACTIONS.some((known) => known === name));
  if (asked.length > 1) throw new UsageError("Cannot mix '-l', '-a', '-c', '-d'");
  const [file, ...rest] = parsed.operands;
  if (file === undefined || rest.length > 0) throw new UsageError("Expecting one image file name");
  readSecrets(parsed.all("object"));
  const isList = parsed.has("list");
  // Without any action, too, the image is opened as if it were to be changed.
  using disk = openImage(context, { ...imageRequest(parsed, file), write: !isList });
  if (isList) list(context, disk);
  else if (action !== undefined) change(disk, action[0], clip(action[1]));
  return 0;
}

function list(context: Context, disk: Qcow2File | RawFile): void {
  if (disk instanceof RawFile || hasDataFile(disk.header) || disk.snapshots.length === 0) return;
  context.console.out(`Snapshot list:\n${formatSnapshotTable(disk.snapshots).join("\n")}\n`);
}

function change(disk: Qcow2File | RawFile, action: Action, name: string): void {
  if (disk instanceof RawFile) throw notSupported(action, name, "Block driver does not support snapshots");
  if (hasDataFile(disk.header)) {
    const reason = disk.bitmaps.length > 0
      ? "Device has active dirty bitmaps"
      : "Failed to load snapshot: Operation not supported";
    throw notSupported(action, name, reason);
  }
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
    if (action !== "create") throw causedBy(error, failed(action, name, explainIoError(error)).message);
    const { number, text, notice } = failureOf(error, true);
    throw new CliError(`Could not create snapshot '${name}': ${-number} (${text})`, 1, { notice, cause: error });
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
