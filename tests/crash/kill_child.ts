/**
 * Writes to an image until it is killed, and tells on the standard output what it has flushed. See `kill_test.ts`.
 *
 * @module
 */

import { Qcow2File } from "../../mod.ts";
import { applyStep, killStep, type KillTarget } from "./kill_steps.ts";

const [path = "", seed = "", from = "", cache = ""] = Deno.args;
const disk = Qcow2File.open(path, { write: true, ...(cache === "" ? {} : { cacheSize: Number(cache) }) });
const target: KillTarget = { size: disk.size, clusterSize: disk.allocationSize };
const line = new TextEncoder();

Deno.stdout.writeSync(line.encode(`ready\n`));
for (let number = Number(from);; number++) {
  const step = killStep(Number(seed), number, target);
  applyStep(step, number, {
    write: (offset, data) => disk.writeAt(offset, data),
    zero: (offset, length, unmap) => disk.writeZeroesAt(offset, length, { unmap }),
    discard: (offset, length) => disk.discardAt(offset, length),
    flush: () => disk.flush(),
  });
  if (step.kind === "flush") Deno.stdout.writeSync(line.encode(`${number}\n`));
}
