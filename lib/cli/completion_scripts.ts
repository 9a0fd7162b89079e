/**
 * Scripts that teach a shell how command lines of the program go on. All of them are made of the tables that the parser and the help
 * use.
 *
 * @module
 */

import type { OptionDefinition } from "./arguments.ts";
import { COMMAND_OPTIONS } from "./command_options.ts";
import { COMMAND_NAMES, type CommandName, commandSummary, optionMeaning, PROGRAM_OPTIONS } from "./help.ts";

/** The shells that there are scripts for. */
export const SHELLS = ["bash", "zsh", "fish"] as const;
/** Name of a shell. */
export type Shell = (typeof SHELLS)[number];

/** An option as a shell sees it. */
interface ShellOption extends OptionDefinition {
  readonly meaning: string;
}

/** Words that stand in the place of a file behind some commands; what follows an equals sign is a file. */
const OPERANDS: Readonly<Partial<Record<CommandName, readonly string[]>>> = {
  dd: ["if=", "of=", "bs=", "count=", "skip="],
  help: COMMAND_NAMES,
  completions: SHELLS,
};

/**
 * Writes the script for a shell.
 *
 * @param shell The shell.
 * @returns The script.
 */
export function completionScript(shell: Shell): string {
  switch (shell) {
    case "bash":
      return bashScript();
    case "zsh":
      return zshScript();
    case "fish":
      return fishScript();
  }
}

function optionsOf(command: CommandName): ShellOption[] {
  return COMMAND_OPTIONS[command].map((option) => ({ ...option, meaning: optionMeaning(command, option) ?? "" }));
}

function programOptions(): ShellOption[] {
  return PROGRAM_OPTIONS.map(({ meaning, ...option }) => ({ ...option, meaning }));
}

/** The forms that an option has on the command line. */
function flagsOf({ name, short, shortOnly }: OptionDefinition): string[] {
  return [...(short === undefined ? [] : [`-${short}`]), ...(shortOnly === true ? [] : [`--${name}`])];
}

function wordsOf({ values }: OptionDefinition): readonly string[] {
  return values === undefined || values === "file" ? [] : values;
}

function bashScript(): string {
  const branch = (label: string, options: readonly ShellOption[], operands: readonly string[]) => {
    const values = options.filter(({ takesValue }) => takesValue).map((option) => {
      // Where a value is no word out of a list, bash goes on with the names of files.
      const words = wordsOf(option);
      const action = words.length === 0 ? "return" : `values='${words.join(" ")}'`;
      return `        ${flagsOf(option).join(" | ")}) ${action} ;;\n`;
    });
    return `    ${label})\n      options='${options.flatMap(flagsOf).join(" ")}'\n` +
      (operands.length === 0 ? "" : `      operands='${operands.join(" ")}'\n`) +
      (values.length === 0 ? "" : `      case $previous in\n${values.join("")}      esac\n`) +
      "      ;;\n";
  };
  return `# Completions of qcow2 for bash
_qcow2() {
  local current=\${COMP_WORDS[COMP_CWORD]} previous=\${COMP_WORDS[COMP_CWORD - 1]}
  local index=1 command= options= operands= values=
  COMPREPLY=()
  # Bash takes --name=value for three words.
  if [[ $current == = ]]; then
    current=
  elif [[ $previous == = ]]; then
    previous=\${COMP_WORDS[COMP_CWORD - 2]}
  fi
  while ((index < COMP_CWORD)); do
    case \${COMP_WORDS[index]} in
      --argv0) ((index += 2)) ;;
      -*) ((index += 1)) ;;
      *) command=\${COMP_WORDS[index]} && break ;;
    esac
  done
  case $command in
${branch("''", programOptions(), COMMAND_NAMES)}${
    COMMAND_NAMES.map((name) => branch(name, optionsOf(name), OPERANDS[name] ?? [])).join("")
  }  esac
  if [[ -n $values ]]; then
    COMPREPLY=($(compgen -W "$values" -- "$current"))
  elif [[ $current == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$current"))
  elif [[ -n $operands && \${COMP_WORDS[COMP_CWORD]} != = && \${COMP_WORDS[COMP_CWORD - 1]} != = ]]; then
    COMPREPLY=($(compgen -W "$operands" -- "$current"))
    if [[ \${COMPREPLY-} == *= ]]; then compopt -o nospace 2>/dev/null; fi
  fi
}
complete -o default -F _qcow2 qcow2
`;
}

