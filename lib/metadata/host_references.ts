/**
 * Counts how often each host cluster is referred to, by every owner that the format knows.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { decodeBitmapsPointer, decodeEncryptionPointer, EXTENSION } from "../format/header_extensions.ts";
import { hasDataFile } from "../format/header.ts";
import { MAX_L1_TABLE_LENGTH } from "../format/limits.ts";
import type { Snapshot } from "../format/snapshot_table.ts";
import { entryOffset, hasReservedRefcountTableBits, refcountTableEntryOffset } from "../format/table_entries.ts";
import { bitmapsAreConsistent, readBitmaps } from "./bitmaps.ts";
import { type ByteRange, coverageOf, type CoveredStretch } from "./coverage.ts";
import type { Report } from "./findings.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import { PointerTable } from "./pointer_table.ts";
import { type HostUse, inWholeClusters, type OnReference } from "./reference_counter.ts";
import type { ReferenceCounts } from "./reference_counts.ts";
import type { SnapshotTable } from "./snapshots.ts";
import type { Steps } from "./steps.ts";
import { type AllocationStatistics, type Pointers, stepsOverTables, TableWalk } from "./table_walk.ts";

/** How references are counted. */
export interface CountOptions {
  /** The snapshots. */
  readonly snapshotTable: SnapshotTable;
  /** Called with each contradiction. */
  readonly report: Report;
  /** Called with what is referred to. */
  readonly onReference?: OnReference | undefined;
  /** Called where an L2 entry can only be mended by making it read as zeroes; tells whether it was. */
  readonly clearEntry?: ((entryAt: number) => boolean) | undefined;
  /** Called where a refcount block lies behind the end of the file, to make it longer. */
  readonly growFile?: ((size: number) => void) | undefined;
}

/** What {@linkcode countReferences} found. */
export interface CountedReferences {
  /** How often each host cluster is referred to. */
  readonly references: ReferenceCounts;
  /** Whether the refcount structures cannot be as they are, so that they have to be built anew. */
  readonly needsRebuild: boolean;
  /** What was left out, at least in part, since it does not lie in the file. */
  readonly leftOut: ReadonlySet<HostUse>;
  /** How many clusters the file has, those included that something refers to and that begin at its end. */
  readonly clusterCount: number;
  /** What the active map says. */
  readonly statistics: AllocationStatistics;
}

/**
 * Walks every owner of host clusters: header, active and inactive L1 and L2 tables, data and compressed clusters, snapshot
 * table, refcount structures, LUKS header, bitmaps.
 *
 * @param metadata The image; nothing in it may be dirty.
 * @param options What to count, and whom to tell.
 * @returns Steps, each of which tells how many entries of L1 tables it has done; then the references, and what was seen on the way.
 * @throws {Qcow2Error} With code `corrupt` or `limit-exceeded` where the bitmap directory cannot be read.
 */
export function* countReferences(metadata: ImageMetadata, options: CountOptions): Steps<number, CountedReferences> {
  const walk = new OwnerWalk(metadata, options);
  walk.countHeader();
  yield* walk.countActiveTables();
  yield* walk.countSnapshots();
  walk.countRefcountTable();
  walk.countEncryptionHeader();
  yield* walk.countBitmaps();
  yield* walk.countRefcountBlocks();
  return walk;
}

class OwnerWalk implements CountedReferences {
  readonly references: ReferenceCounts;
  readonly statistics: AllocationStatistics;
  needsRebuild = false;
  readonly #metadata: ImageMetadata;
  readonly #options: CountOptions;
  readonly #tables: TableWalk;

  constructor(metadata: ImageMetadata, options: CountOptions) {
    this.#metadata = metadata;
    this.#options = options;
    const { report, onReference, clearEntry } = options;
    this.#tables = new TableWalk(metadata, { report, onReference, clearEntry });
    this.references = this.#tables.counter.references;
    this.statistics = this.#tables.statistics;
  }

  get leftOut(): ReadonlySet<HostUse> {
    return this.#tables.counter.leftOut;
  }

