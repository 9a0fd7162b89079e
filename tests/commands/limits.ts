/**
 * What is left out of the random command lines because both programs do not do the same, and why. Everything that keeps a
 * command line from being run stands here; docs/qemu-img.md tells of each to those who use the program.
 *
 * @module
 */

import { KIB } from "../images.ts";
import type { World } from "./world.ts";

interface Limit {
  /** Why it is left out. */
  readonly reason: string;
  /** Whether a command line is concerned. */
  readonly concerns: (args: readonly string[], world: World) => boolean;
}

/** Options that no command has. */
const UNKNOWN_OPTION = /^(-x|-\d|--nothing)/;

const LIMITS: readonly Limit[] = [
  {
    reason: "The content of the file itself depends on where clusters stand in it",
    concerns: (args, world) => readsQcow2AsRaw(args, world),
  },
  {
    reason: "QEMU goes round a loop of backing files until it has no more files to open",
    concerns: (args, world) => makesLoop(args, world),
  },
  {
    reason: "QEMU lets dd read from and write to the same file, which is emptied first; here that is refused",
    concerns: ([command, ...rest]) => {
      const files = rest.map((word) => /^(if|of)=(.*)$/.exec(word)).flatMap((match) => match === null ? [] : [match]);
      const [source, target] = ["if", "of"].map((key) => files.findLast((match) => match[1] === key)?.[2]);
      return command === "dd" && source !== undefined && source === target;
    },
  },
  {
    reason:
      "QEMU writes compressed clusters only where nothing is allocated, and fails elsewhere; here they replace what is there",
    concerns: ([command, ...rest]) => command === "convert" && rest.includes("-c") && rest.includes("-n"),
  },
  {
    reason:
      "What is left of a target that is said to be zero, and is not, depends on the pieces in which it is written",
    concerns: (args, world) => args.includes("--target-is-zero") && !world.isBlank(args.at(-1) ?? ""),
  },
  {
    reason: "Where QEMU writes in any order over a backing file, parts of clusters come to show that instead of zeroes",
    concerns: ([command, ...rest]) => command === "convert" && rest.includes("-W") && rest.includes("-B"),
  },
  {
    reason:
      "The same for the guest's compressed writes, where it is not certain that the same is allocated in both folders",
    concerns: (args, world) => {
      return args.some((word) => /^write -c/.test(word)) && world.mayDifferInAllocation(args.at(-1) ?? "");
    },
  },
  {
    reason:
      "What an image shows of a file beneath it depends on what the image has allocated, where that is not certain",
    concerns: (args, world) => {
      const getsOther = args[0] === "rebase" && args.includes("-u") && world.mayDifferInAllocation(args.at(-1) ?? "");
      return getsOther || contentChangedBy(args, world).some((name) => world.isBeneathUncertain(name));
    },
  },
  {
    reason: "QEMU shows again what a disk held behind its end, as far as its last cluster goes, when it grows",
    concerns: (args, world) => isResize(args) && args.some((word) => world.find(word)?.wasLonger === true),
  },
  {
    reason: "QEMU cannot always make an image of version 2 longer where its backing file reaches behind its end",
    concerns: (args, world) => {
      const [image, backing] = world.chainOf(args.find((word) => world.find(word) !== undefined) ?? "");
      return isResize(args) && image?.version === 2 && (backing?.size ?? 0) > image.size;
    },
  },
  {
    reason: "Zeroes that hide the new backing file are lost where QEMU writes them into an image of version 2",
    concerns: ([command, ...rest], world) => {
      const [image, backing] = world.chainOf(rest.at(-1) ?? "");
      return command === "rebase" && image?.version === 2 && (backing?.size ?? 0) < image.size;
    },
  },
  {
    reason: "QEMU applies no snapshot where there are bitmaps; here the bitmaps get to know what changes",
    concerns: ([command, ...rest], world) => {
      const hasBitmaps = rest.some((word) => (world.find(word)?.bitmaps ?? []).length > 0);
      return command === "snapshot" && rest.includes("-a") && hasBitmaps;
    },
  },
  {
    reason: "QEMU changes the width of refcounts, which may fail, before it looks at the backing file",
    concerns: ([command, ...rest]) => {
      const list = rest.find((word) => word.includes("refcount_bits=")) ?? "";
      return command === "amend" && list.includes("backing_f");
    },
  },
  {
    reason: "QEMU looks at every refcount in turn for each of a new table, which takes minutes where a block has many",
    concerns: ([command, ...rest], world) => {
      const isSlow = rest.some((word) => (world.find(word)?.clusterSize ?? 0) > 64 * KIB);
      return command === "amend" && isSlow && rest.some((word) => word.includes("refcount_bits"));
    },
  },
  {
    reason: "QEMU reads a snapshot as if it had the size that the disk has now; here it has its own",
    concerns: ([command = "", ...rest], world) => {
      const reads = ["convert", "measure"].includes(command) && rest.some((word) => word.startsWith("-l"));
      return reads && rest.some((word) => world.find(word)?.wasResized === true);
    },
  },
  {
    reason: "QEMU loses all bitmaps when an image becomes one of version 2; here that is refused",
    concerns: ([command, ...rest], world) => {
      const isDowngrade = command === "amend" && rest.some((word) => /compat=(0\.10|v2)/.test(word));
      return isDowngrade && rest.some((word) => (world.find(word)?.bitmaps ?? []).length > 0);
    },
  },
  {
    reason:
      "QEMU raises refcounts once more than it has to when it applies a snapshot, which narrow ones do not allow; here it works",
    concerns: ([command, ...rest], world) => {
      const bits = Math.min(
        ...rest.map((word) => world.find(word)?.refcountBits ?? Infinity).filter((width) => width > 0),
      );
      return command === "snapshot" && rest.includes("-a") && bits <= 2;
    },
  },
  {
    reason:
      "QEMU opens a raw image again after it could not apply a snapshot, and warns again that it was not told the format",
    concerns: ([command, ...rest], world) => {
      return command === "snapshot" && rest.includes("-a") && rest.some((word) => world.find(word)?.format === "raw");
    },
  },
  {
    reason:
      "Of a conversion onto its source and other mistakes, the first is told first here, before the target is looked at",
    concerns: ([command, ...rest]) => command === "convert" && rest.slice(0, -1).includes(rest.at(-1) ?? ""),
  },
  {
    reason: "QEMU looks at the options of a target before it opens the target's backing file; here that comes first",
    concerns: ([command, ...rest], world) => {
      const isThere = world.find(rest[rest.indexOf("-B") + 1] ?? "") !== undefined;
      return command === "convert" && rest.includes("-B") && rest.includes("-o") && !isThere;
    },
  },
  {
    reason: "QEMU finds that a target cannot be written before it looks at its options; here options come first",
    concerns: ([command, ...rest]) => ["convert", "create"].includes(command ?? "") && rest.includes("."),
  },
  {
    reason:
      "QEMU takes an empty list of options for a mistake before it reads on; here options that do not exist are told first",
    concerns: ([, ...rest]) => rest.some((word, index) => word === "" && rest[index - 1] === "-o"),
  },
  {
    reason: "QEMU takes snapshots for leaks, and frees what they have, where there are bitmaps as well",
    concerns: (args, world) => {
      const images = args.flatMap((word) => world.find(word) ?? []);
      return isRepair(args) && images.some(({ snapshots, bitmaps }) => snapshots.length > 0 && bitmaps.length > 0);
    },
  },
  {
    reason: "A repair tells how much is allocated, which is not certain to be the same in both folders",
    concerns: (args, world) => isRepair(args) && args.some((word) => world.mayDifferInAllocation(word)),
  },
  {
    reason: "QEMU answers an option that measure does not have, or that has no value, with all of its help",
    concerns: ([command, ...rest]) => {
      const isUnknown = rest.some((word) => UNKNOWN_OPTION.test(word));
      return command === "measure" && (isUnknown || rest.at(-1)?.startsWith("-") === true);
    },
  },
  {
    reason:
      "QEMU comes upon mistakes in the order in which they stand; here options are read before their values are looked at",
    concerns: ([command, ...rest]) => {
      const hasUnknownCache = ["-t", "-T"].some((option) => rest[rest.indexOf(option) + 1] === "some");
      const isConversion = command === "convert" && hasUnknownCache && rest.includes("-o");
      const hasOtherMistakes = command === "convert" || rest.includes("some");
      const isUnknown = hasOtherMistakes && rest.some((word) => UNKNOWN_OPTION.test(word));
      return isConversion || isUnknown || (command === "resize" && rest.slice(0, -1).some((word) => /^-\d/.test(word)));
    },
  },
  {
    reason: "QEMU does not write zeroes into clusters that it preallocates, and shows what was freed there",
    concerns: ([command, ...rest]) => command === "resize" && rest.includes("--preallocation=metadata"),
  },
  {
    reason:
      "QEMU reserves room in front of the end of a file that snapshots have made longer, and takes that for shrinking",
    concerns: (args, world) => reservesRoom(args) && args.some((word) => (world.find(word)?.snapshots.length ?? 0) > 0),
  },
  {
    reason: "QEMU shows bitmaps that stood at the end of the file in clusters that it reserves",
    concerns: (args, world) => reservesRoom(args) && args.some((word) => (world.find(word)?.bitmaps.length ?? 0) > 0),
  },
  {
    reason: "QEMU decompresses a cluster for each block that it copies, which takes minutes where they are large",
    concerns: ([command, ...rest], world) => {
      const source = rest.findLast((word) => word.startsWith("if="))?.slice("if=".length) ?? "";
      return command === "dd" && world.chainOf(source).some(({ clusterSize }) => clusterSize > 256 * KIB);
    },
  },
  {
    reason: "QEMU tells how far it is in more pieces where there are subclusters",
    concerns: ([command, ...rest], world) => {
      const hasSubclusters = rest.some((word) => world.chainOf(word).some(({ extendedL2 }) => extendedL2));
      return command === "compare" && rest.includes("-p") && hasSubclusters;
    },
  },
  {
    reason: "QEMU looks for holes in a data file, also where everything in it was written",
    concerns: ([command, ...rest], world) => {
      return command === "compare" && rest.includes("-s") &&
        rest.some((word) => world.find(word)?.dataFile !== undefined);
    },
  },
  {
    reason: "QEMU empties a data file that exists; here it is refused unless it holds nothing but zeroes",
    concerns: ([command, ...rest], world) => {
      const names = rest.flatMap((word) => /data_file=([^,]+)/.exec(word)?.[1] ?? []);
      return (command === "create" || command === "convert") && names.some((name) => world.dataFiles.includes(name));
    },
  },
  {
    reason: "QEMU allocates an L2 table where it discards, and has more to count than there is here",
    concerns: ([command, ...rest], world) => {
      return command === "snapshot" && rest.includes("-c") && rest.some((word) => world.find(word)?.refcountBits === 1);
    },
  },
  {
    reason: "QEMU names an image that can have no bitmaps by a number that it has given it",
    concerns: ([command, ...rest], world) => {
      return command === "bitmap" && rest.some((word) => (world.find(word)?.version ?? 3) < 3);
    },
  },
  {
    reason:
      "QEMU loses a bitmap of a disk without bytes: it wants memory for its table, asks for none and takes that for a failure",
    concerns: ([command, ...rest], world) => command === "bitmap" && rest.some((word) => world.find(word)?.size === 0),
  },
];

