/**
 * Long work in steps: between them the caller may do something else, or give the work up.
 *
 * @module
 */

/** How far an operation has come. */
export interface Progress {
  /** How much is done: in bytes of the disk, where the operation does not say otherwise. */
  readonly done: number;
  /** How much there is, in the same unit. */
  readonly total: number;
}

/**
 * Work that is done while it is asked for values, each of which tells how far it has come. A step takes some milliseconds. Where the
 * caller stops asking, what was not done yet is left undone.
 *
 * @typeParam Told What each step tells.
 * @typeParam Result What comes of the work.
 */
export type Steps<Told, Result> = Generator<Told, Result, void>;

/**
 * Does all of a work.
 *
 * @param steps The work.
 * @returns What comes of it.
 */
export function allAtOnce<Result>(steps: Steps<unknown, Result>): Result {
  for (;;) {
    const step = steps.next();
    if (step.done === true) return step.value;
  }
}
