/**
 * `map`: tells where on the host the parts of a disk stand.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import type { ImageType } from "../image/detect.ts";
import { imageInfo } from "../operations/info.ts";
import { type MapEntry, mapImage } from "../operations/map.ts";
import { type OptionDefinition, parseArguments } from "./arguments.ts";
import { IMAGE_OPTIONS, refuseImageDescriptions } from "./common_options.ts";
import { openingBacking } from "./backing_chain.ts";
import type { Context } from "./console.ts";
import { CliError, explainIoError, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { opening, resolveImage } from "./image_files.ts";
import { OUTPUT_OPTION, outputFormatOf } from "./output_format.ts";
import { parseSizeArgument } from "./sizes.ts";

const OPTIONS: readonly OptionDefinition[] = [
  ...IMAGE_OPTIONS,
  OUTPUT_OPTION,
  { name: "start-offset", short: "s", takesValue: true },
  { name: "max-length", short: "l", takesValue: true },
];

const COLUMN_WIDTH = 16;
/** Lines are printed in batches: a call to the host for each would cost more than the map itself. */
const BATCH_LENGTH = 1000;

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `map`.
 * @returns The exit status.
 * @throws {CliError} Where it fails.
 */
export function map(context: Context, args: readonly string[]): number {
  const parsed = parseArguments("map", args, OPTIONS);
  if (parsed.has("help")) {
    context.console.out(commandHelp("map", context.programName));
    return 0;
  }
  const output = outputFormatOf(parsed);
  const start = offsetArgument("start offset", parsed.last("start-offset")) ?? 0;
  const length = offsetArgument("max length", parsed.last("max-length"));
  const [name, ...others] = parsed.operands;
  if (name === undefined || others.length > 0) throw new UsageError("Expecting one image file name");
  refuseImageDescriptions(parsed);
  const { path, format } = resolveImage(name, parsed.last("format"));
  const lock = !parsed.has("force-share");
  const chain = [hostFileOf(path, format, lock)];
  const openBacking = openingBacking(path, lock, [], (opened) => chain.push(opened));
  const entries = mapImage(path, {
    format,
    dataFile: "allow",
    lock,
    backing: openBacking,
    offset: start,
    ...(length === undefined ? {} : { length }),
  });
  try {
    const readable = startReading(name, path, entries);
    if (output === "human") printTable(context, chain, readable);
    else printJson(context, readable, start);
  } finally {
    // Closes the image, also where not all entries were taken.
    entries.return();
  }
  return 0;
}

/** The name of the file that the guest's clusters stand in: the image's own, or that of its data file. */
function hostFileOf(path: string, format: ImageType, lock: boolean): string {
  return imageInfo(path, { format, lock }).qcow2?.dataFile ?? path;
}

/** Opens the image, which happens with the first step. What is damaged is told only when that is reached. */
function startReading(name: string, path: string, entries: Iterator<MapEntry, void>): Iterable<MapEntry> {
  const step = () => entries.next();
  let first: ReturnType<typeof step> | undefined;
  let damage: unknown;
  opening(name, path, false, () => {
    try {
      first = step();
    } catch (error) {
      if (!(error instanceof Qcow2Error) || error.code !== "corrupt") throw error;
      damage = error;
    }
  });
  return readOn(step, first, damage);
}

function* readOn(
  step: () => IteratorResult<MapEntry, void>,
  first: IteratorResult<MapEntry, void> | undefined,
  damage: unknown,
): Generator<MapEntry> {
  try {
    if (first === undefined) throw damage;
    for (let next = first; next.done !== true; next = step()) yield next.value;
  } catch (error) {
    throw new CliError(`Could not read file metadata: ${explainIoError(error)}`);
  }
}

function offsetArgument(what: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  // No disk reaches beyond what a number can hold, so that nothing is lost by stopping there.
  return Math.min(Number(parseSizeArgument(what, text)), Number.MAX_SAFE_INTEGER);
}

function printTable(context: Context, chain: readonly string[], entries: Iterable<MapEntry>): void {
  context.console.out(`${["Offset", "Length", "Mapped to"].map(column).join("")}File\n`);
  printBatches(context, tableLines(chain, entries));
}

/** One line for each stretch of data; what reads as zeroes is left out. */
function* tableLines(chain: readonly string[], entries: Iterable<MapEntry>): Generator<string> {
  for (const { start, length, data, zero, offset, depth } of entries) {
    if (!data) continue;
    if (offset === undefined) throw new CliError("File contains external, encrypted or compressed clusters.");
    if (!zero) {
      yield `${[start, length, offset].map((value) => column(hexadecimal(value))).join("")}${chain[depth] ?? ""}\n`;
    }
  }
}

function column(text: string): string {
  return text.padEnd(COLUMN_WIDTH);
}

function hexadecimal(value: number): string {
  return value === 0 ? "0" : `0x${value.toString(16)}`;
}

function printJson(context: Context, entries: Iterable<MapEntry>, start: number): void {
  context.console.out("[");
  printBatches(context, jsonLines(entries, start));
  context.console.out("]\n");
}

function* jsonLines(entries: Iterable<MapEntry>, start: number): Generator<string> {
  let separator = "";
  for (const entry of entries) {
    yield `${separator}${jsonLine(entry)}`;
    separator = ",\n";
  }
  // An empty range has one entry nevertheless.
  if (separator === "") yield jsonLine({ start, length: 0, depth: 0, present: false, zero: false, data: false });
}

function jsonLine({ start, length, depth, present, zero, data, offset }: MapEntry): string {
  const onHost = offset === undefined ? "" : `, "offset": ${offset}`;
  return `{ "start": ${start}, "length": ${length}, "depth": ${depth}, "present": ${present}, "zero": ${zero}, ` +
    `"data": ${data}${onHost}}`;
}

function printBatches(context: Context, lines: Iterable<string>): void {
  let batch: string[] = [];
  try {
    for (const line of lines) {
      batch.push(line);
      if (batch.length < BATCH_LENGTH) continue;
      context.console.out(batch.join(""));
      batch = [];
    }
  } finally {
    // What was found before a failure is shown too.
    if (batch.length > 0) context.console.out(batch.join(""));
  }
}
