/**
 * The options that each command knows. They stand apart from the commands so that they can be listed without loading the engine.
 *
 * @module
 */

import type { OptionDefinition } from "./arguments.ts";
import { CACHE_MODES, FORMATS } from "./common_options.ts";
import type { CommandName } from "./help.ts";

/** What `bitmap` can do with a bitmap: options that are carried out in their order. */
export const BITMAP_ACTIONS: readonly string[] = ["add", "remove", "clear", "enable", "disable", "merge"];

/** How QEMU can be told to make requests. */
export const AIO_MODES: readonly string[] = ["threads", "native", "io_uring"];

const HELP: OptionDefinition = { name: "help", short: "h" };
const FORMAT: OptionDefinition = { name: "format", short: "f", shortOnly: true, takesValue: true, values: FORMATS };
const OBJECT: OptionDefinition = { name: "object", takesValue: true };
const IMAGE_OPTS: OptionDefinition = { name: "image-opts" };
const OPTION_LIST: OptionDefinition = { name: "options", short: "o", shortOnly: true, takesValue: true };
const PROGRESS: OptionDefinition = { name: "progress", short: "p", shortOnly: true };
const QUIET: OptionDefinition = { name: "quiet", short: "q", shortOnly: true };
const RATE_LIMIT: OptionDefinition = { name: "rate-limit", short: "r", shortOnly: true, takesValue: true };
const SNAPSHOT: OptionDefinition = { name: "snapshot", short: "l", shortOnly: true, takesValue: true };
const FORCE_SHARE: OptionDefinition = { name: "force-share", short: "U" };
const OUTPUT: OptionDefinition = { name: "output", takesValue: true, values: ["human", "json"] };
/** Options of every command that opens an image for reading. */
const IMAGE_OPTIONS: readonly OptionDefinition[] = [HELP, FORMAT, FORCE_SHARE, OBJECT, IMAGE_OPTS];
const TARGET_FORMAT = format("target-format", "O");
const BACKING_FORMAT = format("backing-format", "F");
const CACHE = cacheMode("cache", "t");
const SOURCE_CACHE = cacheMode("source-cache", "T");

