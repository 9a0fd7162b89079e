/**
 * Writes a header whose length or extensions differ from those in the file.
 *
 * @module
 */

import { encodeHeader, type Header } from "../format/header.ts";
import { EXTENSION } from "../format/header_extensions.ts";
import type { OrderedFile } from "./ordered_file.ts";

/** What a host writes whole or not at all, in bytes. */
const SECTOR_SIZE = 512;

/**
 * Replaces the first cluster and makes it durable.
 *
 * A crash may keep any of its sectors. So the first write is one sector that needs no other: the header without the feature
 * name table, which is there for people. Then come the other sectors, which nothing refers to, and the first one again.
 *
 * ```
 *   before   | old header, extensions | … names … |
 *   step 1   | header, extensions     | unused    |
 *   step 2   | header, extensions     | … names … |   not referred to yet
 *   step 3   | header, extensions, names begin | … names … |
 * ```
 *
 * Only where header, extensions and name of the backing file do not fit into one sector is it a single write.
 *
 * @param file The host file.
 * @param header What to write.
 * @param onSwitched Called once the file says what the header says, be it complete or not.
 * @throws {Qcow2Error} With code `invalid-argument` where it does not fit into one cluster, `no-space` or `io`.
 */
export function writeWholeHeader(file: OrderedFile, header: Header, onSwitched: () => void): void {
  const cluster = new Uint8Array(2 ** header.clusterBits);
  cluster.set(encodeHeader(header));
  const extensions = header.extensions.filter(({ type }) => type !== EXTENSION.featureNames);
  const compact = encodeHeader({ ...header, extensions });
  if (compact.length > SECTOR_SIZE) {
    file.writeAt(0, cluster);
    onSwitched();
    file.sync();
    return;
  }
  const sector = new Uint8Array(SECTOR_SIZE);
  sector.set(compact);
  file.writeAt(0, sector);
  onSwitched();
  file.sync();
  if (cluster.length === SECTOR_SIZE) return;
  file.writeAt(SECTOR_SIZE, cluster.subarray(SECTOR_SIZE));
  file.sync();
  file.writeAt(0, cluster.subarray(0, SECTOR_SIZE));
  file.sync();
}
