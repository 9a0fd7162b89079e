/**
 * What the names of images mean: those on the command line, and those of backing files.
 *
 * @module
 */

import { CliError } from "./errors.ts";

/** Protocols that QEMU knows. Only `file` means something here. */
const FOREIGN_PROTOCOLS: ReadonlySet<string> = new Set([
  "blkdebug",
  "blklogwrites",
  "blkverify",
  "fat",
  "ftp",
  "ftps",
  "gluster",
  "host_cdrom",
  "host_device",
  "http",
  "https",
  "iscsi",
  "iser",
  "nbd",
  "nbd+tcp",
  "nbd+unix",
  "nfs",
  "null-aio",
  "null-co",
  "nvme",
  "rbd",
  "ssh",
]);

/**
 * The path that an image's name means: the name itself, unless it begins with a protocol.
 *
 * @param name Name of the image.
 * @returns Path of the file.
 * @throws {CliError} Where the protocol is none that leads to a file.
 */
export function pathOfImage(name: string): string {
  const protocol = /^[^:/]*(?=:)/.exec(name)?.[0];
  if (protocol === undefined) return name;
  if (Deno.build.os === "windows" && /^[a-z]$/i.test(protocol)) return name;
  // What remains must not look as if it began with a protocol itself.
  if (protocol === "file") return name.slice("file:".length).replace(/^(?=[^:/]*:)/, "./");
  if (FOREIGN_PROTOCOLS.has(protocol)) {
    throw new CliError(`Protocol '${protocol}' is not supported; put ./ in front where it is the name of a file`);
  }
  throw new CliError(`Unknown protocol '${protocol}'`);
}

/**
 * The path that the name of a backing file means: beside the image, unless it is absolute or has a protocol.
 *
 * @param imagePath Path of the image.
 * @param backingName Name of the backing file, as it stands in the image.
 * @returns The full name.
 */
export function fullBackingName(imagePath: string, backingName: string): string {
  if (/^[^:/]*:/.test(backingName) || backingName.startsWith("/")) return backingName;
  return imagePath.slice(0, imagePath.lastIndexOf("/") + 1) + backingName;
}
