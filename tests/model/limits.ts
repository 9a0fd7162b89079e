/**
 * What is not done to images of some kinds. Everything that keeps a step from being taken stands here.
 *
 * @module
 */

import type { ImageKind } from "./kinds.ts";
import type { PlainDisk } from "./plain_disk.ts";

/** What changes more than bytes. */
export type Change =
  | "write compressed"
  | "create snapshot"
  | "apply snapshot"
  | "delete snapshot"
  | "add bitmap"
  | "resize"
  | "amend";

/** What there is. */
export interface State {
  /** What the image is, as it was amended. */
  readonly kind: ImageKind;
  /** What it holds. */
  readonly plain: PlainDisk;
}

interface Limit {
  readonly changes: readonly Change[];
  readonly holds: (state: State) => boolean;
}

const SNAPSHOTS: readonly Change[] = ["create snapshot", "apply snapshot", "delete snapshot"];

/** What the format or QEMU does not allow. */
const FORBIDDEN: readonly Limit[] = [
  { changes: ["write compressed", ...SNAPSHOTS], holds: ({ kind }) => kind.dataFile !== "none" },
  { changes: ["add bitmap"], holds: ({ kind }) => kind.version === 2 },
  { changes: ["resize"], holds: ({ kind, plain }) => kind.version === 2 && plain.snapshots.length > 0 },
];

/** Whether a change can be made to an image in some state. */
export function isPossible(change: Change, state: State): boolean {
  return !FORBIDDEN.some(({ changes, holds }) => changes.includes(change) && holds(state));
}
