/**
 * The option `--output`, which several commands share.
 *
 * @module
 */

import type { Arguments } from "./arguments.ts";
import { CliError } from "./errors.ts";

/** For people or for programs. */
export type OutputFormat = "human" | "json";

/**
 * Reads the option.
 *
 * @param args The command line.
 * @returns The format; for people without the option.
 * @throws {CliError} Where it is neither.
 */
export function outputFormatOf(args: Arguments): OutputFormat {
  const format = args.last("output") ?? "human";
  if (format === "human" || format === "json") return format;
  throw new CliError("--output must be used with human or json as argument.");
}
