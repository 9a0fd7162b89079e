/**
 * Modules of the runtime that few images need. Loading them takes longer than everything else that is done to open an image, so they
 * are loaded at the first need, in the middle of synchronous work.
 *
 * @module
 */

import type * as Path from "node:path";
import type * as Url from "node:url";
import type * as Zlib from "node:zlib";
import { Qcow2Error } from "../errors.ts";

/** The modules that are loaded here. */
interface BuiltinModules {
  readonly "node:path": typeof Path;
  readonly "node:url": typeof Url;
  readonly "node:zlib": typeof Zlib;
}

/**
 * Loads a module of the runtime, unless it is there already.
 *
 * @param name Its name.
 * @returns The module.
 * @throws {Qcow2Error} With code `unsupported` where the runtime does not have it.
 */
export function builtinModule<Name extends keyof BuiltinModules>(name: Name): BuiltinModules[Name] {
  // deno-lint-ignore no-process-global -- Importing it would load as much as is to be left out.
  const found: BuiltinModules[Name] | undefined = globalThis.process?.getBuiltinModule?.(name);
  if (found !== undefined) return found;
  throw new Qcow2Error("unsupported", `The runtime has no ${name}`, { expected: name });
}
