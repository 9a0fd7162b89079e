/**
 * The command line of `convert`.
 *
 * @module
 */

import { type Arguments, parseArguments } from "./arguments.ts";
import { checkCacheMode } from "./common_options.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import { CliError } from "./errors.ts";
import { asksForHelp, joinOptionLists } from "./image_options.ts";
import { readSecrets, type Secrets } from "./secrets.ts";
import { parseSizeArgument } from "./sizes.ts";
import { parseSnapshotChoice, type SnapshotChoice } from "./snapshot_source.ts";

const MAX_SPARSE_SIZE = 16n * 1024n * 1024n;
const SECTOR_SIZE = 512n;
const MAX_COROUTINES = 16;

/** What `convert` is to do. */
export interface ConvertRequest {
  /** That something is to be converted. */
  readonly kind: "convert";
  /** Names of the images to read, or their descriptions. */
  readonly sources: readonly string[];
  /** Name of the image to write, or its description. */
  readonly target: string;
  /** Format of the sources, where it was given. */
  readonly sourceFormat: string | undefined;
  /** Whether the sources are described. */
  readonly imageOpts: boolean;
  /** Format of the target; only where it is described it need not be given. */
  readonly targetFormat: string | undefined;
  /** Whether the target is described. */
  readonly targetImageOpts: boolean;
  /** Cache mode of the target, where it was given. */
  readonly targetCache: string | undefined;
  /** What stood behind all `-o`. */
  readonly options: string | undefined;
  /** The secrets that were defined. */
  readonly secrets: Secrets;
  /** The snapshot to read, where one was given. */
  readonly snapshot: SnapshotChoice | undefined;
  /** How many zero bytes in a row become a hole, where it was given. */
  readonly sparseSize: number | undefined;
  /** How many bytes may be written in a second, where that is limited. */
  readonly rateLimit: number | undefined;
  /** Whether progress is to be shown. */
  readonly progress: boolean;
  /** Whether nothing but errors may be shown. */
  readonly quiet: boolean;
  /** Whether the target exists and is written in place. */
  readonly skipCreation: boolean;
  /** Whether a target that exists reads as zeroes. */
  readonly targetIsZero: boolean;
  /** Name of the target's backing file, where it was given. */
  readonly backingFile: string | undefined;
  /** Format of the target's backing file, where it was given. */
  readonly backingFormat: string | undefined;
  /** Whether clusters are to be compressed. */
  readonly compress: boolean;
  /** Whether the host copies what it can. */
  readonly withinHost: boolean;
  /** Whether what cannot be read is taken for zeroes. */
  readonly salvage: boolean;
  /** Whether persistent bitmaps are copied. */
  readonly bitmaps: boolean;
  /** Whether inconsistent bitmaps are left out rather than refused. */
  readonly skipBrokenBitmaps: boolean;
  /** Whether sources are opened without a lock. */
  readonly forceShare: boolean;
}

/** What stood on the command line of `convert`: something to convert, or a wish for help. */
export type ParsedConvert =
  | ConvertRequest
  | { readonly kind: "help" }
  | { readonly kind: "options-help"; readonly format: string; readonly forFile: boolean };

/**
 * Reads the command line.
 *
 * @param args What follows `convert`.
 * @returns What to do.
 * @throws {CliError} Where it makes no sense, or wants what is missing here.
 */
export function parseConvertArguments(args: readonly string[]): ParsedConvert {
  const parsed = parseArguments("convert", args, COMMAND_OPTIONS.convert);
  if (parsed.has("help")) return { kind: "help" };
  const secrets = readSecrets(parsed.all("object"));
  const options = joinOptionLists(parsed.all("options"));
  const snapshot = parsed.all("snapshot").map(parseSnapshotChoice).at(-1);
  const sparseSize = sparseSizeOf(parsed.last("sparse-size"));
  checkCoroutines(parsed.last("coroutines"));
  const rateLimit = parsed.all("rate-limit").map((text) => parseSizeArgument("rate limit", text)).at(-1);
  const targetImageOpts = parsed.has("target-image-opts");
  const targetFormat = parsed.last("target-format") ?? (targetImageOpts ? undefined : "raw");
  checkCombinations(parsed, options);
  const sources = parsed.operands.slice(0, -1);
  const target = parsed.operands.at(-1);
  if (options !== undefined && asksForHelp(options)) {
    return { kind: "options-help", format: targetFormat ?? "raw", forFile: sources.length > 0 };
  }
  if (target === undefined || sources.length === 0) throw new CliError("Must specify image file name");
  checkCacheMode(parsed.last("source-cache"), "source cache");
  return {
    kind: "convert",
    sources,
    target,
    sourceFormat: parsed.last("format"),
    imageOpts: parsed.has("image-opts"),
    targetFormat,
    targetImageOpts,
    targetCache: parsed.last("target-cache"),
    options,
    secrets,
    snapshot,
    sparseSize,
    rateLimit: rateLimit === undefined || rateLimit === 0n ? undefined : Number(rateLimit),
    progress: parsed.has("progress"),
    quiet: parsed.has("quiet"),
    skipCreation: parsed.has("skip-creation"),
    targetIsZero: parsed.has("target-is-zero"),
    backingFile: parsed.last("backing-file"),
    backingFormat: parsed.last("backing-format"),
    compress: parsed.has("compress"),
    withinHost: parsed.has("copy-range"),
    salvage: parsed.has("salvage"),
    bitmaps: parsed.has("bitmaps"),
    skipBrokenBitmaps: parsed.has("skip-broken-bitmaps"),
    forceShare: parsed.has("force-share"),
  };
}

function sparseSizeOf(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const size = parseSizeArgument("buffer size for sparse output", text);
  if (size % SECTOR_SIZE !== 0n || size > MAX_SPARSE_SIZE) {
    throw new CliError(
      "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to 16777216. " +
        "Select 0 to disable sparse detection (fully allocates output).",
    );
  }
  return Number(size);
}

/** How many requests QEMU has under way at once means nothing to a program that waits for each. */
function checkCoroutines(text: string | undefined): void {
  if (text === undefined) return;
  const count = /^\s*\+?\d+$/.test(text) ? Number(text) : 0;
  if (count < 1 || count > MAX_COROUTINES) {
    throw new CliError(
      `Invalid number of coroutines. Allowed number of coroutines is between 1 and ${MAX_COROUTINES}`,
    );
  }
}

/** Refuses what does not go together, in QEMU's order, so that of several mistakes the same one is told. */
function checkCombinations(parsed: Arguments, options: string | undefined): void {
  const has = (...names: string[]) => names.every((name) => parsed.has(name));
  const isNew = !parsed.has("skip-creation");
  if (has("skip-broken-bitmaps") && !has("bitmaps")) {
    throw new CliError("Use of --skip-broken-bitmaps requires --bitmaps");
  }
  if (has("compress", "copy-range")) throw new CliError("Cannot enable copy offloading when -c is used");
  if (has("sparse-size", "copy-range")) throw new CliError("Cannot enable copy offloading when -S is used");
  if (has("copy-range", "salvage")) throw new CliError("Cannot use copy offloading in salvaging mode");
  if (has("target-image-opts") && isNew) throw new CliError("--target-image-opts requires use of -n flag");
  if (options !== undefined && !isNew) throw new CliError("-o has no effect when skipping image creation");
  if (has("target-is-zero") && isNew) throw new CliError("--target-is-zero requires use of -n flag");
}
