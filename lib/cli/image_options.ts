/**
 * The options that stand behind `-o`: what there is, and how the list is read.
 *
 * @module
 */

import type { ImageType } from "../image/detect.ts";
import { CliError } from "./errors.ts";
import { type ParsedSize, parseSize, parseSizeParameter } from "./sizes.ts";

/** An option with a value of some type. */
export interface TypedOption {
  /** Its name. */
  readonly name: string;
  /** The type, as it is shown to people. */
  readonly type: "str" | "size" | "num" | "bool (on/off)";
}

/** An option that an image can be created with. */
interface ImageOptionDefinition extends TypedOption {
  readonly help: string;
  /** What is printed where the option is not given; without it, nothing is. */
  readonly initial?: string;
}

const SIZE: ImageOptionDefinition = { name: "size", type: "size", help: "Virtual disk size" };

/** The options of qcow2, in the order in which they are printed. */
const QCOW2_OPTIONS: readonly ImageOptionDefinition[] = [
  {
    name: "encryption",
    type: "bool (on/off)",
    help: "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
  },
  { name: "encrypt.format", type: "str", help: "Encrypt the image, format choices: 'aes', 'luks'" },
  { name: "encrypt.key-secret", type: "str", help: "ID of secret providing qcow AES key or LUKS passphrase" },
  { name: "encrypt.cipher-alg", type: "str", help: "Name of encryption cipher algorithm" },
  { name: "encrypt.cipher-mode", type: "str", help: "Name of encryption cipher mode" },
  { name: "encrypt.ivgen-alg", type: "str", help: "Name of IV generator algorithm" },
  { name: "encrypt.ivgen-hash-alg", type: "str", help: "Name of IV generator hash algorithm" },
  { name: "encrypt.hash-alg", type: "str", help: "Name of encryption hash algorithm" },
  { name: "encrypt.iter-time", type: "num", help: "Time to spend in PBKDF in milliseconds" },
  { name: "cluster_size", type: "size", help: "qcow2 cluster size", initial: "65536" },
  { name: "extended_l2", type: "bool (on/off)", help: "Extended L2 tables", initial: "off" },
  {
    name: "preallocation",
    type: "str",
    help: "Preallocation mode (allowed values: off, metadata, falloc, full)",
  },
  {
    name: "compression_type",
    type: "str",
    help: "Compression method used for image cluster compression",
    initial: "zlib",
  },
  SIZE,
  { name: "compat", type: "str", help: "Compatibility level (v2 [0.10] or v3 [1.1])" },
  { name: "backing_file", type: "str", help: "File name of a base image" },
  { name: "backing_fmt", type: "str", help: "Image format of the base image" },
  { name: "data_file", type: "str", help: "File name of an external data file" },
  {
    name: "data_file_raw",
    type: "bool (on/off)",
    help: "The external data file must stay valid as a raw image",
  },
  { name: "lazy_refcounts", type: "bool (on/off)", help: "Postpone refcount updates", initial: "off" },
  { name: "refcount_bits", type: "num", help: "Width of a reference count entry in bits", initial: "16" },
];

const RAW_OPTIONS: readonly ImageOptionDefinition[] = [SIZE];

/** The options of the file beneath an image. They change where it stands, not what it is. */
const FILE_OPTIONS: readonly ImageOptionDefinition[] = [
  { name: "preallocation", type: "str", help: "Preallocation mode (allowed values: off, falloc, full)" },
  { name: "nocow", type: "bool (on/off)", help: "Turn off copy-on-write (valid only on btrfs)" },
  { name: "extent_size_hint", type: "size", help: "Extent size hint for the image file, 0 to disable" },
];

const OPTIONS_OF_FORMAT: Readonly<Record<ImageType, readonly ImageOptionDefinition[]>> = {
  raw: RAW_OPTIONS,
  qcow2: QCOW2_OPTIONS,
};

/** Words for a flag that is set. */
export const TRUE_WORDS: readonly string[] = ["on", "yes", "true", "y"];
const FALSE_WORDS: readonly string[] = ["off", "no", "false", "n"];

/** The values of the options with which an image is to be created. */
export class ImageOptions {
  readonly #definitions: readonly ImageOptionDefinition[];
  readonly #values = new Map<string, string>();

  /** @param format Format of the image. */
  constructor(format: ImageType) {
    this.#definitions = withFileOptions(OPTIONS_OF_FORMAT[format]);
  }

