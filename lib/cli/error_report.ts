/**
 * How a failure is told: to people in lines, to programs as one object in JSON.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { type Console, type Context, report } from "./console.ts";
import { CliError, messageOf, UsageError } from "./errors.ts";
import { hintFor } from "./hints.ts";

/** How a command line wants its failure to be told. */
export interface ErrorStyle {
  /** The command, or the word that is none. */
  readonly command: string | undefined;
  /** Whether hints may be given: not where the program stands in for `qemu-img`, nor to anybody but a person. */
  readonly hints: boolean;
}

/**
 * Tells of a failure in lines.
 *
 * @param context Where to print.
 * @param error What was caught.
 * @param style How to tell it.
 * @returns The exit status.
 */
export function printError(context: Context, error: unknown, style: ErrorStyle): number {
  const { console, programName } = context;
  const { notice, hint, second } = detailsOf(error);
  if (notice !== undefined) console.err(notice);
  report(context, error instanceof CliError ? error.message : messageOf(error));
  if (hint !== undefined) console.err(hint);
  if (second !== undefined) report(context, second);
  if (error instanceof UsageError) console.err(`Try '${programName} --help' for more information\n`);
  const advice = style.hints ? hintOf(error, style.command) : undefined;
  if (advice !== undefined) {
    // QEMU's own line may have no end.
    const separator = hint === undefined || hint.endsWith("\n") ? "" : "\n";
    console.err(`${separator}Hint: ${advice}\n`);
  }
  return exitCodeOf(error);
}

/** Collects what is told on the standard error, to tell all of it at the end in JSON. */
export class JsonErrors {
  /** The console that commands print to. */
  readonly console: Console;
  readonly #console: Console;
  #text = "";

  /** @param console Where the JSON is printed. */
  constructor(console: Console) {
    this.#console = console;
    this.console = {
      stderrIsTerminal: false,
      stdoutColumns: console.stdoutColumns,
      out: (text) => console.out(text),
      flush: () => console.flush?.(),
      err: (text) => void (this.#text += text),
    };
  }

  /**
   * Tells of a failure.
   *
   * @param error What was caught.
   * @param style How to tell it.
   * @returns The exit status.
   */
  printError(error: unknown, style: ErrorStyle): number {
    const status = exitCodeOf(error);
    const { path, notice = "", hint = "", second = "" } = detailsOf(error);
    this.#text += [notice, hint, second].filter((text) => text !== "").join("\n");
    const engine = engineErrorOf(error);
    this.#print({
      status,
      code: engine?.code ??
        (error instanceof UsageError ? "usage" : error instanceof CliError ? "command" : "internal"),
      message: error instanceof CliError ? error.message : messageOf(error),
      hint: hintOf(error, style.command),
      path,
      offset: engine?.offset,
      found: engine?.found,
      expected: engine?.expected,
    });
    return status;
  }

  /**
   * Tells of what was said where nothing failed, if anything was.
   *
   * @param status The exit status.
   */
  printRest(status: number): void {
    if (this.#text !== "") this.#print({ status });
  }

  #print(properties: Readonly<Record<string, unknown>>): void {
    const messages = this.#text.split("\n").filter((line) => line !== "");
    // What is undefined is left out.
    const object = { ...properties, messages: messages.length === 0 ? undefined : messages };
    this.#console.err(`${JSON.stringify(object)}\n`);
  }
}

function hintOf(error: unknown, command: string | undefined): string | undefined {
  return hintFor({
    command,
    message: messageOf(error),
    code: engineErrorOf(error)?.code,
    path: detailsOf(error).path,
  });
}

/** The engine's error that led to it all: the first one that was thrown. */
function engineErrorOf(error: unknown): Qcow2Error | undefined {
  let found: Qcow2Error | undefined;
  for (let inner = error; inner instanceof Error; inner = inner.cause) if (inner instanceof Qcow2Error) found = inner;
  return found;
}

function detailsOf(error: unknown): CliError["details"] {
  return error instanceof CliError ? error.details : {};
}

function exitCodeOf(error: unknown): number {
  return error instanceof CliError ? error.exitCode : 1;
}
