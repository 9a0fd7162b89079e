/**
 * What a person can do where a command fails. Hints stand apart from the messages, which are QEMU's to the letter.
 *
 * @module
 */

import type { Qcow2ErrorCode } from "../errors.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import { COMMAND_NAMES, isCommandName } from "./help.ts";

/** What is known of a failure. */
export interface FailedCommand {
  /** The command, or the word that is none. */
  readonly command: string | undefined;
  /** What is said of it. */
  readonly message: string;
  /** The code of the engine's error, where it is one. */
  readonly code: Qcow2ErrorCode | undefined;
  /** The image, as it was named. */
  readonly path: string | undefined;
}

/** Hints for what commands refuse by themselves, by what they say. */
const HINTS_OF_MESSAGES: readonly (readonly [message: RegExp, hint: string])[] = [
  [/^warning: Shrinking an image/, "--shrink allows it; what stands behind the new end of the disk is lost"],
  [
    /acking file specified without|explicit backing format|backing format must be specified/,
    "-F raw or -F qcow2 says which format the backing file has",
  ],
  [/Could not open backing file/, "'qcow2 rebase -u -b NEW_NAME -F FORMAT FILE' says where the backing file is now"],
  [/(?:^|: )(?:Invalid parameter|Parameter) '/, "-o help lists the options and their values"],
  [/^Could not .* snapshot .*(?:not found|No such file)/, "'qcow2 snapshot -l FILE' lists the snapshots"],
  [/^Could not open .* is not supported, expected raw or qcow2$/, "qemu-img can convert it to qcow2"],
  [/Unknown driver '/, "-f raw or -f qcow2 says the format; without it, the first bytes tell"],
  [/^Cannot copy inconsistent bitmap/, "--skip-broken-bitmaps leaves it out; 'qcow2 bitmap --remove' deletes it"],
];

/**
 * What a person can do about a failure.
 *
 * @param failed What is known of it.
 * @returns One line without a final period, or `undefined` where there is nothing to say.
 */
export function hintFor(failed: FailedCommand): string | undefined {
  return hintForCommand(failed) ?? hintForCode(failed) ??
    HINTS_OF_MESSAGES.find(([message]) => message.test(failed.message))?.[1];
}

/** A word that is no command may be meant to be one. */
function hintForCommand({ command, message }: FailedCommand): string | undefined {
  if (command === undefined || !message.startsWith("Command not found")) return undefined;
  const beginningWith = (start: string) => COMMAND_NAMES.filter((name) => start !== "" && name.startsWith(start));
  const word = command.toLowerCase();
  const meant = [word, word.slice(0, 2)].map(beginningWith).find((names) => names.length > 0);
  return meant === undefined ? "'qcow2 help' lists the commands" : `Did you mean ${meant.join(" or ")}?`;
}

function hintForCode({ command, message, code, path }: FailedCommand): string | undefined {
  const image = path ?? "FILE";
  switch (code) {
    case "locked":
      return canShare(command) && message.includes("shared")
        ? "-U opens it all the same; what it says may be out of date in the next moment"
        : "Whoever has it open must close it first: a virtual machine, or another command";
    case "marked-corrupt":
      return `'qcow2 check -r all ${image}' repairs it`;
    case "corrupt":
      return `'qcow2 check ${image}' tells what is damaged, with -r all it is repaired`;
    case "not-qcow2":
      return "Without -f, the first bytes tell the format";
    case "encrypted":
      return "qemu-img can convert it to an image that is not encrypted";
    case "unknown-feature":
      return "A newer program has made the image; only such a one can open it";
    case "refcount-overflow":
      return `'qcow2 amend -o refcount_bits=64 ${image}' makes room for larger refcounts`;
    case "no-space":
      return "Make room on the host, and try again";
    default:
      return undefined;
  }
}

function canShare(command: string | undefined): boolean {
  return command !== undefined && isCommandName(command) &&
    COMMAND_OPTIONS[command].some(({ name }) => name === "force-share");
}
