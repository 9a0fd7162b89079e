/**
 * Writes a header whose length or extensions differ from those in the file.
 *
 * @module
 */

import { alignUp } from "../format/geometry.ts";
import { encodeHeader, type Header, HEADER_LENGTH_V2 } from "../format/header.ts";
import { encodeHeaderExtensions, EXTENSION } from "../format/header_extensions.ts";
import { viewOf, writeUint64 } from "../format/uint64.ts";
import { VACANT_TYPE } from "./extension_area.ts";
import type { OrderedFile } from "./ordered_file.ts";

/** What a host writes whole or not at all, in bytes. */
const SECTOR_SIZE = 512;
const BACKING_NAME_POSITION = 8;

/**
 * Replaces the first cluster and makes it durable.
 *
 * A crash may keep any of its sectors. So the header goes over with a first sector that needs no other: without the feature
 * name table, which is there for people. Then come the other sectors, which nothing refers to, and the first one again.
 *
 * ```
 *   before   | old header, extensions | … names … |
 *   step 1   | header, extensions     | unused    |
 *   step 2   | header, extensions     | … names … |   not referred to yet
 *   step 3   | header, extensions, names begin | … names … |
 * ```
 *
 * Where extensions and name of the backing file do not fit into one sector, they are written behind everything first, and what
 * stands in front of them is an extension that means nothing:
 *
 * ```
 *   before   | old header, extensions …                    | unused                |
 *   step 0   | old header, extensions …                    | extensions, file name |   not referred to yet
 *   step 1   | header, vacant extension up to here ------> | extensions, file name |
 *   step 2   | header, vacant extension … extensions …     | extensions, file name |
 *   step 3   | header, extensions …                        | unused                |
 * ```
 *
 * Only where the cluster has no room for that either is it a single write.
 *
 * @param file The host file.
 * @param header What to write.
 * @throws {Qcow2Error} With code `invalid-argument` where it does not fit into one cluster, `no-space` or `io`: then the file
 * may have the old header, the new one, or the new one as one of the steps leaves it.
 */
export function writeWholeHeader(file: OrderedFile, header: Header): void {
  const cluster = new Uint8Array(2 ** header.clusterBits);
  const content = encodeHeader(header);
  cluster.set(content);
  const start = compactStart(header) ?? detour(file, header, content);
  if (start === undefined) {
    file.writeAt(0, cluster);
    file.sync();
    return;
  }
  const { sector, copy, copyOffset = cluster.length } = start;
  if (copy !== undefined) {
    file.writeAt(copyOffset, copy);
    file.sync();
  }
  file.writeAt(0, sector);
  file.sync();
  if (cluster.length === SECTOR_SIZE) return;
  file.writeAt(SECTOR_SIZE, cluster.subarray(SECTOR_SIZE, copyOffset));
  file.sync();
  file.writeAt(0, cluster.subarray(0, SECTOR_SIZE));
  file.sync();
  if (copy === undefined) return;
  file.writeAt(copyOffset, cluster.subarray(copyOffset, copyOffset + copy.length));
  file.sync();
}

/** A first sector that makes the header count, and what must be durable before. */
interface HeaderStart {
  readonly sector: Uint8Array;
  /** Extensions and name of the backing file in a place that nothing refers to yet. */
  readonly copy?: Uint8Array;
  readonly copyOffset?: number;
}

/** A header that fits into one sector once it does without the feature name table. */
function compactStart(header: Header): HeaderStart | undefined {
  const extensions = header.extensions.filter(({ type }) => type !== EXTENSION.featureNames);
  const compact = encodeHeader({ ...header, extensions });
  if (compact.length > SECTOR_SIZE) return undefined;
  const sector = new Uint8Array(SECTOR_SIZE);
  sector.set(compact);
  return { sector };
}

/** A header whose extensions stand behind everything that the first cluster holds or is going to hold. */
function detour(file: OrderedFile, header: Header, content: Uint8Array): HeaderStart | undefined {
  const old = new Uint8Array(2 ** header.clusterBits);
  file.file.readAt(0, old);
  const headerLength = header.version === 2 ? HEADER_LENGTH_V2 : viewOf(content).getUint32(100);
  const used = Math.max(content.length, old.findLastIndex((byte) => byte !== 0) + 1);
  const first = headerLength + 8;
  const copyOffset = first + alignUp(alignUp(used, SECTOR_SIZE) - first, 8);
  const copy = content.subarray(headerLength);
  if (first > SECTOR_SIZE || copyOffset + copy.length > old.length) return undefined;
  const sector = new Uint8Array(SECTOR_SIZE);
  sector.set(content.subarray(0, headerLength));
  const view = viewOf(sector);
  view.setUint32(headerLength, VACANT_TYPE);
  view.setUint32(headerLength + 4, copyOffset - first);
  if (header.backingFile !== undefined) {
    writeUint64(view, BACKING_NAME_POSITION, copyOffset + encodeHeaderExtensions(header.extensions).length);
  }
  return { sector, copy, copyOffset };
}
