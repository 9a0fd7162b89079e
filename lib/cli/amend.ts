/**
 * `amend`: changes what an image was created with.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { EXTENSION } from "../format/header_extensions.ts";
import { AUTOCLEAR } from "../format/feature_bits.ts";
import { extensionText, hasDataFile, hasLazyRefcounts } from "../format/header.ts";
import type { AmendOptions, AmendProgress } from "../image/amend.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { amend as amendInSlices } from "../operations/amend.ts";
import { AmendPercent } from "./amend_percent.ts";
import { type Arguments, parseArguments } from "./arguments.ts";
import { checkCacheMode } from "./common_options.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import type { Context } from "./console.ts";
import { causedBy, CliError, explainIoError, notSupported, UsageError } from "./errors.ts";
import { commandHelp } from "./help.ts";
import { checkAmendable } from "./drivers.ts";
import { imageRequest, openImage } from "./image_files.ts";
import { asksForHelp, describeAmendOptions, ImageOptions, joinOptionLists, parseOptionList } from "./image_options.ts";
import { refuseInconsistentBitmaps } from "./inconsistent_bitmaps.ts";
import { Interruption } from "./interruption.ts";
import { PercentProgress } from "./progress.ts";
import { readSecrets } from "./secrets.ts";

const SECTOR_SIZE = 512;
const REFCOUNT_BITS_V2 = 16;
const VERSIONS: Readonly<Record<string, 2 | 3>> = { "0.10": 2, v2: 2, "1.1": 3, v3: 3 };
const PROGRESS_STEP_PERCENT = 1;
const AMENDABLE: ReadonlySet<string> = new Set([
  "backing_file",
  "backing_fmt",
  "compat",
  "data_file",
  "data_file_raw",
  "lazy_refcounts",
  "refcount_bits",
  "size",
]);

/**
 * Runs the command.
 *
 * @param context Where to print.
 * @param args What follows `amend`.
 * @returns The exit status; 130 or 143 where a signal has ended it.
 * @throws {CliError} Where it fails.
 */
export async function amend(context: Context, args: readonly string[]): Promise<number> {
  const parsed = parseArguments("amend", args, COMMAND_OPTIONS.amend);
  const { console, programName } = context;
  if (parsed.has("help")) {
    console.out(commandHelp("amend", programName));
    return 0;
  }
  readSecrets(parsed.all("object"));
  const list = joinOptionLists(parsed.all("options"));
  if (list === undefined) throw new UsageError("Must specify options (-o)");
  const when = { wanted: parsed.has("progress"), quiet: parsed.has("quiet") };
  const progress = new PercentProgress(console, when, PROGRESS_STEP_PERCENT);
  try {
    return await amendNamed(context, parsed, list, progress);
  } finally {
    await progress.stop();
  }
}

async function amendNamed(
  context: Context,
  parsed: Arguments,
  list: string,
  progress: PercentProgress,
): Promise<number> {
  const formatName = parsed.last("format");
  if (formatName !== undefined && asksForHelp(list)) return describe(context, formatName);
  const [name, ...others] = parsed.operands;
  if (name === undefined || others.length > 0) throw new CliError("Expecting one image file name");
  checkCacheMode(parsed.last("cache"), "cache");
  using image = openImage(context, { ...imageRequest(parsed, name), write: true });
  const format = image instanceof Qcow2File ? "qcow2" : "raw";
  checkAmendable(format);
  if (asksForHelp(list)) return describe(context, "qcow2");
  return image instanceof Qcow2File ? await amendOpened(image, list, progress) : 0;
}

function describe(context: Context, format: string): number {
  checkAmendable(format);
  context.console.out(describeAmendOptions());
  return 0;
}

async function amendOpened(image: Qcow2File, list: string, progress: PercentProgress): Promise<number> {
  using interruption = new Interruption();
  try {
    const given = givenOptions(list);
    progress.set(0);
    try {
      await amendImage(image, amendOptions(given, image), progress, interruption.signal);
    } finally {
      // However it ended, it is over.
      if (interruption.exitCode === undefined) progress.set(100);
    }
    return 0;
  } catch (error) {
    if (interruption.exitCode !== undefined) return interruption.exitCode;
    throw error instanceof Qcow2Error ? causedBy(error, explain(error)) : error;
  } finally {
    image.close();
  }
}

