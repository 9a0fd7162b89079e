/** Stands in for `@std/assert`, on `node:assert/strict`, where JSR cannot be reached. @module */

import { AssertionError as NodeAssertionError } from "node:assert/strict";
import { Buffer } from "node:buffer";

/** What every failed assertion throws. */
export class AssertionError extends Error {
  /** The name of the class. */
  override name = "AssertionError";
}

/** Any class whose instances are `T`. */
type Class<T> = abstract new (...args: never[]) => T;

/** What `assertFalse` takes. */
export type Falsy = false | 0 | 0n | "" | null | undefined;

/** An array or something like it that is not a string. */
export type ArrayLikeArg<T> = ArrayLike<T> & object;

function check(holds: boolean, message: () => string, msg?: string): asserts holds {
  if (!holds) throw new AssertionError(msg ? `${message()}: ${msg}` : message());
}

function show(value: unknown): string {
  return Deno.inspect(value, { depth: 10, strAbbreviateSize: 1000, sorted: true });
}

/** Both values side by side. Long bytes are told by their first difference instead of by a hundred thousand lines. */
function difference(actual: unknown, expected: unknown): string {
  if (actual instanceof Uint8Array && expected instanceof Uint8Array && actual.length + expected.length > 512) {
    const at = actual.findIndex((byte, index) => byte !== expected[index]);
    const index = at < 0 ? actual.length : at;
    return `byte ${index} of ${actual.length} is ${actual[index]}, expected byte ${index} of ${expected.length} to be ${
      expected[index]
    }`;
  }
  return new NodeAssertionError({
    actual: abbreviate(actual),
    expected: abbreviate(expected),
    operator: "deepStrictEqual",
  }).message;
}

/** Long bytes within other values as their length and a sum, for the same reason. */
function abbreviate(value: unknown): unknown {
  if (value instanceof Uint8Array && value.length > 512) {
    const sum = value.reduce((total, byte) => (Math.imul(total, 31) + byte) >>> 0, 0);
    return `${value.length} bytes, sum ${sum}`;
  }
  if (Array.isArray(value)) return value.map(abbreviate);
  if (typeof value !== "object" || value === null || Object.getPrototypeOf(value) !== Object.prototype) return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, abbreviate(inner)]));
}

/** Whether two values have the same content, at any depth. */
export function equal(a: unknown, b: unknown): boolean {
  return deepEqual(a, b, new Map());
}

function deepEqual(a: unknown, b: unknown, seen: Map<unknown, unknown>): boolean {
  if (a === b || Object.is(a, b)) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  // An object without a prototype counts as a plain one.
  const prototype = Object.getPrototypeOf(a) ?? Object.prototype;
  if (prototype !== (Object.getPrototypeOf(b) ?? Object.prototype)) return false;
  if (a instanceof Float32Array || a instanceof Float64Array) return deepEqual([...a], [...b as Float64Array], seen);
  if (ArrayBuffer.isView(a) && ArrayBuffer.isView(b)) return Buffer.compare(bytesOf(a), bytesOf(b)) === 0;
  if (a instanceof Date && b instanceof Date) return Object.is(a.getTime(), b.getTime());
  if (a instanceof ArrayBuffer && b instanceof ArrayBuffer) return equal(new Uint8Array(a), new Uint8Array(b));
  if (a instanceof RegExp || a instanceof URL || a instanceof URLSearchParams) return String(a) === String(b);
  // A pair that is being compared further up counts as equal, so that circles come to an end.
  if (seen.get(a) === b) return true;
  seen.set(a, b);
  if (a instanceof Map && b instanceof Map) return sameEntries([...a], [...b], seen);
  if (a instanceof Set && b instanceof Set) return sameEntries([...a], [...b], seen);
  const keys = keysOf(a);
  return keys.size === keysOf(b).size &&
    [...keys].every((key) => key in b && deepEqual(Reflect.get(a, key), Reflect.get(b, key), seen));
}

/** The keys whose values are compared: its own, and the getters that its class gives it. */
function keysOf(value: object): Set<PropertyKey> {
  const keys = new Set<PropertyKey>();
  for (let at = value; at && at !== Object.prototype && at !== Array.prototype; at = Object.getPrototypeOf(at)) {
    for (const key of Reflect.ownKeys(at)) keys.add(key);
  }
  return keys;
}

