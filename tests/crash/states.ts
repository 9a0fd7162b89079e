/**
 * The states that a power cut can leave of what no sync has covered.
 *
 * @module
 */

import type { Random } from "../random.ts";
import { type ScratchFile, SECTOR_SIZE } from "./flat_file.ts";
import { type Change, sizeAfter } from "./recorder.ts";

/** What is kept of one change: all of its sectors, none, or a flag for each. */
export type Kept = boolean | Uint8Array;

/** One state: what is kept of each change. */
export interface CrashState {
  /** For each change. */
  readonly kept: readonly Kept[];
  /** Whether the file keeps the length that all changes give it, even where their bytes are lost. */
  readonly keepsLength: boolean;
}

/** How many states to build of one epoch. */
export interface StateLimits {
  /** The most prefixes, the most single changes, and the most with one change missing. */
  readonly listed: number;
  /** Random subsets of the changes. */
  readonly subsets: number;
  /** Random subsets of the sectors. */
  readonly torn: number;
}

/**
 * The states of one epoch: none, all, each prefix, each change alone, each change missing, then random subsets of the changes
 * and of their sectors. No subset of changes comes twice.
 *
 * @param changes What was done since the last sync.
 * @param random Where the random ones come from.
 * @param limits How many.
 */
export function* crashStates(changes: readonly Change[], random: Random, limits: StateLimits): Generator<CrashState> {
  const count = changes.length;
  const seen = new Set<string>();
  const fresh = (kept: readonly boolean[]): CrashState | undefined => {
    const key = keyOf(kept);
    if (seen.has(key)) return undefined;
    seen.add(key);
    return { kept, keepsLength: false };
  };
  const rules: ((chosen: number, index: number) => boolean)[] = [
    (chosen, index) => index < chosen,
    (chosen, index) => index === chosen,
    (chosen, index) => index !== chosen,
  ];
  for (const all of [false, true]) {
    const state = fresh(changes.map(() => all));
    if (state !== undefined) yield state;
  }
  if (count === 0) return;
  for (const rule of rules) {
    for (const chosen of sample(count, limits.listed, random)) {
      const state = fresh(changes.map((_, index) => rule(chosen, index)));
      if (state !== undefined) yield state;
    }
  }
  for (let turn = 0; turn < limits.subsets && count > 1; turn++) {
    const chance = random.pick([2, 2, 4, 8]);
    const inverted = random.oneIn(2);
    const state = fresh(changes.map(() => random.oneIn(chance) !== inverted));
    if (state !== undefined) yield state;
  }
  for (let turn = 0; turn < limits.torn; turn++) {
    const chance = random.pick([2, 3, 8]);
    const inverted = random.oneIn(2);
    const tornOnly = random.oneIn(2) ? random.below(count) : undefined;
    const kept = changes.map(({ content }, index): Kept => {
      if (tornOnly !== undefined && index !== tornOnly) return index < tornOnly;
      return Uint8Array.from({ length: content.length / SECTOR_SIZE }, () => random.oneIn(chance) === inverted ? 0 : 1);
    });
    yield { kept, keepsLength: random.oneIn(4) };
  }
}

/** Up to `limit` of the indexes below `count`, in ascending order. */
function sample(count: number, limit: number, random: Random): number[] {
  if (count <= limit) return Array.from({ length: count }, (_, index) => index);
  const chosen = new Set<number>();
  while (chosen.size < limit) chosen.add(random.below(count));
  return [...chosen].sort((a, b) => a - b);
}

function keyOf(kept: readonly boolean[]): string {
  let key = "";
  for (let start = 0; start < kept.length; start += 16) {
    let bits = 0;
    for (let index = start; index < start + 16; index++) bits = bits * 2 + (kept[index] === true ? 1 : 0);
    key += String.fromCharCode(bits);
  }
  return key;
}

/**
 * Builds a state over the durable bytes. Later changes win over earlier ones in the sectors that they share.
 *
 * @param file Holds the durable bytes; `restore()` takes the state back.
 * @param changes What was done since the last sync.
 * @param state What of it is kept.
 */
export function buildState(file: ScratchFile, changes: readonly Change[], state: CrashState): void {
  let size = file.size;
  changes.forEach((change, index) => {
    const kept = state.kept[index] ?? false;
    if (kept === false && !state.keepsLength) return;
    const { kind, firstSector, content, end } = change;
    const start = firstSector * SECTOR_SIZE;
    if (kept === true) file.writeAt(start, content);
    if (kept === true || state.keepsLength) {
      size = sizeAfter(kind, size, end);
    }
    if (typeof kept === "boolean") return;
    for (let sector = 0; sector < kept.length; sector++) {
      if (kept[sector] === 0) continue;
      const position = sector * SECTOR_SIZE;
      file.writeAt(start + position, content.subarray(position, position + SECTOR_SIZE));
      if (kind === "write") size = Math.max(size, Math.min(end, start + position + SECTOR_SIZE));
    }
    // Half of a truncate is none: the length changes as a whole.
    if (kind === "truncate" && kept[0] === 1) size = end;
  });
  // The sectors written last may reach a little beyond the end of the file.
  file.truncate(size);
}

/** A state in a few words, such as `keeps 0-3 5 7[0 2] of 9`. */
export function describeState(state: CrashState): string {
  const parts: string[] = [];
  const { kept } = state;
  for (let index = 0; index < kept.length; index++) {
    const entry = kept[index] ?? false;
    if (entry === false) continue;
    if (entry === true) {
      let last = index;
      while (kept[last + 1] === true) last++;
      parts.push(last > index ? `${index}-${last}` : `${index}`);
      index = last;
    } else {
      const sectors = [...entry].flatMap((flag, sector) => flag === 1 ? [sector] : []);
      if (sectors.length > 0) parts.push(`${index}[${sectors.join(" ")}]`);
    }
  }
  const length = state.keepsLength ? " and the length" : "";
  return `keeps ${parts.length === 0 ? "nothing" : parts.join(" ")}${length} of ${kept.length} changes`;
}
