/**
 * Finds damage in an image's metadata, and mends it.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { INCOMPATIBLE } from "../format/feature_bits.ts";
import { hasDataFile, hasExtendedL2 } from "../format/header.ts";
import { COMPRESSED_FLAG, contiguousEntryCount, COPIED_FLAG, entryOffset } from "../format/table_entries.ts";
import { viewOf } from "../format/uint64.ts";
import { type AllocationStatistics, countReferences, hexEntry, type OnReference } from "./host_references.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import { rebuildRefcounts } from "./refcount_rebuild.ts";
import { ReferenceCounts } from "./reference_counts.ts";

/** What a repair may change: `leaks` only gives clusters back that nobody uses, `all` mends refcounts and flags as well. */
export type RepairKind = "leaks" | "all";

/** One thing that is wrong with an image. */
export interface CheckFinding {
  /** `corruption` endangers data, `leak` wastes space. */
  readonly kind: "corruption" | "leak";
  /** One line for people, worded as QEMU words it. */
  readonly message: string;
  /** Where in the host file, in bytes: the cluster, or the entry that is wrong. */
  readonly hostOffset: number;
  /** Whether it was mended. */
  readonly fixed: boolean;
}

/** How an image is checked. */
export interface CheckOptions {
  /** What to mend; nothing without it. */
  readonly repair?: RepairKind;
  /** Called with each finding as it is found; one that a repair mends afterwards is told again, as fixed. */
  readonly onFinding?: (finding: CheckFinding) => void;
  /** Called with what refers to host clusters; what it throws ends the check before anything is mended. */
  readonly onReference?: OnReference;
}

/** What a check found. All counts leave out what was mended. */
export interface CheckResult extends Readonly<AllocationStatistics> {
  /** Contradictions that endanger data. */
  readonly corruptions: number;
  /** Clusters that nobody uses and that are not free. */
  readonly leaks: number;
  /** Corruptions that were mended. */
  readonly corruptionsFixed: number;
  /** Leaks that were mended. */
  readonly leaksFixed: number;
  /** Clusters of the disk. */
  readonly totalClusters: number;
  /** Where the last cluster in use ends in the host file, in bytes. */
  readonly imageEndOffset: number;
}

/**
 * Checks the metadata of an image, and mends it if asked to.
 *
 * A repair raises refcounts first, lowers them once that is durable, and sets flags last, so that a crash in the middle
 * leaves nothing worse than before. The corrupt and dirty bits are cleared where nothing is left to mend.
 *
 * @param metadata The image, with nothing dirty in memory.
 * @param options What to mend, and whom to tell.
 * @returns What was found.
 */
export function checkMetadata(metadata: ImageMetadata, options: CheckOptions = {}): CheckResult {
  return new Check(metadata, options).run();
}

/** How many findings are told again since more than one way leads to them. A stranger's image could have billions. */
const MAX_REPEATS = 10_000;

class Check {
  readonly #metadata: ImageMetadata;
  readonly #options: CheckOptions;
  /** Whether the refcount structures can be read. */
  #sound = true;
  /** Whether all owners are known, so that new refcount structures would be right. */
  #canRebuild = false;
  /** Whether a cluster without references is surely unused. */
  #canLower = false;
  readonly #counts = { corruption: 0, leak: 0 };
  readonly #fixed = { corruption: 0, leak: 0 };
  #repeatsLeft = MAX_REPEATS;
  readonly #table: Uint8Array<ArrayBuffer>;

  constructor(metadata: ImageMetadata, options: CheckOptions) {
    this.#metadata = metadata;
    this.#options = options;
    this.#table = new Uint8Array(metadata.geometry.clusterSize);
  }

