/**
 * Random things that a guest does: commands of `qemu-io`, the same in both folders.
 *
 * @module
 */

import type { Draft } from "./arguments.ts";
import type { ImageState } from "./world.ts";

/** Kills the program by itself, so that it has no chance to tidy up. */
const CRASH = "sigraise 9";

/** Makes up a command line of `qemu-io`, or none where there is no image. */
export function guest(draft: Draft): readonly string[] | undefined {
  const { random } = draft;
  const image = draft.image();
  if (image === undefined) return undefined;
  const commands = Array.from({ length: random.between(1, 4) }, () => access(draft, image));
  if (image.format === "qcow2" && random.oneIn(25)) commands.push("flush", CRASH);
  return [
    "-f",
    image.format,
    ...draft.maybe(3, "-d", "unmap"),
    ...commands.flatMap((command) => ["-c", command]),
    image.name,
  ];
}

function access(draft: Draft, image: ImageState): string {
  const { random } = draft;
  const { offset, length } = draft.range(image.size);
  const where = `${offset} ${length}`;
  if (image.format === "qcow2" && random.oneIn(8)) {
    const start = image.clusterSize * random.below(Math.max(1, Math.floor(image.size / image.clusterSize)));
    return `write -c -P ${random.between(1, 255)} ${start} ${Math.min(image.clusterSize, image.size - start)}`;
  }
  return random.pick([
    `write -P ${random.between(1, 255)} ${where}`,
    `write -P ${random.between(1, 255)} ${where}`,
    `write -P 0 ${where}`,
    `write -z ${where}`,
    `write -z -u ${where}`,
    `discard ${where}`,
  ]);
}
