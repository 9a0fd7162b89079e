/** Stands in for `@std/cli/unstable-progress-bar` where JSR cannot be reached. @module */

/** What a formatter may show. */
export interface ProgressBarFormatter {
  /** The time since the start, as `mm:ss`. */
  styledTime: string;
  /** The value and its maximum, as `0.40/97.66 KiB`. */
  styledData: string;
  /** The bar, as `###-------`. */
  progressBar: string;
  /** The time since the start, in milliseconds. */
  time: number;
  /** The `time` of the frame before. */
  previousTime: number;
  /** How far things are. */
  value: number;
  /** The `value` of the frame before. */
  previousValue: number;
  /** How far things will go. */
  max: number;
}

/** How a {@linkcode ProgressBar} looks and where it is shown. */
export interface ProgressBarOptions {
  /** Where to; standard error unless given. */
  writable?: WritableStream<Uint8Array>;
  /** How far things are at the start; 0 unless given. */
  value?: number;
  /** How far things will go. */
  max: number;
  /** The length of the bar, in characters; 50 unless given. */
  barLength?: number;
  /** What the done part is made of; `#` unless given. */
  fillChar?: string;
  /** What the other part is made of; `-` unless given. */
  emptyChar?: string;
  /** Whether the line goes away at the end; not unless given. */
  clear?: boolean;
  /** Makes the line. */
  formatter?: (formatter: ProgressBarFormatter) => string;
  /** Whether `writable` stays open at the end; it does unless given. */
  keepOpen?: boolean;
  /** How long a frame stands, in milliseconds; 1000 unless given. */
  interval?: number;
}

const TO_LINE_START_AND_CLEAR = "\r\x1b[K";
const UNITS = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"];

/** A line that shows how far things are, drawn again and again until `stop()`. */
export class ProgressBar {
  /** How far things are. */
  value: number;
  /** How far things will go. */
  max: number;

  readonly #options: Required<Omit<ProgressBarOptions, "value" | "max">>;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #start = Date.now();
  readonly #timer: ReturnType<typeof setInterval>;
  #lastWrite: Promise<void> = Promise.resolve();
  #previousTime = 0;
  #previousValue: number;

  /** Draws the first frame. */
  constructor(options: ProgressBarOptions) {
    const { value = 0, max, ...look } = options;
    this.value = this.#previousValue = value;
    this.max = max;
    this.#options = {
      writable: look.writable ?? Deno.stderr.writable,
      barLength: look.barLength ?? 50,
      fillChar: look.fillChar ?? "#",
      emptyChar: look.emptyChar ?? "-",
      clear: look.clear ?? false,
      formatter: look.formatter ?? ((frame) => `[${frame.styledTime}] [${frame.progressBar}] [${frame.styledData}]`),
      keepOpen: look.keepOpen ?? true,
      interval: look.interval ?? 1000,
    };
    this.#writer = this.#options.writable.getWriter();
    this.#timer = setInterval(() => this.#draw(), this.#options.interval);
    this.#draw();
  }

  /** Draws the last frame, or clears the line, and lets go of the stream. */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    if (this.#options.clear) {
      this.#write(TO_LINE_START_AND_CLEAR);
    } else {
      this.#draw();
      this.#write("\n");
    }
    try {
      await this.#lastWrite;
      if (this.#options.keepOpen) this.#writer.releaseLock();
      else await this.#writer.close();
    } catch {
      // A stream that has failed shows nothing more; that is no failure of what is being shown.
    }
  }

  #draw(): void {
    const { formatter, barLength, fillChar, emptyChar } = this.#options;
    const { value, max } = this;
    const time = Date.now() - this.#start;
    const full = Math.floor(Math.min(Math.max(value / max, 0), 1) * barLength);
    this.#write(
      TO_LINE_START_AND_CLEAR + formatter({
        styledTime: [time / 60_000, time / 1000 % 60].map((n) => String(Math.floor(n)).padStart(2, "0")).join(":"),
        styledData: fraction(value, max),
        progressBar: fillChar.repeat(full) + emptyChar.repeat(barLength - full),
        time,
        previousTime: this.#previousTime,
        value,
        previousValue: this.#previousValue,
        max,
      }),
    );
    this.#previousTime = time;
    this.#previousValue = value;
  }

  #write(text: string): void {
    this.#lastWrite = this.#writer.write(new TextEncoder().encode(text));
    this.#lastWrite.catch(() => clearInterval(this.#timer));
  }
}

function fraction(value: number, max: number): string {
  const power = Math.min(Math.floor(Math.log2(Math.max(max, 1024)) / 10), UNITS.length);
  return `${(value / 1024 ** power).toFixed(2)}/${(max / 1024 ** power).toFixed(2)} ${UNITS[power - 1]}`;
}
