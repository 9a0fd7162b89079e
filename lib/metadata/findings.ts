/**
 * What a check finds: counted, and told as it is found.
 *
 * @module
 */

import type { Qcow2Error } from "../errors.ts";

/** How bad a finding is: see {@linkcode CheckFinding.kind}. */
export type FindingKind = "corruption" | "leak" | "error" | "note";

/** One thing that is wrong with an image. */
export interface CheckFinding {
  /**
   * `corruption` endangers data, `leak` wastes space, `error` is what could not be examined, and a `note` tells what a repair
   * is about to do.
   */
  readonly kind: FindingKind;
  /** One line for people, worded as QEMU words it. */
  readonly message: string;
  /** Where in the host file, in bytes: the cluster, or the entry that is wrong. */
  readonly hostOffset: number;
  /** Whether it was mended. */
  readonly fixed: boolean;
  /** What can be done about it: one line. */
  readonly hint?: string;
  /** What went wrong where something could not be examined. */
  readonly cause?: Qcow2Error;
}

/** A finding as it is noted: a corruption that is not mended, unless it says otherwise. */
export type NotedFinding = Pick<CheckFinding, "message" | "hostOffset"> & Partial<CheckFinding>;

/** Called with a finding, and how many ways lead to it; one without it. */
export type Report = (finding: NotedFinding, times?: number) => void;

const KINDS: readonly FindingKind[] = ["corruption", "leak", "error", "note"];

/** How many findings are told again since more than one way leads to them. A stranger's image could have billions. */
const MAX_REPEATS = 10_000;

/** Whom findings are told. */
export class FindingListener {
  readonly #onFinding: ((finding: CheckFinding) => void) | undefined;
  #repeatsLeft = MAX_REPEATS;

  /** @param onFinding Called with each finding. */
  constructor(onFinding: ((finding: CheckFinding) => void) | undefined) {
    this.#onFinding = onFinding;
  }

  /**
   * Tells of a finding as often as there are ways that lead to it, as long as that is not too often.
   *
   * @param finding The finding.
   * @param times How many ways lead to it.
   */
  tell(finding: CheckFinding, times: number): void {
    this.#onFinding?.(finding);
    for (let repeats = 1; repeats < times && this.#repeatsLeft > 0; repeats++) {
      this.#onFinding?.(finding);
      this.#repeatsLeft--;
    }
  }
}

/** Counts findings, and tells of each. */
export class Findings {
  /** How many of each kind are left. */
  readonly left: Record<FindingKind, number> = { corruption: 0, leak: 0, error: 0, note: 0 };
  /** How many of each kind were mended. */
  readonly fixed: Record<FindingKind, number> = { corruption: 0, leak: 0, error: 0, note: 0 };
  readonly #listener: FindingListener;

  /** @param listener Whom to tell. */
  constructor(listener: FindingListener) {
    this.#listener = listener;
  }

  /**
   * Counts a finding, and tells it as often as there are ways that lead to it.
   *
   * @param noted The finding.
   * @param times How many ways lead to it.
   */
  note(noted: NotedFinding, times = 1): void {
    const finding: CheckFinding = { kind: "corruption", fixed: false, ...noted };
    this.count(finding.kind, finding.fixed, times);
    this.#listener.tell(finding, times);
  }

  /**
   * Counts findings without telling of them.
   *
   * @param kind Their kind.
   * @param fixed Whether they were mended.
   * @param times How many there are.
   */
  count(kind: FindingKind, fixed: boolean, times: number): void {
    (fixed ? this.fixed : this.left)[kind] += times;
  }

  /**
   * Tells of a finding that is counted elsewhere.
   *
   * @param noted The finding.
   */
  tell(noted: NotedFinding): void {
    this.#listener.tell({ kind: "corruption", fixed: false, ...noted }, 1);
  }

  /**
   * Counts what was counted elsewhere as well.
   *
   * @param others The other findings.
   */
  add({ left, fixed }: Findings): void {
    for (const kind of KINDS) {
      this.left[kind] += left[kind];
      this.fixed[kind] += fixed[kind];
    }
  }

  /** Forgets what is left: all of it is looked for again. */
  forget(): void {
    for (const kind of KINDS) this.left[kind] = 0;
  }
}
