/**
 * Reads JSON as QEMU does: strings may stand in single quotes, whole numbers keep all their digits, and what is wrong is told in
 * QEMU's words.
 *
 * @module
 */

import { CliError } from "./errors.ts";
import type { JsonValue } from "./json.ts";

/** Tokens, one behind the other; the last alternative is a character that begins none. */
const TOKEN =
  /\s+|([{}[\]:,])|("(?:[^"\\\p{Cc}]|\\.)*"|'(?:[^'\\\p{Cc}]|\\.)*')|(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)|([a-z]+)|(.)/gsuy;

const ESCAPES: Readonly<Record<string, string>> = { b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" };

/** A part of the text that means something. */
interface Token {
  readonly kind: "mark" | "string" | "number" | "keyword";
  readonly text: string;
}

/**
 * Reads a value.
 *
 * @param text The JSON.
 * @returns The value.
 * @throws {CliError} Where it is none.
 */
export function parseQemuJson(text: string): JsonValue {
  const parser = new Parser(tokensOf(text));
  const value = parser.value();
  if (!parser.isAtEnd) throw new CliError("Expecting at most one JSON value");
  return value;
}

function tokensOf(text: string): Token[] {
  const tokens: Token[] = [];
  for (const [found, mark, string, number, keyword, stray] of text.matchAll(TOKEN)) {
    if (mark !== undefined) tokens.push({ kind: "mark", text: mark });
    else if (string !== undefined) tokens.push({ kind: "string", text: string });
    else if (number !== undefined) tokens.push({ kind: "number", text: number });
    else if (keyword !== undefined) tokens.push({ kind: "keyword", text: keyword });
    else if (stray !== undefined) throw syntaxError(`stray '${found}'`);
  }
  if (tokens.length === 0) throw new CliError("Expecting a JSON value");
  return tokens;
}

function syntaxError(problem: string): CliError {
  return new CliError(`JSON parse error, ${problem}`);
}

class Parser {
  readonly #tokens: readonly Token[];
  #position = 0;

  constructor(tokens: readonly Token[]) {
    this.#tokens = tokens;
  }

  get isAtEnd(): boolean {
    return this.#position === this.#tokens.length;
  }

  value(): JsonValue {
    const { kind, text } = this.#next();
    if (kind === "string") return unquote(text);
    if (kind === "number") return numberOf(text);
    if (kind === "keyword") return keywordOf(text);
    if (text === "{") return this.#object();
    if (text === "[") return this.#list();
    throw syntaxError("expecting value");
  }

  #object(): JsonValue {
    const members = new Map<string, JsonValue>();
    if (this.#skips("}")) return {};
    do {
      const key = this.value();
      if (typeof key !== "string") throw syntaxError("key is not a string in object");
      if (this.#next().text !== ":") throw syntaxError("missing : in object pair");
      const value = this.value();
      if (members.has(key)) throw syntaxError("duplicate key");
      members.set(key, value);
    } while (this.#goesOn("}", "dict"));
    return Object.fromEntries(members);
  }

  #list(): JsonValue {
    const items: JsonValue[] = [];
    if (this.#skips("]")) return items;
    do items.push(this.value()); while (this.#goesOn("]", "list"));
    return items;
  }

  #goesOn(end: string, what: string): boolean {
    const { kind, text } = this.#next();
    if (kind !== "mark" || (text !== "," && text !== end)) throw syntaxError(`expected separator in ${what}`);
    return text === ",";
  }

  #skips(mark: string): boolean {
    const token = this.#tokens[this.#position];
    if (token?.kind !== "mark" || token.text !== mark) return false;
    this.#position++;
    return true;
  }

  #next(): Token {
    const token = this.#tokens[this.#position++];
    if (token === undefined) throw syntaxError("premature EOI");
    return token;
  }
}

function unquote(literal: string): string {
  return literal.slice(1, -1).replace(/\\(u[0-9a-fA-F]{4}|.)/gs, (_, escape: string) => {
    if (escape.length > 1) return String.fromCharCode(Number.parseInt(escape.slice(1), 16));
    if (/["'\\/]/.test(escape)) return escape;
    const character = ESCAPES[escape];
    if (character === undefined) throw syntaxError("invalid escape sequence in string");
    return character;
  });
}

function numberOf(text: string): number | bigint {
  if (!/^-?\d+$/.test(text)) return Number(text);
  return Number.isSafeInteger(Number(text)) ? Number(text) : BigInt(text);
}

function keywordOf(word: string): boolean | null {
  if (word === "true" || word === "false") return word === "true";
  if (word === "null") return null;
  throw syntaxError(`invalid keyword '${word}'`);
}
