/**
 * Options that most commands share, and those of them that lead to capabilities that are missing here.
 *
 * @module
 */

import type { Arguments, OptionDefinition } from "./arguments.ts";
import { CliError, notSupported } from "./errors.ts";

/** Options of every command that opens an image. */
export const IMAGE_OPTIONS: readonly OptionDefinition[] = [
  { name: "help", short: "h" },
  { name: "format", short: "f", shortOnly: true, takesValue: true },
  { name: "force-share", short: "U" },
  { name: "object", takesValue: true },
  { name: "image-opts" },
];

const CACHE_MODES: readonly string[] = ["none", "off", "directsync", "writeback", "unsafe", "writethrough"];

/**
 * Refuses objects and images that are described by options.
 *
 * @param args The command line.
 * @throws {CliError} Where one of them is wanted.
 */
export function refuseImageDescriptions(args: Arguments): void {
  if (args.has("image-opts")) throw notSupported("Describing images by options (--image-opts)");
  if (args.has("object")) throw notSupported("Defining objects (--object)");
}

/**
 * Checks a cache mode. All of them are taken. The host's cache is always used; what they may decide is whether it is flushed.
 *
 * @param mode What was given, if anything.
 * @param what What it is the mode of, for the message.
 * @throws {CliError} Where there is no such mode.
 */
export function checkCacheMode(mode: string | undefined, what: string): void {
  if (mode !== undefined && !CACHE_MODES.includes(mode)) throw new CliError(`Invalid ${what} option: ${mode}`);
}
