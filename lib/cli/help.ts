/**
 * What there is to read about the program and its commands.
 *
 * @module
 */

import type { OptionDefinition } from "./arguments.ts";
import { wrap } from "./wrap.ts";

/** The commands. */
export const COMMAND_NAMES = [
  "amend",
  "bench",
  "bitmap",
  "check",
  "commit",
  "compare",
  "completions",
  "convert",
  "create",
  "dd",
  "help",
  "info",
  "inspect",
  "map",
  "measure",
  "rebase",
  "resize",
  "snapshot",
] as const;
/** Name of a command. */
export type CommandName = (typeof COMMAND_NAMES)[number];

/** The options in front of the command. */
export const PROGRAM_OPTIONS: readonly (OptionDefinition & { readonly meaning: string })[] = [
  { name: "argv0", takesValue: true, meaning: "the name in front of error messages" },
  { name: "json", meaning: "tell of errors in JSON" },
  { name: "help", short: "h", meaning: "this text" },
  { name: "version", short: "V", meaning: "the version" },
];

interface CommandHelp {
  readonly summary: string;
  readonly usage: string;
  readonly description: string;
  readonly options: readonly (readonly [option: string, meaning: string])[];
  readonly examples: readonly string[];
}

/** How long the lines of help are at most. */
const LINE_LENGTH = 100;

const FORMAT: readonly [string, string] = [
  "-f FORMAT",
  "format of the image, raw or qcow2; without it, its first bytes tell",
];
const SHARE: readonly [string, string] = ["-U, --force-share", "take no lock, for an image that somebody writes to"];
const OUTPUT: readonly [string, string] = ["--output human|json", "print for people (the default) or for programs"];
const QUIET: readonly [string, string] = ["-q", "print nothing but errors"];
const IMAGE_OPTS: readonly [string, string] = [
  "--image-opts",
  "FILE describes an image, as in driver=qcow2,file.filename=disk.qcow2",
];
const OBJECT: readonly [string, string] = [
  "--object OBJECT",
  "define a secret, as in secret,id=NAME,data=TEXT; encrypted images are refused all the same",
];
const SIZES = "Sizes are bytes, or have a suffix: k, M, G, T, P, E count in powers of 1024.";

