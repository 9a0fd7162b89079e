/**
 * {@linkcode ImageNode}: an image as the command line describes it, found and locked, ready to be looked at or opened.
 *
 * Images stand above each other: a format above a file, a raw image perhaps above a part of one, a qcow2 image above its backing
 * file. A description may say of each how it is opened; where it says nothing, the image above and the first bytes decide.
 *
 * @module
 */

import type { Disk } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { allowedBacking, type BackingReference, backingReference } from "../image/backing.ts";
import { type DataFileReference, openDataFile } from "../image/data_file.ts";
import type { ImageType } from "../image/detect.ts";
import { acquireFile, lockFile } from "../image/host_file.ts";
import { realPath } from "../image/local_name.ts";
import { Qcow2File } from "../image/qcow2_file.ts";
import { RawFile } from "../image/raw_file.ts";
import { EXTENSION } from "../format/header_extensions.ts";
import type { Header } from "../format/header.ts";
import { bitmapsAreConsistent } from "../metadata/bitmaps.ts";
import { readHeader } from "../metadata/image_metadata.ts";
import { readSnapshotTable, SnapshotTableError } from "../metadata/snapshots.ts";
import type { BlockFile } from "../storage/block_file.ts";
import { BlockOptions, isJsonName, optionsOfJsonName } from "./block_options.ts";
import { type Context, report } from "./console.ts";
import { CACHE_SIZE } from "./cache_size.ts";
import { checkDriver, isFileDriver, isImageType, probeFormat } from "./drivers.ts";
import { causedBy, CliError, explainOpenError, snapshotTableHint } from "./errors.ts";
import { fullBackingName, pathOfImage } from "./image_names.ts";
import { formatJsonLine, type JsonValue } from "./json.ts";
import { takeFileOptions, takeNodeOptions, takeQcow2Options, takeRawOptions } from "./node_options.ts";
import { WindowFile } from "./window_file.ts";

/** How an image is opened, where its description does not say otherwise. */
export interface NodeRules {
  /** Whether it is written. */
  readonly write: boolean;
  /** Whether its files are locked. */
  readonly lock: boolean;
  /** Whether nobody may write to a raw image while it is read, either. */
  readonly locksRaw?: boolean | undefined;
  /** Whether its backing file is opened as well. */
  readonly backing: boolean;
  /** How far beneath the image another one is written as well; none is without it. */
  readonly writtenDepth?: number | undefined;
  /** Where to tell what should be known of it. */
  readonly context: Context;
}

/** What is known of a file or a part of one. */
interface FoundFile {
  readonly file: BlockFile;
  /** The options that lead to it, as QEMU would write them. */
  readonly description: JsonValue;
  /** The name by which it is reached without options, where there is one. */
  readonly plainName: string | undefined;
  /** Whether it is the host's file itself, so that a format above it needs no options either. */
  readonly isHostFile: boolean;
  /** Where in the host's file it begins, in bytes. */
  readonly hostOffset: number;
  /** Whether the file is still to be locked for whoever reads metadata in it. */
  readonly wantsReadLock: boolean;
}

/** An image that was found. Its file is open, and locked unless it is a raw one that is read: others may write to that. */
export class ImageNode implements Disposable {
  /** Name of the format, or of the protocol where nobody asked for a format. */
  readonly format: string;
  /** How the file is read. */
  readonly type: ImageType;
  /** The image's file. */
  readonly file: BlockFile;
  /** The name under which the image is shown. */
  readonly filename: string;
  /** Where in that file the image begins, in bytes. */
  readonly hostOffset: number;
  readonly #rules: NodeRules;
  readonly #backingOptions: BlockOptions;
  readonly #dataFileOptions: BlockOptions;
  readonly #cacheSize: number | undefined;
  readonly #beneathName: string;
  #dataFileName: string | undefined;
  #handedOver = false;

