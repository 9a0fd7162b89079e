/**
 * `info`: tells what an image is.
 *
 * @module
 */

import { imageInfo } from "../operations/info.ts";
import { parseArguments } from "./arguments.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import type { Context } from "./console.ts";
import { CliError, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { findImage, type ImageRequest, imageRequest, openingImage } from "./image_files.ts";
import { fullBackingName } from "./image_names.ts";
import { formatInfo, infoToJson, type NamedInfo } from "./info_format.ts";
import { formatJson } from "./json.ts";
import { outputFormatOf } from "./output_format.ts";
import { readSecrets } from "./secrets.ts";

/** The most images in a chain. */
const MAX_CHAIN_LENGTH = 200;

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `info`.
 * @returns The exit status.
 * @throws {CliError} Where it fails.
 */
export function info(context: Context, args: readonly string[]): number {
  const parsed = parseArguments("info", args, COMMAND_OPTIONS.info);
  if (parsed.has("help")) {
    context.console.out(commandHelp("info", context.programName));
    return 0;
  }
  readSecrets(parsed.all("object"));
  const [name, ...others] = parsed.operands;
  if (name === undefined || others.length > 0) throw new UsageError("Expecting one image file name");
  const output = outputFormatOf(parsed);
  const followChain = parsed.has("backing-chain");
  const chain = readChain(context, imageRequest(parsed, name), followChain);
  if (output === "human") {
    context.console.out(chain.map(formatInfo).join("\n"));
  } else {
    const images = chain.map(infoToJson);
    const [first] = images;
    context.console.out(`${formatJson(followChain || first === undefined ? images : first)}\n`);
  }
  return 0;
}

function readChain(context: Context, first: ImageRequest, followChain: boolean): NamedInfo[] {
  const chain: NamedInfo[] = [];
  const seen = new Set<string>();
  for (let request: ImageRequest | undefined = first; request !== undefined;) {
    const { name } = request;
    if (seen.has(name) || chain.length === MAX_CHAIN_LENGTH) {
      throw new CliError(`Backing file '${name}' creates an infinite loop.`);
    }
    seen.add(name);
    const shown = readImage(context, request);
    chain.push(shown);
    const { fullBackingName: next } = shown;
    request = followChain && next !== undefined
      ? { name: next, format: shown.qcow2?.backingFormat, forceShare: first.forceShare ?? false }
      : undefined;
  }
  return chain;
}

function readImage(context: Context, request: ImageRequest): NamedInfo {
  using node = findImage(context, { ...request, backing: false });
  const { type, format, filename } = node;
  // The file is locked already.
  const shown = openingImage(request, () => node.opening(() => imageInfo(node.file, { format: type, lock: false })));
  const backingFile = shown.qcow2?.backingFile;
  const full = backingFile === undefined ? {} : { fullBackingName: fullBackingName(node.file.name, backingFile) };
  return { ...shown, path: filename, formatName: format, ...full };
}
