/**
 * Header extensions: what stands between the header and the name of the backing file.
 *
 * @module
 */

import { hex, Qcow2Error } from "../errors.ts";
import { readUint64, viewOf, writeUint64 } from "./uint64.ts";

/** The types of the extensions that the format defines. */
export const EXTENSION = {
  /** Ends the list. */
  end: 0,
  /** The format of the backing file, such as `qcow2`. */
  backingFormat: 0xe2792aca,
  /** The feature name table. */
  featureNames: 0x6803f857,
  /** Where the bitmap directory stands. */
  bitmaps: 0x23852875,
  /** Where the LUKS header stands. */
  fullDiskEncryption: 0x0537be77,
  /** The name of the external data file. */
  dataFile: 0x44415441,
} as const;

/** One extension; its data is kept byte for byte, whether its type is known or not. */
export interface HeaderExtension {
  /** The type, 32 bits. */
  readonly type: number;
  /** The data, without padding. */
  readonly data: Uint8Array;
}

/** Where the bitmap directory stands, from the bitmaps extension. */
export interface BitmapsPointer {
  /** How many bitmaps there are. */
  readonly count: number;
  /** Length of the directory in bytes. */
  readonly directorySize: number;
  /** Host offset of the directory in bytes. */
  readonly directoryOffset: number;
}

/** Where the LUKS header stands, from the full disk encryption extension. */
export interface EncryptionPointer {
  /** Host offset in bytes. */
  readonly offset: number;
  /** Length in bytes. */
  readonly length: number;
}

const EXTENSION_HEAD_LENGTH = 8;
/** The types that may be there once only. QEMU takes of several formats of the backing file the last one, and so do we. */
const UNIQUE_TYPES: ReadonlySet<number> = new Set(
  Object.values(EXTENSION).filter((type) => type !== EXTENSION.backingFormat),
);

/**
 * Decodes the list of extensions.
 *
 * @param bytes The area they may fill, which begins right after the header and ends where the backing file's name begins, or
 * with the first cluster.
 * @param areaOffset Offset of the area in the file, for error messages.
 * @returns The extensions in their order, without the end mark.
 * @throws {Qcow2Error} With code `invalid-header` where an extension runs past the area or a known type comes twice, unless it is
 * the format of the backing file.
 */
export function decodeHeaderExtensions(bytes: Uint8Array, areaOffset: number): HeaderExtension[] {
  const view = viewOf(bytes);
  const extensions: HeaderExtension[] = [];
  const seen = new Set<number>();
  let position = 0;
  while (position + EXTENSION_HEAD_LENGTH <= bytes.length) {
    const type = view.getUint32(position);
    const length = view.getUint32(position + 4);
    if (type === EXTENSION.end) break;
    const start = position + EXTENSION_HEAD_LENGTH;
    if (length > bytes.length - start) {
      throw new Qcow2Error(
        "invalid-header",
        `Header extension ${hex(type)} is ${length} bytes long, expected at most ${bytes.length - start}`,
        { offset: areaOffset + position, found: length, expected: `at most ${bytes.length - start}` },
      );
    }
    if (UNIQUE_TYPES.has(type) && seen.has(type)) {
      throw new Qcow2Error("invalid-header", `Header extension ${hex(type)} is there twice, expected once`, {
        offset: areaOffset + position,
        found: 2,
        expected: 1,
      });
    }
    seen.add(type);
    extensions.push({ type, data: bytes.slice(start, start + length) });
    position = start + paddedLength(length);
  }
  return extensions;
}

/**
 * Encodes the list of extensions with its end mark.
 *
 * @param extensions What to write, in this order.
 * @returns The bytes, a multiple of 8.
 */
export function encodeHeaderExtensions(extensions: readonly HeaderExtension[]): Uint8Array<ArrayBuffer> {
  let length = EXTENSION_HEAD_LENGTH;
  for (const { data } of extensions) length += EXTENSION_HEAD_LENGTH + paddedLength(data.length);
  const bytes = new Uint8Array(length);
  const view = viewOf(bytes);
  let position = 0;
  for (const { type, data } of extensions) {
    view.setUint32(position, type);
    view.setUint32(position + 4, data.length);
    bytes.set(data, position + EXTENSION_HEAD_LENGTH);
    position += EXTENSION_HEAD_LENGTH + paddedLength(data.length);
  }
  return bytes;
}

/**
 * Decodes the bitmaps extension.
 *
 * @param data The extension's data.
 * @returns Where the bitmap directory stands.
 * @throws {Qcow2Error} With code `invalid-header` where it is not 24 bytes long or counts no bitmap.
 */
export function decodeBitmapsPointer(data: Uint8Array): BitmapsPointer {
  const view = expectLength(data, 24, "Bitmaps extension");
  const count = view.getUint32(0);
  if (count === 0) {
    throw new Qcow2Error("invalid-header", "Bitmaps extension counts 0 bitmaps, expected at least 1", { found: 0 });
  }
  return {
    count,
    directorySize: readUint64(view, 8, "Bitmap directory size"),
    directoryOffset: readUint64(view, 16, "Bitmap directory offset"),
  };
}

/**
 * Encodes the bitmaps extension.
 *
 * @param pointer Where the bitmap directory stands.
 * @returns The extension.
 */
export function encodeBitmapsPointer(pointer: BitmapsPointer): HeaderExtension {
  const data = new Uint8Array(24);
  const view = viewOf(data);
  view.setUint32(0, pointer.count);
  writeUint64(view, 8, pointer.directorySize);
  writeUint64(view, 16, pointer.directoryOffset);
  return { type: EXTENSION.bitmaps, data };
}

/**
 * Decodes the full disk encryption extension.
 *
 * @param data The extension's data.
 * @returns Where the LUKS header stands.
 * @throws {Qcow2Error} With code `invalid-header` where it is not 16 bytes long.
 */
export function decodeEncryptionPointer(data: Uint8Array): EncryptionPointer {
  const view = expectLength(data, 16, "Full disk encryption extension");
  return { offset: readUint64(view, 0, "LUKS header offset"), length: readUint64(view, 8, "LUKS header length") };
}

function expectLength(data: Uint8Array, expected: number, name: string): DataView {
  if (data.length !== expected) {
    throw new Qcow2Error("invalid-header", `${name} is ${data.length} bytes long, expected ${expected}`, {
      found: data.length,
      expected,
    });
  }
  return viewOf(data);
}

function paddedLength(length: number): number {
  return Math.ceil(length / 8) * 8;
}
