/**
 * `check`: looks for damage in an image and mends it.
 *
 * @module
 */

import { SnapshotTableError } from "../metadata/snapshots.ts";
import {
  check as checkFile,
  type CheckFinding,
  type CheckResult,
  repair as repairFile,
  type RepairKind,
  type RepairOptions,
} from "../operations/check.ts";
import { parseArguments } from "./arguments.ts";
import { checkCacheMode } from "./common_options.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import { type Context, report } from "./console.ts";
import { CliError, failureOf, ioError, snapshotTableHint, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { findImage, imageRequest, openingImage } from "./image_files.ts";
import type { ImageNode } from "./image_node.ts";
import { Interruption } from "./interruption.ts";
import { formatJson, type JsonValue } from "./json.ts";
import { outputFormatOf } from "./output_format.ts";
import { PercentProgress } from "./progress.ts";
import { readSecrets } from "./secrets.ts";
import { toFixedHalfEven } from "./sizes.ts";

/** Exit status where a format has nothing to check. */
const NOTHING_TO_CHECK = 63;
const CORRUPTIONS_FOUND = 2;
const LEAKS_FOUND = 3;

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `check`.
 * @returns The exit status: 0 where all is well, 2 where there are corruptions, 3 where there are leaks only, 130 or 143 where a
 * signal has ended it.
 * @throws {CliError} Where it fails.
 */
export async function check(context: Context, args: readonly string[]): Promise<number> {
  const parsed = parseArguments("check", args, COMMAND_OPTIONS.check);
  if (parsed.has("help")) {
    context.console.out(commandHelp("check", context.programName));
    return 0;
  }
  const repair = repairKindOf(parsed.last("repair"));
  readSecrets(parsed.all("object"));
  const [name, ...others] = parsed.operands;
  if (name === undefined || others.length > 0) throw new UsageError("Expecting one image file name");
  const output = outputFormatOf(parsed);
  checkCacheMode(parsed.last("source-cache"), "source cache");
  const print = (text: string) => {
    if (!parsed.has("quiet")) context.console.out(text);
  };
  const request = { ...imageRequest(parsed, name), write: repair !== undefined };
  using node = findImage(context, request);
  using _others = openingImage(request, () => node.openOthers());
  if (node.type === "raw") throw new CliError("This image format does not support checks", NOTHING_TO_CHECK);
  const progress = new PercentProgress(context.console, { wanted: false, quiet: parsed.has("quiet") }, 1);
  using interruption = new Interruption();
  let result;
  try {
    result = await checkNode(context, node, repair, {
      signal: interruption.signal,
      onProgress: ({ done, total }) => progress.set(total === 0 ? 100 : done * 100 / total),
      onRepaired: (mended) => {
        if (output === "human") print(formatMended(mended));
      },
    });
  } catch (error) {
    if (interruption.exitCode === undefined) throw error;
    return interruption.exitCode;
  } finally {
    await progress.stop();
  }
  print(output === "human" ? formatResult(result) : `${formatJson(resultToJson(result, name))}\n`);
  if (result.checkErrors > 0) throw new CliError("Check failed");
  if (result.corruptions > 0) return CORRUPTIONS_FOUND;
  return result.leaks > 0 ? LEAKS_FOUND : 0;
}

function repairKindOf(text: string | undefined): RepairKind | undefined {
  if (text === undefined || text === "leaks" || text === "all") return text;
  throw new UsageError(`Unknown option value for -r (expecting 'leaks' or 'all'): ${text}`);
}

async function checkNode(
  context: Context,
  { file }: ImageNode,
  repair: RepairKind | undefined,
  onlooker: Pick<RepairOptions, "onProgress" | "onRepaired" | "signal">,
): Promise<CheckResult> {
  let isNoticed = false;
  const onFinding = ({ kind, message, hint, cause }: CheckFinding) => {
    if (cause === undefined) {
      context.console.err(`${message}\n`);
    } else {
      const { text, notice } = failureOf(cause, repair !== undefined);
      if (kind === "note" && cause.code !== "invalid-argument") report(context, `Could not resize file: ${text}`);
      // QEMU says once what is broken, however much cannot be read for it.
      context.console.err(`${isNoticed ? "" : notice}${message}: ${text}\n`);
      isNoticed = true;
    }
    if (hint !== undefined) context.console.err(`${hint}\n`);
  };
  try {
    // The file is locked already.
    const options = { ...onlooker, onFinding, lock: false };
    return await (repair === undefined ? checkFile(file, options) : repairFile(file, { ...options, kind: repair }));
  } catch (error) {
    if (error instanceof SnapshotTableError) explainSnapshotTable(context, error);
    throw ioError("Check failed: ", error, repair !== undefined);
  }
}

/** Says what is wrong with a snapshot table, and what can be done about it. */
function explainSnapshotTable(context: Context, error: SnapshotTableError): void {
  const { problem, message } = error;
  const isPlace = problem === "count" || problem === "offset";
  const reason = isPlace ? message.replace(/^S/, "s") : `failed to read the snapshot table: ${message}`;
  report(context, `ERROR ${reason}`);
  context.console.err(snapshotTableHint(error));
}

function formatMended({ corruptionsFixed, leaksFixed }: CheckResult): string {
  return "The following inconsistencies were found and repaired:\n\n" +
    `    ${leaksFixed} leaked clusters\n    ${corruptionsFixed} corruptions\n\n` +
    "Double checking the fixed image now...\n";
}

function formatResult(result: CheckResult): string {
  const { corruptions, leaks, checkErrors, totalClusters, allocatedClusters, imageEndOffset } = result;
  let text = "";
  if (corruptions + leaks + checkErrors === 0) text += "No errors were found on the image.\n";
  if (corruptions > 0) {
    text += `\n${corruptions} errors were found on the image.\n` +
      "Data may be corrupted, or further writes to the image may corrupt it.\n";
  }
  if (leaks > 0) {
    text += `\n${leaks} leaked clusters were found on the image.\n` +
      "This means waste of disk space, but no harm to data.\n";
  }
  if (checkErrors > 0) text += `\n${checkErrors} internal errors have occurred during the check.\n`;
  if (totalClusters !== 0 && allocatedClusters !== 0) {
    text += `${allocatedClusters}/${totalClusters} = ${percent(allocatedClusters, totalClusters)} allocated, ` +
      `${percent(result.fragmentedClusters, allocatedClusters)} fragmented, ` +
      `${percent(result.compressedClusters, allocatedClusters)} compressed clusters\n`;
  }
  if (imageEndOffset > 0) text += `Image end offset: ${imageEndOffset}\n`;
  return text;
}

function percent(part: number, whole: number): string {
  return `${toFixedHalfEven(part * 100 / whole, 2)}%`;
}

/** Counts that are zero are left out, except for those of which `qemu-img` leaves none out. */
function resultToJson(result: CheckResult, name: string): JsonValue {
  const counts: Readonly<Record<string, number>> = {
    "image-end-offset": result.imageEndOffset,
    "compressed-clusters": result.compressedClusters,
    "total-clusters": result.totalClusters,
    "corruptions": result.corruptions,
    "corruptions-fixed": result.corruptionsFixed,
    "check-errors": result.checkErrors,
    "leaks": result.leaks,
    "leaks-fixed": result.leaksFixed,
    "allocated-clusters": result.allocatedClusters,
    "fragmented-clusters": result.fragmentedClusters,
  };
  const present = Object.entries(counts).filter(([key, count]) => count !== 0 || key === "check-errors");
  return { ...Object.fromEntries(present), "filename": name, "format": "qcow2" };
}
