/**
 * Finds the command on a command line, runs it, and says why where it failed.
 *
 * @module
 */

import { parseArguments } from "./arguments.ts";
import { type Console, type Context, report } from "./console.ts";
import { CliError, messageOf, UsageError } from "./errors.ts";
import { commandHelp, type CommandName, isCommandName, programHelp } from "./help.ts";

/** Runs one command. */
type Command = (context: Context, args: readonly string[]) => number | Promise<number>;

/** The commands are loaded when they are run: help loads nothing of the engine. */
const COMMANDS: Readonly<Record<CommandName, () => Promise<Command>>> = {
  amend: async () => (await import("./amend.ts")).amend,
  bench: async () => (await import("./bench.ts")).bench,
  bitmap: async () => (await import("./bitmap.ts")).bitmap,
  check: async () => (await import("./check.ts")).check,
  commit: async () => (await import("./commit.ts")).commit,
  compare: async () => (await import("./compare.ts")).compare,
  completions: async () => (await import("./completions.ts")).completions,
  convert: async () => (await import("./convert.ts")).convert,
  create: async () => (await import("./create.ts")).create,
  dd: async () => (await import("./dd.ts")).dd,
  info: async () => (await import("./info.ts")).info,
  inspect: async () => (await import("./inspect.ts")).inspect,
  map: async () => (await import("./map.ts")).map,
  measure: async () => (await import("./measure.ts")).measure,
  rebase: async () => (await import("./rebase.ts")).rebase,
  resize: async () => (await import("./resize.ts")).resize,
  snapshot: async () => (await import("./snapshot.ts")).snapshot,
  help: () => Promise.resolve(help),
};

/** What {@linkcode main} must be told. */
export interface MainOptions {
  /** The version of the program. */
  readonly version: string;
}

/**
 * Runs the program. Never throws: whatever goes wrong ends in a message and an exit status.
 *
 * @param args The command line, without the program's name.
 * @param console Where to print.
 * @param options The version.
 * @returns The exit status.
 */
export async function main(args: readonly string[], console: Console, options: MainOptions): Promise<number> {
  const named = args[0] === "--argv0" && args[1] !== undefined;
  const context: Context = { console, programName: named ? args[1] ?? "" : "qcow2", version: options.version };
  let exitCode: number;
  try {
    exitCode = await runCommand(context, named ? args.slice(2) : args);
  } catch (caught) {
    const error = firstError(caught);
    // Whoever has read enough, such as `head`, is owed no explanation.
    if (error instanceof Deno.errors.BrokenPipe) return 1;
    exitCode = explain(context, error);
  }
  try {
    console.flush?.();
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) return 1;
    return explain(context, error);
  }
  return exitCode;
}

/** What went wrong first, where closing what was open failed after it. */
function firstError(error: unknown): unknown {
  return error instanceof SuppressedError ? firstError(error.suppressed) : error;
}

async function runCommand(context: Context, args: readonly string[]): Promise<number> {
  const [word, ...rest] = args;
  if (word === undefined) throw new UsageError("Not enough arguments");
  if (word.startsWith("-")) return standardOption(context, word);
  if (!isCommandName(word)) throw new UsageError(`Command not found: ${word}`);
  const command = await COMMANDS[word]();
  return await command(context, rest);
}

function standardOption(context: Context, option: string): number {
  const parsed = parseArguments(context.programName, [option], [
    { name: "help", short: "h" },
    { name: "version", short: "V" },
  ]);
  const { console, programName, version } = context;
  if (parsed.has("version")) console.out(`qcow2 version ${version}\n`);
  else if (parsed.has("help")) console.out(programHelp(programName, version));
  else throw new UsageError("Not enough arguments");
  return 0;
}

function help(context: Context, args: readonly string[]): number {
  const [word] = parseArguments("help", args, [{ name: "help", short: "h" }]).operands;
  if (word !== undefined && !isCommandName(word)) throw new UsageError(`Command not found: ${word}`);
  const { console, programName, version } = context;
  console.out(word === undefined ? programHelp(programName, version) : commandHelp(word, programName));
  return 0;
}

function explain(context: Context, error: unknown): number {
  if (!(error instanceof CliError)) {
    report(context, messageOf(error));
    return 1;
  }
  const { notice, hint, second } = error.details;
  if (notice !== undefined) context.console.err(notice);
  report(context, error.message);
  if (hint !== undefined) context.console.err(hint);
  if (second !== undefined) report(context, second);
  if (error instanceof UsageError) context.console.err(`Try '${context.programName} --help' for more information\n`);
  return error.exitCode;
}
