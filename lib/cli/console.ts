/**
 * What a command prints to and what it knows of the program around it, so that a command can run inside of a test as well.
 *
 * @module
 */

import { concat } from "@std/bytes/concat";

/** Where a command prints. */
export interface Console {
  /** Whether the standard error is a terminal, so that a person watches. */
  readonly stderrIsTerminal: boolean;
  /** How many characters fit into a line of the standard output, where that is a terminal. */
  readonly stdoutColumns?: number | undefined;
  /** Whether a bar is in the line where the cursor stands, which goes away before anything else is printed to a terminal. */
  showsBar?: boolean;
  /**
   * Prints to the standard output.
   *
   * @param text What to print, line ends included.
   */
  out(text: string): void;
  /** Makes sure that everything that was printed is out. */
  flush?(): void;
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
 * What goes to the standard output is collected, unless a person watches, so that a map of a million lines costs few calls of the
 * host. It is written out in blocks of the size that the C library uses: where both streams lead to the same place, lines come out
 * in the same order as those of `qemu-img`.
 *
 * @returns A console that prints errors at once.
 */
export function processConsole(): Console {
  const outIsTerminal = Deno.stdout.isTerminal();
  const errIsTerminal = Deno.stderr.isTerminal();
  const out = new Output(Deno.stdout, outIsTerminal ? 0 : BLOCK_LENGTH);
  const console: Console = {
    stderrIsTerminal: errIsTerminal,
    stdoutColumns: stdoutColumns(),
    showsBar: false,
    out: (text) => {
      if (outIsTerminal) clearBar();
      out.write(text);
    },
    flush: () => out.flush(),
    err: (text) => {
      clearBar();
      writeAll(Deno.stderr, new TextEncoder().encode(text));
    },
  };
  const clearBar = () => {
    if (console.showsBar) writeAll(Deno.stderr, new TextEncoder().encode(TO_LINE_START_AND_CLEAR));
  };
  return console;
}

const TO_LINE_START_AND_CLEAR = "\r\x1b[K";

function stdoutColumns(): number | undefined {
  if (!Deno.stdout.isTerminal()) return undefined;
  try {
    return Deno.consoleSize().columns;
  } catch {
    return undefined;
  }
}

const BLOCK_LENGTH = 4096;

class Output {
  readonly #stream: Stream;
  readonly #blockLength: number;
  #collected: Uint8Array[] = [];
  #length = 0;

  constructor(stream: Stream, blockLength: number) {
    this.#stream = stream;
    this.#blockLength = blockLength;
  }

  write(text: string): void {
    const bytes = new TextEncoder().encode(text);
    this.#collected.push(bytes);
    this.#length += bytes.length;
    if (this.#blockLength === 0) this.flush();
    else if (this.#length >= this.#blockLength) this.#emit(this.#length - this.#length % this.#blockLength);
  }

  flush(): void {
    this.#emit(this.#length);
  }

  /** Writes so much out, and keeps the rest. */
  #emit(length: number): void {
    const bytes = concat(this.#collected);
    const rest = bytes.subarray(length);
    this.#collected = rest.length === 0 ? [] : [rest];
    this.#length = rest.length;
    writeAll(this.#stream, bytes.subarray(0, length));
  }
}

interface Stream {
  writeSync(bytes: Uint8Array): number;
}

function writeAll(stream: Stream, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length;) done += stream.writeSync(bytes.subarray(done));
}