function bytesOf(view: ArrayBufferView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

function sameEntries(a: unknown[], b: unknown[], seen: Map<unknown, unknown>): boolean {
  if (a.length !== b.length) return false;
  const left = new Set(b.keys());
  return a.every((entry) => {
    const match = [...left].find((index) => deepEqual(entry, b[index], new Map(seen)));
    return match !== undefined && left.delete(match);
  });
}

/** Asserts that a value is truthy. */
export function assert(expr: unknown, msg = ""): asserts expr {
  if (!expr) throw new AssertionError(msg);
}

/** Asserts that a value is falsy. */
export function assertFalse(expr: unknown, msg = ""): asserts expr is Falsy {
  if (expr) throw new AssertionError(msg);
}

/** Asserts that two values have the same content. */
export function assertEquals<T>(actual: T, expected: T, msg?: string): void {
  check(equal(actual, expected), () => `Values are not equal: ${difference(actual, expected)}`, msg);
}

/** Asserts that two values differ in content. */
export function assertNotEquals<T>(actual: T, expected: T, msg?: string): void {
  check(!equal(actual, expected), () => `Expected something else than ${show(expected)}`, msg);
}

/** Asserts that two values are one and the same. */
export function assertStrictEquals<T>(actual: unknown, expected: T, msg?: string): asserts actual is T {
  check(Object.is(actual, expected), () => `Values are not the same: ${difference(actual, expected)}`, msg);
}

/** Asserts that two values are not one and the same. */
export function assertNotStrictEquals<T>(actual: T, expected: T, msg?: string): void {
  check(!Object.is(actual, expected), () => `Expected another value than ${show(expected)}`, msg);
}

/** Asserts that a value is neither `null` nor `undefined`. */
export function assertExists<T>(actual: T, msg?: string): asserts actual is NonNullable<T> {
  check(actual !== null && actual !== undefined, () => `Expected a value, found ${actual}`, msg);
}

/** Asserts that `actual` is greater. */
export function assertGreater<T>(actual: T, expected: T, msg?: string): void {
  check(actual > expected, () => `Expected ${show(actual)} to be greater than ${show(expected)}`, msg);
}

/** Asserts that `actual` is greater or equal. */
export function assertGreaterOrEqual<T>(actual: T, expected: T, msg?: string): void {
  check(actual >= expected, () => `Expected ${show(actual)} to be at least ${show(expected)}`, msg);
}

/** Asserts that `actual` is less. */
export function assertLess<T>(actual: T, expected: T, msg?: string): void {
  check(actual < expected, () => `Expected ${show(actual)} to be less than ${show(expected)}`, msg);
}

/** Asserts that `actual` is less or equal. */
export function assertLessOrEqual<T>(actual: T, expected: T, msg?: string): void {
  check(actual <= expected, () => `Expected ${show(actual)} to be at most ${show(expected)}`, msg);
}

/** Asserts that two numbers are as good as equal: within a ten millionth unless given otherwise. */
export function assertAlmostEquals(actual: number, expected: number, tolerance?: number, msg?: string): void {
  const allowed = tolerance ?? (Number.isFinite(expected) ? Math.abs(expected) * 1e-7 : 1e-7);
  const near = Object.is(actual, expected) || Math.abs(actual - expected) <= allowed;
  check(near, () => `Expected ${actual} to be within ${allowed} of ${expected}`, msg);
}

/** Asserts that a string contains another. */
export function assertStringIncludes(actual: string, expected: string, msg?: string): void {
  check(actual.includes(expected), () => `Expected ${show(actual)} to contain ${show(expected)}`, msg);
}

/** Asserts that a string matches a pattern. */
export function assertMatch(actual: string, expected: RegExp, msg?: string): void {
  check(expected.test(actual), () => `Expected ${show(actual)} to match ${expected}`, msg);
}

/** Asserts that a string does not match a pattern. */
export function assertNotMatch(actual: string, expected: RegExp, msg?: string): void {
  check(!expected.test(actual), () => `Expected ${show(actual)} not to match ${expected}`, msg);
}

/** Asserts that every element of one array stands in another. */
export function assertArrayIncludes<T>(actual: ArrayLikeArg<T>, expected: ArrayLikeArg<T>, msg?: string): void {
  const all = Array.from(actual);
  const missing = Array.from(expected).filter((item) => !all.some((other) => equal(other, item)));
  check(missing.length === 0, () => `Expected ${show(actual)} to contain ${show(missing)}`, msg);
}

/** Asserts that an object has, at any depth, at least the content of another. */
export function assertObjectMatch(actual: object, expected: Record<PropertyKey, unknown>, msg?: string): void {
  check(
    covers(actual, expected, new Map()),
    () => `Expected at least this content: ${difference(actual, expected)}`,
    msg,
  );
}

function covers(actual: unknown, expected: unknown, seen: Map<unknown, unknown>): boolean {
  if (typeof actual !== "object" || typeof expected !== "object" || actual === null || expected === null) {
    return equal(actual, expected);
  }
  if (actual === expected || seen.get(actual) === expected) return true;
  seen.set(actual, expected);
  if (actual instanceof Map && expected instanceof Map) {
    return [...expected].every(([key, value]) => actual.has(key) && covers(actual.get(key), value, seen));
  }
  if (actual instanceof Set && expected instanceof Set) return expected.isSubsetOf(actual);
  if (
    [actual, expected].some((value) => value instanceof Date || value instanceof RegExp || ArrayBuffer.isView(value))
  ) {
    return equal(actual, expected);
  }
  return Array.isArray(actual) === Array.isArray(expected) &&
    Reflect.ownKeys(expected).filter((key) => key !== "length" || !Array.isArray(expected))
      .every((key) => key in actual && covers(Reflect.get(actual, key), Reflect.get(expected, key), seen));
}

/** Asserts that a value is an instance of a class. */
export function assertInstanceOf<T extends Class<unknown>>(
  actual: unknown,
  expectedType: T,
  msg = "",
): asserts actual is InstanceType<T> {
  check(
    actual instanceof expectedType,
    () => `Expected an instance of ${expectedType.name}, found ${show(actual)}`,
    msg,
  );
}

/** Asserts that a value is not an instance of a class. */
export function assertNotInstanceOf<A, T>(
  actual: A,
  unexpectedType: Class<T>,
  msg?: string,
): asserts actual is Exclude<A, T> {
  check(!(actual instanceof unexpectedType), () => `Expected no instance of ${unexpectedType.name}`, msg);
}

/** Asserts that a value is an error of a class, with a message that contains or matches something. */
export function assertIsError<E extends Error = Error>(
  error: unknown,
  ErrorClass?: Class<E>,
  msgMatches?: string | RegExp,
  msg?: string,
): asserts error is E {
  check(error instanceof Error, () => `Expected an error, found ${show(error)}`, msg);
  if (ErrorClass) {
    check(error instanceof ErrorClass, () => `Expected a ${ErrorClass.name}, found ${show(error)}`, msg);
  }
  if (msgMatches) {
    const { message } = error;
    const matches = typeof msgMatches === "string" ? message.includes(msgMatches) : msgMatches.test(message);
    check(matches, () => `Expected a message with ${show(msgMatches)}, found ${show(message)}`, msg);
  }
}

/** Asserts that a function throws, and returns what it threw. */
export function assertThrows(fn: () => unknown, msg?: string): unknown;
/** Asserts that a function throws an error of a class, with a message that contains something, and returns it. */
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  ErrorClass: Class<E>,
  msgIncludes?: string,
  msg?: string,
): E;
export function assertThrows(
  fn: () => unknown,
  classOrMsg?: Class<Error> | string,
  msgIncludes?: string,
  msg?: string,
): unknown {
  try {
    fn();
  } catch (error) {
    return expectedError(error, classOrMsg, msgIncludes, msg);
  }
  throw new AssertionError(withMessage("Expected the function to throw", classOrMsg, msg));
}