/** Whether a command line can be run in both folders. */
export function isComparable(args: readonly string[], world: World): boolean {
  return !LIMITS.some(({ concerns }) => concerns(args, world));
}

/** What a step means for the clusters that the files it changes have allocated. */
export type Allocation = "anew" | "as before" | "uncertain";

/**
 * Whether the same clusters will be allocated in both folders. A commit of QEMU's goes by pieces of 64 KiB: where an image has anything in
 * one, all of it is written, be it zeroes; and zeroes are marked where there is nothing yet. Here only what the image has is
 * written, and zeroes only over data. The content is the same.
 *
 * @param args The command line.
 * @param world What there is before.
 * @returns What to expect of the files that it changes.
 */
export function allocationAfter(args: readonly string[], world: World): Allocation {
  // Where the host has holes in what was reserved, and whether QEMU looks for them, depends on the host.
  if (args.some((word) => /preallocation=(metadata|falloc|full)/.test(word) && word.includes("data_file="))) {
    return "uncertain";
  }
  if (args[0] === "create") return "anew";
  // A part of a cluster becomes zero with all of it where the backing file is known to hold zeroes around it, be they holes.
  const image = world.find(args.at(-1) ?? "");
  if (image?.backing !== undefined && args.some((word) => word.startsWith("write -z"))) return "uncertain";
  // QEMU looks for zeroes in each piece of the source by itself, however short it is.
  const isSmall = (name: string) =>
    world.chainOf(name).some(({ version, clusterSize }) => version > 0 && clusterSize < 4 * KIB);
  const hasSmallTarget = args.some((word) => /cluster_size=(512|1k|2k)/.test(word));
  if (args[0] === "convert" && hasSmallTarget && args.some(isSmall)) return "uncertain";
  if (args[0] === "commit") return "uncertain";
  // QEMU marks zeroes in a target that exists where it has nothing yet; here that stays as it is.
  if (args[0] === "convert" && args.includes("-n")) return "uncertain";
  // QEMU marks zeroes that it finds in data, where here only what a backing file would show is marked.
  if (args[0] === "convert" && reachesBehindBacking(args, world)) return "uncertain";
  // QEMU writes the zeroes of each piece of the source by itself, and bytes where one ends amid a cluster of the target.
  if (args[0] === "convert" && args.includes("-B") && args.some(isSmall)) return "uncertain";
  // QEMU marks zeroes up to the new end, where here only what a longer backing file would show is marked.
  if (isResize(args) && args.some((word) => world.find(word)?.backing !== undefined)) return "uncertain";
  // Zeroes that a downgrade writes may be holes of the host or not.
  if (args[0] === "amend" && args.some((word) => word.includes("compat="))) return "uncertain";
  // QEMU leaves zeroes out subcluster by subcluster.
  if (args[0] === "convert" && args.some((word) => word.includes("extended_l2=on"))) return "uncertain";
  // The host copies holes as it likes.
  if (args[0] === "convert" && args.includes("-C")) return "uncertain";
  // Where zeroes are looked for, QEMU begins its pieces at other places.
  if (args[0] === "convert" && args.some((word) => word.startsWith("-S"))) return "uncertain";
  const reads = args.some((word) => world.mayDifferInAllocation(word.replace(/^(if|of)=/, "")));
  return reads ? "uncertain" : "as before";
}