  run(): CheckResult {
    const metadata = this.#metadata;
    const counted = countReferences(
      metadata,
      (message, hostOffset, times) => this.#note("corruption", message, hostOffset, { times }),
      this.#options.onReference,
    );
    const { references, refcountStructureFaults, complete, statistics } = counted;
    const repairAll = this.#options.repair === "all";
    this.#sound = refcountStructureFaults === 0;
    this.#canRebuild = repairAll && complete;
    this.#canLower = complete && (this.#sound || this.#canRebuild);
    const differences = this.#compareRefcounts(references);
    let highest = differences.highestCluster;
    if (this.#canRebuild && (!this.#sound || differences.usedClusterIsFree)) {
      for (const cluster of counted.refcountStructureClusters) references.remove(cluster);
      highest = rebuildRefcounts(metadata, references);
      this.#sound = true;
      this.#counts.corruption -= refcountStructureFaults;
      this.#fixed.corruption += refcountStructureFaults;
      for (const difference of [...differences.raise, ...differences.lower]) this.#noteRepair(difference);
    } else {
      this.#applyRefcounts(differences);
    }
    // Without refcounts to compare with, the flags say nothing.
    if (this.#sound) this.#checkCopiedFlags(differences.count === 0 ? references : undefined);
    this.#clearMarks();
    const { clusterSize } = metadata.geometry;
    return {
      corruptions: this.#counts.corruption,
      leaks: this.#counts.leak,
      corruptionsFixed: this.#fixed.corruption,
      leaksFixed: this.#fixed.leak,
      totalClusters: Math.ceil(metadata.diskSize / clusterSize),
      imageEndOffset: (highest + 1) * clusterSize,
      ...statistics,
    };
  }

  /** Counts a finding, and tells it as often as there are ways that lead to it. */
  #note(
    kind: "corruption" | "leak",
    message: string,
    hostOffset: number,
    { fixed = false, times = 1 }: { readonly fixed?: boolean; readonly times?: number } = {},
  ): void {
    (fixed ? this.#fixed : this.#counts)[kind] += times;
    const finding = { kind, message, hostOffset, fixed };
    this.#options.onFinding?.(finding);
    for (let repeats = 1; repeats < times && this.#repeatsLeft > 0; repeats++) {
      this.#options.onFinding?.(finding);
      this.#repeatsLeft--;
    }
  }

  /** Tells of a refcount again that was wrong and is right now. */
  #noteRepair({ kind, cluster, refcount, reference }: RefcountDifference): void {
    this.#counts[kind]--;
    const message = `Repairing cluster ${cluster} refcount=${refcount} reference=${reference}`;
    this.#note(kind, message, cluster * this.#metadata.geometry.clusterSize, { fixed: true });
  }

