/**
 * Finds damage in an image's metadata, and mends it.
 *
 * @module
 */

import { Qcow2Error } from "../errors.ts";
import { INCOMPATIBLE } from "../format/feature_bits.ts";
import { EXTENSION } from "../format/header_extensions.ts";
import { hasExtendedL2 } from "../format/header.ts";
import { ZERO_FLAG } from "../format/table_entries.ts";
import { viewOf } from "../format/uint64.ts";
import { bitmapsAreConsistent } from "./bitmaps.ts";
import { CopiedFlagsCheck } from "./copied_flags_check.ts";
import { type CheckFinding, type FindingKind, FindingListener, Findings } from "./findings.ts";
import { type CountedReferences, countReferences } from "./host_references.ts";
import type { ImageMetadata } from "./image_metadata.ts";
import { OtherUses } from "./other_uses.ts";
import { refcountBlockCount, RefcountComparison } from "./refcount_comparison.ts";
import { rebuildRefcounts } from "./refcount_rebuild.ts";
import type { HostUse, OnReference } from "./reference_counter.ts";
import type { ReferenceCounts } from "./reference_counts.ts";
import { SnapshotTableCheck } from "./snapshot_table_check.ts";
import type { SnapshotTable } from "./snapshots.ts";
import { allAtOnce, type Progress, type Steps } from "./steps.ts";
import type { AllocationStatistics } from "./table_walk.ts";

export type { CheckFinding, FindingKind };

/** What a repair may change: `leaks` only gives clusters back that nobody uses, `all` mends refcounts and flags as well. */
export type RepairKind = "leaks" | "all";

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
  /** What could not be examined. */
  readonly checkErrors: number;
  /** Clusters of the disk. */
  readonly totalClusters: number;
  /** Where the last cluster in use ends in the host file, in bytes. */
  readonly imageEndOffset: number;
}

/**
 * Checks the metadata of an image, and mends it if asked to.
 *
 * A repair raises refcounts first, lowers them once that is durable, sets flags then, and writes the snapshot table anew last,
 * so that a crash in the middle leaves nothing worse than before. The corrupt and dirty bits are cleared where nothing is left
 * to mend.
 *
 * @param metadata The image, with nothing dirty in memory.
 * @param options What to mend, and whom to tell.
 * @returns What was found.
 * @throws {Qcow2Error} With code `limit-exceeded`, `invalid-header` or `corrupt` where the snapshot table or the bitmap
 * directory cannot be read, so that nobody can tell which clusters are in use; `corrupt` where only leaks were to be mended and
 * the refcounts have to be built anew.
 */
export function checkMetadata(metadata: ImageMetadata, options: CheckOptions = {}): CheckResult {
  return allAtOnce(checkSteps(metadata, options));
}

/**
 * The work of {@linkcode checkMetadata} in steps. A repair that is given up leaves nothing worse than before, as a crash does.
 *
 * @param metadata The image, with nothing dirty in memory.
 * @param options What to mend, and whom to tell.
 * @returns Steps, which tell of how many entries of L1 tables and of the refcount table; then what was found.
 * @throws {Qcow2Error} As {@linkcode checkMetadata} does.
 */
export function checkSteps(metadata: ImageMetadata, options: CheckOptions = {}): Steps<Progress, CheckResult> {
  return new Check(metadata, options).run();
}

/** What is built anew where it does not lie in the file. */
const REFCOUNT_STRUCTURES: readonly HostUse[] = ["refcount table", "refcount block"];

class Check {
  readonly #metadata: ImageMetadata;
  readonly #options: CheckOptions;
  readonly #listener: FindingListener;
  readonly #findings: Findings;
  /** Those of the snapshot table, which is mended last. */
  readonly #snapshotFindings: Findings;
  readonly #repairsAll: boolean;
  #done = 0;
  #total = 0;

  constructor(metadata: ImageMetadata, options: CheckOptions) {
    this.#metadata = metadata;
    this.#options = options;
    this.#listener = new FindingListener(options.onFinding);
    this.#findings = new Findings(this.#listener);
    this.#snapshotFindings = new Findings(this.#listener);
    this.#repairsAll = options.repair === "all";
  }