const HELP: Readonly<Record<CommandName, CommandHelp>> = {
  create: {
    summary: "make an empty image",
    usage: "create [-f FORMAT] [-o OPTIONS] [-b FILE -F FORMAT [-u]] [-q] FILE [SIZE]",
    description:
      "Makes FILE an image of SIZE bytes that reads as zeroes, or as its backing file, whose size it takes\n" +
      `where SIZE is left out.\n${SIZES}`,
    options: [
      ["-f FORMAT", "raw (the default) or qcow2"],
      ["-o NAME=VALUE,…", "options of the image; -o help lists them. May be repeated"],
      ["-b FILE", "the backing file, relative to the image: read where nothing was written"],
      ["-F FORMAT", "format of the backing file, raw or qcow2"],
      ["-u", "do not open the backing file"],
      QUIET,
      OBJECT,
    ],
    examples: [
      "create -f qcow2 disk.qcow2 20G",
      "create -f qcow2 -o cluster_size=2M,lazy_refcounts=on disk.qcow2 1T",
      "create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2",
    ],
  },
  info: {
    summary: "tell what an image is",
    usage: "info [-f FORMAT] [--output human|json] [-U] [--backing-chain] FILE",
    description: "Tells format, sizes, snapshots and features of an image. Opens nothing but FILE.",
    options: [
      FORMAT,
      OUTPUT,
      SHARE,
      ["--backing-chain", "go on with the backing file, and with its backing file"],
      IMAGE_OPTS,
      OBJECT,
    ],
    examples: ["info disk.qcow2", "info --output json disk.qcow2"],
  },
  inspect: {
    summary: "show an image at a glance, or judge one from a stranger",
    usage: "inspect [OPTION…] FILE",
    description:
      "Tells what an image is, and shows as a picture what its disk and its file consist of, how its data\n" +
      "is spread, and what check thinks. Nothing is changed. On a terminal it uses colours, unless NO_COLOR\n" +
      "is set.\n" +
      "With --untrusted, opens nothing but FILE and prints a verdict as JSON: exits with 0 where FILE can\n" +
      "be used without harm, 2 where it must be refused, 1 where it could not be looked at.",
    options: [
      FORMAT,
      OUTPUT,
      ["--svg FILE", "draw the disk and the file into an SVG file"],
      ["--html FILE", "write all of it as a page"],
      ["--no-backing", "do not open backing files"],
      ["--max-tables SIZE", "look at tables up to this length in all: 1G without it"],
      ["--untrusted", "judge an image that comes from a stranger"],
      ["--max-size SIZE", "with --untrusted: the largest disk that is allowed"],
      SHARE,
      IMAGE_OPTS,
      OBJECT,
    ],
    examples: [
      "inspect disk.qcow2",
      "inspect --svg disk.svg --html disk.html disk.qcow2",
      "inspect --untrusted -f qcow2 --max-size 100G upload.qcow2",
    ],
  },
  bench: {
    summary: "measure how long requests to an image take",
    usage: "bench [-c COUNT] [-w] [-s SIZE] [-S STEP] [-o OFFSET] [-f FORMAT] [-U] FILE",
    description: "Reads COUNT times from FILE, one request after the other, and tells how long that took.",
    options: [
      ["-c COUNT", "how many requests (75000)"],
      ["-w", "write instead of reading; what FILE holds there is lost"],
      ["--pattern BYTE", "with -w: what to write (0)"],
      ["--flush-interval N", "with -w: flush after each N requests"],
      ["-s SIZE", "length of a request in bytes (4k)"],
      ["-o OFFSET", "where to begin (0)"],
      ["-S STEP", "how far the next request is from there (SIZE)"],
      FORMAT,
      SHARE,
      ["-d DEPTH", "printed as requests in parallel (64); there is always one"],
      ["-q, -n, -i, -t, --no-drain", "accepted as qemu-img does, without effect"],
      IMAGE_OPTS,
    ],
    examples: ["bench -c 10000 -s 64k disk.qcow2", "bench -w --pattern 0xff -S 1M disk.qcow2"],
  },
  bitmap: {
    summary: "change the persistent bitmaps of an image",
    usage: "bitmap ACTION… [-b SOURCE_FILE [-F FORMAT]] [-g GRANULARITY] [-f FORMAT] FILE BITMAP",
    description: "Does one thing after the other with BITMAP, in the order of the options. A bitmap that is enabled\n" +
      `records what is written to the disk.\n${SIZES}`,
    options: [
      ["--add", "add it, enabled and with nothing marked"],
      ["--remove", "remove it; all that can be done with one that is inconsistent"],
      ["--clear", "forget all that it has marked"],
      ["--enable", "let it record writes"],
      ["--disable", "let it record writes no longer"],
      ["--merge SOURCE", "mark what another bitmap, SOURCE, has marked"],
      ["-b SOURCE_FILE", "the image that holds SOURCE, where that is not FILE"],
      ["-F FORMAT", "format of SOURCE_FILE"],
      ["-g GRANULARITY", "with --add: bytes of the disk for one mark, a power of two from 512 to 2G"],
      FORMAT,
      IMAGE_OPTS,
      OBJECT,
    ],
    examples: [
      "bitmap --add -g 64k disk.qcow2 backup",
      "bitmap --add --disable --merge monday --merge tuesday disk.qcow2 both",
    ],
  },
  check: {
    summary: "look for damage in an image, and mend it",
    usage: "check [-f FORMAT] [--output human|json] [-q] [-r leaks|all] [-U] FILE",
    description:
      "Checks that every cluster is counted as often as it is used. Exits with 0 where all is well, 2 where\n" +
      "data may be damaged, 3 where space is wasted, 63 where the format has nothing to check, 1 where\n" +
      "checking failed.",
    options: [
      FORMAT,
      OUTPUT,
      QUIET,
      ["-r leaks|all", "mend: only wasted space, or everything"],
      SHARE,
      ["-T", "accepted as qemu-img does, without effect"],
      IMAGE_OPTS,
      OBJECT,
    ],
    examples: ["check disk.qcow2", "check -r all disk.qcow2"],
  },
  commit: {
    summary: "bring the content of an image to its backing file",
    usage: "commit [-b BASE] [-d] [-f FORMAT] [-p] [-q] [-r RATE] FILE",
    description:
      "Brings what FILE has of its own to its backing file, which grows where it is shorter. FILE is empty\n" +
      "afterwards. Other images over the backing file do not read what they read before.",
    options: [
      ["-b BASE", "bring it to an image further beneath; implies -d, and those between are of no use then"],
      ["-d", "leave FILE as it is"],
      FORMAT,
      ["-p", "show progress"],
      QUIET,
      ["-r RATE", "write so many bytes a second at most"],
      ["-t", "accepted as qemu-img does, without effect"],
      IMAGE_OPTS,
      OBJECT,
    ],
    examples: ["commit disk.qcow2", "commit -b base.qcow2 disk.qcow2"],
  },
  compare: {
    summary: "tell whether two images hold the same",
    usage: "compare [-f FORMAT] [-F FORMAT] [-p] [-q] [-s] [-U] FILE1 FILE2",
    description: "Compares what the disks read as; what the longer one has more must read as zeroes. Exits with 0\n" +
      "where they are the same, 1 where they differ, 2 where one cannot be opened, 3 and 4 where one cannot\n" +
      "be read.",
    options: [
      ["-f FORMAT", "format of FILE1, raw or qcow2; without it, its first bytes tell"],
      ["-F FORMAT", "format of FILE2"],
      ["-s", "sizes and what is allocated must be the same as well"],
      ["-p", "show progress"],
      QUIET,
      ["-U, --force-share", "take no lock, for images that somebody writes to"],
      ["-T", "accepted as qemu-img does, without effect"],
      IMAGE_OPTS,
      OBJECT,
    ],
    examples: ["compare disk.raw disk.qcow2", "compare -s -f qcow2 -F qcow2 one.qcow2 other.qcow2"],
  },
  convert: {
    summary: "copy images into a new one",
    usage: "convert [OPTION…] SOURCE… TARGET",
    description:
      "Copies SOURCE to TARGET, which is complete or not there at all: one that exists is replaced in the\n" +
      "end, and an interrupted conversion leaves nothing behind. Several sources are put one behind the\n" +
      "other.",
    options: [
      ["-f FORMAT", "format of the sources, raw or qcow2; without it, their first bytes tell"],
      ["-O FORMAT", "format of the target, raw (the default) or qcow2"],
      ["-o NAME=VALUE,…", "options of the target; -o help lists them. May be repeated"],
      ["-c", "compress the clusters of the target"],
      ["-B FILE", "give the target a backing file, which holds what the backing file of SOURCE holds"],
      ["-F FORMAT", "format of the backing file"],
      ["-l SNAPSHOT", "read a snapshot: its identifier or name, or snapshot.id=ID,snapshot.name=NAME"],
      ["-S SIZE", "how many zero bytes in a row become a hole (4k); 0 for no holes"],
      ["-n", "write into a target that exists, in place"],
      ["--target-is-zero", "with -n: the target reads as zeroes already"],
      ["--bitmaps", "copy the persistent bitmaps"],
      ["--skip-broken-bitmaps", "with --bitmaps: leave out those that are inconsistent"],
      ["--salvage", "take what cannot be read for zeroes"],
      ["-p", "show progress"],
      QUIET,
      ["-r RATE", "write so many bytes a second at most"],
      ["-U, --force-share", "take no lock on the sources"],
      ["-t CACHE", "durable at the end, unless unsafe; what replaces a file always is"],
      ["-C", "let the host copy what it can, which takes no time where files share blocks"],
      ["-T, -m, -W", "accepted as qemu-img does, without effect"],
      IMAGE_OPTS,
      ["--target-image-opts", "with -n: TARGET describes an image"],
      OBJECT,
    ],
    examples: [
      "convert -O qcow2 disk.raw disk.qcow2",
      "convert -p -f qcow2 -O raw disk.qcow2 disk.raw",
      "convert -c -l before -O qcow2 disk.qcow2 archive.qcow2",
      "convert -n -O raw disk.qcow2 /dev/vg/disk",
    ],
  },
  dd: {
    summary: "copy a part of an image into a new one",
    usage: "dd [-f FORMAT] [-O FORMAT] [-U] [bs=SIZE] [count=N] [skip=N] if=SOURCE of=TARGET",
    description: `Copies the blocks of SOURCE to TARGET, which is complete or not there at all.\n${SIZES}`,
    options: [
      ["if=SOURCE", "the image to read"],
      ["of=TARGET", "the image to make; one that exists is replaced"],
      ["bs=SIZE", "size of a block (512)"],
      ["count=N", "where to end in SOURCE, in blocks from its beginning"],
      ["skip=N", "where to begin in SOURCE, in blocks"],
      ["-f FORMAT", "format of SOURCE, raw or qcow2; without it, its first bytes tell"],
      ["-O FORMAT", "format of TARGET, raw (the default) or qcow2"],
      ["-U, --force-share", "take no lock on SOURCE"],
      IMAGE_OPTS,
      OBJECT,
    ],
    examples: ["dd if=disk.qcow2 of=mbr.raw count=1", "dd -O qcow2 bs=1M skip=100 if=disk.raw of=rest.qcow2"],
  },
  map: {
    summary: "tell where on the host an image has its data",
    usage: "map [-f FORMAT] [--output human|json] [-s OFFSET] [-l LENGTH] [-U] FILE",
    description: `Lists the stretches of the disk with their place in the file.\n${SIZES}`,
    options: [
      FORMAT,
      OUTPUT,
      ["-s, --start-offset OFFSET", "where to begin on the disk"],
      ["-l, --max-length LENGTH", "how far"],
      SHARE,
      IMAGE_OPTS,
      OBJECT,
    ],
    examples: ["map disk.qcow2", "map --output json --start-offset 1G --max-length 64M disk.qcow2"],
  },
  measure: {
    summary: "tell how large an image would be",
    usage: "measure [-O FORMAT] [-o OPTIONS] {--size SIZE | [-f FORMAT] [-l SNAPSHOT] [-U] FILE}",
    description:
      "Tells how many bytes a new image takes at most that holds what FILE holds, or an empty disk of SIZE;\n" +
      `and how many once every cluster of it is allocated. Nothing is made.\n${SIZES}`,
    options: [
      ["-O FORMAT", "format of the new image, raw (the default) or qcow2"],
      ["-o NAME=VALUE,…", "its options, as for create. May be repeated"],
      ["--size SIZE", "measure an empty disk of this size"],
      FORMAT,
      ["-l SNAPSHOT", "measure a snapshot: its identifier or name"],
      OUTPUT,
      SHARE,
      IMAGE_OPTS,
      OBJECT,
    ],
    examples: ["measure -O qcow2 disk.raw", "measure -O qcow2 -o cluster_size=2M --output json --size 1T"],
  },
  rebase: {
    summary: "give an image another backing file",
    usage: "rebase -b BACKING_FILE [-F FORMAT] [-f FORMAT] [-p] [-q] [-u] [-U] FILE",
    description: "Makes BACKING_FILE the backing file of FILE, whose disk keeps its content: what the old backing\n" +
      "file has and the new one has not is copied into FILE first. Whatever ends that early leaves FILE\n" +
      "with the backing file and the content that it had.",
    options: [
      ["-b BACKING_FILE", "the new backing file, relative to FILE; '' for none"],
      ["-F FORMAT", "format of the new backing file, raw or qcow2"],
      FORMAT,
      ["-u", "change nothing but the name: old and new backing file hold the same"],
      ["-p", "show progress"],
      QUIET,
      ["-U, --force-share", "take no lock on the new backing file"],
      ["-t, -T", "accepted as qemu-img does, without effect"],
      IMAGE_OPTS,
      OBJECT,
    ],
    examples: [
      "rebase -b newer.qcow2 -F qcow2 disk.qcow2",
      "rebase -b '' disk.qcow2",
      "rebase -u -b moved.qcow2 -F qcow2 disk.qcow2",
    ],
  },
  amend: {
    summary: "change what an image was created with",
    usage: "amend [-f FORMAT] -o OPTIONS [-p] [-q] [--force] FILE",
    description: "Changes version, refcount width, lazy refcounts, size or name of the data file of FILE, in place.\n" +
      "The data file is not touched: data_file=NAME only says where it stands from now on.",
    options: [
      FORMAT,
      ["-o NAME=VALUE,…", "what to change; -o help lists it. May be repeated"],
      ["-p", "show progress"],
      QUIET,
      ["--force, -t", "accepted as qemu-img does, without effect"],
      IMAGE_OPTS,
      OBJECT,
    ],
    examples: [
      "amend -o compat=1.1,lazy_refcounts=on disk.qcow2",
      "amend -o refcount_bits=64 disk.qcow2",
      "amend -o data_file=/srv/disk.raw disk.qcow2",
    ],
  },
  resize: {
    summary: "make the disk of an image longer or shorter",
    usage: "resize [-f FORMAT] [--preallocation MODE] [--shrink] [-q] FILE [+|-]SIZE",
    description: `Sets the virtual size of FILE, or changes it by SIZE. What is added reads as zeroes.\n${SIZES}`,
    options: [
      FORMAT,
      ["--preallocation MODE", "what is allocated of what is added: off, metadata, falloc or full"],
      ["--shrink", "allow a shorter disk; what stands behind its new end is lost"],
      QUIET,
      IMAGE_OPTS,
      OBJECT,
    ],
    examples: ["resize disk.qcow2 +10G", "resize --shrink disk.qcow2 20G"],
  },
  snapshot: {
    summary: "list, make, apply and delete internal snapshots",
    usage: "snapshot [-l | -a SNAPSHOT | -c NAME | -d NAME] [-q] [-U] FILE",
    description: "Snapshots keep what the disk held inside of the image. Applying one gives the disk that content\n" +
      "back, and the size that it had; what it holds now is lost.",
    options: [
      ["-l", "list the snapshots"],
      ["-a SNAPSHOT", "apply: identifier or name"],
      ["-c NAME", "make one of the disk as it is"],
      ["-d NAME", "delete"],
      QUIET,
      ["-U, --force-share", "with -l: take no lock, for an image that somebody writes to"],
      IMAGE_OPTS,
      OBJECT,
    ],
    examples: ["snapshot -c before disk.qcow2", "snapshot -l disk.qcow2", "snapshot -a before disk.qcow2"],
  },
  completions: {
    summary: "teach a shell how commands go on",
    usage: "completions bash|zsh|fish",
    description: "Prints a script that makes the shell complete commands, options and their values.",
    options: [],
    examples: [
      "completions bash > ~/.local/share/bash-completion/completions/qcow2",
      "completions zsh > ~/.zsh/functions/_qcow2",
      "completions fish > ~/.config/fish/completions/qcow2.fish",
    ],
  },
  help: {
    summary: "explain a command",
    usage: "help [COMMAND]",
    description: "Without COMMAND, lists what there is.",
    options: [],
    examples: ["help convert"],
  },
};