  /** Compares what is stored with what was counted, for every cluster that either side knows of. */
  #compareRefcounts(references: ReferenceCounts): RefcountDifferences {
    const { repair } = this.#options;
    const { refcounts } = this.#metadata;
    const differences: RefcountDifferences = {
      count: 0,
      raise: [],
      lower: [],
      usedClusterIsFree: false,
      highestCluster: 0,
    };
    const note = (cluster: number, refcount: number, reference: number): void => {
      differences.count++;
      const isLeak = refcount > reference;
      const kind = isLeak ? "leak" : "corruption";
      if (refcount === 0) differences.usedClusterIsFree = true;
      const shown = refcount === 0 ? "0" : this.#metadata.refcounts.textOf(cluster);
      this.#note(
        kind,
        `${isLeak ? "Leaked" : "ERROR"} cluster ${cluster} refcount=${shown} reference=${reference}`,
        cluster * this.#metadata.geometry.clusterSize,
      );
      // Without a rebuild a refcount can only be raised where it has a block already.
      const canFix = isLeak
        ? repair !== undefined && this.#canLower
        : this.#canRebuild || (repair === "all" && this.#sound && refcount > 0);
      if (canFix) differences[isLeak ? "lower" : "raise"].push({ kind, cluster, refcount: shown, reference });
    };
    const referenceBuffer = new Float64Array(refcounts.clustersPerSlice);
    const refcountBuffer = new Float64Array(refcounts.clustersPerSlice);
    for (const { first, count, referencedOnly } of stretchesToCompare(this.#metadata, references, this.#sound)) {
      const referenced = referenceBuffer.subarray(0, count);
      const stored = refcountBuffer.subarray(0, count);
      references.read(first, referenced);
      if (this.#sound) refcounts.read(first, stored);
      else {stored.forEach((_, index) =>
          stored[index] = this.#hasUsableBlock(first + index) ? refcounts.get(first + index) : 0
        );}
      for (let index = 0; index < count; index++) {
        const refcount = stored[index] ?? 0;
        const reference = referenced[index] ?? 0;
        if (reference === 0 && (refcount === 0 || referencedOnly)) continue;
        differences.highestCluster = Math.max(differences.highestCluster, first + index);
        if (refcount !== reference) note(first + index, refcount, reference);
      }
    }
    return differences;
  }

  #hasUsableBlock(cluster: number): boolean {
    const { refcounts, geometry, file } = this.#metadata;
    try {
      const offset = refcounts.blockOffset(Math.floor(cluster / geometry.refcountBlockEntryCount));
      return offset !== 0 && offset < file.file.size;
    } catch {
      return false;
    }
  }

  #applyRefcounts({ raise, lower }: RefcountDifferences): void {
    const metadata = this.#metadata;
    for (const changes of [raise, lower]) {
      if (changes.length === 0) continue;
      for (const { cluster, reference } of changes) metadata.refcounts.set(cluster, reference);
      metadata.flush();
      for (const change of changes) this.#noteRepair(change);
    }
    if (raise.length + lower.length > 0) metadata.reset();
  }

  /**
   * The COPIED flag of active entries must say whether the refcount is exactly one.
   *
   * @param refcountsKnown All refcounts, as they were counted, where they are known to be right.
   */
  #checkCopiedFlags(refcountsKnown: ReferenceCounts | undefined): void {
    const { mapping, geometry, refcounts, file } = this.#metadata;
    // After leaks were mended, flags may be wrong that were right before. Where refcounts are all right now, they can be trusted.
    const trusted = this.#options.repair === "leaks" && this.#counts.corruption === 0 && this.#counts.leak === 0;
    const repairing = this.#options.repair === "all" || trusted;
    const seen = new ReferenceCounts();
    const again = new ReferenceCounts();
    for (let l1Index = 0; l1Index < mapping.l1.entryCount; l1Index++) {
      const upper = mapping.l1.upper(l1Index);
      const lower = mapping.l1.lower(l1Index);
      const tableOffset = entryOffset(upper, lower);
      if (tableOffset === 0 || tableOffset % geometry.clusterSize !== 0 || tableOffset >= file.file.size) continue;
      const refcount = refcounts.get(tableOffset / geometry.clusterSize);
      if ((refcount === 1) !== ((upper & COPIED_FLAG) !== 0)) {
        this.#note(
          "corruption",
          `${repairing ? "Repairing" : "ERROR"} OFLAG_COPIED L2 cluster: l1_index=${l1Index} l1_entry=${
            hexEntry(upper, lower)
          } refcount=${refcounts.textOf(tableOffset / geometry.clusterSize)}`,
          mapping.l1.offset + l1Index * 8,
          { fixed: repairing },
        );
        if (repairing) mapping.l1.set(l1Index, withCopied(upper, refcount === 1), lower);
      }
      const cluster = tableOffset / geometry.clusterSize;
      if (seen.get(cluster) === 0) this.#checkCopiedFlagsOfTable(tableOffset, repairing, 1, refcountsKnown);
      else again.add(cluster);
      seen.add(cluster);
    }
    // What was mended is right when another entry leads there again.
    for (const cluster of repairing ? [] : again.clusters()) {
      this.#checkCopiedFlagsOfTable(cluster * geometry.clusterSize, false, again.get(cluster));
    }
    if (repairing) this.#metadata.flush();
  }

  #checkCopiedFlagsOfTable(
    tableOffset: number,
    repairing: boolean,
    times: number,
    refcountsKnown?: ReferenceCounts,
  ): void {
    const { geometry, refcounts, l2Cache, header, file } = this.#metadata;
    const table = this.#table;
    const view = viewOf(table);
    table.fill(0, file.file.readAt(tableOffset, table));
    const dataFile = hasDataFile(header);
    const canSkip = refcountsKnown !== undefined && !dataFile && !hasExtendedL2(header);
    for (let index = 0; index < geometry.l2EntryCount; index++) {
      const position = index * geometry.l2EntrySize;
      const upper = view.getUint32(position);
      const lower = view.getUint32(position + 4);
      if (canSkip && (upper & (COMPRESSED_FLAG | COPIED_FLAG)) >>> 0 === COPIED_FLAG) {
        // Most clusters stand in a row and belong to the disk alone.
        const count = contiguousEntryCount(view, index, geometry.l2EntryCount, geometry.clusterSize);
        const cluster = entryOffset(upper, lower) / geometry.clusterSize;
        if (Number.isInteger(cluster) && refcountsKnown.areAllOne(cluster, count)) {
          index += count - 1;
          continue;
        }
      }
      const offset = entryOffset(upper, lower);
      if ((upper & COMPRESSED_FLAG) !== 0 || offset === 0 || offset % geometry.clusterSize !== 0) continue;
      // Clusters of a data file have no refcounts, and belong to this disk alone.
      const cluster = offset / geometry.clusterSize;
      const refcount = dataFile ? 1 : refcounts.get(cluster);
      if ((refcount === 1) === ((upper & COPIED_FLAG) !== 0)) continue;
      this.#note(
        "corruption",
        `${repairing ? "Repairing" : "ERROR"} OFLAG_COPIED data cluster: l2_entry=${hexEntry(upper, lower)} refcount=${
          dataFile ? 1 : refcounts.textOf(cluster)
        }`,
        tableOffset + position,
        { fixed: repairing, times },
      );
      if (!repairing) continue;
      const slice = l2Cache.get(tableOffset + position - position % l2Cache.sliceSize);
      slice.view.setUint32(position % l2Cache.sliceSize, withCopied(upper, refcount === 1));
      l2Cache.markDirty(slice);
    }
  }

  #clearMarks(): void {
    const { incompatibleFeatures } = this.#metadata.header;
    const cleared = incompatibleFeatures & ~(INCOMPATIBLE.corrupt | INCOMPATIBLE.dirty);
    if (this.#options.repair !== "all" || this.#counts.corruption > 0 || cleared === incompatibleFeatures) return;
    this.#metadata.updateHeader({ incompatibleFeatures: cleared });
  }
}