async function amendImage(
  image: Qcow2File,
  options: AmendOptions,
  progress: PercentProgress,
  signal: AbortSignal,
): Promise<void> {
  if (options.size !== undefined) refuseInconsistentBitmaps(image);
  const percent = new AmendPercent(image.header, options);
  const onProgress = (told: AmendProgress): void => {
    const reached = percent.after(told);
    if (reached !== undefined) progress.set(reached);
  };
  await amendInSlices(image, { ...options, onProgress, signal });
}

/** The options of a list, and the names of those that are in it. */
interface GivenOptions {
  readonly options: ImageOptions;
  readonly given: ReadonlySet<string>;
}

function givenOptions(list: string): GivenOptions {
  const options = new ImageOptions("qcow2");
  const given = new Set<string>();
  for (const [option, value] of parseOptionList(list)) {
    if (option.startsWith("encrypt.")) throw notSupported("Encryption");
    options.set(option, value);
    if (!AMENDABLE.has(option)) {
      throw new CliError(`Invalid parameter '${option}'\nThis option is only supported for image creation`);
    }
    given.add(option);
  }
  return { options, given };
}

/** Looks at the options in QEMU's order, so that of several mistakes the same one is told. */
function amendOptions({ options, given }: GivenOptions, { header }: Qcow2File): AmendOptions {
  const text = (option: string): string | undefined => given.has(option) ? options.text(option) : undefined;
  const compat = text("compat");
  const version = compat !== undefined && Object.hasOwn(VERSIONS, compat) ? VERSIONS[compat] : undefined;
  if (compat !== undefined && version === undefined) throw new CliError(`Unknown compatibility level ${compat}`);
  const dataFile = text("data_file");
  if (dataFile !== undefined && !hasDataFile(header)) {
    throw new CliError("data-file can only be set for images that use an external data file");
  }
  const dataFileRaw = given.has("data_file_raw") ? options.isOn("data_file_raw") : undefined;
  if (dataFileRaw === true && (header.autoclearFeatures & AUTOCLEAR.rawDataFile) === 0n) {
    throw new CliError("data-file-raw cannot be set on existing images");
  }
  const refcountBits = given.has("refcount_bits") ? Number(options.number("refcount_bits")) : undefined;
  if (refcountBits !== undefined && (!Number.isInteger(Math.log2(refcountBits)) || refcountBits > 64)) {
    throw new CliError("Refcount width must be a power of two and may not exceed 64 bits");
  }
  const isVersion2 = (version ?? header.version) < 3;
  if (isVersion2 && ![undefined, 2 ** header.refcountOrder, REFCOUNT_BITS_V2].includes(refcountBits)) {
    throw new CliError(
      "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
    );
  }
  // Both have to be given, and to be what they are already.
  const isSameBacking = text("backing_file") === header.backingFile &&
    text("backing_fmt") === extensionText(header, EXTENSION.backingFormat);
  if ((given.has("backing_file") || given.has("backing_fmt")) && !isSameBacking) {
    throw new CliError("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.");
  }
  const lazyRefcounts = given.has("lazy_refcounts") ? options.isOn("lazy_refcounts") : undefined;
  if (isVersion2 && lazyRefcounts === true && !hasLazyRefcounts(header)) {
    throw new CliError(
      "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
    );
  }
  const size = given.has("size") ? Number(options.number("size")) : undefined;
  if (size !== undefined && size % SECTOR_SIZE !== 0) {
    throw new CliError(`The new size must be a multiple of ${SECTOR_SIZE}`);
  }
  return {
    shrink: true,
    ...(version === undefined ? {} : { version }),
    ...(refcountBits === undefined ? {} : { refcountBits }),
    ...(lazyRefcounts === undefined ? {} : { lazyRefcounts }),
    ...(size === undefined ? {} : { size }),
    ...(dataFile === undefined ? {} : { dataFile }),
    ...(dataFileRaw === undefined ? {} : { dataFileRaw }),
  };
}

function explain(error: Qcow2Error): string {
  if (error.code === "invalid-argument" || error.code === "unsupported" || error.code === "refcount-overflow") {
    return error.message;
  }
  if (error.code === "limit-exceeded") return "Failed to grow the L1 table: File too large";
  return `Error while amending options: ${explainIoError(error)}`;
}
