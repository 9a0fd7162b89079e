/**
 * Opens the backing files that images name, the way `qemu-img` does: without being asked, and with a guess at the format where an
 * image does not say it.
 *
 * @module
 */

import { allowedBacking, type BackingReference } from "../image/backing.ts";
import type { Disk } from "../disk.ts";
import { detectImageType } from "../image/detect.ts";
import { realPath } from "../image/local_name.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { RawFile } from "../image/raw_file.ts";
import { CliError, explainOpenError } from "./errors.ts";

/**
 * What to do with backing files on the command line.
 *
 * @param imagePath Path of the image that may name one.
 * @param lock Whether to lock the files.
 * @param above Real paths of the images above it.
 * @param onOpen Called with the path of each file of the chain, from the top down.
 * @returns The policy for that image.
 */
export function openingBacking(
  imagePath: string,
  lock: boolean,
  above: readonly string[] = [],
  onOpen: (path: string) => void = () => {},
): (reference: BackingReference) => Disk {
  const chain = [...above, realPath(imagePath)];
  return (reference) => {
    const { path: named } = reference;
    try {
      const format = reference.format ?? (named === undefined ? undefined : detectImageType(named));
      const { path, format: known } = allowedBacking({ ...reference, format }, chain);
      onOpen(path);
      if (known === "raw") return RawFile.open(path, { lock });
      return Qcow2File.open(path, { lock, dataFile: "allow", backing: openingBacking(path, lock, chain, onOpen) });
    } catch (error) {
      if (error instanceof CliError) throw error;
      const reason = explainOpenError(error, named ?? reference.name, false);
      throw new CliError(`Could not open backing file: ${reason}`);
    }
  };
}
