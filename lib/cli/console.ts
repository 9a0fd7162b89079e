/**
 * What a command prints to and what it knows of the program around it, so that a command can run inside of a test as well.
 *
 * @module
 */

/** Where a command prints. */
export interface Console {
  /** Whether the standard error is a terminal, so that a person watches. */
  readonly stderrIsTerminal: boolean;
  /** How many characters fit into a line of the standard output, where that is a terminal. */
  readonly stdoutColumns?: number | undefined;
  /**
   * Prints to the standard output.
   *
   * @param text What to print, line ends included.
   */
  out(text: string): void;
  /**
   * Prints to the standard error.
   *
   * @param text What to print, line ends included.
   */
  err(text: string): void;
}

/** What every command is given besides its arguments. */
export interface Context {
  /** Where to print. */
  readonly console: Console;
  /** The name in front of error messages. */
  readonly programName: string;
  /** The version of the program. */
  readonly version: string;
}

/**
 * Prints an error or warning with the program's name in front.
 *
 * @param context The command's surroundings.
 * @param message What to say, without a line end.
 */
export function report(context: Context, message: string): void {
  context.console.err(`${context.programName}: ${message}\n`);
}

/**
 * The console of the process.
 *
 * @returns A console that prints at once and completely.
 */
export function processConsole(): Console {
  return {
    stderrIsTerminal: Deno.stderr.isTerminal(),
    stdoutColumns: stdoutColumns(),
    out: (text) => writeAll(Deno.stdout, text),
    err: (text) => writeAll(Deno.stderr, text),
  };
}

function stdoutColumns(): number | undefined {
  if (!Deno.stdout.isTerminal()) return undefined;
  try {
    return Deno.consoleSize().columns;
  } catch {
    return undefined;
  }
}

function writeAll(stream: { writeSync(bytes: Uint8Array): number }, text: string): void {
  const bytes = new TextEncoder().encode(text);
  for (let done = 0; done < bytes.length;) done += stream.writeSync(bytes.subarray(done));
}
