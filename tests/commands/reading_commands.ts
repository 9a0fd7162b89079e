/**
 * Random command lines of the commands that look at images. `check` can repair them as well.
 *
 * @module
 */

import type { Draft } from "./arguments.ts";

/** `check`. */
export function check(draft: Draft): readonly string[] {
  const name = draft.imageName();
  return [
    "check",
    ...draft.formatOf(name),
    ...draft.output(),
    ...draft.maybe(3, "-r", draft.random.pick(["leaks", "all", "some"])),
    ...draft.maybe(6, "-q"),
    ...draft.maybe(30, "-U"),
    ...draft.cacheMode("-T"),
    name,
  ];
}

/** `compare`. */
export function compare(draft: Draft): readonly string[] {
  const [first, second] = [draft.imageName(), draft.imageName()];
  return [
    "compare",
    ...draft.formatOf(first),
    ...draft.formatOf(second, "-F"),
    ...draft.maybe(3, "-s"),
    ...draft.maybe(6, "-q"),
    ...draft.maybe(6, "-p"),
    ...draft.maybe(30, "-U"),
    ...draft.cacheMode("-T"),
    first,
    second,
  ];
}

/** `info`. */
export function info(draft: Draft): readonly string[] {
  const name = draft.imageName();
  return [
    "info",
    ...draft.formatOf(name),
    ...draft.output(),
    ...draft.maybe(3, "--backing-chain"),
    ...draft.maybe(9, "-U"),
    name,
  ];
}

/** `map`. */
export function map(draft: Draft): readonly string[] {
  const name = draft.imageName();
  const { random } = draft;
  return [
    "map",
    ...draft.formatOf(name),
    ...draft.output(),
    ...draft.maybe(4, "-s", random.pick(["0", "512", "64k", "100k", "1M", "1000", "1G"])),
    ...draft.maybe(4, "-l", random.pick(["512", "64k", "1M", "1000", "0"])),
    ...draft.maybe(9, "-U"),
    name,
  ];
}

/** `measure`. */
export function measure(draft: Draft): readonly string[] {
  const { random } = draft;
  const image = random.oneIn(4) ? undefined : draft.image();
  const format = random.pick(["raw", "qcow2", "qcow2"]);
  return [
    "measure",
    ...draft.output(),
    ...(random.oneIn(5) ? [] : ["-O", format]),
    ...draft.creationOptions(format, "x", { dataFile: false }),
    ...(image === undefined ? ["--size", random.oneIn(6) ? "10T" : draft.size()] : [
      ...draft.formatOf(image.name),
      ...draft.maybe(image.snapshots.length > 0 ? 3 : 60, "-l", draft.snapshotName(image)),
      image.name,
    ]),
  ];
}
