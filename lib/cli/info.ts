/**
 * `info`: tells what an image is.
 *
 * @module
 */

import { type ImageInfo, imageInfo } from "../operations/info.ts";
import { type OptionDefinition, parseArguments } from "./arguments.ts";
import { fullBackingName } from "./backing_names.ts";
import { IMAGE_OPTIONS, refuseImageDescriptions } from "./common_options.ts";
import type { Context } from "./console.ts";
import { CliError, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { opening, resolveImage } from "./image_files.ts";
import { formatInfo, infoToJson, type NamedInfo } from "./info_format.ts";
import { formatJson } from "./json.ts";
import { OUTPUT_OPTION, outputFormatOf } from "./output_format.ts";

const OPTIONS: readonly OptionDefinition[] = [...IMAGE_OPTIONS, OUTPUT_OPTION, { name: "backing-chain" }];
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
  const parsed = parseArguments("info", args, OPTIONS);
  if (parsed.has("help")) {
    context.console.out(commandHelp("info", context.programName));
    return 0;
  }
  const output = outputFormatOf(parsed);
  const [name, ...others] = parsed.operands;
  if (name === undefined || others.length > 0) throw new UsageError("Expecting one image file name");
  refuseImageDescriptions(parsed);
  const followChain = parsed.has("backing-chain");
  const chain = readChain(name, parsed.last("format"), !parsed.has("force-share"), followChain);
  if (output === "human") {
    context.console.out(chain.map(formatInfo).join("\n"));
  } else {
    const images = chain.map(infoToJson);
    const [first] = images;
    context.console.out(`${formatJson(followChain || first === undefined ? images : first)}\n`);
  }
  return 0;
}

function readChain(name: string, format: string | undefined, lock: boolean, followChain: boolean): NamedInfo[] {
  const chain: NamedInfo[] = [];
  const seen = new Set<string>();
  for (let next: string | undefined = name; next !== undefined;) {
    if (seen.has(next) || chain.length === MAX_CHAIN_LENGTH) {
      throw new CliError(`Backing file '${next}' creates an infinite loop.`);
    }
    seen.add(next);
    const image = resolveImage(next, format);
    const shown: ImageInfo = opening(next, image.path, false, () => imageInfo(image.path, { ...image, lock }));
    const backingFile = shown.qcow2?.backingFile;
    const fullName = backingFile === undefined ? undefined : fullBackingName(image.path, backingFile);
    chain.push({ ...shown, path: image.path, ...(fullName === undefined ? {} : { fullBackingName: fullName }) });
    next = followChain ? fullName : undefined;
    format = shown.qcow2?.backingFormat;
  }
  return chain;
}
