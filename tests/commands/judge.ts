/**
 * Compares the images of both folders, as QEMU sees them.
 *
 * @module
 */

import { dirtyAccordingToQemu } from "../qemu/dirty_extents.ts";
import type { Allocation } from "./limits.ts";
import { normalize } from "./normalize.ts";
import { Difference, SIDES, type Twins } from "./twins.ts";
import type { World } from "./world.ts";

/** The status of a `check` that has found nothing, and of one that has found leaks alone. */
const CLEAN = 0;
const HAS_LEAKS = 3;
/** The status of a `check` of a format that has none. */
const CANNOT_CHECK = 63;
/** The status of a `compare` that cannot open an image. */
const CANNOT_OPEN = 2;

/**
 * Compares what has become of the files that have changed, and notes it.
 *
 * @param twins The folders.
 * @param world Where it is noted.
 * @param allocation What the step means for what is allocated.
 * @throws {Difference} Where the folders differ.
 */
export async function judgeChanges(twins: Twins, world: World, allocation: Allocation): Promise<void> {
  world.dataFiles = [...Deno.readDirSync(twins.pathOf("ours"))].map(({ name }) => name).filter(isDataFile);
  for (const name of twins.takeChanges()) {
    if (allocation !== "as before") world.setAllocation(name, allocation === "anew");
    world.setBlank(name, allocation === "anew");
    // What was there before has nothing to do with it.
    if (allocation === "anew") world.note(name, undefined);
    // What a data file holds is seen in its image. Its length and its holes depend on what QEMU has reserved ahead, and on what the
    // host has written of it yet.
    if (isDataFile(name)) continue;
    const info = await same(twins, "info", ["info", "--output=json", name]);
    world.note(name, info.code === 0 ? info.stdout : undefined);
    if (info.code === 0) await judge(twins, world, name);
  }
}

/**
 * Compares everything in both folders.
 *
 * @param twins The folders.
 * @param world What is known of them.
 * @throws {Difference} Where they differ.
 */
export async function judgeAll(twins: Twins, world: World): Promise<void> {
  for (const { name, format, snapshots, bitmaps } of world.images) {
    await judge(twins, world, name);
    if (format === "raw") continue;
    for (const snapshot of new Set(snapshots)) await compareConverted(twins, name, ["-l", snapshot]);
    for (const bitmap of bitmaps) judgeBitmap(twins, name, bitmap);
  }
}

function isDataFile(name: string): boolean {
  return name.endsWith(".data");
}

async function judge(twins: Twins, world: World, name: string): Promise<void> {
  // Where a raw file has holes depends on what the host has written of it yet, so that the map of one is not compared.
  const isMapComparable = world.chainOf(name).every(({ format }) => format === "qcow2");
  if (isMapComparable && !world.mayDifferInAllocation(name)) await same(twins, "map", ["map", "--output=json", name]);
  await judgeCheck(twins, name);
  await judgeContent(twins, world, name);
}

/** Runs a command in both folders, which must end the same way. */
async function same(twins: Twins, what: string, args: readonly string[]): Promise<{ code: number; stdout: string }> {
  const [theirs, ours] = await Promise.all(SIDES.map((side) => twins.qemu("qemu-img", side, args)));
  if (theirs === undefined || ours === undefined) throw new Error("There are two sides");
  const [their, our] = [theirs, ours].map(({ code, stdout, stderr }) => {
    return `${code}\n${normalize(what, stdout)}\n${stderr}`;
  });
  if (their !== our) throw new Difference(`${args.join(" ")} differs\n--- QEMU\n${their}\n--- here\n${our}`);
  return theirs;
}

/** What we leave is at least as clean as what QEMU leaves. */
async function judgeCheck(twins: Twins, name: string): Promise<void> {
  const [theirs, ours] = await Promise.all(SIDES.map((side) => twins.qemu("qemu-img", side, ["check", name])));
  if (theirs === undefined || ours === undefined) throw new Error("There are two sides");
  if (theirs.code === ours.code || ours.code === CLEAN) return;
  if (ours.code === HAS_LEAKS && theirs.code !== CLEAN && theirs.code !== CANNOT_CHECK) return;
  throw new Difference(
    `check ${name} differs\n--- QEMU\n${theirs.stdout}${theirs.stderr}\n--- here\n${ours.stdout}${ours.stderr}`,
  );
}

async function judgeContent(twins: Twins, world: World, name: string): Promise<void> {
  const hasDataFile = world.chainOf(name).some(({ dataFile }) => dataFile !== undefined);
  // The name of a data file begins in the working directory, so that both cannot be opened at once.
  if (hasDataFile) await compareConverted(twins, name, []);
  else await compareInParent(twins, name, `qemu/${name}`, `ours/${name}`);
}

async function compareConverted(twins: Twins, name: string, options: readonly string[]): Promise<void> {
  const [theirs, ours] = await Promise.all(SIDES.map(async (side) => {
    const { code, stderr } = await twins.qemu("qemu-img", side, [
      ...["convert", ...options, "-O", "raw", name, `../${side}.content`],
    ]);
    return `${code} ${stderr.replaceAll(`${side}.content`, "content")}`;
  }));
  const what = `${name} ${options.join(" ")}`;
  if (theirs !== ours) throw new Difference(`reading ${what} differs\n--- QEMU\n${theirs}\n--- here\n${ours}`);
  if (theirs === "0 ") await compareInParent(twins, what, "qemu.content", "ours.content");
  for (const side of SIDES) await Deno.remove(`${twins.parent}/${side}.content`).catch(() => {});
}

async function compareInParent(twins: Twins, what: string, theirs: string, ours: string): Promise<void> {
  const { code, stdout, stderr } = await twins.qemu("qemu-img", "parent", ["compare", theirs, ours]);
  // What cannot be read in one folder must be as bad in the other.
  if (
    code === CANNOT_OPEN && (await twins.qemu("qemu-img", "parent", ["compare", ours, theirs])).code === CANNOT_OPEN
  ) return;
  if (code !== 0) throw new Difference(`content of ${what} differs: ${stdout}${stderr}`);
}

function judgeBitmap(twins: Twins, name: string, bitmap: string): void {
  const [theirs, ours] = SIDES.map((side) => {
    try {
      return JSON.stringify(dirtyAccordingToQemu(`${twins.pathOf(side)}/${name}`, bitmap));
    } catch {
      return "cannot be read";
    }
  });
  if (theirs !== ours) {
    throw new Difference(`bitmap ${bitmap} of ${name} differs\n--- QEMU\n${theirs}\n--- here\n${ours}`);
  }
}