  private constructor(
    found: { readonly format: string; readonly type: ImageType; readonly own: FoundFile; readonly beneath: FoundFile },
    rules: NodeRules,
    options: {
      readonly backing: BlockOptions;
      readonly dataFile: BlockOptions;
      readonly cacheSize: number | undefined;
    },
  ) {
    this.format = found.format;
    this.type = found.type;
    this.file = found.own.file;
    this.filename = shownName(found.own);
    this.#beneathName = shownName(found.beneath);
    this.hostOffset = found.own.hostOffset;
    this.#rules = rules;
    this.#backingOptions = options.backing;
    this.#dataFileOptions = options.dataFile;
    this.#cacheSize = options.cacheSize;
  }

  /**
   * Finds an image.
   *
   * @param name Its name, where it has one.
   * @param options Its description.
   * @param rules How it is opened otherwise.
   * @returns The image.
   * @throws {CliError} Where it cannot be had, or the description makes no sense.
   */
  static find(name: string | undefined, options: BlockOptions, rules: NodeRules): ImageNode {
    const described = name !== undefined && isJsonName(name);
    const all = described ? merged(optionsOfJsonName(name), options) : options;
    const driver = driverOf(all);
    if (driver !== undefined && isFileDriver(driver)) {
      const found = findFile(described ? undefined : name, all, rules);
      if (rules.locksRaw === true) lockForReading(found);
      return new ImageNode({ format: driver, type: "raw", own: found, beneath: found }, rules, {
        backing: new BlockOptions(),
        dataFile: new BlockOptions(),
        cacheSize: undefined,
      });
    }
    return ImageNode.#findFormat(described ? undefined : name, all, driver, rules);
  }

