/**
 * L2 tables that several entries of L1 tables name.
 *
 * @module
 */

import type { NotedFinding, Report } from "./findings.ts";
import { ReferenceCounts } from "./reference_counts.ts";
import type { Steps } from "./steps.ts";

/** Looks at an L2 table, for so many ways that lead to it. */
export type TableVisitor = (tableOffset: number, times: number, report: Report) => void;

/** How {@linkcode SharedTables} are visited. */
export interface SharedTablesOptions {
  /** Looks at a table. */
  readonly visit: TableVisitor;
  /** Called with what is found. */
  readonly report: Report;
  /** Bytes in a cluster. */
  readonly clusterSize: number;
  /** Whether a table must be looked at again for the other ways that lead to it, even where all findings are known. */
  readonly countsAgain: boolean;
}

/** What was found in a table. */
interface TableFindings {
  readonly findings: readonly NotedFinding[];
  /** How often it was told again, since other entries lead there. */
  repeats: number;
}

/** The offsets in L1 entries are multiples of this, in bytes. */
const OFFSET_UNIT = 512;
/** How many findings are kept, and how often kept ones are told again in their place. */
const MAX_KEPT_FINDINGS = 1000;
/** How many tables are looked at that do not begin at a cluster: they may lie over each other in any way. */
const MAX_UNALIGNED_TABLES = 64;

/**
 * Visits each table once, or twice where several entries name it. What is found there is told as often as there are entries,
 * and in its place as long as that is not too often.
 */
export class SharedTables {
  readonly #options: SharedTablesOptions;
  readonly #seen = new ReferenceCounts();
  readonly #again = new ReferenceCounts();
  readonly #kept = new Map<number, TableFindings>();
  #unalignedLeft = MAX_UNALIGNED_TABLES;
  #keptLeft = MAX_KEPT_FINDINGS;
  #repeatsLeft = MAX_KEPT_FINDINGS;

  /** @param options How they are visited. */
  constructor(options: SharedTablesOptions) {
    this.#options = options;
  }

  /**
   * Visits the table that an entry names.
   *
   * @param offset Where it stands, in bytes: a multiple of 512.
   * @param times How many entries are like this one.
   */
  visit(offset: number, times: number): void {
    const key = offset / OFFSET_UNIT;
    if (this.#seen.get(key) > 0) {
      this.#again.add(key, times);
      this.#repeat(this.#kept.get(key), times);
      return;
    }
    if (offset % this.#options.clusterSize !== 0 && this.#unalignedLeft-- <= 0) return;
    this.#seen.add(key);
    const findings: NotedFinding[] = [];
    let isKept = true;
    this.#options.visit(offset, times, (finding, findingTimes) => {
      this.#options.report(finding, findingTimes);
      if (finding.fixed === true) return;
      if (this.#keptLeft > 0) findings.push(finding);
      else isKept = false;
      this.#keptLeft = Math.max(0, this.#keptLeft - 1);
    });
    if (isKept) this.#kept.set(key, { findings, repeats: 0 });
  }

  /**
   * Visits the tables again that several entries name, as far as that is of use.
   *
   * @returns Steps, which have no part in the entries that were visited.
   */
  *finish(): Steps<0, void> {
    const { visit, report, countsAgain } = this.#options;
    for (const key of this.#again.clusters()) {
      const times = this.#again.get(key);
      const table = this.#kept.get(key);
      if (table === undefined) {
        visit(key * OFFSET_UNIT, times, report);
        yield 0;
        continue;
      }
      const untold = times - table.repeats;
      for (const finding of untold > 0 ? table.findings : []) report(finding, untold);
      if (countsAgain) visit(key * OFFSET_UNIT, times, () => {});
      yield 0;
    }
  }

  #repeat(table: TableFindings | undefined, times: number): void {
    if (table === undefined || table.findings.length > this.#repeatsLeft) return;
    for (const finding of table.findings) this.#options.report(finding, times);
    this.#repeatsLeft -= table.findings.length;
    table.repeats += times;
  }
}