interface RefcountDifference {
  readonly kind: "corruption" | "leak";
  readonly cluster: number;
  /** What is stored, to be shown. */
  readonly refcount: string;
  /** What was counted. */
  readonly reference: number;
}

interface RefcountDifferences {
  /** How many there are. */
  count: number;
  /** Refcounts that must rise, out of those that can be mended. */
  readonly raise: RefcountDifference[];
  /** Refcounts that must fall, out of those that can be mended. */
  readonly lower: RefcountDifference[];
  /** Whether a cluster in use has refcount 0, so that nothing may be allocated before all refcounts are right. */
  usedClusterIsFree: boolean;
  /** The last cluster with a refcount or a reference. */
  highestCluster: number;
}

/** Clusters in a row whose refcounts stand in one slice of a block. */
interface ClusterStretch {
  readonly first: number;
  readonly count: number;
  /** Whether only those clusters matter that have a reference. */
  readonly referencedOnly: boolean;
}

/**
 * The clusters of the file that may have a refcount, and all that have a reference, in ascending order. Not simply all of the
 * file: a sparse file can claim to be larger than any loop could count. A refcount behind the end of the file stands for
 * nothing yet, and QEMU does not look at it either.
 */
function* stretchesToCompare(
  metadata: ImageMetadata,
  references: ReferenceCounts,
  sound: boolean,
): Generator<ClusterStretch> {
  const { refcounts, geometry, file } = metadata;
  const { clustersPerSlice: length } = refcounts;
  const perBlock = geometry.refcountBlockEntryCount;
  const fileClusterCount = Math.ceil(file.file.size / geometry.clusterSize);
  const blocks = new Set<number>();
  const referenced = references.stretches(length);
  let next = referenced.next();
  for (let block = 0; block < refcounts.table.entryCount && block * perBlock < fileClusterCount; block++) {
    if (!sound && !isUsable(() => refcounts.blockOffset(block), file.file.size)) continue;
    const offset = refcounts.blockOffset(block);
    if (offset === 0 || blocks.has(offset)) continue;
    blocks.add(offset);
    for (const [first, end] of refcounts.usedStretches(block, fileClusterCount)) {
      for (; next.done !== true && next.value < first; next = referenced.next()) {
        yield { first: next.value, count: length, referencedOnly: true };
      }
      yield { first, count: end - first, referencedOnly: false };
      if (next.done === true || next.value !== first) continue;
      if (end < first + length) yield { first: end, count: first + length - end, referencedOnly: true };
      next = referenced.next();
    }
  }
  for (; next.done !== true; next = referenced.next()) {
    yield { first: next.value, count: length, referencedOnly: true };
  }
}

function isUsable(blockOffset: () => number, fileSize: number): boolean {
  try {
    return blockOffset() < fileSize;
  } catch (error) {
    if (error instanceof Qcow2Error && error.code === "corrupt") return false;
    throw error;
  }
}

function withCopied(upper: number, copied: boolean): number {
  return (copied ? upper | COPIED_FLAG : upper & ~COPIED_FLAG) >>> 0;
}