  get clusterCount(): number {
    return this.#tables.counter.clusterCount;
  }

  countHeader(): void {
    this.#tables.counter.count("header", 0, this.#metadata.geometry.clusterSize, 0);
  }

  *countActiveTables(): Steps<number, void> {
    const { l1 } = this.#metadata.mapping;
    this.#tables.counter.count("active L1 table", l1.offset, l1.entryCount * 8, 40);
    yield* this.#tables.count([{ table: l1, times: 1 }], true);
  }

  *countSnapshots(): Steps<number, void> {
    const { header } = this.#metadata;
    const { snapshots, length } = this.#options.snapshotTable;
    if (hasDataFile(header) && snapshots.length > 0) {
      this.#options.report({ message: `ERROR ${snapshots.length} snapshots in image with data file`, hostOffset: 60 });
    }
    yield* this.#tables.count(this.#snapshotTables(snapshots), false);
    this.#tables.counter.count("snapshot table", header.snapshotTableOffset, length, 64);
  }

  /** The L1 tables of snapshots, counted; where they lie over each other, what they share is given once. */
  *#snapshotTables(snapshots: readonly Snapshot[]): Generator<Pointers> {
    const { header, geometry } = this.#metadata;
    const { counter } = this.#tables;
    const ranges: ByteRange[] = [];
    for (const snapshot of snapshots) {
      if (this.#l1Fault(snapshot) === undefined) ranges.push(l1RangeOf(snapshot));
    }
    const clusters = ranges.map((range) => inWholeClusters(range, geometry.clusterSize));
    const areApart = coverageOf(clusters).every(({ times }) => times === 1);
    for (const snapshot of snapshots) {
      const fault = this.#l1Fault(snapshot);
      if (fault !== undefined) {
        const message = `ERROR snapshot ${snapshot.id} (${snapshot.name}) ${fault}; snapshot table entry corrupted`;
        this.#options.report({ message, hostOffset: header.snapshotTableOffset });
      } else if (areApart) {
        const { offset, length } = l1RangeOf(snapshot);
        counter.count("inactive L1 table", offset, length, header.snapshotTableOffset);
        yield* this.#pointers({ offset, length, times: 1 });
      }
    }
    if (areApart) return;
    counter.countRanges("inactive L1 table", ranges, header.snapshotTableOffset);
    for (const stretch of coverageOf(ranges)) yield* this.#pointers(stretch);
  }