  /**
   * Sets an option.
   *
   * @param name Its name.
   * @param value Its value as it was written.
   * @throws {CliError} Where there is no such option, or the value does not fit.
   */
  set(name: string, value: string): void {
    const definition = this.#definitions.find((candidate) => candidate.name === name);
    // QEMU's lists of options have a name themselves; it means nothing here.
    if (definition === undefined && name === "id") return;
    if (definition === undefined) throw new CliError(`Invalid parameter '${name}'`);
    checkOptionValue(definition, value);
    this.#values.set(name, value);
  }

  /**
   * The value of an option as it was written.
   *
   * @param name Its name.
   * @returns The value, that without which it is created, or `undefined`.
   */
  text(name: string): string | undefined {
    return this.#values.get(name) ?? this.#definitions.find((definition) => definition.name === name)?.initial;
  }

  /**
   * The value of an option that is a number or size.
   *
   * @param name Its name.
   * @returns The value, or `undefined` where there is none.
   */
  number(name: string): bigint | undefined {
    const text = this.text(name) ?? "";
    const isCount = this.#definitions.some((definition) => definition.name === name && definition.type === "num");
    const parsed = isCount ? parseNumber(text) : parseSize(text);
    return typeof parsed === "bigint" ? parsed : undefined;
  }

  /**
   * The value of an option that is on or off.
   *
   * @param name Its name.
   * @returns Whether it is on.
   */
  isOn(name: string): boolean {
    return TRUE_WORDS.includes(this.text(name) ?? "");
  }

  /**
   * Writes all options the way `create` prints them.
   *
   * @returns Such as ` cluster_size=65536 size=1048576`, with a space in front of each.
   */
  toString(): string {
    return this.#definitions.map(({ name, type }) => {
      const text = this.text(name);
      if (text === undefined) return "";
      const isNumber = type === "size" || type === "num";
      // QEMU prints the upper half of what 64 bits can hold as negative numbers.
      const value = isNumber ? BigInt.asIntN(64, this.number(name) ?? 0n) : text.replaceAll(",", ",,");
      return ` ${name}=${value}`;
    }).join("");
  }
}

function withFileOptions(definitions: readonly ImageOptionDefinition[]): ImageOptionDefinition[] {
  const names = new Set(definitions.map(({ name }) => name));
  const additional = FILE_OPTIONS.filter(({ name }) => !names.has(name));
  // The order in which raw images print theirs.
  const order = names.has("preallocation") ? additional : [...additional].sort((a, b) => rank(a) - rank(b));
  return [...definitions, ...order];
}

function rank({ name }: ImageOptionDefinition): number {
  return ["nocow", "preallocation", "extent_size_hint"].indexOf(name);
}

/**
 * Checks the value of an option.
 *
 * @param option The option.
 * @param value The value as it was written.
 * @throws {CliError} Where it is none of the option's type.
 */
export function checkOptionValue({ name, type }: TypedOption, value: string): void {
  if (type === "bool (on/off)" && !TRUE_WORDS.includes(value) && !FALSE_WORDS.includes(value)) {
    throw new CliError(`Parameter '${name}' expects 'on' or 'off'`);
  }
  if (type === "size") {
    parseSizeParameter(name, value);
  }
  if (type === "num") {
    const number = parseNumber(value);
    if (number === "invalid") throw new CliError(`Parameter '${name}' expects a number`);
    if (number === "out-of-range") throw new CliError(`Value '${value}' is too large for parameter '${name}'`);
  }
}

/**
 * Reads a number as C does: hexadecimal behind 0x, octal behind 0, and a negative one counts down from 2^64.
 *
 * @param text What was written.
 * @returns The number.
 */
export function parseNumber(text: string): ParsedSize {
  const match = /^\s*([+-]?)(?:(0[xX][0-9a-fA-F]+)|0([0-7]*)|([1-9]\d*))$/.exec(text);
  if (match === null) return "invalid";
  const [, sign, hexadecimal, octal, decimal] = match;
  const magnitude = BigInt(hexadecimal ?? decimal ?? `0o0${octal}`);
  if (magnitude >= 2n ** 64n) return "out-of-range";
  return sign === "-" ? BigInt.asUintN(64, -magnitude) : magnitude;
}

/**
 * Joins the values of all `-o` of a command line.
 *
 * @param lists The values.
 * @returns One list, or `undefined` where there was no `-o`.
 * @throws {CliError} Where one is empty or ends amid a comma.
 */
export function joinOptionLists(lists: readonly string[]): string | undefined {
  for (const list of lists) {
    if (!/^[^,]/s.test(list) || /[^,](,,)*,$/s.test(list)) throw new CliError(`Invalid option list: ${list}`);
  }
  return lists.length === 0 ? undefined : lists.join(",");
}

/** How {@linkcode parseOptionList} reads. */
export interface OptionListRules {
  /** The name of the first value, where that may stand without one. */
  readonly firstName?: string;
  /** Called with what should be written differently. */
  readonly warn?: (message: string) => void;
}

