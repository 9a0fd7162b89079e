/**
 * Random command lines of the commands that change images or make new ones.
 *
 * @module
 */

import { MIB } from "../images.ts";
import type { Draft } from "./arguments.ts";

/** Makes up a command line. */
export type Command = (draft: Draft) => readonly string[];

/** `amend`. */
export function amend(draft: Draft): readonly string[] {
  const { random } = draft;
  const name = draft.imageName(({ format }) => format === "qcow2");
  const changes = [
    `compat=${random.pick(["0.10", "1.1", "v3", "7"])}`,
    `lazy_refcounts=${random.pick(["on", "off"])}`,
    `refcount_bits=${random.pick(["1", "2", "8", "16", "32", "64", "5"])}`,
    `size=${draft.size()}`,
    random.pick(["cluster_size=4k", "preallocation=metadata", "compression_type=zstd", "extended_l2=on", "nothing=1"]),
    random.pick([`data_file=${name}.data`, "data_file_raw=on", `backing_file=${draft.imageName()}`, "backing_fmt=raw"]),
  ];
  const list = changes.filter((_, index) => random.oneIn(index < 3 ? 3 : 12));
  return [
    "amend",
    ...draft.formatOf(name),
    ...draft.maybe(4, "-q"),
    ...draft.cacheMode("-t"),
    "-o",
    list.join(","),
    name,
  ];
}

/** `bitmap`. */
export function bitmap(draft: Draft): readonly string[] {
  const { random } = draft;
  const image = draft.image(({ version }) => version === 3 || random.oneIn(10));
  const name = image?.name ?? "nothing";
  const actions: string[] = [];
  let source: readonly string[] = [];
  do {
    const action = random.pick(["add", "add", "add", "remove", "clear", "enable", "disable", "merge"]);
    if (action !== "merge") {
      actions.push(`--${action}`);
      continue;
    }
    const other = random.oneIn(3) ? draft.image(({ bitmaps }) => bitmaps.length > 0) : undefined;
    actions.push("--merge", draft.bitmapName(other ?? image, true));
    if (other !== undefined) source = ["-b", other.name, ...draft.formatOf(other.name, "-F")];
  } while (random.oneIn(4));
  const granularity = random.pick(["512", "4k", "64k", "1M", "3", "4G", "256"]);
  return [
    ...["bitmap", ...draft.formatOf(name), ...actions, ...source],
    ...(actions.includes("--add") ? draft.maybe(2, "-g", granularity) : draft.maybe(30, "-g", granularity)),
    ...[name, draft.bitmapName(image, !actions.includes("--add"))],
  ];
}

/** `commit`. */
export function commit(draft: Draft): readonly string[] {
  const { random, world } = draft;
  const name = draft.imageName(({ backing }) => backing !== undefined || random.oneIn(20));
  const beneath = world.chainOf(name).slice(1).map((image) => image.name);
  return [
    "commit",
    ...draft.formatOf(name),
    ...(beneath.length > 0 ? draft.maybe(3, "-b", random.oneIn(20) ? "nothing" : random.pick(beneath)) : []),
    ...draft.maybe(3, "-d"),
    ...draft.maybe(6, "-p"),
    ...draft.maybe(6, "-q"),
    ...draft.maybe(20, "-r", "100M"),
    ...draft.cacheMode("-t"),
    name,
  ];
}

/** `convert`. */
export function convert(draft: Draft): readonly string[] {
  const { random, world } = draft;
  const source = draft.image();
  const name = source?.name ?? "nothing";
  const existing = random.oneIn(5) ? draft.image((image) => image.name !== name) : undefined;
  const target = existing?.name ?? draft.targetName();
  const format = existing?.format ?? random.pick(["raw", "qcow2", "qcow2", "qcow2"]);
  const compress = format === "qcow2" ? draft.maybe(4, "-c") : draft.maybe(40, "-c");
  const backing = existing === undefined && format === "qcow2" && random.oneIn(6) ? draft.image() : undefined;
  return [
    "convert",
    ...draft.formatOf(name),
    ...(random.oneIn(30) ? [] : ["-O", format]),
    ...compress,
    ...(existing === undefined ? [] : ["-n", ...draft.maybe(6, "--target-is-zero")]),
    ...(existing === undefined ? draft.creationOptions(format, target, { dataFile: compress.length === 0 }) : []),
    ...(backing === undefined ? [] : ["-B", backing.name, ...(random.oneIn(20) ? [] : ["-F", backing.format])]),
    ...draft.maybe(5, "-S", random.pick(["0", "4k", "64k", "512", "1M", "100"])),
    ...draft.maybe(source !== undefined && source.snapshots.length > 0 ? 3 : 60, "-l", draft.snapshotName(source)),
    ...draft.maybe(source !== undefined && source.bitmaps.length > 0 ? 3 : 60, "--bitmaps"),
    ...draft.maybe(20, "--skip-broken-bitmaps"),
    ...draft.maybe(6, "-W"),
    ...draft.maybe(6, "-m", random.pick(["1", "2", "8", "16", "17", "0"])),
    ...draft.maybe(8, "-p"),
    ...draft.maybe(8, "-q"),
    ...draft.maybe(20, "--salvage"),
    ...draft.maybe(30, "-C"),
    ...draft.maybe(30, "-r", "100M"),
    ...draft.cacheMode("-t"),
    ...draft.cacheMode("-T"),
    ...draft.maybe(30, "-U"),
    name,
    ...(random.oneIn(15) && world.images.length > 1 ? [draft.imageName()] : []),
    target,
  ];
}

