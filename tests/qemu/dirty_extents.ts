/**
 * What QEMU reads in a persistent bitmap.
 *
 * @module
 */

import type { DirtyExtent } from "../../mod.ts";
import { run } from "../qemu.ts";

/**
 * What QEMU's NBD server tells of a bitmap.
 *
 * @param path Path of the image, which nobody has open.
 * @param name Name of the bitmap.
 * @returns The stretches of the disk that it marks, each as long as it can be; `undefined` where `nbdinfo` is not installed.
 */
export function dirtyAccordingToQemu(path: string, name: string): DirtyExtent[] | undefined {
  const server = ["qemu-nbd", "-r", "-f", "qcow2", `--bitmap=${name}`, path];
  let output;
  try {
    output = run("nbdinfo", ["--json", `--map=qemu:dirty-bitmap:${name}`, "--", "[", ...server, "]"]);
  } catch {
    return undefined;
  }
  if (output.code !== 0) throw new Error(`nbdinfo ended with ${output.code}: ${output.stderr}`);
  const found: { offset: number; length: number; type: number }[] = JSON.parse(output.stdout);
  const extents: { offset: number; length: number }[] = [];
  for (const { offset, length, type } of found) {
    const last = extents.at(-1);
    if (type === 0) continue;
    if (last !== undefined && last.offset + last.length === offset) last.length += length;
    else extents.push({ offset, length });
  }
  return extents;
}
