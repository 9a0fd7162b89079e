/**
 * `commit`: brings the content of an image to its backing file.
 *
 * @module
 */

import { acquireFile } from "../image/host_file.ts";
import { realPath } from "../image/local_name.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { RawFile } from "../image/raw_file.ts";
import { commit as commitImage } from "../operations/commit.ts";
import { DiskError } from "../operations/disk_error.ts";
import type { BlockFile } from "../storage/block_file.ts";
import { parseArguments } from "./arguments.ts";
import { checkCacheMode } from "./common_options.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import type { Context } from "./console.ts";
import { causedBy, CliError, explainOpenError, ioError, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { findImage, type ImageRequest, imageRequest, openImage, openingImage } from "./image_files.ts";
import { fullBackingName } from "./image_names.ts";
import { Interruption } from "./interruption.ts";
import { PercentProgress } from "./progress.ts";
import { readSecrets } from "./secrets.ts";
import { parseSizeArgument } from "./sizes.ts";

const PROGRESS_STEP_PERCENT = 1;

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `commit`.
 * @returns The exit status; 130 or 143 where a signal has ended it.
 * @throws {CliError} Where it fails; the image keeps its content then.
 */
export async function commit(context: Context, args: readonly string[]): Promise<number> {
  const parsed = parseArguments("commit", args, COMMAND_OPTIONS.commit);
  const { console, programName } = context;
  if (parsed.has("help")) {
    console.out(commandHelp("commit", programName));
    return 0;
  }
  const rateLimit = parsed.all("rate-limit").map((text) => parseSizeArgument("rate limit", text)).at(-1);
  readSecrets(parsed.all("object"));
  const [name, ...others] = parsed.operands;
  if (name === undefined || others.length > 0) throw new UsageError("Expecting one image file name");
  checkCacheMode(parsed.last("cache"), "cache");
  const request = { ...imageRequest(parsed, name), write: true };
  const paths = chainOf(context, request);
  const quiet = parsed.has("quiet");
  const progress = new PercentProgress(
    console,
    { wanted: parsed.has("progress"), quiet },
    PROGRESS_STEP_PERCENT,
  );
  using interruption = new Interruption();
  try {
    progress.set(0);
    const baseName = parsed.last("base");
    const depth = depthOfBase(paths, baseName, name);
    using chain = openChain(context, request, paths, depth);
    await commitImage(chain.image, {
      base: chain.base,
      keep: parsed.has("drop") || baseName !== undefined,
      signal: interruption.signal,
      onProgress: ({ done, total }) => progress.set(total === 0 ? 100 : done * 100 / total),
      ...(rateLimit === undefined || rateLimit === 0n ? {} : { rateLimit: Number(rateLimit) }),
    });
    chain.image.close();
  } catch (error) {
    if (interruption.exitCode !== undefined) return interruption.exitCode;
    throw error instanceof DiskError ? ioError("Block job failed: ", error.cause, true) : error;
  } finally {
    await progress.stop();
  }
  if (!quiet) console.out("Image committed.\n");
  return 0;
}

/** Paths of an image and of those beneath it, from the top down, once it is known that all of them can be read. */
function chainOf(context: Context, request: ImageRequest): string[] {
  const paths: string[] = [];
  openImage(context, request, (path) => paths.push(path)).close();
  return paths;
}

/** How far beneath the image the base is: named as each of the images might name it, or the first one. */
function depthOfBase(paths: readonly string[], baseName: string | undefined, name: string): number {
  if (baseName === undefined) {
    if (paths.length > 1) return 1;
    throw new CliError("Image does not have a backing file");
  }
  const depth = paths.findIndex((path, index) => {
    const above = paths[index - 1];
    return above !== undefined && realPath(fullBackingName(above, baseName)) === realPath(path);
  });
  if (depth > 0) return depth;
  throw new CliError(`Did not find '${baseName}' in the backing chain of '${name}'`);
}

/** An image and the one beneath it that gets its content, both open for writing. */
class WritableChain implements Disposable {
  readonly image: Qcow2File;
  readonly base: Qcow2File | RawFile;

  constructor(image: Qcow2File, base: Qcow2File | RawFile) {
    this.image = image;
    this.base = base;
  }

  [Symbol.dispose](): void {
    this.image.close();
  }
}

function openChain(
  context: Context,
  request: ImageRequest,
  paths: readonly string[],
  writtenDepth: number,
): WritableChain {
  // What is wrong with one of the files is told of that file, and not of the image.
  for (let depth = writtenDepth; depth > 0; depth--) checkLock(paths[depth] ?? "", depth === writtenDepth);
  // Whatever there is to say of the images was said when they were looked at.
  const console = { stderrIsTerminal: false, out: () => {}, err: () => {} };
  using node = findImage({ ...context, console }, { ...request, writtenDepth });
  let depth = 0;
  const image = openingImage(request, () => {
    return node.openDisk(({ file }) => {
      // Nobody else may read from those between: what they say is not true any more once the base has changed.
      if (++depth < writtenDepth) lockOut(file);
    });
  });
  let base: unknown = image;
  for (let level = 0; level < writtenDepth; level++) base = base instanceof Qcow2File ? base.backing : undefined;
  if (image instanceof Qcow2File && (base instanceof Qcow2File || base instanceof RawFile)) {
    return new WritableChain(image, base);
  }
  image.close();
  throw new CliError("Image does not have a backing file");
}

function checkLock(path: string, write: boolean): void {
  try {
    using file = acquireFile(path, { write, lock: true });
    if (!write) lockOut(file);
  } catch (error) {
    throw error instanceof CliError ? error : causedBy(error, explainOpenError(error, path, write));
  }
}

function lockOut(file: BlockFile): void {
  if (file.tryLock(true)) return;
  throw new CliError(
    `Failed to get shared "consistent read" lock\nIs another process using the image [${file.name}]?`,
  );
}
