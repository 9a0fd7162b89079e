/**
 * Names of other files that stand in an image.
 *
 * @module
 */

import { builtinModule } from "../format/builtin_modules.ts";

/**
 * The path that a name from an image means: a relative one begins in the folder of the image. A name from an image is a local
 * file's and nothing else: no protocol, no description in JSON.
 *
 * @param name The name as it stands in the image.
 * @param imagePath Path of the image.
 * @returns The path; nothing where the name begins with a protocol.
 */
export function localPath(name: string, imagePath: string): string | undefined {
  if (/^[^/]*:/.test(name) && !/^[a-z]:[\\/]/i.test(name)) return undefined;
  const { dirname, isAbsolute, join } = builtinModule("node:path");
  return isAbsolute(name) ? name : join(dirname(imagePath), name);
}

/**
 * The path of a file behind all links.
 *
 * @param path Path of a file.
 * @returns The real path, or the path itself where that cannot be found out.
 */
export function realPath(path: string): string {
  try {
    return Deno.realPathSync(path);
  } catch {
    return path;
  }
}
