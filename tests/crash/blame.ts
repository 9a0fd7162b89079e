/**
 * Says which rule of the flush order a state breaks: what was kept although something it builds upon was lost.
 *
 * @module
 */

import { decodeHeader } from "../../lib/format/header.ts";
import { COMPRESSED_FLAG, entryOffset, refcountTableEntryOffset } from "../../lib/format/table_entries.ts";
import { viewOf } from "../../lib/format/uint64.ts";
import { SECTOR_SIZE } from "./flat_file.ts";
import type { Change } from "./recorder.ts";
import type { CrashState, Kept } from "./states.ts";

/** What a host cluster is for. */
export type Role = "header" | "refcount table" | "refcount block" | "L1 table" | "L2 table" | "data";

/** One of the five rules, or why none fits: a flush that promised too much, or an image that is wrong even when all is kept. */
export type Verdict = 1 | 2 | 3 | 4 | 5 | "flush" | "always" | "unknown";

/** Why a state is wrong. */
export interface Blame {
  /** The rule that is broken. */
  readonly verdict: Verdict;
  /** In words: what is kept, and what is missing. */
  readonly explanation: string;
}

/**
 * What the clusters of an image are for, as far as its tables say.
 *
 * @param content The bytes of the file.
 * @returns A role for each cluster that is referred to, by its index.
 */
export function rolesOf(content: Uint8Array): Map<number, Role> {
  const roles = new Map<number, Role>();
  const view = viewOf(content);
  try {
    const header = decodeHeader(content.subarray(0, Math.min(content.length, 1 << 21)));
    const clusterSize = 2 ** header.clusterBits;
    const note = (offset: number, length: number, role: Role): void => {
      for (let cluster = Math.floor(offset / clusterSize); cluster * clusterSize < offset + length; cluster++) {
        if (!roles.has(cluster)) roles.set(cluster, role);
      }
    };
    const entries = function* (offset: number, length: number): Generator<[upper: number, lower: number]> {
      for (let position = offset; position + 8 <= Math.min(offset + length, content.length); position += 8) {
        yield [view.getUint32(position), view.getUint32(position + 4)];
      }
    };
    const refcountTableLength = header.refcountTableClusterCount * clusterSize;
    note(0, clusterSize, "header");
    note(header.refcountTableOffset, refcountTableLength, "refcount table");
    note(header.l1TableOffset, header.l1EntryCount * 8, "L1 table");
    for (const [upper, lower] of entries(header.refcountTableOffset, refcountTableLength)) {
      const offset = refcountTableEntryOffset(upper, lower);
      if (offset !== 0) note(offset, clusterSize, "refcount block");
    }
    const tables: number[] = [];
    for (const [upper, lower] of entries(header.l1TableOffset, header.l1EntryCount * 8)) {
      const offset = entryOffset(upper, lower);
      if (offset !== 0) tables.push(offset);
    }
    for (const offset of tables) note(offset, clusterSize, "L2 table");
    for (const table of tables) {
      for (const [upper, lower] of entries(table, clusterSize)) {
        const offset = entryOffset(upper, lower);
        if (offset !== 0 && (upper & COMPRESSED_FLAG) === 0) note(offset, clusterSize, "data");
      }
    }
  } catch {
    // An image that cannot be read has no roles to give.
  }
  return roles;
}

/**
 * Finds out why a state is wrong: keeps more and more of what it lacks, as long as it stays wrong. What is left is what must
 * not be missing; and what must not be there without it is found by taking things away.
 *
 * @param changes What was done since the last sync.
 * @param state The state.
 * @param isWrong Whether a state is wrong.
 * @param roles What the cluster at a host offset is for.
 */
export function blame(
  changes: readonly Change[],
  state: CrashState,
  isWrong: (state: CrashState) => boolean,
  roles: (hostOffset: number) => Role,
): Blame {
  const wrong = (kept: readonly Kept[]): boolean => isWrong({ kept, keepsLength: state.keepsLength });
  if (wrong(changes.map(() => true))) return { verdict: "always", explanation: "wrong even when everything is kept" };
  if (!wrong(state.kept)) return { verdict: "unknown", explanation: "seen only after more was done to the state" };
  const kept = [...state.kept];
  tryEach(kept, true, wrong);
  const missing = kept.flatMap((flag, index) => flag === true ? [] : [index]);
  // Taking away what the missing parts are needed for mends the state.
  let present = kept.flatMap((flag, index) => flag === true && !wrong(kept.with(index, false)) ? [index] : []);
  if (present.length === 0) {
    tryEach(kept, false, wrong);
    present = kept.flatMap((flag, index) => flag === true ? [index] : []);
  }
  const rolesAt = (indexes: readonly number[]): Set<Role> =>
    new Set(indexes.map((index) => roles((changes[index]?.firstSector ?? 0) * SECTOR_SIZE)));
  return {
    verdict: verdictOf(rolesAt(present), rolesAt(missing)),
    explanation: `keeps ${nameRoles(rolesAt(present))} without ${nameRoles(rolesAt(missing))}`,
  };
}

/** Keeps, or drops, one change after the other as long as the state stays wrong. */
function tryEach(kept: Kept[], flag: boolean, wrong: (kept: readonly Kept[]) => boolean): void {
  for (let index = 0; index < kept.length; index++) {
    if (kept[index] !== flag && wrong(kept.with(index, flag))) kept[index] = flag;
  }
}

function verdictOf(present: ReadonlySet<Role>, missing: ReadonlySet<Role>): Verdict {
  const linked = present.has("L1 table") || present.has("L2 table");
  if (missing.has("refcount block") || missing.has("refcount table")) {
    if (present.has("header") || (present.has("refcount table") && missing.has("refcount block"))) return 2;
    if (linked) return 1;
  }
  if (missing.has("L2 table") && (present.has("L1 table") || present.has("header"))) return 3;
  if (missing.has("L1 table") && present.has("header")) return 3;
  if (missing.has("data") && linked) return 4;
  if (missing.has("L2 table") || missing.has("L1 table") || missing.has("header")) {
    if (present.has("refcount block") || present.has("data")) return 5;
  }
  return present.size === 0 ? "flush" : "unknown";
}

function nameRoles(roles: ReadonlySet<Role>): string {
  return roles.size === 0 ? "nothing" : [...roles].map((role) => role === "data" ? role : `the ${role}`).join(" and ");
}
