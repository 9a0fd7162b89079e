/**
 * What tests need to compare with QEMU's tools.
 *
 * @module
 */

/** What a program that has ended leaves. */
export interface RunResult {
  /** Its exit code. */
  readonly code: number;
  /** What it wrote to the standard output. */
  readonly stdout: string;
  /** What it wrote to the standard error. */
  readonly stderr: string;
}

/** Runs a program to its end, in English and without input. */
export function run(command: string, args: readonly string[]): RunResult {
  const output = new Deno.Command(command, {
    args: [...args],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    env: { LC_ALL: "C" },
  }).outputSync();
  const decoder = new TextDecoder();
  return { code: output.code, stdout: decoder.decode(output.stdout), stderr: decoder.decode(output.stderr) };
}

/** Whether `qemu-img` and `qemu-io` are installed. */
export const qemuAvailable: boolean = ["qemu-img", "qemu-io"].every((command) => {
  try {
    return run(command, ["--version"]).code === 0;
  } catch {
    return false;
  }
});

/**
 * Registers a test that needs QEMU's tools. Without them it is ignored, unless `QCOW2_REQUIRE_QEMU` is set: then it fails.
 */
export function qemuTest(name: string, fn: () => void | Promise<void>): void {
  const required = (Deno.env.get("QCOW2_REQUIRE_QEMU") ?? "") !== "";
  Deno.test({
    name,
    ignore: !qemuAvailable && !required,
    fn: () => {
      if (!qemuAvailable) throw new Error("QCOW2_REQUIRE_QEMU is set, but qemu-img and qemu-io are not both installed");
      return fn();
    },
  });
}
