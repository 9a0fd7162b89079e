import { assert, assertEquals } from "@std/assert";
import { killMany } from "./kill.ts";

Deno.test({
  name: "A process that is killed in the middle of its writes loses nothing that it said was flushed",
  // Windows has no signal that cannot be caught, and no promise of what is written when a process ends.
  ignore: Deno.build.os === "windows",
  async fn() {
    const { kills, flushes, findings } = await killMany(21, "kills");
    console.log(`Kills: ${kills} processes after ${flushes} flushes, ${findings.length} findings`);
    assertEquals(findings, []);
    assert(flushes > 0);
  },
});
