/**
 * Files for the tests of the storage.
 *
 * @module
 */

import { Qcow2Error, type Qcow2ErrorCode } from "../../lib/errors.ts";
import { assertEquals, assertThrows } from "@std/assert";

/** Calls a function with the path of a file that holds some bytes, and removes the file afterwards. */
export function withFile(content: Uint8Array, fn: (path: string) => void): void {
  const path = Deno.makeTempFileSync({ suffix: ".img" });
  try {
    Deno.writeFileSync(path, content);
    fn(path);
  } finally {
    Deno.removeSync(path);
  }
}

/** Calls a function with the path of an empty directory, and removes the directory afterwards. */
export async function withDirectory(fn: (path: string) => void | Promise<void>): Promise<void> {
  const path = Deno.makeTempDirSync();
  try {
    await fn(path);
  } finally {
    Deno.removeSync(path, { recursive: true });
  }
}

/** Bytes that differ from their neighbours and are never zero. */
export function pattern(length: number, seed = 0): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  for (let index = 0; index < length; index++) bytes[index] = 1 + (index * 31 + (index >>> 8) * 7 + seed) % 255;
  return bytes;
}

/** Asserts that a function throws a `Qcow2Error` with a code. */
export function assertCode(code: Qcow2ErrorCode, fn: () => unknown): Qcow2Error {
  const error = assertThrows(fn, Qcow2Error);
  assertEquals(error.code, code);
  return error;
}

/** An open file with some of its calls replaced. */
export function altered(file: Deno.FsFile, calls: Partial<Deno.FsFile>): Deno.FsFile {
  return new Proxy(file, {
    get(target, key) {
      const value: unknown = Reflect.get(key in calls ? calls : target, key);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}