  *run(): Steps<Progress, CheckResult> {
    const metadata = this.#metadata;
    const { repair } = this.#options;
    if (repair !== undefined) this.#dropUntrustedBitmaps();
    const snapshots = new SnapshotTableCheck(metadata, this.#snapshotFindings, this.#repairsAll);
    const otherUses = new OtherUses(metadata, snapshots.table);
    this.#total = this.#entryCount(snapshots.table);
    const counted = yield* this.#counting(this.#count(snapshots.table, this.#repairsAll ? otherUses : undefined));
    const { statistics, highestCluster, known } = yield* this.#checkRefcounts(counted, snapshots.table);
    yield* this.#counting(new CopiedFlagsCheck(metadata, this.#findings, { repair, known, otherUses }).run());
    if (repair !== undefined) this.#clearMarks();
    // Nothing is allocated as long as a cluster may be in use that looks free.
    if (isComplete(counted)) snapshots.mend();
    const { left, fixed } = this.#findings;
    const inSnapshots = this.#snapshotFindings;
    const { clusterSize } = metadata.geometry;
    return {
      corruptions: left.corruption + inSnapshots.left.corruption,
      leaks: left.leak,
      corruptionsFixed: fixed.corruption + inSnapshots.fixed.corruption,
      leaksFixed: fixed.leak,
      checkErrors: left.error + inSnapshots.left.error,
      totalClusters: Math.ceil(metadata.diskSize / clusterSize),
      imageEndOffset: (highestCluster + 1) * clusterSize,
      ...statistics,
    };
  }

  /** How many entries are looked at: those of the active L1 table twice. */
  #entryCount({ snapshots }: SnapshotTable): number {
    const { mapping, file, geometry } = this.#metadata;
    let inactive = 0;
    for (const { l1EntryCount } of snapshots) inactive += l1EntryCount;
    const blocks = refcountBlockCount(this.#metadata, Math.ceil(file.file.size / geometry.clusterSize));
    return mapping.l1.entryCount * 2 + inactive + blocks;
  }

  /** Adds up what steps tell. */
  *#counting<Result>(steps: Steps<number, Result>): Steps<Progress, Result> {
    for (;;) {
      const step = steps.next();
      if (step.done === true) return step.value;
      this.#done += step.value;
      yield this.#progress();
    }
  }