/** The options of each command. */
export const COMMAND_OPTIONS: Readonly<Record<CommandName, readonly OptionDefinition[]>> = {
  amend: [HELP, OBJECT, OPTION_LIST, FORMAT, PROGRESS, QUIET, CACHE, IMAGE_OPTS, { name: "force" }],
  bench: [
    HELP,
    FORMAT,
    FORCE_SHARE,
    IMAGE_OPTS,
    { name: "count", short: "c", shortOnly: true, takesValue: true },
    { name: "depth", short: "d", shortOnly: true, takesValue: true },
    { name: "native", short: "n", shortOnly: true },
    { name: "aio", short: "i", shortOnly: true, takesValue: true, values: AIO_MODES },
    { name: "offset", short: "o", shortOnly: true, takesValue: true },
    QUIET,
    { name: "buffer-size", short: "s", shortOnly: true, takesValue: true },
    { name: "step", short: "S", shortOnly: true, takesValue: true },
    CACHE,
    { name: "write", short: "w", shortOnly: true },
    { name: "pattern", takesValue: true },
    { name: "flush-interval", takesValue: true },
    { name: "no-drain" },
  ],
  bitmap: [
    HELP,
    { name: "source-file", short: "b", takesValue: true, values: "file" },
    { name: "source-format", short: "F", takesValue: true, values: FORMATS },
    FORMAT,
    { name: "granularity", short: "g", takesValue: true },
    OBJECT,
    IMAGE_OPTS,
    ...BITMAP_ACTIONS.map((name) => ({ name, takesValue: name === "merge" })),
  ],
  check: [
    ...IMAGE_OPTIONS,
    OUTPUT,
    { name: "repair", short: "r", takesValue: true, values: ["leaks", "all"] },
    SOURCE_CACHE,
    QUIET,
  ],
  commit: [
    HELP,
    FORMAT,
    OBJECT,
    IMAGE_OPTS,
    file("base", "b"),
    { name: "drop", short: "d", shortOnly: true },
    PROGRESS,
    QUIET,
    RATE_LIMIT,
    CACHE,
  ],
  compare: [
    ...IMAGE_OPTIONS,
    format("second-format", "F"),
    SOURCE_CACHE,
    PROGRESS,
    QUIET,
    { name: "strict", short: "s", shortOnly: true },
  ],
  completions: [HELP],
  convert: [
    ...IMAGE_OPTIONS,
    TARGET_FORMAT,
    file("backing-file", "B"),
    BACKING_FORMAT,
    { name: "copy-range", short: "C", shortOnly: true },
    { name: "compress", short: "c", shortOnly: true },
    OPTION_LIST,
    SNAPSHOT,
    { name: "sparse-size", short: "S", shortOnly: true, takesValue: true },
    PROGRESS,
    cacheMode("target-cache", "t"),
    SOURCE_CACHE,
    QUIET,
    { name: "skip-creation", short: "n", shortOnly: true },
    { name: "coroutines", short: "m", shortOnly: true, takesValue: true },
    { name: "out-of-order", short: "W", shortOnly: true },
    RATE_LIMIT,
    { name: "target-image-opts" },
    { name: "target-is-zero" },
    { name: "salvage" },
    { name: "bitmaps" },
    { name: "skip-broken-bitmaps" },
  ],
  create: [
    HELP,
    OBJECT,
    FORMAT,
    file("backing-file", "b"),
    BACKING_FORMAT,
    OPTION_LIST,
    QUIET,
    { name: "unsafe", short: "u", shortOnly: true },
  ],
  dd: [...IMAGE_OPTIONS, TARGET_FORMAT],
  help: [HELP],
  info: [...IMAGE_OPTIONS, OUTPUT, { name: "backing-chain" }],
  inspect: [
    ...IMAGE_OPTIONS,
    OUTPUT,
    { name: "svg", takesValue: true, values: "file" },
    { name: "html", takesValue: true, values: "file" },
    { name: "no-backing" },
    { name: "untrusted" },
    { name: "max-size", takesValue: true },
    { name: "max-tables", takesValue: true },
  ],
  map: [
    ...IMAGE_OPTIONS,
    OUTPUT,
    { name: "start-offset", short: "s", takesValue: true },
    { name: "max-length", short: "l", takesValue: true },
  ],
  measure: [...IMAGE_OPTIONS, OUTPUT, TARGET_FORMAT, OPTION_LIST, SNAPSHOT, { name: "size", takesValue: true }],
  rebase: [
    ...IMAGE_OPTIONS,
    file("backing-file", "b"),
    BACKING_FORMAT,
    { name: "unsafe", short: "u", shortOnly: true },
    PROGRESS,
    CACHE,
    SOURCE_CACHE,
    QUIET,
  ],
  resize: [
    HELP,
    FORMAT,
    OBJECT,
    IMAGE_OPTS,
    { name: "preallocation", takesValue: true, values: ["off", "metadata", "falloc", "full"] },
    { name: "quiet", short: "q" },
    { name: "shrink" },
  ],
  snapshot: [
    HELP,
    FORCE_SHARE,
    OBJECT,
    IMAGE_OPTS,
    { name: "list", short: "l", shortOnly: true },
    { name: "apply", short: "a", shortOnly: true, takesValue: true },
    { name: "create", short: "c", shortOnly: true, takesValue: true },
    { name: "delete", short: "d", shortOnly: true, takesValue: true },
    QUIET,
  ],
};

function format(name: string, short: string): OptionDefinition {
  return { name, short, shortOnly: true, takesValue: true, values: FORMATS };
}

function file(name: string, short: string): OptionDefinition {
  return { name, short, shortOnly: true, takesValue: true, values: "file" };
}

function cacheMode(name: string, short: string): OptionDefinition {
  return { name, short, shortOnly: true, takesValue: true, values: CACHE_MODES };
}
