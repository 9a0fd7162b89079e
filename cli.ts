/**
 * The program `qcow2`: the sub-commands, options and output of `qemu-img` for raw and qcow2 images.
 *
 * ```sh
 * deno run -A jsr:@disk/qcow2/cli create -f qcow2 disk.qcow2 20G
 * ```
 *
 * @module
 */

import project from "./deno.json" with { type: "json" };
import { processConsole } from "./lib/cli/console.ts";
import { main } from "./lib/cli/main.ts";

if (import.meta.main) {
  Deno.exit(await main(Deno.args, processConsole(), { version: project.version }));
}
