/**
 * `completions`: prints a script that teaches a shell how command lines go on.
 *
 * @module
 */

import { parseArguments } from "./arguments.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import { completionScript, SHELLS } from "./completion_scripts.ts";
import type { Context } from "./console.ts";
import { CliError, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `completions`.
 * @returns The exit status.
 * @throws {CliError} Where there is no script for the shell.
 */
export function completions(context: Context, args: readonly string[]): number {
  const parsed = parseArguments("completions", args, COMMAND_OPTIONS.completions);
  if (parsed.has("help")) {
    context.console.out(commandHelp("completions", context.programName));
    return 0;
  }
  const [word, ...others] = parsed.operands;
  if (word === undefined || others.length > 0) throw new UsageError("Expecting the name of one shell");
  const shell = SHELLS.find((name) => name === word);
  if (shell === undefined) throw new CliError(`Unknown shell '${word}', expected ${SHELLS.join(", ")}`);
  context.console.out(completionScript(shell));
  return 0;
}
