/**
 * Lets this package and QEMU change an image in turn, and compares it with the plain disk after each turn.
 *
 * @module
 */

import { Qcow2Error } from "../../mod.ts";
import { qemuAvailable } from "../qemu.ts";
import type { Random } from "../random.ts";
import { describeKind, type ImageKind } from "./kinds.ts";
import { ModelImage } from "./model_image.ts";
import { assertQemuAgrees } from "./qemu_judge.ts";
import { takeQemuSteps } from "./qemu_steps.ts";
import { Session } from "./steps.ts";

/** How many lines of what was done before are told where something is found. */
const TOLD_LINES = 30;

/** How long a run is. */
export interface RunOptions {
  /** How often each side has the image. */
  readonly turns: number;
  /** The most steps of this package in a turn; QEMU takes fewer. */
  readonly steps: number;
}

/**
 * Goes through one run.
 *
 * @param folder An empty folder.
 * @param kind What the image is. QEMU takes part where it is installed.
 * @param random Where everything else comes from.
 * @param options How long the run is.
 */
export async function runModel(
  folder: string,
  kind: ImageKind,
  random: Random,
  options: RunOptions,
): Promise<void> {
  const image = new ModelImage(folder, kind, random);
  try {
    for (let turn = 0; turn < options.turns; turn++) {
      const session = new Session(image);
      session.take(random.between(1, options.steps));
      session.close();
      if (!qemuAvailable) continue;
      if (turn % 2 === 1 || turn === options.turns - 1) await assertQemuAgrees(image);
      takeQemuSteps(image, random.between(1, Math.ceil(options.steps / 4)));
    }
    new Session(image).close();
    if (qemuAvailable) await assertQemuAgrees(image);
    image.assertBaseUntouched();
  } catch (error) {
    const { journal } = image;
    const told = journal.slice(-TOLD_LINES).map((line, index) => {
      return `${Math.max(0, journal.length - TOLD_LINES) + index}: ${line}`;
    });
    const code = error instanceof Qcow2Error ? `${error.code}: ` : "";
    const message = error instanceof Error ? error.message : String(error);
    throw new Error([`${code}${message}`, describeKind(kind), ...told].join("\n"), { cause: error });
  }
}
