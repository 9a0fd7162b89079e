/**
 * Judges one state that a power cut could leave.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { type BlockFile, checkImage, type CheckResult, type Disk, Qcow2Error, Qcow2File } from "../../mod.ts";
import { qemuCheck } from "../images.ts";
import type { Random } from "../random.ts";
import type { ScratchFile } from "./flat_file.ts";
import type { Oracle } from "./oracle.ts";
import { taggedBytes } from "./tags.ts";

/** What is wrong with a state. */
export interface Problem {
  /** `metadata` where check finds it, `data` where a sector reads wrong, `error` where the engine gives up. */
  readonly kind: "metadata" | "data" | "error";
  /** In words. */
  readonly message: string;
}

/** How often the costly questions are asked: in one of so many states, never where 0. */
export interface ExamineSamples {
  /** Repairing leaks. */
  readonly repair: number;
  /** Writing over the whole disk. */
  readonly overwrite: number;
  /** Asking `qemu-img check`. */
  readonly qemu: number;
}

/** How a state is judged. */
export interface ExaminerOptions {
  /** What the guest may read. */
  readonly oracle: Oracle;
  /** Where random choices come from. */
  readonly random: Random;
  /** How often the costly questions are asked. */
  readonly samples: ExamineSamples;
  /** What the image's backing file is. */
  readonly backing?: () => Disk;
  /** Further questions, such as after the content of snapshots. */
  readonly further?: (file: BlockFile) => Problem | undefined;
}

/** How often the costly questions were asked. */
export interface ExaminerCounts {
  states: number;
  repairs: number;
  overwrites: number;
  qemuChecks: number;
}

/** The number of the write that goes over the whole disk; no sequence is as long. */
const OVERWRITE_NUMBER = 0x7fff0000;

/** Opens states afresh and asks everything that has to hold. */
export class Examiner {
  /** How often it was asked what. */
  readonly counts: ExaminerCounts = { states: 0, repairs: 0, overwrites: 0, qemuChecks: 0 };
  readonly #options: ExaminerOptions;
  readonly #disk: Buffer;
  #overwrite: Uint8Array<ArrayBuffer> | undefined;

  /** @param options What is expected. */
  constructor(options: ExaminerOptions) {
    this.#options = options;
    this.#disk = Buffer.alloc(options.oracle.model.length);
  }

  /**
   * Asks everything, the costly questions as often as the samples say.
   *
   * @param file The state; what is written to it is the caller's to take back.
   * @returns The first thing that is wrong, or `undefined`.
   */
  examine(file: ScratchFile): Problem | undefined {
    this.counts.states++;
    const { samples, random } = this.#options;
    const isDue = (every: number): boolean => every > 0 && random.oneIn(every);
    if (isDue(samples.qemu)) {
      const problem = this.#askQemu(file);
      if (problem !== undefined) return problem;
    }
    const { problem, leaks } = this.#checkAndRead(file);
    if (problem !== undefined) return problem;
    if (leaks > 0 && isDue(samples.repair)) return this.#repairLeaks(file);
    if (isDue(samples.overwrite)) return this.#writeOverAll(file);
    return undefined;
  }

  /** Asks only what changes nothing and costs little: whether check finds corruption, and whether the guest's data is right. */
  glance(file: BlockFile): Problem | undefined {
    return this.#checkAndRead(file).problem;
  }

  /** What is on the disk of the state that was looked at last. */
  get disk(): Uint8Array {
    return this.#disk;
  }

  #checkAndRead(file: BlockFile): { problem: Problem | undefined; leaks: number } {
    try {
      const { problem, leaks } = check(file);
      if (problem !== undefined) return { problem, leaks };
      const violation = this.#read(file) ?? this.#options.further?.(file);
      return { problem: violation, leaks };
    } catch (error) {
      return { problem: { kind: "error", message: explain(error) }, leaks: 0 };
    }
  }

  #read(file: BlockFile): Problem | undefined {
    this.#open(file, false).readAt(0, this.#disk);
    const violation = this.#options.oracle.verify(this.#disk);
    return violation === undefined ? undefined : { kind: "data", message: violation.message };
  }

  #repairLeaks(file: ScratchFile): Problem | undefined {
    this.counts.repairs++;
    try {
      checkImage(file, { repair: "leaks", lock: false });
      const after = check(file);
      if (after.problem !== undefined) return { ...after.problem, message: `After a repair: ${after.problem.message}` };
      if (after.leaks > 0) return { kind: "metadata", message: `A repair left ${after.leaks} leaks` };
      return this.#read(file);
    } catch (error) {
      return { kind: "error", message: `While repairing leaks: ${explain(error)}` };
    }
  }

  /** Were any live cluster free, writing would hand it out again, and what is read afterwards would not be what was written. */
  #writeOverAll(file: ScratchFile): Problem | undefined {
    this.counts.overwrites++;
    const size = this.#disk.length;
    const data = this.#overwrite ??= taggedBytes(OVERWRITE_NUMBER, 0, size);
    try {
      const disk = this.#open(file, true);
      disk.writeAt(0, data);
      disk.flush();
      disk.close();
      const { problem } = check(file);
      if (problem !== undefined) return { ...problem, message: `After writing over the disk: ${problem.message}` };
      this.#open(file, false).readAt(0, this.#disk);
      if (this.#disk.compare(data) !== 0) {
        return { kind: "data", message: "What was written over the whole disk does not read back" };
      }
      return this.#options.further?.(file);
    } catch (error) {
      return { kind: "error", message: `While writing over the disk: ${explain(error)}` };
    }
  }

  #open(file: BlockFile, write: boolean): Qcow2File {
    return Qcow2File.open(file, { write, lock: false, backing: this.#options.backing ?? "refuse" });
  }

  #askQemu(file: ScratchFile): Problem | undefined {
    this.counts.qemuChecks++;
    const path = Deno.makeTempFileSync({ prefix: "qcow2-crash-" });
    try {
      Deno.writeFileSync(path, file.content());
      const { code, report } = qemuCheck(path);
      if (code === 0 || code === 3) return undefined;
      return { kind: "metadata", message: `qemu-img check ended with ${code}: ${JSON.stringify(report)}` };
    } catch (error) {
      return { kind: "error", message: explain(error) };
    } finally {
      Deno.removeSync(path);
    }
  }
}

/** Checks a state's metadata. */
export function check(file: BlockFile): { problem: Problem | undefined; leaks: number; result: CheckResult } {
  const messages: string[] = [];
  const result = checkImage(file, {
    lock: false,
    onFinding: ({ kind, message }) => {
      if (kind === "corruption" && messages.length < 3) messages.push(message);
    },
  });
  const { corruptions, leaks } = result;
  if (corruptions === 0) return { problem: undefined, leaks, result };
  return {
    problem: { kind: "metadata", message: `check finds ${corruptions} corruptions: ${messages.join("; ")}` },
    leaks,
    result,
  };
}

function explain(error: unknown): string {
  return error instanceof Qcow2Error ? `Qcow2Error ${error.code}: ${error.message}` : String(error);
}
