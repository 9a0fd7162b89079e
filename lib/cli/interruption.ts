/**
 * Ctrl-C and its like, as an `AbortSignal`.
 *
 * @module
 */

/** What a shell reports for a program that a signal has ended: 128 and the number of the signal. */
const EXIT_CODES = { SIGINT: 130, SIGTERM: 143 } as const;

/** Listens for the signals that end a program, until it is disposed of. */
export class Interruption implements Disposable {
  readonly #controller = new AbortController();
  readonly #listeners: (readonly [Deno.Signal, () => void])[] = [];
  #exitCode: number | undefined;

  /** Begins to listen. */
  constructor() {
    // Other systems know the first of them only.
    const signals = Deno.build.os === "windows" ? ["SIGINT"] as const : ["SIGINT", "SIGTERM"] as const;
    for (const signal of signals) {
      const listener = () => this.#interrupt(EXIT_CODES[signal]);
      Deno.addSignalListener(signal, listener);
      this.#listeners.push([signal, listener]);
    }
  }

  /** Is aborted once a signal has come. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** The exit status, once a signal has come. */
  get exitCode(): number | undefined {
    return this.#exitCode;
  }

  /** Stops listening: signals end the program at once again. */
  [Symbol.dispose](): void {
    for (const [signal, listener] of this.#listeners) Deno.removeSignalListener(signal, listener);
  }

  #interrupt(exitCode: number): void {
    this.#exitCode ??= exitCode;
    this.#controller.abort();
  }
}