/**
 * Whether a word is a command.
 *
 * @param word The word.
 * @returns Whether it is.
 */
export function isCommandName(word: string): word is CommandName {
  return COMMAND_NAMES.some((name) => name === word);
}

/**
 * Explains the program.
 *
 * @param programName Its name.
 * @param version Its version.
 * @returns Text to print.
 */
export function programHelp(programName: string, version: string): string {
  const commands = COMMAND_NAMES.map((name) => [name, HELP[name].summary] as const);
  return `qcow2 ${version}: the disk image tool of @disk/qcow2\n\n` +
    `Usage: ${programName} [--argv0 NAME] [--json] COMMAND [OPTION…] [ARGUMENT…]\n\nCommands:\n${table(commands)}\n` +
    `Options:\n${
      table(PROGRAM_OPTIONS.map(({ name, short, takesValue, meaning }) => {
        const flags = `${short === undefined ? "" : `-${short}, `}--${name}`;
        return [takesValue ? `${flags} NAME` : flags, meaning];
      }))
    }\n` +
    "Commands, options, output and exit status are those of qemu-img. To take its place, have a script named\n" +
    `qemu-img that runs ${programName} --argv0 qemu-img "$@".\n\n` +
    "On a terminal, errors come with a hint, unless --argv0 is given. With --json, what would be printed on the\n" +
    "standard error is one object: code, message, hint, path, offset, found, expected.\n\n" +
    `'${programName} help COMMAND' tells more of a command.\n`;
}

