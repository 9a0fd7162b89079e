/**
 * How often ranges cover what they cover.
 *
 * @module
 */

/** A range of bytes. */
export interface ByteRange {
  /** Where it begins. */
  readonly offset: number;
  /** Its length. */
  readonly length: number;
}

/** A stretch that the same number of ranges cover. */
export interface CoveredStretch extends ByteRange {
  /** How many ranges cover it. */
  readonly times: number;
}

/**
 * Cuts ranges that may overlap into stretches that do not, so that what many ranges share is looked at once.
 *
 * ```
 *   ranges       |------------|
 *                     |------------|
 *   stretches    |  1 |   2   |  1 |
 * ```
 *
 * @param ranges The ranges, in any order.
 * @returns What they cover, in ascending order.
 */
export function coverageOf(ranges: readonly ByteRange[]): CoveredStretch[] {
  const changes = new Map<number, number>();
  for (const { offset, length } of ranges) {
    changes.set(offset, (changes.get(offset) ?? 0) + 1);
    changes.set(offset + length, (changes.get(offset + length) ?? 0) - 1);
  }
  const stretches: CoveredStretch[] = [];
  let times = 0;
  let start = 0;
  for (const [position, change] of [...changes].sort(([a], [b]) => a - b)) {
    if (times > 0) stretches.push({ offset: start, length: position - start, times });
    times += change;
    start = position;
  }
  return stretches;
}
