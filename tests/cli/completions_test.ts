import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { COMMAND_OPTIONS } from "../../lib/cli/command_options.ts";
import { COMMAND_NAMES } from "../../lib/cli/help.ts";
import { run } from "../qemu.ts";
import { Folder, program } from "./_program.ts";

function isInstalled(shell: string): boolean {
  try {
    return run(shell, ["-c", "exit 0"]).code === 0;
  } catch {
    return false;
  }
}

/** Registers a test that needs a shell. Without it, it is ignored. */
function shellTest(shell: string, name: string, fn: (script: string) => void): void {
  Deno.test({
    name,
    ignore: !isInstalled(shell),
    fn: async () => {
      using folder = new Folder();
      const path = folder.path(`_qcow2.${shell}`);
      Deno.writeTextFileSync(path, (await program("completions", shell)).stdout);
      fn(path);
    },
  });
}

/** What is offered for the last word of a command line that begins with `qcow2`. */
type Complete = (...words: string[]) => string[];

function testCompletions(complete: Complete): void {
  assertEquals(complete("ins"), ["inspect"]);
  assertEquals(complete("co"), ["commit", "compare", "completions", "convert"]);
  assertEquals(complete("--ver"), ["--version"]);
  assertEquals(complete("--argv0", "qemu-img", "res"), ["resize"]);
  assertEquals(complete("check", "--output", "j"), ["json"]);
  assertEquals(complete("check", "-f", ""), ["qcow2", "raw"]);
  assertEquals(complete("check", "-r", "l"), ["leaks"]);
  assertEquals(complete("convert", "--targ"), ["--target-image-opts", "--target-is-zero"]);
  assertEquals(complete("resize", "disk.qcow2", "--pre"), ["--preallocation"]);
  assertEquals(complete("resize", "--preallocation", "f"), ["falloc", "full"]);
  assertEquals(complete("help", "sna"), ["snapshot"]);
  assertEquals(complete("dd", "-O", "raw", "sk"), ["skip="]);
  assertEquals(complete("completions", "z"), ["zsh"]);
}

shellTest("bash", "completions work in bash", (script) => {
  const complete: Complete = (...words) => {
    const text =
      `source "$1"; shift; COMP_WORDS=(qcow2 "$@"); COMP_CWORD=$#; _qcow2; printf '%s\\n' "\${COMPREPLY[@]}"`;
    const { code, stdout, stderr } = run("bash", ["-uc", text, "bash", script, ...words]);
    assertEquals([code, stderr], [0, ""]);
    return stdout.split("\n").filter((word) => word !== "").sort();
  };
  testCompletions(complete);
  // Bash cuts words at equals signs.
  assertEquals(complete("check", "--output", "=", "h"), ["human"]);
  assertEquals(complete("check", "--output", "="), ["human", "json"]);
  // Names of files are left to bash.
  for (const words of [["check", "di"], ["convert", "-B", "b"], ["create", "-o", ""]]) {
    assertEquals(complete(...words), []);
  }
  assertStringIncludes(run("bash", ["-c", `source ${script}; complete -p qcow2`]).stdout, "-o default");
});

shellTest("fish", "completions work in fish", (script) => {
  testCompletions((...words) => {
    const line = `qcow2 ${words.join(" ")}`;
    const { code, stdout, stderr } = run("fish", ["--no-config", "-c", `source ${script}; complete -C '${line}'`]);
    assertEquals([code, stderr], [0, ""]);
    return stdout.split("\n").map((offer) => offer.split("\t")[0] ?? "").filter((word) => word !== "").sort();
  });
});

shellTest("zsh", "completions work in zsh", (script) => {
  // Zsh completes nowhere but on a terminal: one that shows what the command line has become.
  const complete = (line: string): string => {
    const text = `
      zmodload zsh/zpty
      zpty shell 'PS1= zsh -f'
      zpty -w shell 'autoload -Uz compinit; compinit -uD; source ${script}'
      zpty -w shell 'qcow2() { print -r -- "<<$*>>" }; bindkey "^I" complete-word; print -r -- rea""dy'
      zpty -r shell seen '*ready*'
      zpty -n -w shell $'${line}\\t\\n'
      zpty -r shell seen '*<<*>>*'
      print -r -- "$seen"
    `;
    const { stdout } = run("timeout", ["20", "zsh", "-fc", text]);
    return /<<(.*)>>/.exec(stdout)?.[1]?.trim() ?? stdout;
  };
  assertEquals(complete("qcow2 ins"), "inspect");
  assertEquals(complete("qcow2 --argv0 qemu-img res"), "--argv0 qemu-img resize");
  assertEquals(complete("qcow2 check --output j"), "check --output json");
  assertEquals(complete("qcow2 check --output=h"), "check --output=human");
  assertEquals(complete("qcow2 check -r l"), "check -r leaks");
  assertEquals(complete("qcow2 resize disk.qcow2 --pre"), "resize disk.qcow2 --preallocation");
  assertEquals(complete("qcow2 help sna"), "help snapshot");
  assertEquals(complete("qcow2 completions z"), "completions zsh");
  assertEquals(complete(`qcow2 dd i`), "dd if=");
  assertEquals(complete(`qcow2 dd if=${script.slice(0, -4)}`), `dd if=${script}`);
});

Deno.test("completions offer every option of every command", async () => {
  for (const shell of ["bash", "zsh", "fish"]) {
    const { code, stdout } = await program("completions", shell);
    assertEquals(code, 0);
    for (const command of COMMAND_NAMES) {
      for (const { name, short, shortOnly } of COMMAND_OPTIONS[command]) {
        if (short !== undefined) assert(new RegExp(`-s ${short}\\b|-${short}\\b`).test(stdout), `${command} -${short}`);
        if (!shortOnly) assert(new RegExp(`-l ${name}\\b|--${name}\\b`).test(stdout), `${command} --${name}`);
      }
    }
  }
});

Deno.test("completions are there for three shells", async () => {
  for (const args of [[], ["bash", "zsh"], ["-x"], ["cmd"]]) {
    const { code, stdout } = await program("completions", ...args);
    assertEquals([code, stdout], [1, ""]);
  }
  assertStringIncludes((await program("completions", "cmd")).stderr, "Unknown shell 'cmd', expected bash, zsh, fish");
});
