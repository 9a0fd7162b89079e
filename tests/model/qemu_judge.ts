/**
 * Compares what QEMU finds in an image with the plain disk.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { assertSame } from "../cli/_program.ts";
import { assertQemuClean, qemuImg } from "../images.ts";
import { dirtyAccordingToQemu } from "../qemu/dirty_extents.ts";
import type { ModelImage } from "./model_image.ts";

/** What `qemu-img info` says, as far as it is compared. */
export interface QemuInfo {
  /** The virtual size in bytes. */
  readonly size: number;
  /** The snapshots in their order. */
  readonly snapshots: readonly { readonly id: string; readonly name: string }[];
  /** The bitmaps in their order. */
  readonly bitmaps: readonly {
    readonly name: string;
    readonly granularity: number;
    readonly flags: readonly string[];
  }[];
  /** Format version. */
  readonly version: 2 | 3;
}

/** What `qemu-img info` says of an image. */
export function qemuInfo(path: string): QemuInfo {
  const info: {
    "virtual-size": number;
    snapshots?: { id: string; name: string }[];
    "format-specific": { data: { compat: string; bitmaps?: QemuInfo["bitmaps"] } };
  } = JSON.parse(qemuImg("info", "--output=json", "-f", "qcow2", path));
  const { compat, bitmaps = [] } = info["format-specific"].data;
  return {
    size: info["virtual-size"],
    snapshots: (info.snapshots ?? []).map(({ id, name }) => ({ id, name })),
    bitmaps,
    version: compat === "0.10" ? 2 : 3,
  };
}

/** Asserts that QEMU finds an image clean, and in it what there should be. Nobody has the image open. */
export async function assertQemuAgrees(image: ModelImage): Promise<void> {
  const { path, plain, kind } = image;
  assertQemuClean(path);
  // What the program tells of an image is what QEMU tells, whoever wrote it last.
  // QEMU looks for holes in a data file where the image itself has some.
  for (const command of kind.dataFile === "none" ? ["check", "info", "map"] : ["check", "info"]) {
    await assertSame([command, "--output=json", "-f", "qcow2", path]);
  }
  const info = qemuInfo(path);
  assertEquals(info.size, plain.size);
  assertEquals(info.version, kind.version);
  assertEquals(info.snapshots, plain.snapshots.map(({ id, name }) => ({ id, name })));
  assertEquals(
    info.bitmaps.map(({ name, granularity, flags }) => ({ name, granularity, flags })),
    plain.bitmaps.map(({ name, granularity, auto }) => ({ name, granularity, flags: auto ? ["auto"] : [] })),
  );
  const twin = `${image.folder}/twin.raw`;
  plain.content.writeFile(twin);
  qemuImg("compare", "-q", "-f", "qcow2", "-F", "raw", path, twin);
  if (kind.dataFile === "raw") qemuImg("compare", "-q", "-f", "raw", "-F", "raw", image.dataPath, twin);
  assertSnapshotsAgree(image, twin);
  for (const bitmap of plain.bitmaps) {
    const extents = dirtyAccordingToQemu(path, bitmap.name);
    if (extents !== undefined) assertEquals(extents, bitmap.extents(plain.size), `bitmap ${bitmap.name} of QEMU`);
  }
  Deno.removeSync(twin);
}

function assertSnapshotsAgree({ path, plain, folder }: ModelImage, twin: string): void {
  if (plain.snapshots.length === 0) return;
  const listed = qemuImg("snapshot", "-l", path).split("\n").slice(2).filter((line) => line !== "");
  assertEquals(listed.map((line) => line.split(/\s+/, 1)[0]), plain.snapshots.map(({ id }) => id));
  const converted = `${folder}/snapshot.raw`;
  for (const { id, content } of plain.snapshots) {
    qemuImg("convert", "-f", "qcow2", "-O", "raw", "-l", `snapshot.id=${id}`, path, converted);
    // QEMU takes the disk's size for the snapshot's.
    const common = content.clone();
    common.resize(Math.min(content.size, plain.size));
    common.writeFile(twin);
    Deno.truncateSync(converted, common.size);
    qemuImg("compare", "-q", "-f", "raw", "-F", "raw", converted, twin);
    Deno.removeSync(converted);
  }
}