  /** Work that nobody has reckoned with. */
  *#besides<Result>(steps: Steps<unknown, Result>): Steps<Progress, Result> {
    for (;;) {
      const step = steps.next();
      if (step.done === true) return step.value;
      yield this.#progress();
    }
  }

  /** Damage can make more of an image than it says it is. */
  #progress(): Progress {
    return { done: Math.min(this.#done, this.#total), total: this.#total };
  }

  /** Counts, and mends what it can where it is told which clusters to leave alone. */
  #count(snapshotTable: SnapshotTable, otherUses?: OtherUses): Steps<number, CountedReferences> {
    return countReferences(this.#metadata, {
      snapshotTable,
      report: (finding, times) => this.#findings.note(finding, times),
      onReference: this.#options.onReference,
      clearEntry: otherUses === undefined ? undefined : (entryAt) => this.#clearEntry(entryAt, otherUses),
      growFile: otherUses === undefined ? undefined : (size) => this.#growFile(size),
    });
  }

  /** A block that is far away is better left out of refcounts that are built anew. */
  #growFile(size: number): void {
    const { file, geometry } = this.#metadata;
    const limit = file.file.size + geometry.refcountBlockSpan;
    if (size > 2 ** 63) {
      throw new Qcow2Error("invalid-argument", `Host file would be ${size} bytes long`, {
        found: size,
        expected: "less",
      });
    }
    if (size > limit) {
      throw new Qcow2Error("limit-exceeded", `Host file would be ${size} bytes long`, {
        found: size,
        expected: `at most ${limit}`,
      });
    }
    file.truncate(size);
  }

  *#checkRefcounts(
    counted: CountedReferences,
    snapshotTable: SnapshotTable,
  ): Steps<Progress, RefcountsChecked> {
    const { repair } = this.#options;
    const comparison = new RefcountComparison(this.#metadata, counted);
    const found = new Findings(this.#listener);
    yield* this.#counting(comparison.report(found));
    const needsRebuild = counted.needsRebuild || comparison.usedClusterIsFree;
    if (needsRebuild && this.#repairsAll) {
      this.#findings.add(found);
      return yield* this.#rebuild(counted, snapshotTable);
    }
    if (needsRebuild && repair !== undefined) this.#refuseToRebuild();
    const { left } = this.#findings;
    const isWrong = left.corruption + found.left.corruption + found.left.leak > 0;
    if (repair !== undefined && isWrong) yield* this.#besides(comparison.repair(repair, this.#findings));
    else this.#findings.add(found);
    return {
      statistics: counted.statistics,
      highestCluster: comparison.highestCluster,
      known: comparison.isEqual ? counted.references : undefined,
    };
  }

  /** Builds refcounts anew, and gives what the old ones stood in back. */
  *#rebuild(counted: CountedReferences, snapshotTable: SnapshotTable): Steps<Progress, RefcountsChecked> {
    const { left, fixed } = this.#findings;
    this.#findings.tell({ kind: "note", message: "Rebuilding refcount structure", hostOffset: 48 });
    yield* this.#besides(rebuildRefcounts(this.#metadata, counted.references, isComplete(counted)));
    const before = { ...left };
    this.#findings.forget();
    const recounted = yield* this.#besides(this.#count(snapshotTable));
    fixed.corruption += Math.max(0, before.corruption - left.corruption);
    fixed.leak += Math.max(0, before.leak - left.leak);
    // That the old structures are nobody's now is not news of the image.
    const made = new Findings(this.#listener);
    const comparison = new RefcountComparison(this.#metadata, recounted);
    yield* this.#besides(comparison.repair("leaks", made));
    this.#findings.count("leak", false, made.left.leak);
    return { statistics: recounted.statistics, highestCluster: comparison.highestCluster, known: undefined };
  }

  #refuseToRebuild(): never {
    this.#findings.tell({ kind: "error", message: "ERROR need to rebuild refcount structures", hostOffset: 48 });
    throw new Qcow2Error("corrupt", "Refcounts have to be built anew, which a repair of leaks does not do", {
      offset: 48,
      expected: "a repair of all",
    });
  }

  /** Bitmaps that nobody may trust are no owners of clusters. */
  #dropUntrustedBitmaps(): void {
    const { header } = this.#metadata;
    if (bitmapsAreConsistent(header) || header.extensions.every(({ type }) => type !== EXTENSION.bitmaps)) return;
    this.#metadata.setBitmapsPointer(undefined);
  }

  /** Makes a cluster read as zeroes, or those of its parts that were allocated. */
  #clearEntry(entryAt: number, otherUses: OtherUses): boolean {
    const { file, l2Cache, geometry, header } = this.#metadata;
    if (otherUses.has("L2 table", entryAt)) return false;
    const entry = new Uint8Array(geometry.l2EntrySize);
    const view = viewOf(entry);
    if (hasExtendedL2(header)) {
      file.file.readAt(entryAt, entry);
      view.setUint32(8, view.getUint32(8) | view.getUint32(12));
      entry.fill(0, 0, 8);
      entry.fill(0, 12);
    } else {
      view.setUint32(4, ZERO_FLAG);
    }
    file.writeAt(entryAt, entry);
    // What the entry pointed to is given back after that.
    file.sync();
    l2Cache.clear();
    return true;
  }

  #clearMarks(): void {
    const inSnapshots = this.#repairsAll ? 0 : this.#snapshotFindings.left.corruption;
    const { corruption, error } = this.#findings.left;
    const { incompatibleFeatures } = this.#metadata.header;
    const cleared = incompatibleFeatures & ~(INCOMPATIBLE.corrupt | INCOMPATIBLE.dirty);
    if (corruption + error + inSnapshots > 0 || cleared === incompatibleFeatures) return;
    this.#metadata.updateHeader({ incompatibleFeatures: cleared });
  }
}

/** Whether all that is in use was counted, but for refcount structures. */
function isComplete({ leftOut }: CountedReferences): boolean {
  return [...leftOut].every((use) => REFCOUNT_STRUCTURES.includes(use));
}

/** What is known once refcounts are as right as they can be. */
interface RefcountsChecked {
  readonly statistics: AllocationStatistics;
  /** The last cluster with a refcount or a reference. */
  readonly highestCluster: number;
  /** The refcounts, as they were counted, where they are known to be right. */
  readonly known: ReferenceCounts | undefined;
}