  /** What of a stretch of tables is in the file. */
  *#pointers({ offset, length, times }: CoveredStretch): Generator<Pointers> {
    const { file } = this.#metadata;
    const entryCount = Math.ceil(Math.min(length, file.file.size - offset) / 8);
    if (entryCount > 0) yield { table: PointerTable.read(file, offset, entryCount), times };
  }

  #l1Fault({ l1TableOffset, l1EntryCount }: Snapshot): string | undefined {
    if (l1TableOffset % this.#metadata.geometry.clusterSize !== 0) {
      return `l1_offset=0x${BigInt(l1TableOffset).toString(16)}: L1 table is not cluster aligned`;
    }
    if (l1EntryCount * 8 > MAX_L1_TABLE_LENGTH) return `l1_size=0x${l1EntryCount.toString(16)}: L1 table is too large`;
    return undefined;
  }

  countRefcountTable(): void {
    const { table } = this.#metadata.refcounts;
    const isInside = this.#tables.counter.count("refcount table", table.offset, table.bytes.length, 48);
    if (!isInside) this.needsRebuild = true;
  }

  countEncryptionHeader(): void {
    const { extensions } = this.#metadata.header;
    const encryption = extensions.find(({ type }) => type === EXTENSION.fullDiskEncryption);
    if (encryption === undefined) return;
    const { offset, length } = decodeEncryptionPointer(encryption.data);
    this.#tables.counter.count("encryption header", offset, length, 0);
  }

  /** Without the bit that says that bitmaps can be trusted there are none: their clusters are nobody's. */
  *countBitmaps(): Steps<number, void> {
    const { file, header, geometry } = this.#metadata;
    const { counter } = this.#tables;
    const extension = header.extensions.find(({ type }) => type === EXTENSION.bitmaps);
    if (extension === undefined || !bitmapsAreConsistent(header)) return;
    const { directorySize, directoryOffset } = decodeBitmapsPointer(extension.data);
    counter.count("bitmap directory", directoryOffset, directorySize, 0);
    const ranges = readBitmaps(file.file, header).map(({ tableOffset, tableEntryCount }) => ({
      offset: tableOffset,
      length: tableEntryCount * 8,
    }));
    counter.countRanges("bitmap table", ranges, directoryOffset);
    for (const stretch of coverageOf(ranges)) {
      for (const { table, times } of this.#pointers(stretch)) {
        for (let index = 0; index < table.entryCount; index++) {
          const offset = entryOffset(table.upper(index), table.lower(index));
          if (offset === 0) continue;
          counter.count("bitmap data", offset, geometry.clusterSize, table.offset + index * 8, times);
        }
        yield 0;
      }
    }
  }

  *countRefcountBlocks(): Steps<number, void> {
    const { table } = this.#metadata.refcounts;
    const steps = stepsOverTables(table.entryCount, 0, (index) => {
      this.#countRefcountEntry(table, index);
      return false;
    });
    for (const _ of steps) yield 0;
  }

  #countRefcountEntry(table: PointerTable, index: number): void {
    const lower = table.lower(index);
    const offset = refcountTableEntryOffset(table.upper(index), lower);
    const hostOffset = table.offset + index * 8;
    if (hasReservedRefcountTableBits(lower)) {
      this.#fault({ message: `ERROR refcount table entry ${index} has reserved bits set`, hostOffset });
    } else if (offset % this.#metadata.geometry.clusterSize !== 0) {
      const message = `ERROR refcount block ${index} is not cluster aligned; refcount table entry corrupted`;
      this.#fault({ message, hostOffset });
    } else if (offset !== 0) {
      this.#countRefcountBlock(index, offset, hostOffset);
    }
  }

  #countRefcountBlock(index: number, offset: number, hostOffset: number): void {
    const { clusterSize, maxRefcount } = this.#metadata.geometry;
    const { counter } = this.#tables;
    if (offset / clusterSize >= counter.clusterCount && !this.#growToBlock(index, offset, hostOffset)) return;
    if (!counter.count("refcount block", offset, clusterSize, hostOffset)) this.needsRebuild = true;
    const references = this.references.get(offset / clusterSize);
    if (references === 1) return;
    const shown = Math.min(references, maxRefcount);
    this.#fault({ message: `ERROR refcount block ${index} refcount=${shown}`, hostOffset });
  }

  /** Makes the file so long that a refcount block is inside; tells whether it is. */
  #growToBlock(index: number, offset: number, hostOffset: number): boolean {
    const { growFile, report } = this.#options;
    const fault = `refcount block ${index} is outside image`;
    if (growFile === undefined) {
      report({ message: `ERROR ${fault}`, hostOffset });
      return false;
    }
    try {
      growFile(offset + this.#metadata.geometry.clusterSize);
      report({ message: `Repairing ${fault}`, hostOffset, fixed: true });
      this.#tables.counter.noteFileSize();
      return true;
    } catch (error) {
      if (!(error instanceof Qcow2Error)) throw error;
      this.#fault({ message: `Repairing ${fault}`, hostOffset });
      report({ kind: "note", message: "ERROR could not resize image", hostOffset, cause: error });
      return false;
    }
  }

  #fault(finding: { readonly message: string; readonly hostOffset: number }): void {
    this.needsRebuild = true;
    this.#options.report(finding);
  }
}

function l1RangeOf({ l1TableOffset, l1EntryCount }: Snapshot): ByteRange {
  return { offset: l1TableOffset, length: l1EntryCount * 8 };
}
