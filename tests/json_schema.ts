/**
 * A validator for the part of JSON Schema (draft 2020-12) that the schemas in `docs/schemas/` use.
 *
 * @module
 */

type JsonObject = { readonly [key: string]: unknown };

/** What says something to people only. */
const ANNOTATIONS = new Set(["$schema", "$defs", "title", "description"]);

/** Finds what is wrong with a value; a list of problems, each with its place. */
type Rule = (argument: unknown, value: unknown, place: Place) => string[];

interface Place {
  /** Where in the value. */
  readonly path: string;
  /** The schema that the rule stands in, which rules beside it may refer to. */
  readonly schema: JsonObject;
  /** The file that the schema stands in. */
  readonly document: URL;
}

/**
 * Holds a value against a schema.
 *
 * @param value What `JSON.parse` has returned.
 * @param url Where the schema stands.
 * @returns What is wrong, each in one line; nothing where the value fits.
 */
export function validate(value: unknown, url: URL): string[] {
  return validateAgainst(readSchema(url), value, "$", url);
}

function validateAgainst(schema: unknown, value: unknown, path: string, document: URL): string[] {
  if (schema === true) return [];
  if (schema === false) return [`${path}: must not be there`];
  const rules = asObject(schema);
  return Object.entries(rules).flatMap(([keyword, argument]) => {
    if (ANNOTATIONS.has(keyword)) return [];
    const rule = RULES[keyword];
    // A schema that says more than is looked at would be no test of anything.
    if (rule === undefined) throw new Error(`Unknown keyword "${keyword}" in ${document}`);
    return rule(argument, value, { path, schema: rules, document });
  });
}

const RULES: Readonly<Record<string, Rule>> = {
  $ref: (argument, value, { path, document }) => {
    const target = new URL(String(argument), document);
    const pointer = decodeURIComponent(target.hash.slice(1));
    target.hash = "";
    let schema: unknown = readSchema(target);
    for (const key of pointer.split("/").slice(1)) schema = asObject(schema)[key];
    if (schema === undefined) throw new Error(`Nothing stands at "${argument}" in ${document}`);
    return validateAgainst(schema, value, path, target);
  },
  type: (argument, value, { path }) => {
    const fits = asList(argument).some((type) => hasType(value, String(type)));
    return fits ? [] : [`${path}: is ${JSON.stringify(value)}, must be of type ${asList(argument).join(" or ")}`];
  },
  const: (argument, value, { path }) => oneOfValues([argument], value, path),
  enum: (argument, value, { path }) => oneOfValues(asList(argument), value, path),
  minimum: (argument, value, { path }) => {
    return typeof value === "number" && value < Number(argument) ? [`${path}: is ${value}, below ${argument}`] : [];
  },
  minItems: (argument, value, { path }) => {
    return Array.isArray(value) && value.length < Number(argument) ? [`${path}: has fewer than ${argument} items`] : [];
  },
  items: (argument, value, { path, document }) => {
    if (!Array.isArray(value)) return [];
    return value.flatMap((item, index) => validateAgainst(argument, item, `${path}[${index}]`, document));
  },
  properties: (argument, value, { path, document }) => {
    if (!isObject(value)) return [];
    return Object.entries(asObject(argument)).flatMap(([key, schema]) => {
      return Object.hasOwn(value, key) ? validateAgainst(schema, value[key], `${path}.${key}`, document) : [];
    });
  },
  additionalProperties: (argument, value, { path, schema, document }) => {
    if (!isObject(value)) return [];
    const known = asObject(schema["properties"] ?? {});
    return Object.keys(value).filter((key) => !Object.hasOwn(known, key)).flatMap((key) => {
      return validateAgainst(argument, value[key], `${path}.${key}`, document);
    });
  },
  required: (argument, value, { path }) => {
    return isObject(value) ? missing(asList(argument), value, path) : [];
  },
  dependentRequired: (argument, value, { path }) => {
    if (!isObject(value)) return [];
    return Object.entries(asObject(argument)).flatMap(([key, others]) => {
      return Object.hasOwn(value, key) ? missing(asList(others), value, path) : [];
    });
  },
  oneOf: (argument, value, { path, document }) => {
    const results = asList(argument).map((schema) => validateAgainst(schema, value, path, document));
    const fitting = results.filter((problems) => problems.length === 0).length;
    if (fitting === 1) return [];
    return [`${path}: fits ${fitting} of ${results.length} schemas, must fit one`, ...results.flat()];
  },
  if: (argument, value, { path, schema, document }) => {
    const fits = validateAgainst(argument, value, path, document).length === 0;
    return fits ? validateAgainst(schema["then"] ?? true, value, path, document) : [];
  },
  // Belongs to `if`.
  then: () => [],
};

function hasType(value: unknown, type: string): boolean {
  if (type === "integer") return Number.isInteger(value);
  if (type === "array") return Array.isArray(value);
  if (type === "object") return isObject(value);
  if (type === "string") return typeof value === "string";
  if (type === "boolean") return typeof value === "boolean";
  throw new Error(`Unknown type "${type}"`);
}

function oneOfValues(allowed: readonly unknown[], value: unknown, path: string): string[] {
  return allowed.includes(value) ? [] : [`${path}: is ${JSON.stringify(value)}, must be ${JSON.stringify(allowed)}`];
}

function missing(keys: readonly unknown[], value: JsonObject, path: string): string[] {
  return keys.map(String).filter((key) => !Object.hasOwn(value, key)).map((key) => `${path}: lacks ${key}`);
}

function readSchema(url: URL): unknown {
  return JSON.parse(Deno.readTextFileSync(url));
}

function asList(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [value];
}

function asObject(value: unknown): JsonObject {
  if (!isObject(value)) throw new Error(`A schema has ${JSON.stringify(value)} where an object must be`);
  return value;
}

function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