/**
 * Reads a list such as `compat=1.1,lazy_refcounts=on`. A comma in a value is written twice.
 *
 * @param list The list.
 * @param rules What is special about it.
 * @returns Names and values; a name without a value is on, and off with `no` in front.
 */
export function parseOptionList(list: string, rules: OptionListRules = {}): [name: string, value: string][] {
  const { firstName, warn = () => {} } = rules;
  const parsed: [string, string][] = [];
  for (const { name, value, isFirst } of itemsOf(list, firstName !== undefined)) {
    if (isFirst && name === undefined) {
      parsed.push([firstName ?? "", value ?? ""]);
    } else if (name !== undefined && value !== undefined) {
      parsed.push([name, value]);
    } else {
      const flag = name ?? "";
      const setting: [string, string] = flag.startsWith("no") ? [flag.slice(2), "off"] : [flag, "on"];
      warn(`short-form boolean option '${flag}' deprecated\nPlease use ${setting.join("=")} instead`);
      parsed.push(setting);
    }
  }
  return parsed;
}

/** What stands between the commas of a list. */
interface OptionItem {
  readonly name: string | undefined;
  readonly value: string | undefined;
  readonly isFirst: boolean;
}

function* itemsOf(list: string, firstIsValue: boolean): Generator<OptionItem> {
  const named = /([^=,]*)(?:=((?:[^,]|,,)*))?(?:,|$)/gsy;
  const unnamed = /((?:[^,]|,,)*)(?:,|$)/sy;
  if (firstIsValue && list !== "" && !/^[^=,]*=/s.test(list)) {
    const value = unnamed.exec(list)?.[1]?.replaceAll(",,", ",");
    yield { name: undefined, value, isFirst: true };
    named.lastIndex = unnamed.lastIndex;
  }
  while (named.lastIndex < list.length) {
    const [, name = "", value] = named.exec(list) ?? [];
    yield { name, value: value?.replaceAll(",,", ","), isFirst: false };
  }
}

/**
 * Whether a list asks for help.
 *
 * @param list The list.
 * @returns Whether one of its items is `help` or `?`.
 */
export function asksForHelp(list: string): boolean {
  return [...itemsOf(list, false)].some(({ name, value }) => {
    return value === undefined && (name === "help" || name === "?");
  });
}

/**
 * Describes the options that an image can be created with.
 *
 * @param format Format of the image.
 * @param forFile Whether it is known that the image will be a file.
 * @returns Lines to print.
 */
export function describeImageOptions(format: ImageType, forFile: boolean): string {
  const definitions = forFile ? withFileOptions(OPTIONS_OF_FORMAT[format]) : OPTIONS_OF_FORMAT[format];
  const lines = [...definitions].sort((a, b) => (a.name < b.name ? -1 : 1)).map(({ name, type, help }) => {
    return `${`  ${name}=<${type}>`.padEnd(24)} - ${help}\n`;
  });
  if (forFile) return `Supported options:\n${lines.join("")}`;
  return `Supported ${format} options:\n${lines.join("")}\n` +
    "The protocol level may support further options.\n" +
    "Specify the target filename to include those options.\n";
}

const AMEND_HELP: readonly (readonly [option: string, help: string])[] = [
  ["backing_file=<str>", "File name of a base image"],
  ["backing_fmt=<str>", "Image format of the base image"],
  ["compat=<str>", "Compatibility level (v2 [0.10] or v3 [1.1])"],
  ["data_file=<str>", "File name of an external data file"],
  ["data_file_raw=<bool (on/off)>", "The external data file must stay valid as a raw image"],
  ["encrypt.iter-time=<num>", "Time to spend in PBKDF in milliseconds"],
  ["encrypt.keyslot=<num>", "Select a single keyslot to modify explicitly"],
  ["encrypt.new-secret=<str>", "New secret to set in the matching keyslots. Empty string to erase"],
  ["encrypt.old-secret=<str>", "Select all keyslots that match this password"],
  ["encrypt.state=<str>", "Select new state of affected keyslots (active/inactive)"],
  ["lazy_refcounts=<bool (on/off)>", "Postpone refcount updates"],
  ["refcount_bits=<num>", "Width of a reference count entry in bits"],
  ["size=<size>", "Virtual disk size"],
];

/**
 * Describes the options of a qcow2 image that can be changed later.
 *
 * @returns Lines to print.
 */
export function describeAmendOptions(): string {
  const lines = AMEND_HELP.map(([option, help]) => `${`  ${option}`.padEnd(24)} - ${help}\n`);
  return `Amend options for 'qcow2':\n${lines.join("")}`;
}
