/**
 * Values of options that several commands share.
 *
 * @module
 */

import { CliError } from "./errors.ts";

/** The formats of images. */
export const FORMATS: readonly string[] = ["raw", "qcow2"];

/** The cache modes that QEMU knows. */
export const CACHE_MODES: readonly string[] = ["none", "off", "directsync", "writeback", "unsafe", "writethrough"];

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
