/**
 * What is wrong with a header, in the words of `qemu-img`.
 *
 * @module
 */

import type { Qcow2Error, Qcow2ErrorCode } from "../errors.ts";

/** The fields that `qemu-img` finds fault with, by where they stand in the header, in bytes. */
const FAULTS: Readonly<Record<number, Partial<Record<Qcow2ErrorCode, string>>>> = {
  8: { "invalid-header": "Invalid backing file offset", "limit-exceeded": "Invalid backing file offset" },
  16: { "invalid-header": "Backing file name too long" },
  36: { "limit-exceeded": "Active L1 table too large", "invalid-header": "L1 table is too small" },
  40: { "invalid-header": "Active L1 table offset invalid", "limit-exceeded": "Active L1 table offset invalid" },
  48: {
    "invalid-header": "Reference count table offset invalid",
    "limit-exceeded": "Reference count table offset invalid",
  },
  56: {
    "invalid-header": "Image does not contain a reference count table",
    "limit-exceeded": "Reference count table too large",
  },
  60: { "limit-exceeded": "Snapshot table too large" },
  64: { "invalid-header": "Snapshot table offset invalid", "limit-exceeded": "Snapshot table offset invalid" },
  96: { "unsupported": "Reference count entry width too large; may not exceed 64 bits" },
};

const CLUSTER_BITS_AT = 20;
const AUTOCLEAR_AT = 88;
const HEADER_LENGTH_AT = 100;
const COMPRESSION_TYPE_AT = 104;
const MIN_HEADER_LENGTH = 104;

/**
 * Says what is wrong with a header.
 *
 * @param error What was caught.
 * @returns One line, or `undefined` where it is no fault of a header that `qemu-img` has words for.
 */
export function explainHeaderError(error: Qcow2Error): string | undefined {
  const { code, offset = -1, found, message } = error;
  switch (code) {
    case "not-qcow2":
      return "Image is not in qcow2 format";
    case "unsupported-version":
      return `Unsupported qcow2 version ${found}`;
    case "marked-corrupt":
      return "qcow2: Image is corrupt; cannot be opened read/write";
    case "unsupported":
      if (offset === CLUSTER_BITS_AT) return `Unsupported cluster size: 2^${found}`;
      if (offset === COMPRESSION_TYPE_AT) return `qcow2: unknown compression type: ${found}`;
      break;
    case "invalid-header":
      if (message.startsWith("Header extension ")) return "Header extension too large";
      if (offset === HEADER_LENGTH_AT) {
        return Number(found) < MIN_HEADER_LENGTH ? "qcow2 header too short" : "qcow2 header exceeds cluster size";
      }
      if (offset === AUTOCLEAR_AT && error.expected === "it only with an external data file") {
        return "data-file-raw requires a data file";
      }
      if (offset === COMPRESSION_TYPE_AT) {
        const wanted = String(found).endsWith("set") ? "must not" : "must";
        return `qcow2: Compression type incompatible feature bit ${wanted} be set`;
      }
      break;
  }
  return FAULTS[offset]?.[code];
}
