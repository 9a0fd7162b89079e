/**
 * The external data file that an image names: what may be opened, where it is, and how one is made.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { AUTOCLEAR } from "../format/feature_bits.ts";
import { EXTENSION, type HeaderExtension } from "../format/header_extensions.ts";
import { extensionText, hasDataFile, type Header } from "../format/header.ts";
import { isAllZero } from "../format/zeroes.ts";
import { allAtOnce } from "../metadata/steps.ts";
import type { BlockFile } from "../storage/block_file.ts";
import { FsBlockFile } from "../storage/fs_block_file.ts";
import { acquireFile, createFile } from "./host_file.ts";
import { localPath, realPath } from "./local_name.ts";
import { type Preallocation, reserveHostRange } from "./preallocation.ts";

/** What an image says of its external data file. */
export interface DataFileReference {
  /** The name as it stands in the image; `undefined` where the image does not say. */
  readonly name: string | undefined;
  /**
   * Path of the file: a relative name begins in the folder of the image that names it. `undefined` where the name is no local
   * file's or is missing.
   */
  readonly path: string | undefined;
  /** Whether the data file is a raw image of the disk as well. */
  readonly raw: boolean;
  /** Whether the file is going to be written. */
  readonly write: boolean;
}

/**
 * Whether an external data file is opened, and how: `refuse` opens nothing, `allow` opens local files, a function opens what
 * it likes. The file that it returns belongs to the image and is closed with it.
 */
export type DataFilePolicy = "refuse" | "allow" | ((reference: DataFileReference) => BlockFile);

/** How much of a data file is looked at in one piece, in bytes. */
const READ_LENGTH = 1024 * 1024;

/** What happens to a data file that exists and holds anything but zeroes when an image is created upon it. */
export type ExistingDataFile = "refuse" | "reuse" | "overwrite";

/** How {@linkcode openDataFile} and {@linkcode createDataFile} treat the file. */
export interface DataFileOptions {
  /** Whether it may be opened, and how. */
  readonly policy: DataFilePolicy;
  /** Whether it is written. */
  readonly write: boolean;
  /** Whether to lock it: for readers shared, for a writer exclusively. */
  readonly lock: boolean;
}

/**
 * Opens the data file that an image names, where the caller allows it.
 *
 * @param header The image's header.
 * @param imagePath Path of the image, or another name where it has none.
 * @param options What is allowed.
 * @returns The file, or `undefined` where the image has no data file.
 * @throws {Qcow2Error} With code `data-file-refused` where it is not allowed, `unsupported` where the name is no local file's,
 * `corrupt` where it is the image itself, or with the codes of opening a file.
 */
export function openDataFile(header: Header, imagePath: string, options: DataFileOptions): BlockFile | undefined {
  if (!hasDataFile(header)) return undefined;
  const { policy, write, lock } = options;
  const reference = dataFileReference(header, imagePath, write);
  if (typeof policy === "function") return policy(reference);
  const name = reference.name ?? "";
  if (policy === "refuse") {
    throw new Qcow2Error(
      "data-file-refused",
      `Image has the external data file "${name}"; open it with { dataFile: "allow" } to use that file too`,
      { offset: 72, found: name },
    );
  }
  const path = allowedDataFile(reference, imagePath);
  try {
    return acquireFile(path, { write, lock });
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error;
    throw new Qcow2Error(error.code, `Cannot open data file "${name}": ${error.message}`, {
      cause: error,
      found: name,
    });
  }
}

/**
 * Makes the data file of a new image, or takes one that is there. What is there is not touched until
 * {@linkcode NewDataFile.prepare} is called.
 *
 * @param header The header of the new image.
 * @param imagePath Path of the new image, or another name where it has none.
 * @param options What is allowed; what to do with a file that holds something.
 * @returns The file, or `undefined` where the image shall have none.
 * @throws {Qcow2Error} With code `already-exists` where the file is there and holds anything but zeroes, or as
 * {@linkcode openDataFile} does.
 */
export function createDataFile(
  header: Header,
  imagePath: string,
  options: DataFileOptions & { readonly existing: ExistingDataFile },
): NewDataFile | undefined {
  if (!hasDataFile(header)) return undefined;
  const { policy, existing, lock } = options;
  const reference = dataFileReference(header, imagePath, true);
  let made: string | undefined;
  let file: BlockFile;
  if (typeof policy === "function") {
    file = policy(reference);
  } else if (policy === "refuse") {
    throw new Qcow2Error("data-file-refused", `Creating the data file "${reference.name}" is not allowed`);
  } else {
    const path = allowedDataFile(reference, imagePath);
    made = exists(path) ? undefined : path;
    file = made === undefined ? acquireFile(path, { write: true, lock }) : createFile(path, { createNew: true, lock });
  }
  try {
    if (existing === "refuse") refuseContent(file);
  } catch (error) {
    file.close();
    throw error;
  }
  return new NewDataFile(file, existing, made);
}

