/**
 * `compare`: tells whether two images hold the same.
 *
 * @module
 */

import { compare as compareDisks, type CompareResult } from "../operations/compare.ts";
import { DiskError } from "../operations/disk_error.ts";
import { parseArguments } from "./arguments.ts";
import { checkCacheMode } from "./common_options.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import type { Context } from "./console.ts";
import { CliError, failureOf, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { imageRequest, openImage } from "./image_files.ts";
import { Interruption } from "./interruption.ts";
import { PercentProgress } from "./progress.ts";
import { readSecrets } from "./secrets.ts";

const DIFFERENT = 1;
const CANNOT_OPEN = 2;
const CANNOT_LIST = 3;
const CANNOT_READ = 4;
const PROGRESS_STEP_PERCENT = 2;

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `compare`.
 * @returns The exit status: 0 where the images are alike, 1 where they differ; 130 or 143 where a signal has ended it.
 * @throws {CliError} Where one of them cannot be opened (2) or read (3 and 4).
 */
export async function compare(context: Context, args: readonly string[]): Promise<number> {
  const parsed = parseArguments("compare", args, COMMAND_OPTIONS.compare);
  const { console, programName } = context;
  if (parsed.has("help")) {
    console.out(commandHelp("compare", programName));
    return 0;
  }
  readSecrets(parsed.all("object"));
  const [firstName, secondName, ...others] = parsed.operands;
  if (firstName === undefined || secondName === undefined || others.length > 0) {
    throw new UsageError("Expecting two image file names");
  }
  const quiet = parsed.has("quiet");
  const progress = new PercentProgress(console, { wanted: parsed.has("progress"), quiet }, PROGRESS_STEP_PERCENT);
  try {
    preparing(() => checkCacheMode(parsed.last("source-cache"), "source cache"));
    const request = imageRequest(parsed, firstName);
    using first = preparing(() => openImage(context, request));
    using second = preparing(() => {
      return openImage(context, { ...request, name: secondName, format: parsed.last("second-format") });
    });
    using interruption = new Interruption();
    const strict = parsed.has("strict");
    const common = Math.min(first.size, second.size);
    let mayWarn = !strict && !quiet && first.size !== second.size;
    let compared = 0;
    const arriveAt = (offset: number) => {
      compared = offset;
      if (mayWarn && offset >= common) console.out("Warning: Image size mismatch!\n");
      mayWarn &&= offset < common;
    };
    progress.set(0);
    arriveAt(0);
    try {
      const result = await compareDisks(first, second, {
        strict,
        signal: interruption.signal,
        onProgress: ({ done, total }) => {
          progress.add(Math.fround(Math.fround(done - compared) / Math.fround(total)) * 100);
          arriveAt(done);
        },
      });
      if (!quiet) console.out(`${describe(result)}\n`);
      return result.identical ? 0 : DIFFERENT;
    } catch (error) {
      if (interruption.exitCode !== undefined) return interruption.exitCode;
      throw explain(error, firstName, secondName);
    }
  } finally {
    await progress.stop();
  }
}

/** Does what comes before comparing: where that fails, the exit status says so. */
function preparing<T>(act: () => T): T {
  try {
    return act();
  } catch (error) {
    throw error instanceof CliError ? new CliError(error.message, CANNOT_OPEN, error.details) : error;
  }
}

function describe({ difference, offset = 0 }: CompareResult): string {
  if (difference === undefined) return "Images are identical.";
  if (difference === "size") return "Strict mode: Image size mismatch!";
  if (difference === "allocation") return `Strict mode: Offset ${offset} block status mismatch!`;
  return `Content mismatch at offset ${offset}!`;
}

function explain(error: unknown, firstName: string, secondName: string): unknown {
  if (!(error instanceof DiskError)) return error;
  const name = error.disk === "first disk" ? firstName : secondName;
  if (error.action === "list") {
    const { notice } = failureOf(error.cause);
    return new CliError(`Sector allocation test failed for ${name}`, CANNOT_LIST, { notice });
  }
  const { text, notice } = failureOf(error.cause);
  return new CliError(`Error while reading offset ${error.offset} of ${name}: ${text}`, CANNOT_READ, { notice });
}
