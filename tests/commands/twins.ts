/**
 * {@linkcode Twins}: two folders, in one of which QEMU's program does what ours does in the other.
 *
 * @module
 */

import { programNamed } from "../cli/_program.ts";
import type { RunResult } from "../qemu.ts";
import { importFlags } from "../../tools/imports.ts";
import { normalize } from "./normalize.ts";
import { describeStep, type Step } from "./step.ts";

/** One of the folders. */
export type Side = "qemu" | "ours";

/** Both folders. */
export const SIDES: readonly Side[] = ["qemu", "ours"];

/** No command here works for longer, in milliseconds, unless it hangs. */
const PATIENCE = 20_000;
const ROOT = new URL("../../", import.meta.url);

/** The two folders differ. */
export class Difference extends Error {
  override readonly name = "Difference";
}

/** A file as it was seen. */
interface Seen {
  readonly size: number;
  readonly time: number;
  readonly inode: number | null;
}

/** Two folders with the same history. */
export class Twins {
  readonly #folder: string;
  readonly #seen: Record<Side, Map<string, Seen>> = { qemu: new Map(), ours: new Map() };

  /** @param folder An empty folder. */
  constructor(folder: string) {
    this.#folder = folder;
    for (const side of SIDES) Deno.mkdirSync(this.pathOf(side));
  }

  /** Path of a folder. */
  pathOf(side: Side): string {
    return `${this.#folder}/${side}`;
  }

  /** Path of the folder of both. */
  get parent(): string {
    return this.#folder;
  }

  /**
   * Takes a step in both folders. What only looks at images is done in our folder by both programs, so that not even places in
   * files have a reason to differ.
   *
   * @param step What to do.
   * @returns Its exit status.
   * @throws {Difference} Where it does not end in the same way in both.
   */
  async take(step: Step): Promise<number> {
    const theirs = await this.qemu(step.program, onlyLooks(step.args) ? "ours" : "qemu", step.args);
    const ours = step.program === "qemu-io"
      ? await this.qemu(step.program, "ours", step.args)
      : step.ownProcess
      ? await this.#runProcess(step.args)
      : await this.#runWithin(step.args);
    for (const part of ["code", "stdout", "stderr"] as const) {
      const [their, our] = [theirs, ours].map((result) => shown(step, result, part));
      if (their === our) continue;
      throw new Difference(
        `${part} differs after\n${describeStep(step)}\n--- QEMU (${theirs.code})\n${theirs.stdout}${theirs.stderr}\n` +
          `--- here (${ours.code})\n${ours.stdout}${ours.stderr}`,
      );
    }
    return theirs.code;
  }

  /** Runs a program of QEMU in a folder. */
  async qemu(program: string, side: Side | "parent", args: readonly string[]): Promise<RunResult> {
    return await spawned(program, args, { cwd: side === "parent" ? this.#folder : this.pathOf(side) });
  }

  /**
   * The names of the files that have changed since this was last asked.
   *
   * @throws {Difference} Where the folders do not have files of the same names.
   */
  takeChanges(): string[] {
    const changed = new Set<string>();
    const names = SIDES.map((side) => {
      const found = filesIn(this.pathOf(side));
      for (const name of new Set([...found.keys(), ...this.#seen[side].keys()])) {
        if (!isSame(found.get(name), this.#seen[side].get(name))) changed.add(name);
      }
      this.#seen[side] = found;
      return [...found.keys()].sort().join(" ");
    });
    if (names[0] !== names[1]) throw new Difference(`files differ\n--- QEMU\n${names[0]}\n--- here\n${names[1]}`);
    return [...changed].sort();
  }

  /** Removes from both folders the files that have changed in QEMU's since it was last asked for changes. */
  removeWhatQemuChanged(): void {
    const now = filesIn(this.pathOf("qemu"));
    const before = this.#seen.qemu;
    for (const name of new Set([...now.keys(), ...before.keys()])) {
      if (isSame(now.get(name), before.get(name))) continue;
      for (const side of SIDES) {
        if (filesIn(this.pathOf(side)).has(name)) Deno.removeSync(`${this.pathOf(side)}/${name}`);
      }
    }
  }

  async #runWithin(args: readonly string[]): Promise<RunResult> {
    const before = Deno.cwd();
    Deno.chdir(this.pathOf("ours"));
    try {
      return await programNamed("qemu-img", args);
    } finally {
      Deno.chdir(before);
    }
  }

  async #runProcess(args: readonly string[]): Promise<RunResult> {
    const flags = (await importFlags()).map((flag) => flag.replace("=", `=${ROOT.pathname}`));
    const program = ["run", "-A", "--no-check", ...flags, new URL("cli.ts", ROOT).pathname, "--argv0", "qemu-img"];
    return await spawned(Deno.execPath(), [...program, ...args], { cwd: this.pathOf("ours") });
  }
}

const LOOKING_COMMANDS = ["check", "compare", "info", "map", "measure"];

function onlyLooks([command = "", ...rest]: readonly string[]): boolean {
  return LOOKING_COMMANDS.includes(command) && !rest.some((word) => /^(-\w*r|--r)/.test(word));
}

function filesIn(folder: string): Map<string, Seen> {
  return new Map(
    [...Deno.readDirSync(folder)].map(({ name }) => {
      const { size, mtime, ino } = Deno.statSync(`${folder}/${name}`);
      return [name, { size, time: mtime?.getTime() ?? 0, inode: ino }];
    }),
  );
}

function isSame(one: Seen | undefined, other: Seen | undefined): boolean {
  return one?.size === other?.size && one?.time === other?.time && one?.inode === other?.inode;
}

function shown({ program, args }: Step, result: RunResult, part: keyof RunResult): string {
  if (part === "code") return String(result.code);
  // What the guest's program says tells how long it took.
  return program === "qemu-io" ? "" : onlyLooks(args) ? result[part] : normalize(args[0], result[part]);
}

async function spawned(program: string, args: readonly string[], { cwd }: { cwd: string }): Promise<RunResult> {
  const output = await new Deno.Command(program, {
    args: [...args],
    cwd,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    env: { LC_ALL: "C" },
    signal: AbortSignal.timeout(PATIENCE),
  }).output();
  const decoder = new TextDecoder();
  return { code: output.code, stdout: decoder.decode(output.stdout), stderr: decoder.decode(output.stderr) };
}