/** Asserts that a promise is rejected, and returns with what. */
export function assertRejects(fn: () => PromiseLike<unknown>, msg?: string): Promise<unknown>;
/** Asserts that a promise is rejected with an error of a class, with a message that contains something, and returns it. */
export function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  ErrorClass: Class<E>,
  msgIncludes?: string,
  msg?: string,
): Promise<E>;
export async function assertRejects(
  fn: () => PromiseLike<unknown>,
  classOrMsg?: Class<Error> | string,
  msgIncludes?: string,
  msg?: string,
): Promise<unknown> {
  let promise: PromiseLike<unknown>;
  try {
    promise = fn();
  } catch (error) {
    throw new AssertionError(
      withMessage(`Expected a rejected promise, but ${show(error)} was thrown`, classOrMsg, msg),
    );
  }
  try {
    await promise;
  } catch (error) {
    return expectedError(error, classOrMsg, msgIncludes, msg);
  }
  throw new AssertionError(withMessage("Expected the promise to be rejected", classOrMsg, msg));
}

function expectedError(error: unknown, classOrMsg?: Class<Error> | string, includes?: string, msg?: string): unknown {
  if (typeof classOrMsg === "function") assertIsError(error, classOrMsg, includes, msg);
  return error;
}

function withMessage(message: string, classOrMsg?: Class<Error> | string, msg?: string): string {
  const given = typeof classOrMsg === "string" ? classOrMsg : msg;
  return given ? `${message}: ${given}` : message;
}

/** Fails. */
export function fail(msg?: string): never {
  throw new AssertionError(withMessage("Failed assertion", msg));
}

/** Fails where a test has still to be written. */
export function unimplemented(msg?: string): never {
  throw new AssertionError(withMessage("Unimplemented", msg));
}

/** Fails where the test should never come. */
export function unreachable(msg?: string): never {
  throw new AssertionError(withMessage("Unreachable", msg));
}
