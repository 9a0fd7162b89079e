/**
 * `map`: tells where on the host the parts of a disk stand.
 *
 * @module
 */

import { mapDisk, type MapEntry } from "../operations/map.ts";
import { parseArguments } from "./arguments.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import type { Context } from "./console.ts";
import { CliError, ioError, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { findImage, imageRequest, openingImage } from "./image_files.ts";
import type { ImageNode } from "./image_node.ts";
import { outputFormatOf } from "./output_format.ts";
import { readSecrets } from "./secrets.ts";
import { parseSizeArgument } from "./sizes.ts";

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
  const parsed = parseArguments("map", args, COMMAND_OPTIONS.map);
  if (parsed.has("help")) {
    context.console.out(commandHelp("map", context.programName));
    return 0;
  }
  readSecrets(parsed.all("object"));
  const start = offsetArgument("start offset", parsed.last("start-offset")) ?? 0;
  const length = offsetArgument("max length", parsed.last("max-length"));
  const [name, ...others] = parsed.operands;
  if (name === undefined || others.length > 0) throw new UsageError("Expecting one image file name");
  const output = outputFormatOf(parsed);
  const request = imageRequest(parsed, name);
  using node = findImage(context, request);
  const chain = [node];
  using disk = openingImage(request, () => node.openDisk((backing) => chain.push(backing)));
  const entries = readable(mapDisk(disk, { offset: start, ...(length === undefined ? {} : { length }) }), chain);
  if (output === "human") printTable(context, chain, entries);
  else printJson(context, entries, start);
  return 0;
}

/** Says of errors where they happened, and of offsets in a part of a file where that is in the file. */
function* readable(entries: Iterable<MapEntry>, chain: readonly ImageNode[]): Generator<MapEntry> {
  try {
    for (const entry of entries) {
      const { hostOffset = 0 } = chain[entry.depth] ?? {};
      yield entry.offset === undefined ? entry : { ...entry, offset: entry.offset + hostOffset };
    }
  } catch (error) {
    throw ioError("Could not read file metadata: ", error);
  }
}

function offsetArgument(what: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  // No disk reaches beyond what a number can hold, so that nothing is lost by stopping there.
  return Math.min(Number(parseSizeArgument(what, text)), Number.MAX_SAFE_INTEGER);
}

function printTable(context: Context, chain: readonly ImageNode[], entries: Iterable<MapEntry>): void {
  context.console.out(`${["Offset", "Length", "Mapped to"].map(column).join("")}File\n`);
  printBatches(context, tableLines(chain, entries));
}

/** One line for each stretch of data; what reads as zeroes is left out. */
function* tableLines(chain: readonly ImageNode[], entries: Iterable<MapEntry>): Generator<string> {
  for (const { start, length, data, zero, offset, depth } of entries) {
    if (!data) continue;
    if (offset === undefined) throw new CliError("File contains external, encrypted or compressed clusters.");
    if (!zero) {
      yield `${[start, length, offset].map((value) => column(hexadecimal(value))).join("")}${
        chain[depth]?.hostFilename ?? ""
      }\n`;
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
  try {
    for (const entry of entries) {
      yield `${separator}${jsonLine(entry)}`;
      separator = ",\n";
    }
  } catch (error) {
    // An entry comes only once the next one has begun, which would have been separated from it.
    yield separator;
    throw error;
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
