/**
 * Sizes as people write them and as QEMU prints them.
 *
 * @module
 */

import { CliError } from "./errors.ts";

const SUFFIXES = "BKMGTPE";
const MAX_UINT64 = 2n ** 64n - 1n;
const HALF = 2n ** 63n;
const MAX_INT64 = 2n ** 63n - 1n;

/** What {@linkcode parseSize} found: a number of bytes, nonsense, or a number beyond 64 bits. */
export type ParsedSize = bigint | "invalid" | "out-of-range";

/**
 * Reads a size such as `4096`, `64k`, `1.5G` or `0x10000`. Suffixes count in powers of 1024, in either case.
 *
 * @param text What was written.
 * @returns The size in bytes.
 */
export function parseSize(text: string): ParsedSize {
  const match = /^\s*\+?(?:0[xX]([0-9a-fA-F]+)|(\d+)(?:\.(\d*))?)([bkmgtpeBKMGTPE]?)$/.exec(text);
  if (match === null) return "invalid";
  const [, hexadecimal, whole = "0", fraction = "", suffix = ""] = match;
  const exponent = 10n * BigInt(suffix === "" ? 0 : SUFFIXES.indexOf(suffix.toUpperCase()));
  // A "b" or "e" behind hexadecimal digits is one of them.
  let bytes = BigInt(hexadecimal === undefined ? whole : `0x${hexadecimal}`) << exponent;
  if (/[1-9]/.test(fraction)) {
    if (exponent === 0n) return "invalid";
    // QEMU counts the fraction in parts of 2^64, cut off after that; halves of a byte are rounded up.
    const parts = BigInt(Number(`0.${fraction}`) * 2 ** 64);
    bytes += ((parts << exponent) + HALF) >> 64n;
  }
  return bytes > MAX_UINT64 ? "out-of-range" : bytes;
}

/**
 * Reads a size that is the value of a parameter.
 *
 * @param name Name of the parameter, for the message.
 * @param text What was written.
 * @returns The size in bytes.
 * @throws {CliError} Where it is none, or beyond 64 bits.
 */
export function parseSizeParameter(name: string, text: string): bigint {
  const size = parseSize(text);
  if (size === "out-of-range") throw new CliError(`Value '${text}' is out of range for parameter '${name}'`);
  if (size !== "invalid") return size;
  throw new CliError(
    `Parameter '${name}' expects a non-negative number below 2^64\n` +
      "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.",
  );
}

/**
 * Reads a size that was given as an argument.
 *
 * @param what What it is the size of, for the message.
 * @param text What was written.
 * @param max The largest value in bytes.
 * @param min The smallest one.
 * @returns The size in bytes.
 * @throws {CliError} Where it is none, too large or too small.
 */
export function parseSizeArgument(what: string, text: string, max = MAX_INT64, min = 0n): bigint {
  const size = parseSize(text);
  if (size === "invalid") {
    throw new CliError(`Invalid ${what} specified. You may use k, M, G, T, P or E suffixes for`, 1, {
      second: "kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.",
    });
  }
  if (size === "out-of-range" || size > max || size < min) {
    throw new CliError(`Invalid ${what} specified. Must be between ${min} and ${max}.`);
  }
  return size;
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/**
 * Writes a size for people, with three significant digits.
 *
 * @param bytes The size in bytes.
 * @returns Such as `1.5 GiB`.
 */
export function formatSize(bytes: number): string {
  let power = 0;
  // From 1000 on the next unit is used, so that there are never four digits before the point.
  while (power < UNITS.length - 1 && bytes / 1024 ** power >= 1000) power++;
  return `${threeDigits(bytes / 1024 ** power)} ${UNITS[power]}`;
}

function threeDigits(value: number): string {
  const fractionDigits = value >= 100 ? 0 : value >= 10 ? 1 : value >= 1 ? 2 : 3;
  const text = toFixedHalfEven(value, fractionDigits);
  if (text === "1000") return "1e+03";
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

/**
 * Writes a number with a fixed count of digits behind the point; halves go to the even digit, as in C.
 *
 * @param value The number, from 0 up to 10^21.
 * @param digits How many digits behind the point.
 * @returns The number as text.
 */
export function toFixedHalfEven(value: number, digits: number): string {
  // A hundred digits are enough to write every number that occurs here exactly.
  const exact = value.toFixed(100);
  const end = exact.indexOf(".") + 1 + digits;
  const kept = exact.slice(0, digits === 0 ? end - 1 : end);
  const isHalf = /^50*$/.test(exact.slice(end));
  return isHalf && Number(kept.at(-1)) % 2 === 0 ? kept : value.toFixed(digits);
}