/**
 * Explains a command.
 *
 * @param name Name of the command.
 * @param programName Name of the program.
 * @returns Text to print.
 */
export function commandHelp(name: CommandName, programName: string): string {
  const { summary, usage, description, options, examples } = HELP[name];
  return `${programName} ${name}: ${summary}\n\nUsage: ${programName} ${usage}\n\n${description}\n` +
    (options.length === 0 ? "" : `\nOptions:\n${table(options)}`) +
    `\nExamples:\n${examples.map((example) => `  ${programName} ${example}\n`).join("")}`;
}

/**
 * What a command does.
 *
 * @param name Name of the command.
 * @returns A few words.
 */
export function commandSummary(name: CommandName): string {
  return HELP[name].summary;
}

/**
 * What an option of a command means, as its help tells.
 *
 * @param name Name of the command.
 * @param option The option.
 * @returns A few words; `undefined` where the help does not tell of it.
 */
export function optionMeaning(name: CommandName, option: OptionDefinition): string | undefined {
  if (option.name === "help") return "explain the command";
  const flags = [`-${option.short}`, ...(option.shortOnly === true ? [] : [`--${option.name}`])];
  return HELP[name].options.find(([left]) => {
    return left.split(/[\s,]+/).some((word) => flags.includes(word));
  })?.[1];
}

function table(rows: readonly (readonly [string, string])[]): string {
  const width = Math.max(...rows.map(([left]) => left.length));
  const indentation = " ".repeat(2 + width + 2);
  return rows.map(([left, right]) => {
    const text = wrap(right, LINE_LENGTH, indentation).join("\n").slice(indentation.length);
    return `  ${left.padEnd(width)}  ${text}\n`;
  }).join("");
}
