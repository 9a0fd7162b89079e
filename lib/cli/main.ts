/**
 * Finds the command on a command line, runs it, and says why where it failed.
 *
 * @module
 */

import { parseArguments } from "./arguments.ts";
import type { Console, Context } from "./console.ts";
import { type ErrorStyle, JsonErrors, printError } from "./error_report.ts";
import { UsageError } from "./errors.ts";
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
  const { programName, json, rest } = readProgramOptions(args);
  const jsonErrors = json ? new JsonErrors(console) : undefined;
  const context: Context = {
    console: jsonErrors?.console ?? console,
    programName: programName ?? "qcow2",
    version: options.version,
  };
  // Nothing stands in the way of a script: hints are for a person at a terminal.
  const style: ErrorStyle = { command: rest[0], hints: programName === undefined && console.stderrIsTerminal };
  const explain = (error: unknown) => jsonErrors?.printError(error, style) ?? printError(context, error, style);
  let exitCode: number;
  let failed = false;
  try {
    exitCode = await runCommand(context, rest);
  } catch (caught) {
    const error = firstError(caught);
    // Whoever has read enough, such as `head`, is owed no explanation.
    if (error instanceof Deno.errors.BrokenPipe) return 1;
    exitCode = explain(error);
    failed = true;
  }
  try {
    console.flush?.();
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) return 1;
    return explain(error);
  }
  if (!failed) jsonErrors?.printRest(exitCode);
  return exitCode;
}

/** What stands in front of the command. */
interface ProgramOptions {
  readonly programName: string | undefined;
  readonly json: boolean;
  readonly rest: readonly string[];
}

function readProgramOptions(args: readonly string[]): ProgramOptions {
  let programName: string | undefined;
  let json = false;
  let position = 0;
  for (; position < args.length; position++) {
    if (args[position] === "--json") {
      json = true;
    } else if (args[position] === "--argv0" && args[position + 1] !== undefined) {
      programName = args[++position];
    } else {
      break;
    }
  }
  return { programName, json, rest: args.slice(position) };
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
