/**
 * Images described by options rather than by a file's name: `--image-opts` and names that begin with `json:`. QEMU keeps such a
 * description flat, with the options of what stands beneath an image behind a prefix such as `file.`.
 *
 * @module
 */

import { CliError } from "./errors.ts";
import { checkOptionValue, parseOptionList, type TypedOption } from "./image_options.ts";
import { compareKeys, type JsonValue } from "./json.ts";
import { parseQemuJson } from "./qemu_json.ts";

/** The value of an option: text where it was given as text. */
export type BlockOptionValue = string | number | bigint | boolean | null;

const JSON_PREFIX = "json:";

/** The options of an image, from which whoever understands some of them takes these. What remains, nobody knows. */
export class BlockOptions {
  readonly #values: Map<string, BlockOptionValue>;

  /** @param values Names and values; of several with the same name the last one counts. */
  constructor(values: Iterable<readonly [string, BlockOptionValue]> = []) {
    this.#values = new Map(values);
  }

  /** The options that are left. */
  [Symbol.iterator](): Iterator<[string, BlockOptionValue]> {
    return this.#values.entries();
  }

  /** How many options are left. */
  get size(): number {
    return this.#values.size;
  }

  /** The one of the options that are left that QEMU would name. */
  get first(): string | undefined {
    return [...this.#values.keys()].sort(compareKeys)[0];
  }

  /**
   * The value of an option as it was given.
   *
   * @param name Its name.
   * @returns The value, or `undefined` where it was not given.
   */
  get(name: string): BlockOptionValue | undefined {
    return this.#values.get(name);
  }

  /**
   * Sets an option.
   *
   * @param name Its name.
   * @param value Its value.
   */
  set(name: string, value: BlockOptionValue): void {
    this.#values.set(name, value);
  }

  /**
   * Takes an option that is a text.
   *
   * @param name Its name.
   * @returns The text; nothing where it was not given, or not as text.
   */
  takeText(name: string): string | undefined {
    const value = this.#values.get(name);
    if (typeof value !== "string") return undefined;
    this.#values.delete(name);
    return value;
  }

  /**
   * Takes an option.
   *
   * @param name Its name.
   */
  delete(name: string): void {
    this.#values.delete(name);
  }

  /**
   * Takes the options of what stands beneath.
   *
   * @param name The prefix, without the point.
   * @returns These options, without the prefix.
   */
  takeNested(name: string): BlockOptions {
    const prefix = `${name}.`;
    const found = [...this.#values].filter(([key]) => key.startsWith(prefix));
    for (const [key] of found) this.#values.delete(key);
    return new BlockOptions(found.map(([key, value]) => [key.slice(prefix.length), value]));
  }

  /**
   * Takes the options that somebody knows, and checks their values.
   *
   * @param definitions What is known.
   * @returns Their values as text, by name.
   * @throws {CliError} Where a value does not fit.
   */
  absorb(definitions: readonly TypedOption[]): ReadonlyMap<string, string> {
    const absorbed = new Map<string, string>();
    for (const definition of definitions) {
      const value = this.#values.get(definition.name);
      if (value === undefined || value === null) continue;
      const text = typeof value === "boolean" ? (value ? "on" : "off") : String(value);
      checkOptionValue(definition, text);
      absorbed.set(definition.name, text);
      this.#values.delete(definition.name);
    }
    return absorbed;
  }
}

/**
 * Whether a name is a description in JSON.
 *
 * @param name Name of an image.
 * @returns Whether it begins with `json:`.
 */
export function isJsonName(name: string): boolean {
  return name.startsWith(JSON_PREFIX);
}

/**
 * Reads a name that is a description in JSON.
 *
 * @param name The name.
 * @returns The options.
 * @throws {CliError} Where it is no JSON object.
 */
export function optionsOfJsonName(name: string): BlockOptions {
  const value = parsed(name.slice(JSON_PREFIX.length));
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new CliError("Invalid JSON object given");
  }
  return new BlockOptions(flatten(Object.entries(value), ""));
}

function parsed(json: string): JsonValue {
  try {
    return parseQemuJson(json);
  } catch (error) {
    if (error instanceof CliError) throw new CliError(`Could not parse the JSON options: ${error.message}`);
    throw error;
  }
}

function* flatten(
  members: Iterable<readonly [string, JsonValue]>,
  prefix: string,
): Generator<readonly [string, BlockOptionValue]> {
  for (const [key, value] of members) {
    if (typeof value === "object" && value !== null) yield* flatten(Object.entries(value), `${prefix}${key}.`);
    else yield [prefix + key, value];
  }
}

/**
 * Reads what stands behind `--image-opts`. A value without a name in front is the first one's, `file`.
 *
 * @param text Such as `driver=qcow2,file.filename=disk.qcow2`.
 * @param warn Called with what should be written differently.
 * @returns The options.
 */
export function optionsOfDescription(text: string, warn: (message: string) => void): BlockOptions {
  const options = new BlockOptions(parseOptionList(text, { firstName: "file", warn }));
  options.delete("id");
  return options;
}
