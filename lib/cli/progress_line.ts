/**
 * What a person is shown of a long command: a bar, how far it is, how fast it goes and how long it will take.
 *
 * @module
 */

import type { ProgressBarFormatter } from "@std/cli/unstable-progress-bar";
import { formatSize } from "./sizes.ts";

/** A moment of the work, as a `ProgressBar` tells of it. */
export type ProgressFrame = Pick<
  ProgressBarFormatter,
  "progressBar" | "time" | "previousTime" | "value" | "previousValue" | "max"
>;

/** A rate counts for about so long: long enough to stand still, short enough to follow what changes. */
const MEMORY_MILLISECONDS = 4000;
/** What is guessed from less is wrong. */
const MIN_GUESS_MILLISECONDS = 1000;

/** What stands behind them does not move while they change. */
const SIZE_WIDTH = 8;
const RATE_WIDTH = 10;

/** Writes the line. It remembers how fast the work went lately. */
export class ProgressLine {
  readonly #inBytes: boolean;
  readonly #columns: () => number;
  /** What was done lately, and in how many milliseconds; the longer ago, the less it counts. */
  #recentlyDone = 0;
  #recentTime = 0;
  #ended = false;

  /**
   * @param inBytes Whether what is done is counted in bytes, so that it means something to a person.
   * @param columns Tells how many characters fit into a line.
   */
  constructor(inBytes: boolean, columns: () => number) {
    this.#inBytes = inBytes;
    this.#columns = columns;
  }

  /** Ends it: the next line is the last one, which tells how long all has taken. */
  end(): void {
    this.#ended = true;
  }

  /**
   * Writes a line.
   *
   * @param frame How far the work is.
   * @returns The line, which fits into the terminal.
   */
  format(frame: ProgressFrame): string {
    this.#observe(frame);
    const { progressBar, value, max } = frame;
    const done = Math.max(0, Math.min(value, max));
    const percent = max === 0 ? 100 : Math.floor(done * 100 / max);
    const size = this.#inBytes ? [`${formatSize(done).padStart(SIZE_WIDTH)} of ${formatSize(max)}`] : [];
    const facts = [`${String(percent).padStart(3)} %`, ...size, ...this.#speed(frame)].join("  ");
    // The bar goes first where there is no room, then the end of the line. A full line would wrap.
    const room = this.#columns() - 1;
    const line = `[${progressBar}] ${facts}`;
    return line.length <= room ? line : facts.slice(0, Math.max(0, room));
  }

  #observe({ time, previousTime, value, previousValue }: ProgressFrame): void {
    const passed = time - previousTime;
    if (passed <= 0) return;
    const weight = Math.exp(-passed / MEMORY_MILLISECONDS);
    this.#recentlyDone = this.#recentlyDone * weight + Math.max(0, value - previousValue);
    this.#recentTime = this.#recentTime * weight + passed;
  }

  #speed({ time, value, max }: ProgressFrame): string[] {
    if (this.#ended) return [`in ${formatTime(time)}`];
    if (this.#recentlyDone === 0 || time < MIN_GUESS_MILLISECONDS) return [];
    const perMillisecond = this.#recentlyDone / this.#recentTime;
    const rate = this.#inBytes ? [`${formatSize(Math.round(perMillisecond * 1000))}/s`.padStart(RATE_WIDTH)] : [];
    return value >= max ? rate : [...rate, `${formatTime((max - value) / perMillisecond)} left`];
  }
}

/** Such as `0:07` or `1:02:03`. */
function formatTime(milliseconds: number): string {
  const seconds = Math.ceil(Math.round(milliseconds) / 1000);
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  const end = String(seconds % 60).padStart(2, "0");
  return hours === 0 ? `${minutes}:${end}` : `${hours}:${String(minutes).padStart(2, "0")}:${end}`;
}
