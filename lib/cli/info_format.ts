/**
 * What `info` prints, for people and as JSON: the same words, keys and order as `qemu-img`.
 *
 * @module
 */

import type { EncryptionInfo, ImageInfo, Qcow2Info } from "../operations/info.ts";
import type { JsonValue } from "./json.ts";
import { formatSize } from "./sizes.ts";
import { formatSnapshotTable, snapshotsToJson } from "./snapshot_format.ts";

/** What is known of an image, with the names it goes by. */
export interface NamedInfo extends ImageInfo {
  /** The name under which it is shown. */
  readonly path: string;
  /** Name of its format, or of the protocol where no format was asked for. */
  readonly formatName: string;
  /** Path of the backing file, where there is one. */
  readonly fullBackingName?: string;
}

/** Values by the names under which they are shown, in order. */
type Details = { readonly [key: string]: JsonValue };

/**
 * Writes down what is known of an image, for people.
 *
 * @param info What is known.
 * @returns Lines to print.
 */
export function formatInfo(info: NamedInfo): string {
  const { virtualSize, actualSize, qcow2 } = info;
  const lines = [
    `image: ${info.path}`,
    `file format: ${info.formatName}`,
    `virtual size: ${formatSize(virtualSize)} (${virtualSize} bytes)`,
    `disk size: ${actualSize === undefined ? "unavailable" : formatSize(actualSize)}`,
  ];
  if (qcow2 !== undefined) {
    if (qcow2.encryption !== undefined) lines.push("encrypted: yes");
    lines.push(`cluster_size: ${qcow2.clusterSize}`);
    if (qcow2.dirty) lines.push("cleanly shut down: no");
    if (qcow2.backingFile !== undefined) {
      const { fullBackingName } = info;
      const isElsewhere = fullBackingName !== undefined && fullBackingName !== qcow2.backingFile;
      lines.push(`backing file: ${qcow2.backingFile}${isElsewhere ? ` (actual path: ${fullBackingName})` : ""}`);
    }
    if (qcow2.backingFormat !== undefined) lines.push(`backing file format: ${qcow2.backingFormat}`);
    if (qcow2.snapshots.length > 0) lines.push("Snapshot list:", ...formatSnapshotTable(qcow2.snapshots));
    lines.push("Format specific information:", ...formatDetails(qcow2Details(qcow2), "    "));
  }
  return lines.map((line) => `${line}\n`).join("");
}

function formatDetails(details: Details, indentation: string): string[] {
  return Object.entries(details).flatMap(([key, value]) => {
    return formatDetail(`${indentation}${key.replaceAll("-", " ")}`, value, indentation);
  });
}

function formatDetail(title: string, value: JsonValue, indentation: string): string[] {
  if (typeof value !== "object") return [`${title}: ${value}`];
  const inner = `${indentation}    `;
  const lines = Array.isArray(value)
    ? value.flatMap((item: JsonValue, index) => formatDetail(`${inner}[${index}]`, item, inner))
    : formatDetails(value as Details, inner);
  return [`${title}:`, ...lines];
}

/**
 * Turns what is known of an image into JSON.
 *
 * @param info What is known.
 * @returns An object with the keys in the order of `qemu-img`.
 */
export function infoToJson(info: NamedInfo): JsonValue {
  const { qcow2 } = info;
  return withoutUndefined({
    "backing-filename-format": qcow2?.backingFormat,
    "snapshots": qcow2 === undefined || qcow2.snapshots.length === 0 ? undefined : snapshotsToJson(qcow2.snapshots),
    "virtual-size": info.virtualSize,
    "filename": info.path,
    "cluster-size": qcow2?.clusterSize,
    "format": info.formatName,
    "actual-size": info.actualSize,
    "format-specific": qcow2 === undefined ? undefined : { "type": "qcow2", "data": qcow2Details(qcow2) },
    "full-backing-filename": info.fullBackingName,
    "encrypted": qcow2?.encryption === undefined ? undefined : true,
    "backing-filename": qcow2?.backingFile,
    "dirty-flag": qcow2?.dirty ?? false,
  });
}

/** What only qcow2 images have. Version 2 knows less of it. */
function qcow2Details(qcow2: Qcow2Info): Details {
  const isVersion3 = qcow2.version === 3;
  return withoutUndefined({
    "compat": isVersion3 ? "1.1" : "0.10",
    "compression-type": qcow2.compressionType,
    "lazy-refcounts": isVersion3 ? qcow2.lazyRefcounts : undefined,
    "bitmaps": isVersion3 && qcow2.bitmaps.length > 0 ? bitmapDetails(qcow2) : undefined,
    "refcount-bits": qcow2.refcountBits,
    "data-file": qcow2.dataFile,
    "encrypt": qcow2.encryption === undefined ? undefined : encryptionDetails(qcow2.encryption),
    "data-file-raw": qcow2.dataFile === undefined ? undefined : qcow2.dataFileRaw,
    "corrupt": isVersion3 ? qcow2.corrupt : undefined,
    "extended-l2": isVersion3 ? qcow2.extendedL2 : undefined,
  });
}

function bitmapDetails({ bitmaps }: Qcow2Info): JsonValue[] {
  return bitmaps.map(({ name, granularity, inUse, auto }) => ({
    flags: [...(inUse ? ["in-use"] : []), ...(auto ? ["auto"] : [])],
    name,
    granularity,
  }));
}

function encryptionDetails(encryption: EncryptionInfo): Details {
  if (encryption.format === "aes") return { format: "aes" };
  return withoutUndefined({
    "ivgen-alg": encryption.ivAlgorithm,
    "hash-alg": encryption.hashAlgorithm,
    "cipher-alg": encryption.cipherAlgorithm,
    "uuid": encryption.uuid,
    "ivgen-hash-alg": encryption.ivHashAlgorithm,
    "format": "luks",
    "cipher-mode": encryption.cipherMode,
    "slots": encryption.slots.map(({ active, iterations, keyOffset, stripes }) => {
      if (!active) return { "active": false, "key-offset": keyOffset };
      return { "active": true, "iters": iterations, "key-offset": keyOffset, "stripes": stripes };
    }),
    "payload-offset": encryption.payloadOffset,
    "master-key-iters": encryption.masterKeyIterations,
  });
}

function withoutUndefined(details: { readonly [key: string]: JsonValue | undefined }): Details {
  const present: Record<string, JsonValue> = {};
  for (const [key, value] of Object.entries(details)) if (value !== undefined) present[key] = value;
  return present;
}