/** What is all zeroes, as preallocation leaves it, can be emptied without a loss. */
function refuseContent(file: BlockFile): void {
  const { name, size } = file;
  const buffer = new Uint8Array(Math.min(size, READ_LENGTH));
  for (const { offset, length } of file.dataExtents(0, size)) {
    for (let done = 0; done < length; done += buffer.length) {
      const piece = buffer.subarray(0, length - done);
      if (isAllZero(piece.subarray(0, file.readAt(offset + done, piece)))) continue;
      throw new Qcow2Error("already-exists", `Data file "${name}" exists and holds ${size} bytes`, {
        found: size,
        expected: "no file, or one of nothing but zeroes",
      });
    }
  }
}

/** The data file of an image that is being created. */
export class NewDataFile {
  /** The file. */
  readonly file: BlockFile;
  readonly #existing: ExistingDataFile;
  /** Path of the file where it did not exist before. */
  readonly #made: string | undefined;

  /**
   * @param file The file.
   * @param existing What happens to what it holds.
   * @param made Path of the file where it did not exist before.
   */
  constructor(file: BlockFile, existing: ExistingDataFile, made: string | undefined) {
    this.file = file;
    this.#existing = existing;
    this.#made = made;
  }

  /** Whether the file may hold something that is kept. */
  get keepsContent(): boolean {
    return this.#existing === "reuse";
  }

  /**
   * Gives the file its length. A longer one that is reused keeps it.
   *
   * @param size Virtual size of the image in bytes.
   * @param preallocation How much of what is added is reserved on the host.
   * @throws {Qcow2Error} With code `no-space` or `io` where the host fails.
   */
  prepare(size: number, preallocation: Preallocation): void {
    const { file } = this;
    if (!this.keepsContent) file.truncate(0);
    if (file.size < size) allAtOnce(reserveHostRange(file, file.size, size - file.size, preallocation));
  }

  /** Closes the file, and takes it away where it was made for an image that is not going to be. */
  abandon(): void {
    this.file.close();
    if (this.#made === undefined) return;
    try {
      Deno.removeSync(this.#made);
    } catch {
      // What led here is the news.
    }
  }
}

function dataFileReference(header: Header, imagePath: string, write: boolean): DataFileReference {
  const name = extensionText(header, EXTENSION.dataFile);
  const raw = (header.autoclearFeatures & AUTOCLEAR.rawDataFile) !== 0n;
  return { name, path: name === undefined ? undefined : localPath(name, imagePath), raw, write };
}

/**
 * The extensions of an image that names its data file anew.
 *
 * @param header The image's header.
 * @param name The name; an empty one leaves the image without.
 * @param imagePath Path of the image, or another name where it has none.
 * @returns The extensions.
 * @throws {Qcow2Error} With code `invalid-argument` where the name is the image's.
 */
export function withDataFileName(header: Header, name: string, imagePath: string): readonly HeaderExtension[] {
  const { extensions } = header;
  const index = extensions.findIndex(({ type }) => type === EXTENSION.dataFile);
  const others = extensions.filter(({ type }) => type !== EXTENSION.dataFile);
  if (name === "") return others;
  const path = localPath(name, imagePath);
  if (path !== undefined && realPath(path) === realPath(imagePath)) {
    throw new Qcow2Error("invalid-argument", `Data file "${name}" is the image itself`, { found: name });
  }
  return others.toSpliced(Math.max(0, index), 0, { type: EXTENSION.dataFile, data: new TextEncoder().encode(name) });
}

/**
 * What `allow` opens.
 *
 * @param reference What the image says.
 * @param imagePath Path of the image.
 * @returns Path of the file.
 * @throws {Qcow2Error} With code `unsupported` where the name is missing or no local file's, `corrupt` where it is the image's.
 */
export function allowedDataFile({ name, path }: DataFileReference, imagePath: string): string {
  if (path === undefined) {
    const problem = name === undefined ? "Image does not name its data file" : `Data file "${name}" is no local file`;
    throw new Qcow2Error("unsupported", problem, { found: name ?? "no name" });
  }
  if (realPath(path) === realPath(imagePath)) {
    throw new Qcow2Error("corrupt", `Data file "${name}" is the image itself`, { found: name ?? "" });
  }
  return path;
}

function exists(path: string): boolean {
  try {
    FsBlockFile.open(path, { writable: false }).close();
    return true;
  } catch (error) {
    if (error instanceof Qcow2Error && error.code === "not-found") return false;
    throw error;
  }
}