/**
 * Whether QEMU may have done a part of what was asked for when a command failed: it empties, overwrites or removes a target before
 * it knows that all is well, amends one property after the other,
 * rebases before it looks at the new format, and leaves refcounts of a snapshot that it could not make. Here what was there before stays, and nothing new is left.
 *
 * @param args The command line that has failed.
 * @returns Whether the files that QEMU has changed are to be forgotten.
 */
export function mayLeaveTarget([command = ""]: readonly string[]): boolean {
  return ["amend", "create", "convert", "dd", "rebase", "snapshot"].includes(command);
}

/** The names of the files whose disks hold something else after a command, as far as that can be. */
function contentChangedBy(args: readonly string[], world: World): readonly string[] {
  const name = args.at(-1) ?? "";
  switch (args[0]) {
    case "bitmap":
    case "check":
    case "compare":
    case "info":
    case "map":
    case "measure":
      return [];
    case "commit":
      return world.chainOf(name).slice(1).map((image) => image.name);
    case "create":
    case "dd":
    case "resize":
      return args.map((word) => word.replace(/^of=/, ""));
    default:
      return [name];
  }
}

function readsQcow2AsRaw(args: readonly string[], world: World): boolean {
  const [command = ""] = args;
  const isRead = world.images.some(({ backing = "", backingFormat }) =>
    backingFormat === "raw" && args.includes(backing)
  );
  if (isRead && ["create", "convert"].includes(command) && args.includes("qcow2")) return true;
  const isRawTarget = command === "convert" && args.includes("-n") && !args.includes("qcow2");
  if (isRawTarget && world.find(args.at(-1) ?? "")?.format === "qcow2") return true;
  const hasQcow2 = args.some((word) => world.find(word.replace(/^if=/, ""))?.format === "qcow2");
  return hasQcow2 && args.some((word, index) => word === "raw" && ["-f", "-F"].includes(args[index - 1] ?? ""));
}

function isRepair([command, ...rest]: readonly string[]): boolean {
  return command === "check" && rest.some((word) => /^(-\w*r|--r)/.test(word));
}

function reservesRoom([command, ...rest]: readonly string[]): boolean {
  return command === "resize" && rest.some((word) => /^--preallocation=(falloc|full)/.test(word));
}

function isResize(args: readonly string[]): boolean {
  return args[0] === "resize" || (args[0] === "amend" && args.some((word) => word.includes("size=")));
}

/** Whether the target of a conversion becomes longer than its backing file. */
function reachesBehindBacking(args: readonly string[], world: World): boolean {
  const backing = world.find(args[args.indexOf("-B") + 1] ?? "");
  return args.includes("-B") && args.some((word) => (world.find(word)?.size ?? 0) > (backing?.size ?? 0));
}

function makesLoop(args: readonly string[], world: World): boolean {
  const backing = args.findIndex((word) => word === "-b" || word === "-B");
  const name = args[backing + 1] ?? "";
  if (backing < 0 || !["create", "convert", "rebase"].includes(args[0] ?? "")) return false;
  return world.chainOf(name).some((image) =>
    args.lastIndexOf(image.name) > backing + 1 || args.indexOf(image.name) < backing
  );
}
