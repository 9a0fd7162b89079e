/**
 * Images by the names and formats that stand on a command line.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { detectImageType, type ImageType } from "../image/detect.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { RawFile } from "../image/raw_file.ts";
import { openingBacking } from "./backing_chain.ts";
import { CliError, explainOpenError } from "./errors.ts";
import { detectForeignFormat, FOREIGN_FORMATS } from "./foreign_formats.ts";

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
  "json",
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
  if (protocol === "file") return name.slice("file:".length);
  if (FOREIGN_PROTOCOLS.has(protocol)) {
    throw new CliError(`Protocol '${protocol}' is not supported; put ./ in front where it is the name of a file`);
  }
  throw new CliError(`Unknown protocol '${protocol}'`);
}

/** Puts what is wrong with an image's name behind something. */
export function withPrefix<T>(prefix: string, act: () => T): T {
  try {
    return act();
  } catch (error) {
    if (error instanceof CliError) throw new CliError(`${prefix}${error.message}`, error.exitCode);
    throw error;
  }
}

/**
 * Checks the name of a format in which an image is to be made.
 *
 * @param name What was given.
 * @returns The format.
 * @throws {CliError} Where it is none that is known here.
 */
export function targetFormat(name: string): ImageType {
  return knownFormat(name, `Unknown file format '${name}'`);
}

/**
 * Checks the name of a format.
 *
 * @param name What was given.
 * @param unknown What to say where nobody knows it.
 * @returns The format.
 * @throws {CliError} Where it is none that is known here.
 */
export function knownFormat(name: string, unknown: string): ImageType {
  if (name === "raw" || name === "qcow2") return name;
  throw new CliError(FOREIGN_FORMATS.has(name) ? foreignFormatMessage(name) : unknown);
}

function foreignFormatMessage(name: string): string {
  return `Format '${name}' is not supported, expected raw or qcow2`;
}

/** An image on the command line. */
export interface NamedImage {
  /** Path of the file. */
  readonly path: string;
  /** The format: given, or what it looks like. */
  readonly format: ImageType;
}

/**
 * Finds out where an image stands and which format it has.
 *
 * @param name Name of the image.
 * @param format The format as it was given; without it, the first bytes decide.
 * @returns Path and format.
 * @throws {CliError} Where the file cannot be read or the format is not known here.
 */
export function resolveImage(name: string, format: string | undefined): NamedImage {
  return withPrefix(`Could not open '${name}': `, () => {
    if (format !== undefined) {
      return { format: knownFormat(format, `Unknown driver '${format}'`), path: pathOfImage(name) };
    }
    const path = pathOfImage(name);
    try {
      const detected = detectImageType(path);
      const foreign = detected === "raw" ? detectForeignFormat(path) : undefined;
      if (foreign !== undefined) throw new CliError(foreignFormatMessage(foreign));
      return { format: detected, path };
    } catch (error) {
      if (error instanceof CliError) throw error;
      throw new CliError(explainOpenError(error, path, false));
    }
  });
}

/** How {@linkcode openImage} opens an image. */
export interface OpenImageOptions {
  /** The format as it was given; without it, the first bytes decide. */
  readonly format?: string | undefined;
  /** Whether the image is written. */
  readonly write?: boolean;
  /** Whether to lock the file. */
  readonly lock?: boolean;
}

/**
 * Opens an image.
 *
 * @param name Name of the image.
 * @param options How to open it.
 * @returns The image.
 * @throws {CliError} Where it cannot be opened.
 */
export function openImage(name: string, options: OpenImageOptions = {}): Disk {
  const { write = false, lock = true } = options;
  const { path, format } = resolveImage(name, options.format);
  return opening(name, path, write, () => {
    if (format === "raw") return RawFile.open(path, { write, lock });
    return Qcow2File.open(path, { write, lock, dataFile: "allow", backing: openingBacking(path, lock) });
  });
}

/**
 * Does something that opens an image, and says what went wrong the way `qemu-img` does.
 *
 * @param name Name of the image.
 * @param path Path of the file.
 * @param write Whether it is written.
 * @param open What to do.
 * @returns What `open` returns.
 * @throws {CliError} Where that fails.
 */
export function opening<T>(name: string, path: string, write: boolean, open: () => T): T {
  try {
    return open();
  } catch (error) {
    throw new CliError(`Could not open '${name}': ${explainOpenError(error, path, write)}`);
  }
}
