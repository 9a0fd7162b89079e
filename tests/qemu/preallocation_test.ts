import { assert, assertEquals } from "@std/assert";
import { checkImage, type Preallocation, Qcow2File } from "../../mod.ts";
import { assertQemuClean, KIB, MIB, qemuImg, qemuIo, withFolder } from "../images.ts";
import { qemuTest } from "../qemu.ts";

const MODES: readonly Preallocation[] = ["off", "metadata", "falloc", "full"];
const OPEN = { write: true, backing: "allow", dataFile: "allow" } as const;

/** What an image is made with. */
interface Shape {
  readonly extended: boolean;
  readonly data: "none" | "ordinary" | "raw";
  readonly backed: boolean;
}

const SHAPES: readonly Shape[] = [false, true].flatMap((extended) =>
  (["none", "ordinary", "raw"] as const).flatMap((data) =>
    (data === "raw" ? [false] : [false, true]).map((backed) => ({ extended, data, backed }))
  )
);

function describe({ extended, data, backed }: Shape): string {
  return `${extended ? "extended" : "standard"} L2 entries, ${data} data file${backed ? ", backing file" : ""}`;
}

/** A stretch of the disk as QEMU sees it. */
interface Stretch {
  start: number;
  length: number;
  depth: number;
  present: boolean;
  zero: boolean;
  data: boolean;
  offset?: number;
}

/**
 * QEMU's map of an image. Whether data is zero is left out: for that QEMU looks for holes in the host's file, or does not, as
 * the number of the host's blocks makes it guess.
 */
function mapOf(image: string, withOffsets: boolean): Stretch[] {
  const map: Stretch[] = [];
  for (const { offset, ...stretch } of JSON.parse(qemuImg("map", "--output=json", image)) as Stretch[]) {
    const next: Stretch = { ...stretch, zero: stretch.zero && !stretch.data };
    if (withOffsets && offset !== undefined) next.offset = offset;
    const last = map.at(-1);
    const goesOn = last !== undefined && last.depth === next.depth && last.present === next.present &&
      last.zero === next.zero && last.data === next.data &&
      (last.offset === undefined ? undefined : last.offset + last.length) === next.offset;
    if (goesOn) last.length += next.length;
    else map.push(next);
  }
  return map;
}

/** What QEMU says of an image, and how long its files are. */
function opinion(image: string, data: string | undefined, withOffsets: boolean) {
  assertQemuClean(image);
  const { corruptions, leaks } = checkImage(image);
  assertEquals([corruptions, leaks], [0, 0]);
  const { "allocated-clusters": allocated } = JSON.parse(qemuImg("check", "--output=json", image));
  return {
    map: mapOf(image, withOffsets),
    allocated,
    ...(withOffsets ? { size: Deno.statSync(image).size } : {}),
    ...(data === undefined ? {} : { dataSize: Deno.statSync(data).size }),
  };
}

/** Makes the same image in two places, with all files that belong to it, and returns their paths. */
function twins(
  folder: string,
  shape: Shape,
  size: number,
): { theirs: string; ours: string; data: (image: string) => string | undefined } {
  const data = (image: string) => shape.data === "none" ? undefined : `${image}.data`;
  qemuImg("create", "-q", "-f", "raw", `${folder}/base.raw`, "4M");
  qemuIo(`${folder}/base.raw`, ["write -P 5 0 4M"], "raw");
  const [theirs, ours] = [`${folder}/theirs.qcow2`, `${folder}/ours.qcow2`] as const;
  for (const image of [theirs, ours]) {
    const options = [`extended_l2=${shape.extended ? "on" : "off"}`];
    if (shape.data !== "none") {
      options.push(`data_file=${data(image)},data_file_raw=${shape.data === "raw" ? "on" : "off"}`);
    }
    const backing = shape.backed ? ["-b", "base.raw", "-F", "raw"] : [];
    qemuImg("create", "-q", "-f", "qcow2", "-o", options.join(","), ...backing, image, `${size}`);
    qemuIo(image, ["write -P 1 0 100k", "write -P 2 600k 100k", "write -z -u 256k 64k", "write -z 620k 20k"]);
  }
  return { theirs, ours, data };
}

