/**
 * A snapshot as the source of a conversion.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import type { Snapshot } from "../format/snapshot_table.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { CliError } from "./errors.ts";
import { parseOptionList } from "./image_options.ts";
import { opening, resolveImage } from "./image_files.ts";

/** How {@linkcode openSnapshotImage} opens an image. */
export interface SnapshotImageOptions {
  /** The format as it was given; without it, the first bytes decide. */
  readonly format: string | undefined;
  /** Whether to lock the file. */
  readonly lock: boolean;
}

/**
 * Opens an image of which a snapshot is to be read.
 *
 * @param name Name of the image.
 * @param options How to open it.
 * @returns The image.
 * @throws {CliError} Where it cannot be opened or has no snapshots by its format.
 */
export function openSnapshotImage(name: string, options: SnapshotImageOptions): Qcow2File {
  const { path, format } = resolveImage(name, options.format);
  if (format === "raw") {
    throw new CliError(
      "Failed to load snapshot: Block format 'raw' used by device '' does not support temporarily loading internal " +
        "snapshots",
    );
  }
  const { lock } = options;
  return opening(name, path, false, () => Qcow2File.open(path, { lock, backing: "allow", dataFile: "allow" }));
}

/**
 * The disk of a snapshot.
 *
 * @param image The image.
 * @param parameter The value of `-l`: identifier or name, or `snapshot.id=…,snapshot.name=…`.
 * @returns The disk, to be read while the image is open.
 * @throws {CliError} Where there is no such snapshot.
 */
export function openSnapshot(image: Qcow2File, parameter: string): Disk {
  const found = findSnapshot(image.snapshots, parameter);
  if (found === undefined) throw new CliError("Failed to load snapshot: Can't find snapshot");
  return image.openSnapshot(found.id);
}

function findSnapshot(snapshots: readonly Snapshot[], parameter: string): Snapshot | undefined {
  if (!parameter.startsWith("snapshot.")) {
    return snapshots.find(({ id }) => id === parameter) ?? snapshots.find(({ name }) => name === parameter);
  }
  const wanted: { id?: string; name?: string } = {};
  for (const [option, value] of parseOptionList(parameter)) {
    if (option === "snapshot.id") {
      wanted.id = value;
    } else if (option === "snapshot.name") {
      wanted.name = value;
    } else {
      throw new CliError(`Failed in parsing snapshot param '${parameter}': Invalid parameter '${option}'`);
    }
  }
  return snapshots.find(({ id, name }) => id === (wanted.id ?? id) && name === (wanted.name ?? name));
}
