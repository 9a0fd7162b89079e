/**
 * Kills processes in the middle of their writes, and judges what they leave.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { checkImage, Qcow2File } from "../../mod.ts";
import { importFlags } from "../../tools/imports.ts";
import { KIB, MIB, qemuCheck } from "../images.ts";
import { qemuAvailable } from "../qemu.ts";
import { Random } from "../random.ts";
import { applyStep, type KillHand, killStep, type KillTarget } from "./kill_steps.ts";
import { Oracle } from "./oracle.ts";
import { type ImageOptions, preparedImage } from "./sequences.ts";

const LAYOUTS: readonly (ImageOptions & { readonly cacheSize?: number })[] = [
  { size: 256 * KIB, clusterSize: 512, poisonLength: 100 * KIB, cacheSize: 1 },
  { size: 512 * KIB, clusterSize: 512, refcountBits: 64, poisonLength: 50 * KIB },
  { size: MIB, clusterSize: 4096, refcountBits: 1, poisonLength: 200 * KIB, cacheSize: 1 },
  { size: 8 * MIB, poisonLength: 500 * KIB },
];
/** How often a process goes on with an image that another was killed over. */
const KILLS_PER_IMAGE = 3;

/** What a series of kills came to. */
export interface KillReport {
  /** How many processes were killed. */
  readonly kills: number;
  /** How many flushes they had told of. */
  readonly flushes: number;
  /** What was wrong, in words. */
  readonly findings: readonly string[];
}

/**
 * Kills processes.
 *
 * @param count How many.
 * @param name Keeps the random numbers of one series apart from another.
 */
export async function killMany(count: number, name: string): Promise<KillReport> {
  const random = new Random(name);
  const path = Deno.makeTempFileSync({ prefix: "qcow2-kill-" });
  const findings: string[] = [];
  let flushes = 0;
  try {
    for (let kills = 0; kills < count;) {
      const layout = random.pick(LAYOUTS);
      Deno.writeFileSync(path, preparedImage(layout));
      const victim = new KilledImage(path, random.below(2 ** 31), layout.cacheSize);
      for (let turn = 0; turn < KILLS_PER_IMAGE && kills < count; turn++, kills++) {
        flushes += await victim.killOne(random.between(0, 12));
        const problem = victim.judge();
        if (problem !== undefined) {
          findings.push(`${JSON.stringify(layout)}, kill ${turn + 1}: ${problem}`);
          break;
        }
      }
    }
  } finally {
    Deno.removeSync(path);
  }
  return { kills: count, flushes, findings };
}

/** An image over which one process after the other is killed. */
class KilledImage {
  readonly #path: string;
  readonly #seed: number;
  readonly #cacheSize: number | undefined;
  readonly #target: KillTarget;
  readonly #oracle: Oracle;
  #nextStep = 1;

  constructor(path: string, seed: number, cacheSize: number | undefined) {
    this.#path = path;
    this.#seed = seed;
    this.#cacheSize = cacheSize;
    const disk = Qcow2File.open(path);
    this.#target = { size: disk.size, clusterSize: disk.allocationSize };
    this.#oracle = new Oracle(disk.size);
    disk.close();
  }

  /**
   * Lets a process work until it has told of some flushes, and kills it.
   *
   * @param flushes How many flushes to wait for.
   * @returns How many it had told of.
   */
  async killOne(flushes: number): Promise<number> {
    const child = new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "-A",
        "--no-check",
        ...(await importFlags()),
        new URL("kill_child.ts", import.meta.url).href,
        this.#path,
        `${this.#seed}`,
        `${this.#nextStep}`,
        ...(this.#cacheSize === undefined ? [] : [`${this.#cacheSize}`]),
      ],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const errors = new Response(child.stderr).text();
    let text = "";
    const countLines = (): number => text.split("\n").length - 1;
    // The first line says that it is at work.
    for await (const piece of child.stdout.pipeThrough(new TextDecoderStream())) {
      const before = countLines();
      text += piece;
      if (before <= flushes && countLines() > flushes) child.kill("SIGKILL");
    }
    await child.status;
    const told = text.split("\n").slice(0, -1);
    if (told.length <= flushes) throw new Error(`The process ended by itself: ${await errors}`);
    await errors;
    this.#expect(Number(told.length > 1 ? told.at(-1) : this.#nextStep - 1));
    return told.length - 1;
  }

  /** Judges what is left, and takes it for the start of the next process. */
  judge(): string | undefined {
    const { corruptions } = checkImage(this.#path);
    if (corruptions > 0) return `check finds ${corruptions} corruptions`;
    if (qemuAvailable) {
      const { code } = qemuCheck(this.#path);
      if (code !== 0 && code !== 3) return `qemu-img check ended with ${code}`;
    }
    const disk = Qcow2File.open(this.#path);
    const bytes = Buffer.alloc(disk.size);
    disk.readAt(0, bytes);
    disk.close();
    const violation = this.#oracle.verify(bytes);
    if (violation !== undefined) return violation.message;
    this.#oracle.adopt(bytes);
    return undefined;
  }

  /** Tells the oracle what was flushed, and what may have been done behind that: everything up to the next flush. */
  #expect(lastTold: number): void {
    const oracle = this.#oracle;
    const { clusterSize, size } = this.#target;
    const hand: KillHand = {
      write: (offset, data) => oracle.noteWrite(offset, data),
      zero: (offset, length) => oracle.noteZeroes(offset, length),
      discard(offset, length) {
        const end = offset + length;
        const first = Math.ceil(offset / clusterSize) * clusterSize;
        const last = end === size ? end : Math.floor(end / clusterSize) * clusterSize;
        oracle.noteZeroes(first, last - first);
      },
      flush: () => oracle.noteFlushed(),
    };
    let number = this.#nextStep;
    for (; number <= lastTold; number++) applyStep(killStep(this.#seed, number, this.#target), number, hand);
    for (;; number++) {
      const step = killStep(this.#seed, number, this.#target);
      if (step.kind === "flush") break;
      applyStep(step, number, hand);
    }
    this.#nextStep = number + 1;
  }
}
