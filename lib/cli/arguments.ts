/**
 * Options and operands of a command line, read as `getopt_long` reads them: short options in groups, values in the same
 * argument or the next, abbreviated long options, operands anywhere.
 *
 * @module
 */

import { parseArgs } from "@std/cli/parse-args";
import { UsageError } from "./errors.ts";

/** An option that a command knows. */
export interface OptionDefinition {
  /** The name under which it is asked for; also the long name, unless `short` stands alone. */
  readonly name: string;
  /** The letter, where it has one. */
  readonly short?: string;
  /** Whether the name is no long option, but only stands for the letter. */
  readonly shortOnly?: boolean;
  /** Whether it takes a value. */
  readonly takesValue?: boolean;
  /** The values that a shell offers: words, or the names of files. Others may be right as well. */
  readonly values?: readonly string[] | "file";
}

/** An option that was given. */
export interface GivenOption {
  /** Name of the option. */
  readonly name: string;
  /** Its value, where it takes one. */
  readonly value: string | undefined;
}

/** What stood on a command line. */
export class Arguments {
  /** What is no option, in order. */
  readonly operands: readonly string[];
  /** Every option as it was given, in order. */
  readonly sequence: readonly GivenOption[];
  readonly #options: Readonly<Record<string, unknown>>;

  /**
   * @param options The options by name: `true`, or a list of values.
   * @param operands What is no option.
   * @param sequence The options in order.
   */
  constructor(
    options: Readonly<Record<string, unknown>>,
    operands: readonly string[],
    sequence: readonly GivenOption[] = [],
  ) {
    this.#options = options;
    this.operands = operands;
    this.sequence = sequence;
  }

  /**
   * Whether an option was given.
   *
   * @param name Name of the option.
   * @returns Whether it was there at least once.
   */
  has(name: string): boolean {
    const option = this.#options[name];
    return Array.isArray(option) ? option.length > 0 : option === true;
  }

  /**
   * All values of an option.
   *
   * @param name Name of the option.
   * @returns The values in order.
   */
  all(name: string): string[] {
    const option = this.#options[name];
    return Array.isArray(option) ? option.map((value) => String(value).slice(VALUE_MARK.length)) : [];
  }

  /**
   * The value of an option; the last one counts.
   *
   * @param name Name of the option.
   * @returns The value, or `undefined` where the option was not given.
   */
  last(name: string): string | undefined {
    return this.all(name).at(-1);
  }
}

/** Stands in front of each value on its way through `parseArgs`, which takes an empty value for none. */
const VALUE_MARK = ":";

/**
 * Reads a command line.
 *
 * @param command Name of the command, for messages.
 * @param args What follows the command.
 * @param definitions The options that the command knows.
 * @returns Options and operands.
 * @throws {UsageError} Where an option is unknown, lacks its value or has one that it does not take.
 */
export function parseArguments(
  command: string,
  args: readonly string[],
  definitions: readonly OptionDefinition[],
): Arguments {
  const normalized = normalize(command, args, definitions);
  const valueNames = definitions.filter(({ takesValue }) => takesValue).map(({ name }) => name);
  const flagNames = definitions.filter(({ takesValue }) => !takesValue).map(({ name }) => name);
  const parsed: Record<string, unknown> = parseArgs([...normalized.options, "--", ...normalized.operands], {
    string: valueNames,
    collect: valueNames,
    boolean: flagNames,
    "--": true,
  });
  return new Arguments(parsed, normalized.operands, normalized.options.map(givenOption));
}

/** Takes an option in its one form, `--name` or `--name=:value`, apart. */
function givenOption(option: string): GivenOption {
  const equals = option.indexOf("=");
  if (equals < 0) return { name: option.slice(2), value: undefined };
  return { name: option.slice(2, equals), value: option.slice(equals + 1 + VALUE_MARK.length) };
}

/** Brings every option into the one form `--name` or `--name=value`. */
function normalize(
  command: string,
  args: readonly string[],
  definitions: readonly OptionDefinition[],
): { options: string[]; operands: string[] } {
  const options: string[] = [];
  const operands: string[] = [];
  for (let index = 0; index < args.length; index++) {
    const argument = args[index] ?? "";
    if (argument === "--") {
      operands.push(...args.slice(index + 1));
      break;
    }
    if (argument.startsWith("--")) {
      if (addLong(argument, args[index + 1], definitions, options)) index++;
    } else if (argument.length > 1 && argument.startsWith("-")) {
      if (addGroup(argument, args[index + 1], args[index - 1] ?? command, definitions, options)) index++;
    } else {
      operands.push(argument);
    }
  }
  return { options, operands };
}

/** Adds a long option; returns whether the next argument was its value. */
function addLong(
  argument: string,
  next: string | undefined,
  definitions: readonly OptionDefinition[],
  options: string[],
): boolean {
  const equals = argument.indexOf("=");
  const definition = findLong(equals < 0 ? argument.slice(2) : argument.slice(2, equals), definitions);
  if (definition === undefined) throw unrecognized(argument);
  if (!definition.takesValue) {
    if (equals >= 0) throw unrecognized(argument);
    options.push(`--${definition.name}`);
    return false;
  }
  const value = equals < 0 ? next : argument.slice(equals + 1);
  if (value === undefined) throw missingValue(argument);
  options.push(`--${definition.name}=${VALUE_MARK}${value}`);
  return equals < 0;
}

/** An abbreviation will do where it fits only one option. */
function findLong(name: string, definitions: readonly OptionDefinition[]): OptionDefinition | undefined {
  const long = definitions.filter(({ shortOnly }) => !shortOnly);
  const exact = long.find((definition) => definition.name === name);
  if (exact !== undefined) return exact;
  const fitting = long.filter((definition) => definition.name.startsWith(name));
  return fitting.length === 1 ? fitting[0] : undefined;
}

/** Adds a group of short options; returns whether the next argument was the value of the last one. */
function addGroup(
  argument: string,
  next: string | undefined,
  previous: string,
  definitions: readonly OptionDefinition[],
  options: string[],
): boolean {
  for (let position = 1; position < argument.length; position++) {
    const definition = definitions.find(({ short }) => short === argument[position]);
    const isLast = position === argument.length - 1;
    // As getopt counts, an argument is done with only once its last letter was read.
    if (definition === undefined) throw unrecognized(isLast ? argument : previous);
    if (!definition.takesValue) {
      options.push(`--${definition.name}`);
      continue;
    }
    const value = isLast ? next : argument.slice(position + 1);
    if (value === undefined) throw missingValue(argument);
    options.push(`--${definition.name}=${VALUE_MARK}${value}`);
    return isLast;
  }
  return false;
}

function unrecognized(argument: string): UsageError {
  return new UsageError(`unrecognized option '${argument}'`);
}

function missingValue(argument: string): UsageError {
  return new UsageError(`missing argument for option '${argument}'`);
}
