/**
 * Shows how far a long command has come: as `qemu-img` prints it, or as a bar where a person watches.
 *
 * @module
 */

import { ProgressBar } from "@std/cli/unstable-progress-bar";
import type { Console } from "./console.ts";
import { ProgressLine } from "./progress_line.ts";
import { toFixedHalfEven } from "./sizes.ts";

/** Shows progress. */
export interface ProgressDisplay {
  /**
   * Tells how much there is to do, where that was not known at the beginning.
   *
   * @param total How much.
   */
  expect(total: number): void;
  /**
   * Tells how far the work is.
   *
   * @param done How much is done, in the unit of the total.
   */
  update(done: number): void;
  /**
   * Ends the display.
   *
   * @param completed Whether the work was completed.
   */
  stop(completed: boolean): Promise<void>;
}

/** When to show progress. */
export interface ProgressOptions {
  /** Whether it was asked for. */
  readonly wanted: boolean;
  /** Whether nothing may be shown. */
  readonly quiet: boolean;
  /** Whether what is done is counted in bytes, so that a rate can be told. */
  readonly inBytes?: boolean;
}

/**
 * Whether {@linkcode showProgress} would show anything, so that counting what there is to do is worth it.
 *
 * @param console Where to print.
 * @param options When to show it.
 * @returns Whether it would.
 */
export function wantsProgress(console: Console, options: ProgressOptions): boolean {
  return !options.quiet && (options.wanted || console.stderrIsTerminal);
}

/**
 * Begins to show progress: a bar where a person watches, at once if it was asked for and after a second otherwise, when it goes
 * away in the end; lines on the standard output where it was asked for and that leads elsewhere.
 *
 * @param console Where to print.
 * @param total How much there is to do.
 * @param options When to show it.
 * @returns The display.
 */
export function showProgress(console: Console, total: number, options: ProgressOptions): ProgressDisplay {
  if (!wantsProgress(console, options)) return NO_DISPLAY;
  return showsBar(console, options) ? new BarProgress(console, total, options) : new LineProgress(console, total);
}

const NO_DISPLAY: ProgressDisplay = { expect: () => {}, update: () => {}, stop: () => Promise.resolve() };

/** A script that reads the standard output gets the lines that it asked for. */
function showsBar(console: Console, { wanted }: ProgressOptions): boolean {
  return console.stderrIsTerminal && (!wanted || console.stdoutColumns !== undefined);
}

/** What is over sooner needs no bar, unless it was asked for. */
const BAR_DELAY_MILLISECONDS = 1000;
const BAR_INTERVAL_MILLISECONDS = 200;
const MAX_BAR_LENGTH = 50;
/** Bars take so many parts of a line, so that what stands beside them has room. */
const BAR_SHARE = 0.3;
const DEFAULT_COLUMNS = 80;

class BarProgress implements ProgressDisplay {
  readonly #console: Console;
  #total: number;
  readonly #wanted: boolean;
  readonly #line: ProgressLine;
  readonly #start = performance.now();
  #bar: ProgressBar | undefined;

  constructor(console: Console, total: number, { wanted, inBytes = false }: ProgressOptions) {
    this.#console = console;
    this.#total = total;
    this.#wanted = wanted;
    this.#line = new ProgressLine(inBytes, terminalColumns);
  }

  expect(total: number): void {
    this.#total = total;
  }

  update(done: number): void {
    if (this.#bar === undefined) {
      if (this.#total === 0) return;
      if (!this.#wanted && performance.now() - this.#start < BAR_DELAY_MILLISECONDS) return;
      this.#bar = new ProgressBar({
        max: this.#total,
        value: done,
        interval: BAR_INTERVAL_MILLISECONDS,
        barLength: Math.min(MAX_BAR_LENGTH, Math.floor(terminalColumns() * BAR_SHARE)),
        clear: !this.#wanted,
        formatter: (frame) => this.#line.format(frame),
      });
      this.#console.showsBar = true;
    }
    this.#bar.value = done;
  }

  async stop(): Promise<void> {
    this.#line.end();
    await this.#bar?.stop();
    this.#console.showsBar = false;
  }
}

/** Asked anew for each line: people change the sizes of their windows. */
function terminalColumns(): number {
  try {
    return Deno.consoleSize().columns;
  } catch {
    return DEFAULT_COLUMNS;
  }
}

/** At least so many percent lie between two lines. */
const LINE_STEP_PERCENT = 1;

class LineProgress implements ProgressDisplay {
  readonly #console: Console;
  #total: number;
  #shown = 0;

  constructor(console: Console, total: number) {
    this.#console = console;
    this.#total = total;
    this.#print(0);
  }

  expect(total: number): void {
    this.#total = total;
  }

  update(done: number): void {
    // Clusters are compressed as a whole, so that more can be read than was counted.
    const percent = this.#total === 0 ? 0 : Math.min(100, done * 100 / this.#total);
    if (percent > this.#shown + LINE_STEP_PERCENT || (percent === 100 && done > 0)) this.#print(percent);
  }

  stop(completed: boolean): Promise<void> {
    if (completed) this.#print(100);
    this.#console.out("\n");
    return Promise.resolve();
  }

  #print(percent: number): void {
    this.#console.out(formatPercent(percent));
    this.#console.flush?.();
    this.#shown = percent;
  }
}

/**
 * Adds shares up to a percentage and shows it, in single precision as `qemu-img` does, so that the lines are the same. For commands
 * that count in percent; nothing is shown before the first call.
 */
export class PercentProgress {
  readonly #show: (percent: number) => void;
  readonly #end: () => Promise<void>;
  #percent = 0;

  /**
   * @param console Where to print.
   * @param options When to show it.
   * @param step At least so many percent lie between two lines.
   */
  constructor(console: Console, options: ProgressOptions, step: number) {
    if (showsBar(console, options) || !wantsProgress(console, options)) {
      const display = showProgress(console, 100, options);
      // What single precision has lost would keep a bar from its end.
      this.#show = (percent) => display.update(Math.round(percent * 100) / 100);
      this.#end = () => display.stop(true);
      return;
    }
    let shown = 0;
    this.#show = (percent) => {
      const isNear = percent >= shown && percent <= Math.fround(shown + step);
      if (isNear && percent !== 100 && percent !== 0) return;
      shown = percent;
      console.out(formatPercent(percent));
      console.flush?.();
    };
    this.#end = () => Promise.resolve(console.out("\n"));
  }

  /**
   * Tells that the work has come to a percentage.
   *
   * @param percent From 0 to 100.
   */
  set(percent: number): void {
    this.#percent = Math.min(100, Math.fround(percent));
    this.#show(this.#percent);
  }

  /**
   * Tells that the work has come further.
   *
   * @param share By how many percent.
   */
  add(share: number): void {
    this.set(this.#percent + Math.fround(share));
  }

  /** Ends the display. */
  async stop(): Promise<void> {
    await this.#end();
  }
}

function formatPercent(percent: number): string {
  return `    (${toFixedHalfEven(percent, 2)}/100%)\r`;
}
