/**
 * Secrets on the command line: `--object secret,id=…`. Of the objects that QEMU knows, they are the ones that images can ask for.
 *
 * @module
 */

import { CliError, explainIoError, notSupported } from "./errors.ts";
import type { JsonValue } from "./json.ts";
import { parseQemuJson } from "./qemu_json.ts";

/** Objects that QEMU knows as well. */
const FOREIGN_OBJECTS: readonly string[] = [
  "authz-list",
  "authz-list-file",
  "authz-simple",
  "main-loop",
  "pr-manager-helper",
  "secret_keyring",
  "thread-context",
  "throttle-group",
  "tls-cipher-suites",
  "tls-creds-anon",
  "tls-creds-psk",
  "tls-creds-x509",
];
const PROPERTIES: readonly string[] = ["data", "file", "format", "iv", "keyid"];

/** Secrets by their identifiers. */
export type Secrets = ReadonlyMap<string, Uint8Array>;

/**
 * Reads what stands behind `--object`.
 *
 * @param objects The values of the option.
 * @returns The secrets.
 * @throws {CliError} Where one is no object, or none that is handled here.
 */
export function readSecrets(objects: readonly string[]): Secrets {
  const secrets = new Map<string, Uint8Array>();
  for (const object of objects) {
    const properties = object.startsWith("{") ? propertiesOfJson(object) : propertiesOfList(object);
    const { id, secret } = readSecret(properties);
    if (secrets.has(id)) {
      throw new CliError(`attempt to add duplicate property '${id}' to object (type 'container')`);
    }
    secrets.set(id, secret);
  }
  return secrets;
}

/** Reads a list such as `secret,id=sec0,data=1234`. */
function propertiesOfList(list: string): Map<string, string> {
  const properties = new Map<string, string>();
  for (const [found] of list.matchAll(/(?:[^,]|,,)+/gs)) {
    const [, key = found, value] = /^([^=]*)=(.*)$/s.exec(found) ?? [];
    if (value !== undefined) properties.set(key, value.replaceAll(",,", ","));
    else if (properties.size === 0) properties.set("qom-type", found);
    else throw new CliError(`Expected '=' after parameter '${found}'`);
  }
  return properties;
}

function propertiesOfJson(json: string): Map<string, string> {
  const value: JsonValue = parseQemuJson(json);
  return new Map(Object.entries(value ?? {}).map(([key, item]) => [key, String(item)]));
}

function readSecret(properties: Map<string, string>): { id: string; secret: Uint8Array } {
  const type = take(properties, "qom-type") ?? missing("qom-type");
  if (FOREIGN_OBJECTS.includes(type)) throw notSupported(`Object '${type}'`);
  if (type !== "secret") throw unaccepted("qom-type", type);
  const id = take(properties, "id") ?? missing("id");
  const format = take(properties, "format") ?? "raw";
  if (format !== "raw" && format !== "base64") throw unaccepted("format", format);
  const unexpected = [...properties.keys()].find((key) => !PROPERTIES.includes(key));
  if (unexpected !== undefined) throw new CliError(`Parameter '${unexpected}' is unexpected`);
  if (!/^[a-zA-Z][-._a-zA-Z0-9]*$/.test(id)) {
    throw new CliError(
      "Parameter 'id' expects an identifier\n" +
        "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
    );
  }
  if (properties.has("keyid")) throw notSupported("A secret that is encrypted itself (keyid)");
  const bytes = contentOf(properties.get("data"), properties.get("file"));
  return { id, secret: format === "raw" ? bytes : decodeBase64(bytes) };
}

function contentOf(data: string | undefined, file: string | undefined): Uint8Array {
  if (data !== undefined && file !== undefined) throw new CliError("'file' and 'data' are mutually exclusive");
  if (data !== undefined) return new TextEncoder().encode(data);
  if (file === undefined) throw new CliError("Either 'file' or 'data' must be provided");
  try {
    return Deno.readFileSync(file);
  } catch (error) {
    throw new CliError(`Unable to read ${file}: Failed to open file “${file}”: ${explainIoError(error)}`);
  }
}

function decodeBase64(bytes: Uint8Array): Uint8Array {
  try {
    return Uint8Array.from(atob(new TextDecoder().decode(bytes)), (character) => character.charCodeAt(0));
  } catch {
    throw new CliError("Data is not valid base64");
  }
}

function take(properties: Map<string, string>, name: string): string | undefined {
  const value = properties.get(name);
  properties.delete(name);
  return value;
}

function missing(name: string): never {
  throw new CliError(`Parameter '${name}' is missing`);
}

function unaccepted(name: string, value: string): CliError {
  return new CliError(`Parameter '${name}' does not accept value '${value}'`);
}