function zshScript(): string {
  const quote = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;
  const specification = (option: ShellOption) => {
    const { name, takesValue, values, meaning } = option;
    const explained = `[${meaning.replace(/[[\]:\\]/g, "\\$&")}]`;
    const words = wordsOf(option);
    const action = values === "file" ? "_files" : words.length === 0 ? "" : `(${words.join(" ")})`;
    return flagsOf(option).map((flag) => {
      const form = !takesValue ? flag : flag.startsWith("--") ? `${flag}=` : `${flag}+`;
      return quote(`*${form}${explained}${takesValue ? `:${name}:${action}` : ""}`);
    });
  };
  const lines = (specifications: readonly string[], indentation: string) => {
    return specifications.join(` \\\n${indentation}`);
  };
  const branch = (name: CommandName) => {
    const operands = OPERANDS[name];
    const rest = operands === undefined
      ? "'*:file:_files'"
      : name === "dd"
      ? "'*:operand:_qcow2_dd'"
      : quote(`1:${name}:(${operands.join(" ")})`);
    return `    ${name})\n      _arguments -s \\\n        ${
      lines([...optionsOf(name).flatMap(specification), rest], "        ")
    }\n      ;;\n`;
  };
  return `#compdef qcow2
# Completions of qcow2 for zsh
_qcow2_commands() {
  local -a commands=(
${COMMAND_NAMES.map((name) => `    ${quote(`${name}:${commandSummary(name)}`)}\n`).join("")}  )
  _describe command commands
}
_qcow2_dd() {
  if compset -P '*='; then _files; else compadd -S '' -- ${OPERANDS.dd?.join(" ")}; fi
}
_qcow2() {
  local context state state_descr line
  typeset -A opt_args
  _arguments -C \\
    ${
    lines(
      [...programOptions().flatMap(specification), "'1:command:_qcow2_commands'", "'*::argument:->arguments'"],
      "    ",
    )
  }
  [[ $state == arguments ]] || return
  case $words[1] in
${COMMAND_NAMES.map(branch).join("")}  esac
}
# Read from a folder of completions it is a function's body, otherwise it is run.
if [[ $funcstack[1] == _qcow2 ]]; then
  _qcow2 "$@"
else
  compdef _qcow2 qcow2
fi
`;
}

const FISH_HEAD = `# Completions of qcow2 for fish
function __qcow2_command_is
    set -l words (commandline -opc)
    set -e words[1]
    while set -q words[1]
        switch $words[1]
            case --argv0
                set -e words[1]
            case '-*'
            case '*'
                test "$words[1]" = "$argv[1]"
                return
        end
        set -q words[1]; and set -e words[1]
    end
    test -z "$argv[1]"
end`;

function fishScript(): string {
  const noCommand = "__qcow2_command_is";
  const quote = (text: string) => `'${text.replace(/['\\]/g, "\\$&")}'`;
  const lines: string[] = [FISH_HEAD];
  const add = (condition: string, ...parts: string[]) => {
    lines.push(["complete -c qcow2 -n", quote(condition), ...parts].join(" "));
  };
  const addOption = (condition: string, option: ShellOption) => {
    const { name, short, shortOnly, takesValue, values, meaning } = option;
    const words = wordsOf(option);
    add(
      condition,
      ...(short === undefined ? [] : [`-s ${short}`]),
      ...(shortOnly === true ? [] : [`-l ${name}`]),
      ...(takesValue ? [values === "file" ? "-r -F" : "-x"] : []),
      ...(words.length === 0 ? [] : [`-a ${quote(words.join(" "))}`]),
      `-d ${quote(meaning)}`,
    );
  };
  for (const option of programOptions()) addOption(noCommand, option);
  for (const name of COMMAND_NAMES) add(noCommand, `-f -a ${name} -d ${quote(commandSummary(name))}`);
  for (const name of COMMAND_NAMES) {
    const condition = `__qcow2_command_is ${name}`;
    for (const option of optionsOf(name)) addOption(condition, option);
    const operands = OPERANDS[name];
    if (operands !== undefined) add(condition, `${name === "dd" ? "" : "-f "}-a ${quote(operands.join(" "))}`);
  }
  return `${lines.join("\n")}\n`;
}
