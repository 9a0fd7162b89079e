/** Stands in for `@std/cli/parse-args`, on npm `minimist`, where JSR cannot be reached. @module */

import minimist from "npm:minimist@1.2.8";

type Name = string | undefined;
type Aliases<V extends string = string> = { readonly [name: string]: V | readonly V[] };

/** The names in `T` that are keys of the result. A dotted name makes a nested object, which is left untyped. */
type Keys<T> = T extends string ? T extends `${string}.${string}` ? never : T : never;
/** `false` for a name that can be negated. */
type Negated<K, N> = K extends N ? false : never;
/** A name and its aliases. */
type Named<K, A> = K | (K extends keyof A ? A[K] extends (infer Alias)[] ? Alias : A[K] : never);
/** What is known of the values by the lists of names, with `D` for what the defaults add. */
type Values<B, S, C, N> =
  & { [K in Exclude<Keys<B>, C>]: boolean }
  & { [K in Extract<Keys<B>, C>]: boolean[] }
  & { [K in Exclude<Keys<S>, C>]?: string | Negated<K, N> }
  & { [K in Extract<Keys<S>, C>]: string[] | Negated<K, N> }
  & { [K in Exclude<Keys<C>, Keys<B> | Keys<S>>]: unknown[] | Negated<K, N> };
type WithDefaults<V, D> = D extends object
  ? Omit<V, keyof D> & { [K in keyof D]: K extends keyof V ? D[K] | NonNullable<V[K]> : unknown }
  : V;
type WithAliases<V, A> = { [K in keyof V as Extract<Named<K, A>, PropertyKey>]: V[K] };

/** What {@linkcode parseArgs} returns. */
export type Args<T = Record<string, unknown>, DD extends boolean | undefined = undefined> =
  & Record<string, unknown>
  & T
  & { _: (string | number)[] }
  & (DD extends true ? { "--": string[] } : unknown);

/** What {@linkcode parseArgs} is told about the arguments. */
export interface ParseOptions<
  B extends boolean | Name = boolean | Name,
  S extends Name = Name,
  C extends Name = Name,
  N extends Name = Name,
  D extends Record<string, unknown> | undefined = Record<string, unknown> | undefined,
  A extends Aliases | undefined = Aliases | undefined,
  DD extends boolean | undefined = boolean | undefined,
> {
  /** Whether what follows `--` is kept apart, under that name. */
  "--"?: DD;
  /** Other names of a name. */
  alias?: A;
  /** The names that take no value; `true` for all that stand behind two dashes. */
  boolean?: B | readonly Extract<B, string>[];
  /** The values of names that are not given. */
  default?: D;
  /** Whether the first argument that is no option ends the options. */
  stopEarly?: boolean;
  /** The names whose values stay strings. */
  string?: S | readonly Extract<S, string>[];
  /** The names whose values are put into an array; of others the last one counts. */
  collect?: C | readonly Extract<C, string>[];
  /** The names that `--no-` before them sets to `false`. */
  negatable?: N | readonly Extract<N, string>[];
  /** Is asked about every argument that no list names; `false` leaves it out. */
  unknown?: (arg: string, key?: string, value?: unknown) => unknown;
}

/** Reads command line arguments. */
export function parseArgs<
  const B extends boolean | Name = undefined,
  const S extends Name = undefined,
  const C extends Name = undefined,
  const N extends Name = undefined,
  D extends Record<string, unknown> | undefined = undefined,
  A extends Aliases<V> | undefined = undefined,
  const DD extends boolean | undefined = undefined,
  V extends string = string,