/** `create`. */
export function create(draft: Draft): readonly string[] {
  const { random } = draft;
  const target = draft.targetName();
  const format = random.pick(["raw", "qcow2", "qcow2", "qcow2", "qcow2"]);
  const backing = format === "qcow2" && random.oneIn(3) ? draft.image(({ name }) => name !== target) : undefined;
  return [
    "create",
    ...draft.maybe(5, "-q"),
    ...(format === "raw" && random.oneIn(3) ? [] : ["-f", format]),
    ...draft.creationOptions(format, target),
    ...(backing === undefined ? [] : ["-b", backing.name, ...(random.oneIn(15) ? [] : ["-F", backing.format])]),
    ...draft.maybe(60, "-u"),
    target,
    ...(backing !== undefined && random.oneIn(2) ? [] : random.oneIn(40) ? [] : [draft.size()]),
  ];
}

/** `dd`. */
export function dd(draft: Draft): readonly string[] {
  const { random } = draft;
  // Larger ones take long, sector by sector.
  const name = draft.imageName(({ size }) => size <= 8 * MIB);
  const format = random.pick(["raw", "qcow2"]);
  return [
    "dd",
    ...draft.formatOf(name),
    ...(random.oneIn(10) ? [] : ["-O", format]),
    ...draft.maybe(20, "-U"),
    `if=${name}`,
    `of=${draft.targetName()}`,
    ...draft.maybe(2, `bs=${random.pick(["512", "4k", "64k", "1M", "1000", "0", "x"])}`),
    ...draft.maybe(3, `count=${random.pick(["1", "3", "10", "100000", "0"])}`),
    ...draft.maybe(3, `skip=${random.pick(["0", "1", "7", "100000"])}`),
    ...draft.maybe(60, "seek=1"),
  ];
}

/** `rebase`. */
export function rebase(draft: Draft): readonly string[] {
  const { random } = draft;
  const image = draft.image(({ format, backing }) => format === "qcow2" && (backing !== undefined || random.oneIn(5)));
  const name = image?.name ?? "nothing";
  const backing = random.oneIn(4) ? undefined : draft.image((other) => other.name !== name);
  return [
    "rebase",
    ...draft.formatOf(name),
    ...draft.maybe(6, "-u"),
    ...draft.maybe(6, "-p"),
    ...draft.maybe(6, "-q"),
    ...draft.cacheMode("-t"),
    ...draft.cacheMode("-T"),
    ...(random.oneIn(20) ? ["-b", "nothing"] : ["-b", backing?.name ?? ""]),
    ...(backing === undefined || random.oneIn(15) ? [] : ["-F", backing.format]),
    name,
  ];
}

/** `resize`. */
export function resize(draft: Draft): readonly string[] {
  const { random } = draft;
  const name = draft.imageName();
  const sign = random.pick(["", "+", "-"]);
  return [
    "resize",
    ...draft.formatOf(name),
    ...draft.maybe(2, "--shrink"),
    ...draft.maybe(6, "-q"),
    ...draft.maybe(5, `--preallocation=${random.pick(["off", "metadata", "falloc", "full", "some"])}`),
    name,
    sign + (sign === "" ? draft.size() : random.pick(["512", "1k", "64k", "100k", "1M", "1000"])),
  ];
}

/** `snapshot`. */
export function snapshot(draft: Draft): readonly string[] {
  const { random } = draft;
  const image = draft.image(({ format }) => format === "qcow2" || random.oneIn(20));
  const action = random.pick(["-c", "-c", "-a", "-d", "-l"]);
  return [
    "snapshot",
    ...draft.maybe(8, "-q"),
    ...(action === "-l" ? ["-l"] : [action, draft.snapshotName(action === "-c" ? undefined : image)]),
    image?.name ?? "nothing",
  ];
}
