/**
 * Images by what stands on a command line: a name, or a description where `--image-opts` says so.
 *
 * @module
 */

import type { Qcow2File } from "../image/qcow2_file.ts";
import type { RawFile } from "../image/raw_file.ts";
import type { Arguments } from "./arguments.ts";
import { BlockOptions, optionsOfDescription } from "./block_options.ts";
import { type Context, report } from "./console.ts";
import { CliError } from "./errors.ts";
import { ImageNode } from "./image_node.ts";

/**
 * Puts something in front of what a command says where it fails.
 *
 * @param prefix What to put there.
 * @param act What to do.
 * @returns What `act` returns.
 * @throws {CliError} What `act` throws, with the prefix.
 */
export function withPrefix<T>(prefix: string, act: () => T): T {
  try {
    return act();
  } catch (error) {
    if (error instanceof CliError) {
      throw new CliError(`${prefix}${error.message}`, error.exitCode, error.details);
    }
    throw error;
  }
}

/** An image on the command line. */
export interface ImageRequest {
  /** Its name, or its description. */
  readonly name: string;
  /** The format as it was given; without it, the first bytes decide. */
  readonly format?: string | undefined;
  /** Whether the name is a description. */
  readonly imageOpts?: boolean;
  /** Whether others may use it as they like, so that nothing is locked. */
  readonly forceShare?: boolean;
  /** Whether nobody may write to it while it is read, even if it is a raw image. */
  readonly locksRaw?: boolean;
  /** Whether it is written. */
  readonly write?: boolean;
  /**
   * Whether its backing file is opened as well.
   *
   * @default {true}
   */
  readonly backing?: boolean;
  /** How far beneath it another image is written as well. */
  readonly writtenDepth?: number;
}

/**
 * The image that the options of most commands speak of.
 *
 * @param parsed The command line.
 * @param name Its name.
 * @returns The image.
 */
export function imageRequest(parsed: Arguments, name: string): ImageRequest {
  return {
    name,
    format: parsed.last("format"),
    imageOpts: parsed.has("image-opts"),
    forceShare: parsed.has("force-share"),
  };
}

/**
 * Finds an image: opens its file, and says what of the description makes no sense.
 *
 * @param context Where to print.
 * @param request The image.
 * @returns The image; dispose of it, or open its disk.
 * @throws {CliError} Where it cannot be had.
 */
export function findImage(context: Context, request: ImageRequest): ImageNode {
  const { name, format, imageOpts = false, forceShare = false, write = false, backing = true } = request;
  if (imageOpts && format !== undefined) throw new CliError("--image-opts and --format are mutually exclusive");
  const options = imageOpts
    ? optionsOfDescription(name, (message) => report(context, `warning: ${message}`))
    : new BlockOptions();
  if (format !== undefined) options.set("driver", format);
  if (forceShare) {
    const given = options.get("force-share");
    if (given !== undefined && given !== "on") throw new CliError("--force-share/-U conflicts with image options");
    options.set("force-share", "on");
  }
  return openingImage(request, () => {
    const { locksRaw, writtenDepth } = request;
    const rules = { write, lock: true, locksRaw, backing, writtenDepth, context };
    return ImageNode.find(imageOpts ? undefined : name, options, rules);
  });
}

/**
 * Does something that opens an image, and says where it fails which image it was.
 *
 * @param request The image.
 * @param act What to do.
 * @returns What `act` returns.
 * @throws {CliError} Where that fails.
 */
export function openingImage<T>({ name }: ImageRequest, act: () => T): T {
  try {
    return withPrefix(`Could not open '${name}': `, act);
  } catch (error) {
    if (!(error instanceof CliError) || error.details.path !== undefined) throw error;
    throw new CliError(error.message, error.exitCode, { ...error.details, path: name });
  }
}

/**
 * Opens an image.
 *
 * @param context Where to print.
 * @param request The image.
 * @param onFile Called with the path of each image's file, from the top of the chain down.
 * @returns The disk that it holds.
 * @throws {CliError} Where it cannot be opened.
 */
export function openImage(
  context: Context,
  request: ImageRequest,
  onFile: (path: string) => void = () => {},
): Qcow2File | RawFile {
  using node = findImage(context, request);
  onFile(node.file.name);
  return openingImage(request, () => node.openDisk((backing) => onFile(backing.file.name)));
}