>(
  args: readonly string[],
  options: ParseOptions<B, S, C, N, D, A, DD> = {},
): Args<WithAliases<WithDefaults<Values<B, S, C, N>, D>, A>, DD> {
  const aliases = aliasesOf(options.alias ?? {});
  const allBooleans = options.boolean === true;
  const booleans = withAliases(typeof options.boolean === "boolean" ? undefined : options.boolean, aliases);
  const strings = withAliases(options.string, aliases);
  const collected = withAliases(options.collect, aliases);
  const negatable = withAliases(options.negatable, aliases);
  const positional: (string | number)[] = [];
  const result: Record<string, unknown> & { _: (string | number)[] } = { _: positional };

  function set(arg: string, key: string, value: string | boolean, mayCollect = true): void {
    const known = booleans.has(key) || strings.has(key) || collected.has(key) || aliases.has(key) ||
      (allBooleans && arg.startsWith("--") && !arg.includes("="));
    if (!known && options.unknown?.(arg, key, value) === false) return;
    const typed = strings.has(key) ? value : numberIfNumeric(value);
    for (const name of [key, ...aliases.get(key) ?? []]) put(result, name, typed, mayCollect && collected.has(key));
  }

  const end = args.indexOf("--");
  const rest = end < 0 ? [] : args.slice(end + 1);
  const parsed = end < 0 ? args : args.slice(0, end);
  for (let index = 0; index < parsed.length; index++) {
    const arg = parsed[index] ?? "";
    const next = parsed[index + 1] ?? "";
    if (!/^-./s.test(arg)) {
      if (options.unknown?.(arg) !== false) positional.push(strings.has("_") ? arg : numberIfNumeric(arg));
      if (options.stopEarly) {
        positional.push(...parsed.slice(index + 1));
        break;
      }
      continue;
    }
    const long = arg.startsWith("--");
    const settings = long ? splitLong(arg) : splitShort(arg);
    for (const [key, value] of settings.slice(0, -1)) set(arg, key, value ?? (strings.has(key) ? "" : true));
    const last = settings.at(-1);
    if (last === undefined) continue;
    let [key, value] = last;
    if (value !== undefined) {
      set(arg, key, long && booleans.has(key) ? value !== "false" : value);
      continue;
    }
    if (long && arg.startsWith("--no-") && key !== "no-") {
      if (negatable.has(key)) {
        set(arg, key, false, false);
        continue;
      }
      key = `no-${key}`;
    }
    const isBoolean = booleans.has(key) || (long && allBooleans);
    if (next !== "" && !isBoolean && !(long ? /^-/ : /^--?[^-]/).test(next)) {
      set(arg, key, next);
      index++;
    } else if (next === "true" || next === "false") {
      set(arg, key, next === "true");
      index++;
    } else {
      set(arg, key, strings.has(key) ? "" : true);
    }
  }

  for (const [key, value] of Object.entries(options.default ?? {})) {
    if (!has(result, key)) { for (const name of [key, ...aliases.get(key) ?? []]) put(result, name, value, false); }
  }
  for (const key of booleans) if (!has(result, key)) put(result, key, collected.has(key) ? [] : false, false);
  for (const key of strings) if (!has(result, key) && collected.has(key)) put(result, key, [], false);
  if (options["--"]) result["--"] = rest;
  else positional.push(...rest);
  // The lists of names say what the result is made of, which is what the type is made of too.
  return result as ReturnType<typeof parseArgs<B, S, C, N, D, A, DD, V>>;
}

/** A name, and the value that stands with it in the same argument. */
type Setting = [key: string, value: string | undefined];

function splitLong(arg: string): Setting[] {
  const start = /^--no-./s.test(arg) ? "--no-".length : "--".length;
  const equals = arg.indexOf("=", start + 1);
  return [equals < 0 ? [arg.slice(start), undefined] : [arg.slice(start, equals), arg.slice(equals + 1)]];
}

/** Takes apart a group such as `-xvfname`: `x`, `v` and `f` with a value, or without one when nothing follows the last. */
function splitShort(arg: string): Setting[] {
  // An `=` at the end gives the letter before it an empty value.
  if (/^-\w+=$/.test(arg)) {
    return [...arg.slice(1, -1)].map((key, index) => [key, index === arg.length - 3 ? "" : undefined]);
  }
  // The first letter takes what stands behind the first `=` of the group, whatever stands before that.
  const assigned = /^(-\d*[A-Za-z]).*?(=.+)$/s.exec(arg);
  const group = assigned ? `${assigned[1]}${assigned[2]}` : arg;
  // All letters are declared as strings: so their values come back as they stand, and a repeated letter as an array.
  const split: Record<string, string | string[]> = minimist([group], { string: [...group] });
  const settings = Object.entries(split).flatMap(([key, values]): Setting[] =>
    key === "_" ? [] : [values].flat().map((value) => [key, value === "" ? undefined : value])
  );
  // They come back by name. What has a value, or may take the next argument as one, stands last in the group.
  const place = ([key, value]: Setting) => value !== undefined ? 2 : key === group.at(-1) ? 1 : 0;
  return settings.sort((a, b) => place(a) - place(b));
}

function aliasesOf(alias: Aliases): Map<string, string[]> {
  const aliases = new Map<string, string[]>();
  for (const [key, value] of Object.entries(alias)) {
    if (value === undefined) throw new TypeError(`Alias of "${key}" is undefined, must be a name or names`);
    const names = [value].flat();
    aliases.set(key, names);
    for (const name of names) aliases.set(name, [key, ...names.filter((other) => other !== name)]);
  }
  return aliases;
}

function withAliases(names: string | readonly string[] | undefined, aliases: Map<string, string[]>): Set<string> {
  return new Set(
    [names ?? []].flat().filter((name) => name !== "").flatMap((name) => [name, ...aliases.get(name) ?? []]),
  );
}

function numberIfNumeric<T extends string | boolean>(value: T): T | number {
  return typeof value === "string" && value.trim() !== "" && Number.isFinite(Number(value)) ? Number(value) : value;
}

/** Puts a value under a key in which dots lead into nested objects. */
function put(target: Record<string, unknown>, key: string, value: unknown, collect: boolean): void {
  const path = key.split(".");
  const name = path.pop() ?? "";
  // Neither may lead to what all objects share.
  if ([...path, name].some((part) => part === "__proto__" || part === "constructor")) return;
  for (const part of path) target = (target[part] ??= {}) as Record<string, unknown>;
  const before = Object.hasOwn(target, name) ? target[name] : undefined;
  target[name] = !collect ? value : Array.isArray(before) ? [...before, value] : before ? [before, value] : [value];
}

function has(target: unknown, key: string): boolean {
  for (const part of key.split(".")) {
    if (typeof target !== "object" || target === null || !Object.hasOwn(target, part)) return false;
    target = Reflect.get(target, part);
  }
  return true;
}
