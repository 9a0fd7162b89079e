import { assertEquals } from "@std/assert";
import type { Console } from "../../lib/cli/console.ts";
import { main } from "../../lib/cli/main.ts";
import { run, type RunResult } from "../qemu.ts";

export const VERSION = "1.2.3";

/** Runs the program inside of this process, under a name, and collects what it prints. */
export async function programNamed(name: string, args: readonly string[]): Promise<RunResult> {
  const printed = { stdout: "", stderr: "" };
  const console: Console = {
    stderrIsTerminal: false,
    out: (text) => void (printed.stdout += text),
    err: (text) => void (printed.stderr += text),
  };
  const code = await main(["--argv0", name, ...args], console, { version: VERSION });
  return { code, ...printed };
}

/** Runs the program inside of this process. */
export function program(...args: string[]): Promise<RunResult> {
  return programNamed("qcow2", args);
}

/** Runs QEMU's program. */
export function qemuImg(...args: string[]): RunResult {
  return run("qemu-img", args);
}

/** What {@linkcode assertSame} does beside comparing. */
export interface SameOptions {
  /** Called before each of the two programs is run, so that both find the same. */
  readonly prepare?: () => void;
  /** Called after each of the two programs was run; the results are compared too. */
  readonly outcome?: () => unknown;
  /** Whether what stands on the standard error may differ. */
  readonly anyErrorText?: boolean;
  /** Whether the lines on the standard error may come in another order. */
  readonly anyErrorOrder?: boolean;
}

/** Runs QEMU's program and ours with the same arguments: both must print the same and end the same. */
export async function assertSame(args: readonly string[], options: SameOptions = {}): Promise<void> {
  const { prepare, outcome, anyErrorText = false, anyErrorOrder = false } = options;
  prepare?.();
  const theirs = [{ ...qemuImg(...args) }, outcome?.()];
  prepare?.();
  const ours = [await programNamed("qemu-img", args), outcome?.()];
  if (anyErrorOrder) {
    for (const result of [theirs[0], ours[0]] as RunResult[]) {
      Object.assign(result, { stderr: result.stderr.split("\n").sort() });
    }
  }
  if (anyErrorText) { for (const [result] of [theirs, ours]) Object.assign(result ?? {}, { stderr: "" }); }
  assertEquals(ours, theirs, args.join(" "));
}

/** A folder that goes away with its content. */
export class Folder implements Disposable {
  readonly #path = Deno.makeTempDirSync();

  path(name: string): string {
    return `${this.#path}/${name}`;
  }

  names(): string[] {
    return [...Deno.readDirSync(this.#path)].map(({ name }) => name).sort();
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.#path, { recursive: true });
  }
}

/** Makes a qcow2 image with data, zero clusters with and without a place, and a discarded stretch. */
export function makeVariedImage(path: string, options = "compat=1.1"): void {
  qemuImg("create", "-q", "-f", "qcow2", "-o", options, path, "1G");
  qemuIo(
    path,
    "write -P 1 0 1M",
    "write -P 2 5M 64k",
    "write -z 10M 1M",
    "write -P 3 20M 4M",
    "discard 21M 1M",
    "write -z 22M 64k",
  );
}

/** Runs commands of `qemu-io` on an image. */
export function qemuIo(path: string, ...commands: string[]): void {
  const { code, stderr, stdout } = run("qemu-io", [...commands.flatMap((command) => ["-c", command]), path]);
  if (code !== 0) throw new Error(`qemu-io failed: ${stdout}${stderr}`);
}

/** Writes bytes into a file. */
export function patch(path: string, ...patches: (readonly [offset: number, ...bytes: number[]])[]): void {
  using file = Deno.openSync(path, { write: true });
  for (const [offset, ...bytes] of patches) {
    file.seekSync(offset, Deno.SeekMode.Start);
    file.writeSync(Uint8Array.from(bytes));
  }
}

/** Makes a file of a length, with some bytes in it. */
export function makeFile(path: string, length: number, data: Readonly<Record<number, string>> = {}): void {
  using file = Deno.createSync(path);
  file.truncateSync(length);
  for (const [offset, text] of Object.entries(data)) {
    file.seekSync(Number(offset), Deno.SeekMode.Start);
    file.writeSync(new TextEncoder().encode(text));
  }
}

/** Makes a bitmap look as if a writer had not come to its end; its entry begins at a position of the bitmap directory. */
export function markInUse(path: string, entryPosition: number): void {
  const bytes = Deno.readFileSync(path);
  const view = new DataView(bytes.buffer);
  for (let position = 112;; position += 8 + Math.ceil(view.getUint32(position + 4) / 8) * 8) {
    if (view.getUint32(position) !== 0x23852875) continue;
    const directory = Number(view.getBigUint64(position + 24));
    view.setUint32(directory + entryPosition, view.getUint32(directory + entryPosition) | 1);
    break;
  }
  Deno.writeFileSync(path, bytes);
}
