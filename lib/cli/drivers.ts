/**
 * What QEMU calls drivers: image formats, and the protocols by which files are reached. Two of each are known here; an image of
 * another format is told by its first bytes, and refused rather than taken for a raw disk.
 *
 * @module
 */

import { type ImageType, imageTypeOf } from "../image/detect.ts";
import { findImageFormat } from "../format/signatures.ts";
import type { BlockFile } from "../storage/block_file.ts";
import { CliError } from "./errors.ts";

/** The protocols that lead to a file. */
const FILE_DRIVERS: readonly string[] = ["file", "host_device"];

/** Drivers of QEMU that can make images and are not handled here. */
const FOREIGN_CREATORS: readonly string[] = [
  "ftp",
  "ftps",
  "gluster",
  "host_cdrom",
  "http",
  "https",
  "iscsi",
  "iser",
  "luks",
  "nbd",
  "nfs",
  "nvme",
  "parallels",
  "qcow",
  "qed",
  "rbd",
  "ssh",
  "vdi",
  "vhdx",
  "vmdk",
  "vpc",
];

/** Drivers of QEMU that cannot make images and are not handled here either. */
const FOREIGN_READERS: readonly string[] = [
  "blkdebug",
  "blklogwrites",
  "blkverify",
  "bochs",
  "cloop",
  "compress",
  "copy-before-write",
  "copy-on-read",
  "dmg",
  "null-aio",
  "null-co",
  "preallocate",
  "quorum",
  "replication",
  "snapshot-access",
  "throttle",
  "vvfat",
];

/** The one driver of those whose images can be amended. */
const FOREIGN_AMENDER = "luks";

/**
 * Whether a driver leads to a file, rather than saying what is in it.
 *
 * @param name Name of the driver.
 * @returns Whether it does.
 */
export function isFileDriver(name: string): boolean {
  return FILE_DRIVERS.includes(name);
}

/**
 * Whether a name is that of a format that is handled here.
 *
 * @param name The name.
 * @returns Whether it is.
 */
export function isImageType(name: string): name is ImageType {
  return name === "raw" || name === "qcow2";
}

/**
 * Whether QEMU has a driver of a name, be it handled here or not.
 *
 * @param name The name.
 * @returns Whether it has.
 */
export function isKnownDriver(name: string): boolean {
  return isImageType(name) || isFileDriver(name) || FOREIGN_CREATORS.includes(name) || FOREIGN_READERS.includes(name);
}

/**
 * Checks the name of a driver by which an image is to be opened.
 *
 * @param name What was given.
 * @throws {CliError} Where nobody knows it, or it is not handled here.
 */
export function checkDriver(name: string): void {
  if (isImageType(name) || isFileDriver(name)) return;
  throw isKnownDriver(name) ? unsupportedFormat(name) : new CliError(`Unknown driver '${name}'`);
}

/**
 * How an image is read by a driver.
 *
 * @param name Name of the driver.
 * @returns The format; raw where the driver only leads to a file.
 * @throws {CliError} As {@linkcode checkDriver} does.
 */
export function imageTypeNamed(name: string): ImageType {
  checkDriver(name);
  return isImageType(name) ? name : "raw";
}

/**
 * Checks the name of a format in which an image is to be made.
 *
 * @param name What was given.
 * @returns The format.
 * @throws {CliError} Where there is none, or none that makes images, or it is not handled here.
 */
export function creatableFormat(name: string): ImageType {
  if (isImageType(name)) return name;
  if (FOREIGN_READERS.includes(name)) {
    throw new CliError(`Format driver '${name}' does not support image creation`);
  }
  throw FOREIGN_CREATORS.includes(name) || isFileDriver(name)
    ? unsupportedFormat(name)
    : new CliError(`Unknown file format '${name}'`);
}

/**
 * Checks the name of a format whose images are to be amended.
 *
 * @param name What was given.
 * @throws {CliError} Where it is not qcow2.
 */
export function checkAmendable(name: string): void {
  if (name === "qcow2") return;
  if (name === FOREIGN_AMENDER) throw unsupportedFormat(name);
  throw new CliError(
    isKnownDriver(name) ? `Format driver '${name}' does not support option amendment` : `Unknown file format '${name}'`,
  );
}

function unsupportedFormat(name: string): CliError {
  return new CliError(`Format '${name}' is not supported, expected raw or qcow2`);
}

const START_LENGTH = 512;

/**
 * Guesses the format of an image.
 *
 * @param file The file.
 * @returns The format that its first bytes look like.
 * @throws {CliError} Where they look like one that is not handled here.
 */
export function probeFormat(file: BlockFile): ImageType {
  const type = imageTypeOf(file);
  if (type === "qcow2") return type;
  const start = new Uint8Array(START_LENGTH);
  file.readAt(0, start);
  const foreign = findImageFormat(start);
  if (foreign === undefined) return type;
  throw unsupportedFormat(foreign);
}