for (const shape of SHAPES) {
  // With standard entries QEMU preallocates nothing over a backing file.
  if (shape.backed && !shape.extended) continue;
  qemuTest(`Images are preallocated as QEMU does it: ${describe(shape)}`, () =>
    withFolder((folder) => {
      qemuImg("create", "-q", "-f", "raw", `${folder}/base.raw`, "4M");
      qemuIo(`${folder}/base.raw`, ["write -P 5 0 4M"], "raw");
      for (const size of [MIB, 1000 * KIB]) {
        for (const preallocation of MODES) {
          const [theirs, ours] = [`${folder}/theirs.qcow2`, `${folder}/ours.qcow2`];
          const [theirData, ourData] = [`${folder}/theirs.data`, `${folder}/ours.data`];
          const raw = shape.data === "raw";
          const dataFile = shape.data === "none" ? "" : `,data_file=${theirData},data_file_raw=${raw ? "on" : "off"}`;
          const options = `extended_l2=${shape.extended ? "on" : "off"},preallocation=${preallocation}${dataFile}`;
          const backing = shape.backed ? ["-b", "base.raw", "-F", "raw"] : [];
          qemuImg("create", "-q", "-f", "qcow2", "-o", options, ...backing, theirs, `${size}`);
          Qcow2File.create(ours, {
            size,
            preallocation,
            extendedL2: shape.extended,
            ...(shape.data === "none" ? {} : { dataFile: ourData, dataFileRaw: raw }),
            ...(shape.backed ? { backingFile: "base.raw", backingFormat: "raw" } : {}),
          }).close();
          const hasData = shape.data !== "none";
          const found = opinion(ours, hasData ? ourData : undefined, true);
          const expected = opinion(theirs, hasData ? theirData : undefined, true);
          // QEMU writes zeroes up to the end of the last cluster, and reserves nothing afterwards; here a data file ends with the disk.
          if (hasData && !shape.extended) expected.dataSize = size;
          assertEquals(found, expected, `${preallocation} of ${size}`);
          qemuImg("compare", "-q", theirs, ours);
          if (preallocation === "falloc" || preallocation === "full") {
            assert((Deno.statSync(hasData ? ourData : ours).blocks ?? 0) * 512 >= size, `${preallocation} of ${size}`);
          }
          for (const path of hasData ? [theirs, ours, theirData, ourData] : [theirs, ours]) Deno.removeSync(path);
        }
      }
    }));
}

for (const shape of SHAPES) {
  qemuTest(`Images grow and shrink as QEMU does it: ${describe(shape)}`, () =>
    withFolder((folder) => {
      for (const from of [MIB, 1000 * KIB]) {
        for (const to of [2 * MIB, 2000 * KIB, 700 * KIB, 512 * KIB]) {
          for (const preallocation of to < from ? ["off"] as const : MODES) {
            const what = `${from} to ${to}, ${preallocation}`;
            const reserves = preallocation === "falloc" || preallocation === "full";
            // There QEMU copies a cluster whole that the old end cuts; here its parts stay what they are.
            if (reserves && shape.extended && shape.backed && shape.data === "none" && from < MIB) continue;
            const { theirs, ours, data } = twins(folder, shape, from);
            const arguments_ = to < from ? ["--shrink"] : [`--preallocation=${preallocation}`];
            qemuImg("resize", "-q", ...arguments_, theirs, `${to}`);
            {
              using disk = Qcow2File.open(ours, OPEN);
              disk.resize(to, { shrink: true, preallocation });
            }
            // Where QEMU reserves space it puts refcounts for all of it in front, and a cluster that the old end cuts behind them.
            const offsets = shape.data !== "none" || !reserves;
            const found = opinion(ours, data(ours), offsets);
            const expected = opinion(theirs, data(theirs), offsets);
            if (shape.data !== "none" && !shape.extended) expected.dataSize = to;
            assertEquals(found, expected, what);
            qemuImg("compare", "-q", theirs, ours);
            for (const image of [theirs, ours]) {
              Deno.removeSync(image);
              if (shape.data !== "none") Deno.removeSync(data(image) ?? "");
            }
          }
        }
      }
    }));
}
