/**
 * Prints the flags that a `deno` command needs to find `@std/…` on this network: none where JSR answers, otherwise the import
 * map of `tools/npm_only`, whose modules stand in for the parts of `@std` that are used here.
 *
 * The tasks of `deno.json` use it as `deno test $(deno run -A tools/imports.ts) …`. The answer is remembered for ten minutes.
 * Nothing remote is imported here, so that this file runs on any network.
 *
 * @module
 */

import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

const REMEMBERED_MILLISECONDS = 10 * 60 * 1000;
const PROBE_MILLISECONDS = 5000;

/** The flags, from the root of the repository. */
export async function importFlags(): Promise<string[]> {
  const jsr = Deno.env.get("JSR_URL") || "https://jsr.io";
  const memory = join(Deno.env.get("DENO_DIR") || tmpdir(), `disk-qcow2-jsr-${encodeURIComponent(jsr)}`);
  let answers = recall(memory);
  if (answers === undefined) {
    answers = await probe(jsr);
    remember(memory, answers);
  }
  return answers ? [] : ["--import-map=tools/npm_only/import_map.json"];
}

async function probe(jsr: string): Promise<boolean> {
  try {
    const url = new URL("@std/assert/meta.json", jsr);
    const response = await fetch(url, { signal: AbortSignal.timeout(PROBE_MILLISECONDS) });
    // Something else may answer in the registry's place; only the registry lists the versions of the package.
    const meta: unknown = await response.json();
    return response.ok && typeof meta === "object" && meta !== null && "versions" in meta;
  } catch {
    return false;
  }
}

function recall(path: string): boolean | undefined {
  try {
    const age = Date.now() - (Deno.statSync(path).mtime?.getTime() ?? 0);
    if (age < 0 || age >= REMEMBERED_MILLISECONDS) return undefined;
    const answer = Deno.readTextFileSync(path);
    return answer === "yes" ? true : answer === "no" ? false : undefined;
  } catch {
    return undefined;
  }
}

function remember(path: string, answers: boolean): void {
  try {
    // Renamed into place: commands that run side by side never see half an answer, and a link at the path is not followed.
    const fresh = Deno.makeTempFileSync({ dir: dirname(path), prefix: "disk-qcow2-jsr-" });
    try {
      Deno.writeTextFileSync(fresh, answers ? "yes" : "no");
      Deno.renameSync(fresh, path);
    } catch {
      Deno.removeSync(fresh);
    }
  } catch {
    // Remembering is a convenience: without it the next command asks again.
  }
}

if (import.meta.main) console.log((await importFlags()).join(" "));