  static #findFormat(
    name: string | undefined,
    options: BlockOptions,
    driver: string | undefined,
    rules: NodeRules,
  ): ImageNode {
    const follow = takesBacking(options, rules);
    // What the image says of itself is true of its file too.
    const effective = effectiveRules(options, rules);
    assertLocked(effective);
    const beneath = findBeneath(name, options, effective);
    if (beneath === undefined) {
      throw new CliError(
        driver === undefined ? "Must specify either driver or file" : 'A block device must be specified for "file"',
      );
    }
    try {
      const type = driver === undefined ? probed(beneath, effective) : typeOf(driver);
      takeNodeOptions(options);
      assertWritable(effective, rules);
      if (type !== "raw" || rules.locksRaw === true) lockForReading(beneath);
      const backing = follow ? backingOptionsOf(options, type) : new BlockOptions();
      const dataFile = type === "qcow2" ? options.takeNested("data-file") : new BlockOptions();
      const own = type === "raw" ? rawImage(beneath, options) : beneath;
      const header = type === "qcow2" ? headerOf(beneath, options, effective) : undefined;
      if (header !== undefined) warnOfHeader(header, rules.context);
      const cacheSize = header === undefined ? undefined : takeQcow2Options(options, header);
      if (options.size > 0) {
        throw new CliError(`Block format '${type}' does not support the option '${options.first}'`);
      }
      return new ImageNode(
        { format: type, type, own: type === "raw" ? own : described(own, type), beneath },
        { ...effective, backing: follow },
        { backing, dataFile, cacheSize },
      );
    } catch (error) {
      beneath.file.close();
      throw error;
    }
  }

  /** The name under which the file is shown that holds the image's clusters, once the disk is open. */
  get hostFilename(): string {
    return this.#dataFileName ?? this.#beneathName;
  }

  /**
   * Opens the disk that the image holds, with the files that the image names. The image's file belongs to it from then on.
   *
   * @param onBacking Called with each backing image that is found, from the top down.
   * @returns The disk.
   * @throws {CliError} Where that fails; the file is closed then.
   */
  openDisk(onBacking: (node: ImageNode) => void = () => {}): Qcow2File | RawFile {
    return this.#openInChain(onBacking, [realPath(this.file.name)]);
  }

  #openInChain(onBacking: (node: ImageNode) => void, chain: readonly string[]): Qcow2File | RawFile {
    this.#handedOver = true;
    const { write } = this.#rules;
    return this.opening(() => {
      // The file is locked already.
      if (this.type === "raw") return RawFile.open(this.file, { write, lock: false });
      const disk = Qcow2File.open(this.file, {
        write,
        lock: false,
        backing: this.#backingOf(onBacking, chain),
        dataFile: (reference) => this.#openDataFile(reference),
        cacheSize: this.#cacheSize ?? CACHE_SIZE,
        onFinding: ({ message }) => this.#rules.context.console.err(`${message}\n`),
      });
      try {
        // The engine reads the snapshot table when somebody asks for it; QEMU opens no image with a broken one.
        readSnapshotTable(this.file, disk.header);
        return disk;
      } catch (error) {
        disk.close();
        throw error;
      }
    });
  }

  /**
   * Opens the files that the image names, and nothing of its own.
   *
   * @returns The files; dispose of them.
   * @throws {CliError} Where one of them cannot be opened.
   */
  openOthers(): Disposable {
    const files = new DisposableStack();
    if (this.type === "raw") return files;
    try {
      this.opening(() => {
        const header = readHeader(this.file, { tolerant: true });
        const { name } = this.file;
        const policy = (reference: DataFileReference) => this.#openDataFile(reference);
        const { write } = this.#rules;
        files.use(openDataFile(header, name, { policy, write, lock: false }));
        const backing = this.#backingOf(() => {}, [realPath(name)]);
        const reference = backingReference(header, name);
        if (typeof backing === "object") files.use(backing);
        else if (reference !== undefined) files.use(backing(reference));
      });
    } catch (error) {
      files.dispose();
      throw error;
    }
    return files;
  }

  /**
   * Does something that opens the image, and says what went wrong the way `qemu-img` does.
   *
   * @param act What to do.
   * @returns What `act` returns.
   * @throws {CliError} Where that fails.
   */
  opening<T>(act: () => T): T {
    try {
      return act();
    } catch (error) {
      const message = explainOpenError(error, this.file.name, this.#rules.write);
      if (!(error instanceof SnapshotTableError)) throw causedBy(error, message);
      throw new CliError(message, 1, { cause: error, hint: snapshotTableHint(error) });
    }
  }

  /** Closes the file, unless it belongs to a disk. */
  [Symbol.dispose](): void {
    if (!this.#handedOver) this.file.close();
  }

  #backingOf(
    onBacking: (node: ImageNode) => void,
    chain: readonly string[],
  ): ((reference: BackingReference) => Disk | undefined) | Disk {
    if (!this.#rules.backing) return () => undefined;
    const open = (reference: BackingReference | undefined) => this.#openBacking(reference, onBacking, chain);
    if (this.#backingOptions.size === 0) return open;
    const { backingFile } = readHeader(this.file);
    if (backingFile !== undefined) return open;
    // The description gives the image a backing file that it does not name itself.
    return open(undefined);
  }

  #openBacking(
    reference: BackingReference | undefined,
    onBacking: (node: ImageNode) => void,
    chain: readonly string[],
  ): Disk {
    try {
      const options = this.#backingOptions;
      let name: string | undefined;
      if (options.get("file.filename") === undefined && reference !== undefined) {
        name = localBackingName(reference, this.file.name);
        if (reference.format !== undefined && options.get("driver") === undefined) {
          options.set("driver", reference.format);
        }
      }
      const write = chain.length === this.#rules.writtenDepth;
      const node = ImageNode.find(name, options, { ...this.#rules, write });
      try {
        // The depth of the chain, and a loop in it.
        const path = node.file.name;
        allowedBacking({ name: reference?.name ?? path, path, format: node.type }, chain);
        onBacking(node);
        return node.#openInChain(onBacking, [...chain, realPath(path)]);
      } finally {
        node[Symbol.dispose]();
      }
    } catch (error) {
      if (!(error instanceof CliError) && !(error instanceof Qcow2Error)) throw error;
      throw new CliError(`Could not open backing file: ${error.message}`);
    }
  }

  #openDataFile({ name, path, write }: DataFileReference): BlockFile {
    const options = this.#dataFileOptions;
    if (options.size === 0) {
      if (name === undefined) throw new CliError("'data-file' is required for this image");
      if (path === undefined) {
        throw new Qcow2Error("unsupported", `Data file "${name}" is no local file`, { found: name });
      }
    }
    // As QEMU does: a relative name begins where the program is run, not where the image is.
    const given = options.get("filename") === undefined ? name : undefined;
    const found = findFile(given, options, { ...this.#rules, write });
    lockForReading(found);
    this.#dataFileName = shownName(found);
    return found.file;
  }
}

/** Options given beside a JSON name stand above those in it. */
function merged(json: BlockOptions, options: BlockOptions): BlockOptions {
  return new BlockOptions([...json, ...options]);
}

function driverOf(options: BlockOptions): string | undefined {
  const driver = options.get("driver");
  if (typeof driver !== "string") return undefined;
  checkDriver(driver);
  return driver;
}

function typeOf(driver: string): ImageType {
  if (isImageType(driver)) return driver;
  throw new CliError(`Unknown driver '${driver}'`);
}

/** Whether the backing file is to be opened. */
function takesBacking(options: BlockOptions, rules: NodeRules): boolean {
  const backing = options.get("backing");
  if (backing !== null && backing !== "") return rules.backing;
  if (backing === "") {
    report(rules.context, 'warning: Use of "backing": "" is deprecated; use "backing": null instead');
  }
  options.delete("backing");
  return false;
}

/** What the options say of reading and sharing holds for everything beneath as well. */
function effectiveRules(options: BlockOptions, rules: NodeRules): NodeRules {
  const isOn = (name: string) => options.get(name) === true || options.get(name) === "on";
  return {
    ...rules,
    write: rules.write && !isOn("read-only"),
    lock: rules.lock && !isOn("force-share"),
  };
}

function assertWritable(effective: NodeRules, wanted: NodeRules): void {
  if (wanted.write && !effective.write) throw new CliError("Block node is read-only");
}

/** Nobody writes to what others may write to as well. */
function assertLocked({ write, lock }: NodeRules): void {
  if (write && !lock) throw new CliError("force-share=on can only be used with read-only images");
}

function findBeneath(name: string | undefined, options: BlockOptions, rules: NodeRules): FoundFile | undefined {
  const nested = options.takeNested("file");
  const reference = options.takeText("file");
  if (reference !== undefined) {
    throw new CliError(
      name === undefined && nested.size === 0
        ? unknownNode(reference)
        : "Cannot reference an existing block device with additional options or a new filename",
    );
  }
  if (name === undefined && nested.size === 0) return undefined;
  const driver = driverOf(nested);
  if (driver === undefined || isFileDriver(driver)) return findFile(name, nested, rules);
  if (driver !== "raw") throw new CliError(`Format '${driver}' beneath another image is not supported`);
  const effective = effectiveRules(nested, rules);
  const beneath = findBeneath(name, nested, effective);
  if (beneath === undefined) throw new CliError('A block device must be specified for "file"');
  takeNodeOptions(nested);
  const image = rawImage(beneath, nested);
  if (nested.size > 0) throw new CliError(`Block format 'raw' does not support the option '${nested.first}'`);
  return image;
}

function unknownNode(reference: string): string {
  return `Cannot find device='${reference}' nor node-name='${reference}'`;
}

/** Opens a file. */
function findFile(name: string | undefined, options: BlockOptions, rules: NodeRules): FoundFile {
  if (name !== undefined) {
    if (options.get("filename") !== undefined) {
      throw new CliError("Can't specify 'file' and 'filename' options at the same time");
    }
    options.set("filename", pathOfImage(name));
  } else if (options.get("filename") === undefined && options.get("driver") === undefined) {
    throw new CliError("Must specify either driver or file");
  }
  const effective = effectiveRules(options, rules);
  takeNodeOptions(options);
  const { filename: path = "", lock } = takeFileOptions(options);
  if (path === "") throw new CliError("The 'file' block driver requires a file name");
  let file: BlockFile;
  try {
    file = acquireFile(path, { write: effective.write, lock: effective.write && effective.lock && lock });
  } catch (error) {
    throw causedBy(error, explainOpenError(error, path, effective.write));
  }
  if (options.size > 0) {
    file.close();
    throw new CliError(`Block protocol 'file' doesn't support the option '${options.first}'`);
  }
  const description = { driver: "file", filename: path };
  const wantsReadLock = !effective.write && effective.lock && lock;
  return { file, description, plainName: path, isHostFile: true, hostOffset: 0, wantsReadLock };
}

/** Keeps writers away from a file that is read, as far as it is to be locked. Where somebody writes to it, it is closed. */
function lockForReading({ file, wantsReadLock }: FoundFile): void {
  if (!wantsReadLock) return;
  try {
    lockFile(file, false);
  } catch (error) {
    file.close();
    throw causedBy(error, explainOpenError(error, file.name, false));
  }
}

/** The part of a file that the options of a raw image say, or all of it. */
function rawImage(beneath: FoundFile, options: BlockOptions): FoundFile {
  const given = ["offset", "size"].flatMap((name) => {
    const value = options.get(name);
    return value === undefined ? [] : [[name, value] as const];
  });
  const window = takeRawOptions(options, beneath.file.size);
  const description: JsonValue = { ...Object.fromEntries(given), driver: "raw", file: beneath.description };
  const plainName = window === undefined && beneath.isHostFile ? beneath.plainName : undefined;
  if (window === undefined) return { ...beneath, description, plainName, isHostFile: false };
  return {
    file: new WindowFile(beneath.file, window.offset, window.size),
    description,
    plainName,
    isHostFile: false,
    hostOffset: beneath.hostOffset + window.offset,
    wantsReadLock: beneath.wantsReadLock,
  };
}

/** What a format above a file is called; its own offsets begin at 0. */
function described(file: FoundFile, format: string): FoundFile {
  const description = { driver: format, file: file.description };
  return { ...file, description, plainName: file.isHostFile ? file.plainName : undefined, hostOffset: 0 };
}

function shownName({ plainName, description }: FoundFile): string {
  return plainName ?? `json:${formatJsonLine(description)}`;
}

function probed(found: FoundFile, { write, context }: NodeRules): ImageType {
  const type = probeFormat(found.file);
  if (type === "raw" && write) {
    context.console.err(
      `WARNING: Image format was not specified for '${shownName(found)}' and probing guessed raw.\n` +
        "         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be " +
        "restricted.\n         Specify the 'raw' format explicitly to remove the restrictions.\n",
    );
  }
  return type;
}

/** The header of an image. Where it is broken, that is told only if the options have to go with it: `check` may get along. */
function headerOf({ file }: FoundFile, options: BlockOptions, rules: NodeRules): Header | undefined {
  try {
    return readHeader(file, { tolerant: true });
  } catch (error) {
    if (options.size > 0) throw causedBy(error, explainOpenError(error, file.name, rules.write));
    return undefined;
  }
}

/** Tells of what somebody who did not know bitmaps has left. */
function warnOfHeader(header: Header, context: Context): void {
  const hasBitmaps = header.extensions.some(({ type }) => type === EXTENSION.bitmaps);
  if (!hasBitmaps || bitmapsAreConsistent(header)) return;
  const warning = header.version === 2
    ? "This qcow2 v2 image contains bitmaps, but they may have been modified by software without persistent bitmap " +
      "support; so now these bitmaps must all be considered inconsistent"
    : "a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent";
  report(context, `warning: ${warning}`);
  context.console.err("Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix.");
}

/** Takes what the options say of the backing file. */
function backingOptionsOf(options: BlockOptions, type: ImageType): BlockOptions {
  const reference = options.takeText("backing");
  const nested = options.takeNested("backing");
  if (reference !== undefined) throw new CliError(`Could not open backing file: ${unknownNode(reference)}`);
  if (nested.size > 0 && type === "raw") throw new CliError("Driver doesn't support backing files");
  return nested;
}

/** A name that stands in an image is a local file's and nothing else. */
function localBackingName({ name, path }: BackingReference, imagePath: string): string {
  if (path !== undefined || name.startsWith("file:")) return fullBackingName(imagePath, name);
  throw new Qcow2Error("unsupported", `Backing file "${name}" is no local file`, { found: name });
}
