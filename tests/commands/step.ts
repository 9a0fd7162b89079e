/**
 * {@linkcode Step}: one thing that is done in both folders.
 *
 * @module
 */

/** A command line that is run in both folders. */
export interface Step {
  /**
   * Which program it is for. `qemu-img` is QEMU's in one folder and ours in the other; `qemu-io`, which plays the guest, is the
   * same in both.
   */
  readonly program: "qemu-img" | "qemu-io";
  /** Its arguments. Names of files are relative to the folder. */
  readonly args: readonly string[];
  /** Whether our program runs as a process of its own rather than within this one. */
  readonly ownProcess: boolean;
}

/** A step as a shell would take it. */
export function describeStep({ program, args, ownProcess }: Step): string {
  return [program, ...args.map(quoted)].join(" ") + (ownProcess ? "  # in a process of its own" : "");
}

function quoted(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
