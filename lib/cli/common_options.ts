/**
 * Options that most commands share.
 *
 * @module
 */

import type { OptionDefinition } from "./arguments.ts";
import { CliError } from "./errors.ts";

/** The formats of images. */
export const FORMATS: readonly string[] = ["raw", "qcow2"];

/** The cache modes that QEMU knows. */
export const CACHE_MODES: readonly string[] = ["none", "off", "directsync", "writeback", "unsafe", "writethrough"];

/** Options of every command that opens an image. */
export const IMAGE_OPTIONS: readonly OptionDefinition[] = [
  { name: "help", short: "h" },
  { name: "format", short: "f", shortOnly: true, takesValue: true, values: FORMATS },
  { name: "force-share", short: "U" },
  { name: "object", takesValue: true },
  { name: "image-opts" },
];

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
