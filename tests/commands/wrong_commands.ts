/**
 * Makes command lines wrong.
 *
 * @module
 */

import type { Draft } from "./arguments.ts";

const ODD_WORDS = [
  "",
  "-1",
  "0",
  "1x",
  "1.5M",
  "0x1000",
  "40M",
  "+1M",
  "--nothing",
  "-x",
  "--",
  "-",
  ".",
  "nothing",
  "a",
  "-h",
];
/** These would only ever fill the output. */
const HELP = ["-h"];

/** A command line in which something is odd. It may happen to make sense all the same. */
export function madeOdd(draft: Draft, args: readonly string[]): readonly string[] {
  const { random } = draft;
  const odd = [...args];
  const place = random.between(1, odd.length - 1);
  const word = random.pick(ODD_WORDS.filter((each) => !HELP.includes(each)));
  switch (random.below(5)) {
    case 0:
      odd.splice(place, 1);
      break;
    case 1:
      odd.splice(place, 0, word);
      break;
    case 2:
      odd[place] = word;
      break;
    case 3:
      odd.push(word);
      break;
    default:
      odd.splice(place, 0, odd[place] ?? "");
  }
  return odd;
}
