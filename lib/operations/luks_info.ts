/**
 * What a LUKS header says of an encrypted image.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { viewOf } from "../format/uint64.ts";

/** A place for a passphrase in a LUKS header. */
export interface LuksSlot {
  /** Whether a passphrase is set. */
  readonly active: boolean;
  /** How often the passphrase is hashed; for active slots. */
  readonly iterations: number;
  /** Into how many stripes the key is split; for active slots. */
  readonly stripes: number;
  /** Where the key material stands, in bytes from the start of the LUKS header. */
  readonly keyOffset: number;
}

/** How an image is encrypted with LUKS. */
export interface LuksInfo {
  /** Cipher and key length, such as `aes-256`. */
  readonly cipherAlgorithm: string;
  /** Mode of the cipher, such as `xts`. */
  readonly cipherMode: string;
  /** How the initialization vectors are made, such as `plain64`. */
  readonly ivAlgorithm: string;
  /** The hash that makes the initialization vectors, where one does. */
  readonly ivHashAlgorithm?: string;
  /** The hash that makes keys of passphrases. */
  readonly hashAlgorithm: string;
  /** Identifier of the header. */
  readonly uuid: string;
  /** Where the payload would begin, in bytes. */
  readonly payloadOffset: number;
  /** How often the master key is hashed for its digest. */
  readonly masterKeyIterations: number;
  /** The places for passphrases. */
  readonly slots: readonly LuksSlot[];
}

/** Length in bytes of a LUKS version 1 header. */
export const LUKS_HEADER_LENGTH = 592;
const LUKS_MAGIC = "LUKS\xba\xbe";
const SECTOR_SIZE = 512;
const SLOTS_OFFSET = 208;
const SLOT_LENGTH = 48;
const SLOT_COUNT = 8;
const SLOT_ACTIVE = 0x00ac71f3;

/**
 * Decodes a LUKS version 1 header.
 *
 * @param bytes The header, {@linkcode LUKS_HEADER_LENGTH} bytes.
 * @returns What it says.
 * @throws {Qcow2Error} With code `invalid-header` where it is none.
 */
export function decodeLuksHeader(bytes: Uint8Array): LuksInfo {
  const view = viewOf(bytes);
  const magic = String.fromCharCode(...bytes.subarray(0, LUKS_MAGIC.length));
  if (bytes.length < LUKS_HEADER_LENGTH || magic !== LUKS_MAGIC || view.getUint16(6) !== 1) {
    throw new Qcow2Error("invalid-header", "LUKS header is invalid, expected one of version 1");
  }
  const cipherName = textField(bytes, 8, 32);
  const [cipherMode = "", iv = ""] = textField(bytes, 40, 32).split("-");
  const [ivAlgorithm = "", ivHashAlgorithm] = iv.split(":");
  // In this mode two keys stand behind each other.
  const keyBits = view.getUint32(108) * 8 / (cipherMode === "xts" ? 2 : 1);
  return {
    cipherAlgorithm: `${cipherName}-${keyBits}`,
    cipherMode,
    ivAlgorithm,
    ...(ivHashAlgorithm === undefined ? {} : { ivHashAlgorithm }),
    hashAlgorithm: textField(bytes, 72, 32),
    uuid: textField(bytes, 168, 40),
    payloadOffset: view.getUint32(104) * SECTOR_SIZE,
    masterKeyIterations: view.getUint32(164),
    slots: Array.from({ length: SLOT_COUNT }, (_, index) => decodeSlot(view, SLOTS_OFFSET + index * SLOT_LENGTH)),
  };
}

function decodeSlot(view: DataView, position: number): LuksSlot {
  return {
    active: view.getUint32(position) === SLOT_ACTIVE,
    iterations: view.getUint32(position + 4),
    stripes: view.getUint32(position + 44),
    keyOffset: view.getUint32(position + 40) * SECTOR_SIZE,
  };
}

function textField(bytes: Uint8Array, start: number, length: number): string {
  const field = bytes.subarray(start, start + length);
  const end = field.indexOf(0);
  return new TextDecoder().decode(end < 0 ? field : field.subarray(0, end));
}
