/**
 * A snapshot as the source of a conversion.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import type { Qcow2File } from "../image/qcow2_file.ts";
import { RawFile } from "../image/raw_file.ts";
import { CliError } from "./errors.ts";
import { parseOptionList } from "./image_options.ts";

/** Which snapshot is meant. */
export type SnapshotChoice =
  | { readonly idOrName: string }
  | { readonly id: string | undefined; readonly name: string | undefined };

const ID_OPTION = "snapshot.id";
const NAME_OPTION = "snapshot.name";

/**
 * Reads which snapshot is meant.
 *
 * @param parameter The value of `-l`: identifier or name, or `snapshot.id=…,snapshot.name=…`.
 * @returns The choice.
 * @throws {CliError} Where an option is unknown.
 */
export function parseSnapshotChoice(parameter: string): SnapshotChoice {
  if (!parameter.startsWith("snapshot.")) return { idOrName: parameter };
  const options = new Map(parseOptionList(parameter));
  const unknown = [...options.keys()].find((option) => option !== ID_OPTION && option !== NAME_OPTION);
  if (unknown !== undefined) {
    throw new CliError(`Invalid parameter '${unknown}'`, 1, {
      second: `Failed in parsing snapshot param '${parameter}'`,
    });
  }
  return { id: options.get(ID_OPTION), name: options.get(NAME_OPTION) };
}

/**
 * The disk of a snapshot.
 *
 * @param image The image.
 * @param choice Which snapshot.
 * @returns The disk, to be read while the image is open.
 * @throws {CliError} Where there is no such snapshot.
 */
export function openSnapshot(image: Qcow2File | RawFile, choice: SnapshotChoice): Disk {
  if (image instanceof RawFile) {
    throw new CliError(
      "Failed to load snapshot: Block format 'raw' used by device '' does not support temporarily loading internal " +
        "snapshots",
    );
  }
  const found = findSnapshot(image, choice);
  if (found === undefined) throw new CliError("Failed to load snapshot: Can't find snapshot");
  return image.openSnapshot(found);
}

function findSnapshot({ snapshots }: Qcow2File, choice: SnapshotChoice): string | undefined {
  if ("idOrName" in choice) {
    const { idOrName } = choice;
    return (snapshots.find(({ id }) => id === idOrName) ?? snapshots.find(({ name }) => name === idOrName))?.id;
  }
  return snapshots.find(({ id, name }) => id === (choice.id ?? id) && name === (choice.name ?? name))?.id;
}
