/**
 * `inspect`: shows an image at a glance, and judges images that come from strangers.
 *
 * @module
 */

import { inspectImage, type Inspection, type InspectOptions } from "../operations/inspect.ts";
import { judgeUntrustedImage } from "../operations/untrusted.ts";
import { type Arguments, parseArguments } from "./arguments.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import type { Context } from "./console.ts";
import { ConversionTarget } from "./conversion_target.ts";
import { causedBy, CliError, explainCreateError, explainOpenError, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { imageTypeNamed } from "./drivers.ts";
import { findImage, imageRequest, openingImage } from "./image_files.ts";
import { pathOfImage } from "./image_names.ts";
import { writeInspectionPage } from "./inspect_html.ts";
import { inspectionToJson, verdictToJson } from "./inspect_json.ts";
import { drawInspection } from "./inspect_svg.ts";
import { formatInspection } from "./inspect_text.ts";
import { formatJson } from "./json.ts";
import { outputFormatOf } from "./output_format.ts";
import { readSecrets } from "./secrets.ts";
import { parseSizeArgument } from "./sizes.ts";

/** For what is no terminal. */
const DEFAULT_WIDTH = 80;
const REFUSED = 2;

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `inspect`.
 * @returns The exit status: 2 where an untrusted image must be refused.
 * @throws {CliError} Where it fails.
 */
export function inspect(context: Context, args: readonly string[]): number {
  const parsed = parseArguments("inspect", args, COMMAND_OPTIONS.inspect);
  if (parsed.has("help")) {
    context.console.out(commandHelp("inspect", context.programName));
    return 0;
  }
  const output = outputFormatOf(parsed);
  const [name, ...others] = parsed.operands;
  if (name === undefined || others.length > 0) throw new UsageError("Expecting one image file name");
  if (parsed.has("untrusted")) return judge(context, name, parsed);
  if (parsed.has("max-size")) throw new UsageError("--max-size goes together with --untrusted only");
  const limit = parsed.last("max-tables");
  const options: InspectOptions = {
    lock: !parsed.has("force-share"),
    backing: parsed.has("no-backing") ? "refuse" : "allow",
    ...(limit === undefined ? {} : { maxTableLength: Number(parseSizeArgument("maximum length of tables", limit)) }),
  };
  readSecrets(parsed.all("object"));

  const request = imageRequest(parsed, name);
  using node = findImage(context, request);
  const { file, filename: path, type: format } = node;
  const inspection = openingImage(request, () => node.opening(() => inspectImage(file, { ...options, format })));
  writePicture(parsed.last("svg"), inspection, path, drawInspection);
  writePicture(parsed.last("html"), inspection, path, writeInspectionPage);
  if (output === "json") {
    context.console.out(`${formatJson(inspectionToJson(path, inspection))}\n`);
  } else {
    const { stdoutColumns } = context.console;
    const terminal = { width: stdoutColumns ?? DEFAULT_WIDTH, color: stdoutColumns !== undefined && !Deno.noColor };
    context.console.out(formatInspection(path, inspection, terminal));
  }
  return 0;
}

/** Nothing is probed, guessed or opened besides the one file. */
function judge(context: Context, name: string, parsed: Arguments): number {
  for (const other of ["svg", "html", "image-opts", "max-tables"]) {
    if (parsed.has(other)) throw new UsageError(`--${other} does not go together with --untrusted`);
  }
  const declared = parsed.last("format");
  const limit = parsed.last("max-size");
  const [path, verdict] = openingImage({ name }, () => {
    const path = pathOfImage(name);
    try {
      return [
        path,
        judgeUntrustedImage(path, {
          lock: !parsed.has("force-share"),
          ...(declared === undefined ? {} : { format: imageTypeNamed(declared) }),
          ...(limit === undefined ? {} : { maxVirtualSize: Number(parseSizeArgument("maximum size", limit)) }),
        }),
      ];
    } catch (error) {
      throw causedBy(error, explainOpenError(error, path, false));
    }
  });
  context.console.out(`${formatJson(verdictToJson(path, verdict))}\n`);
  return verdict.acceptable ? 0 : REFUSED;
}

/** A picture appears complete or not at all, and never in the place of the image. */
function writePicture(
  target: string | undefined,
  inspection: Inspection,
  imagePath: string,
  draw: (path: string, inspection: Inspection) => string,
): void {
  if (target === undefined) return;
  const images = inspection.chain.map(({ path }) => path);
  try {
    using place = ConversionTarget.prepare(target, images);
    const text = draw(imagePath, inspection);
    place.markCreated();
    Deno.writeTextFileSync(place.path, text, { createNew: place.createNew });
    place.complete();
  } catch (error) {
    if (error instanceof CliError) throw error;
    throw causedBy(error, explainCreateError(error, target));
  }
}
