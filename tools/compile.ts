/**
 * Makes the program `bin/qcow2` of `cli.ts` by `deno compile`. Arguments are handed on, such as `--target` for another
 * system; the environment variable `DENO_COMPILE` names another `deno` to compile with.
 *
 * @module
 */

import { importFlags } from "./imports.ts";

/** The modules under a folder that are started as workers. Nothing imports them, so they have to be named. */
function workers(folder: string): string[] {
  return [...Deno.readDirSync(folder)].flatMap((entry) => {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory) return workers(path);
    return /(^|_)worker\.ts$/.test(entry.name) ? [path] : [];
  }).sort();
}

if (import.meta.main) {
  Deno.chdir(new URL("..", import.meta.url));
  const args = [
    "compile",
    // Block devices: what stands under /dev can only be opened with all permissions.
    "--allow-all",
    // Types are the business of `deno task check`.
    "--no-check",
    ...await importFlags(),
    ...workers("lib").map((path) => `--include=${path}`),
    "--output=bin/qcow2",
    ...Deno.args,
    "cli.ts",
  ];
  const { code } = await new Deno.Command(Deno.env.get("DENO_COMPILE") || Deno.execPath(), { args }).spawn().status;
  Deno.exit(code);
}
