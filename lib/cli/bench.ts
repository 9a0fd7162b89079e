/**
 * `bench`: measures how long requests to an image take.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { TimeSlice } from "../operations/time_slice.ts";
import { type Arguments, parseArguments } from "./arguments.ts";
import { AIO_MODES, COMMAND_OPTIONS } from "./command_options.ts";
import { checkCacheMode } from "./common_options.ts";
import type { Context } from "./console.ts";
import { CliError, ioError, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { imageRequest, openImage } from "./image_files.ts";
import { parseNumber } from "./image_options.ts";
import { Interruption } from "./interruption.ts";
import { parseSizeArgument, toFixedHalfEven } from "./sizes.ts";

const MAX_INT = 2 ** 31 - 1;
/** Cache modes that pass the host's cache by. */
const DIRECT_MODES: readonly string[] = ["none", "off", "directsync"];

/** What is measured. */
interface Requests {
  readonly write: boolean;
  readonly count: number;
  readonly depth: number;
  /** Where the first request begins, in bytes. */
  readonly offset: number;
  /** How long each one is, in bytes. */
  readonly length: number;
  /** How far the next one is from there, in bytes. */
  readonly step: number;
  /** What is written. */
  readonly pattern: number;
  /** After how many requests to flush; 0 for never. */
  readonly flushInterval: number;
}

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `bench`.
 * @returns The exit status; 130 or 143 where a signal has ended it.
 * @throws {CliError} Where it fails.
 */
export async function bench(context: Context, args: readonly string[]): Promise<number> {
  const parsed = parseArguments("bench", args, COMMAND_OPTIONS.bench);
  const { console } = context;
  if (parsed.has("help")) {
    console.out(commandHelp("bench", context.programName));
    return 0;
  }
  const requests = readRequests(parsed);
  checkModes(parsed);
  const [name, ...others] = parsed.operands;
  if (name === undefined || others.length > 0) throw new UsageError("Expecting one image file name");
  const { write, count, depth, offset, length, step, flushInterval } = requests;
  if (!write && flushInterval > 0) throw new CliError("--flush-interval is only available in write tests");
  if (flushInterval > 0 && flushInterval < depth) throw new CliError("Flush interval can't be smaller than depth");
  checkDirect(parsed, name);
  using disk = openImage(context, { ...imageRequest(parsed, name), write });
  console.out(
    `Sending ${count} ${write ? "write" : "read"} requests, ${length} bytes each, ${depth} in parallel ` +
      `(starting at offset ${offset}, step size ${step})\n`,
  );
  if (flushInterval > 0) console.out(`Sending flush every ${flushInterval} requests\n`);
  using interruption = new Interruption();
  try {
    const seconds = await run(disk, requests, interruption.signal);
    console.out(`Run completed in ${toFixedHalfEven(seconds, 3)} seconds.\n`);
  } catch (error) {
    if (interruption.exitCode === undefined) throw error;
    return interruption.exitCode;
  }
  return 0;
}

function readRequests(parsed: Arguments): Requests {
  const write = parsed.has("write");
  const count = numberOf(parsed.last("count"), 75000, MAX_INT, "Invalid request count specified");
  const depth = numberOf(parsed.last("depth"), 64, MAX_INT, "Invalid queue depth specified");
  const offset = parsed.last("offset");
  const length = sizeOf("buffer size", parsed.last("buffer-size")) ?? 4096;
  const step = sizeOf("step_size", parsed.last("step")) ?? 0;
  return {
    write,
    count,
    depth,
    offset: offset === undefined ? 0 : Number(parseSizeArgument("offset", offset)),
    length,
    step: step === 0 ? length : step,
    pattern: numberOf(parsed.last("pattern"), 0, 0xff, "Invalid pattern byte specified"),
    flushInterval: numberOf(parsed.last("flush-interval"), 0, MAX_INT, "Invalid flush interval specified"),
  };
}

function numberOf(text: string | undefined, initial: number, max: number, complaint: string): number {
  if (text === undefined) return initial;
  const number = parseNumber(text);
  if (typeof number !== "bigint" || number > BigInt(max)) throw new CliError(complaint);
  return Number(number);
}

function sizeOf(what: string, text: string | undefined): number | undefined {
  return text === undefined ? undefined : Number(parseSizeArgument(what, text, BigInt(MAX_INT)));
}

function checkModes(parsed: Arguments): void {
  const aio = parsed.last("aio");
  if (aio !== undefined && !AIO_MODES.includes(aio)) throw new CliError(`Invalid aio option: ${aio}`);
  try {
    checkCacheMode(parsed.last("cache"), "cache");
  } catch (error) {
    throw error instanceof CliError ? new CliError("Invalid cache mode") : error;
  }
}

/** The host's own asynchronous requests go past its cache only. Here, all of them are waited for. */
function checkDirect(parsed: Arguments, name: string): void {
  if (!parsed.has("native") && parsed.last("aio") !== "native") return;
  if (DIRECT_MODES.includes(parsed.last("cache") ?? "")) return;
  throw new CliError(
    `Could not open '${name}': aio=native was specified, but it requires cache.direct=on, which was not specified.`,
  );
}

/** Does the requests, one after the other, and tells how many seconds they took. */
async function run(disk: Disk, requests: Requests, signal: AbortSignal): Promise<number> {
  const { write, count, length, step, pattern, flushInterval } = requests;
  const { size } = disk;
  const buffer = new Uint8Array(length).fill(pattern);
  const slice = new TimeSlice(signal);
  const start = performance.now();
  let { offset } = requests;
  for (let index = 1; index <= count; index++) {
    failing("Failed request: ", write, () => write ? disk.writeAt(offset, buffer) : disk.readAt(offset, buffer));
    offset = size === 0 ? 0 : (offset + step) % size;
    if (flushInterval > 0 && index % flushInterval === 0) failing("Failed flush request: ", write, () => disk.flush());
    if (slice.isOver()) await slice.next();
  }
  return (performance.now() - start) / 1000;
}

function failing(prefix: string, write: boolean, act: () => void): void {
  try {
    act();
  } catch (error) {
    throw ioError(prefix, error, write);
  }
}
