/**
 * What is told of an image in words: the same for a terminal and for a page.
 *
 * @module
 */

import type { Snapshot } from "../format/snapshot_table.ts";
import type { ImageInfo, Qcow2Info } from "../operations/info.ts";
import type { Fragmentation, GuestKind, Inspection, Soundness } from "../operations/inspect.ts";
import { formatSize } from "./sizes.ts";

/** A fact with its name. */
export type Fact = readonly [name: string, value: string];

/** A table with a title. */
export interface ReportTable {
  /** What it lists. */
  readonly title: string;
  /** The names of its columns. */
  readonly columns: readonly string[];
  /** Its rows. */
  readonly rows: readonly (readonly string[])[];
}

/** What is told of an image. All texts are of printable characters. */
export interface Report {
  /** The name of the image. */
  readonly title: string;
  /** What it is, in one line. */
  readonly summary: string;
  /** What there is to know of it. */
  readonly facts: readonly Fact[];
  /** The chain of images, snapshots, bitmaps: those of them that there are. */
  readonly tables: readonly ReportTable[];
  /** How the data is spread over the host's file. */
  readonly fragmentation: string;
  /** What a check thinks, and the first of what it has found. */
  readonly check: readonly string[];
  /** Whether the image is sound, as far as is known. */
  readonly sound: boolean;
  /** What could not be looked at. */
  readonly problems: readonly string[];
}

/**
 * Puts into words what was found of an image.
 *
 * @param path Path of the image.
 * @param inspection What was found.
 * @returns The words.
 */
export function reportOf(path: string, inspection: Inspection): Report {
  const { info, soundness, problems, guest } = inspection;
  const clean = soundness?.result !== undefined && soundness.result.corruptions + soundness.result.leaks === 0;
  return {
    title: printable(path),
    summary: summaryOf(info),
    facts: factsOf(inspection),
    tables: tablesOf(inspection),
    fragmentation: fragmentationText(inspection.fragmentation, guest.totals),
    check: checkLines(soundness, info),
    sound: soundness === undefined || (clean && problems.length === 0),
    problems: problems.map(printable),
  };
}

/**
 * Makes text from an image harmless: what a terminal would take for a command is written as an escape.
 *
 * @param text Any text, such as the name of a snapshot.
 * @returns The text in printable characters.
 */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (character) => {
    return `\\u{${(character.codePointAt(0) ?? 0).toString(16)}}`;
  });
}

/**
 * Writes a share as a percentage.
 *
 * @param part The part.
 * @param whole The whole.
 * @returns Such as `12.3 %`; never 0 % for more than nothing, nor 100 % for less than everything.
 */
export function share(part: number, whole: number): string {
  if (part === 0 || whole === 0) return "0 %";
  if (part === whole) return "100 %";
  const percent = part * 100 / whole;
  if (percent < 0.1) return "< 0.1 %";
  if (percent > 99) return "> 99 %";
  return `${percent.toFixed(percent < 10 ? 1 : 0)} %`;
}

function summaryOf({ format, qcow2, virtualSize }: ImageInfo): string {
  const size = formatSize(virtualSize);
  if (qcow2 === undefined) return `A ${format} image of a disk of ${size}`;
  return `A qcow2 image, version ${qcow2.version}, of a disk of ${size} in clusters of ${
    formatSize(qcow2.clusterSize)
  }`;
}

function factsOf({ info, fileSize }: Inspection): Fact[] {
  const { virtualSize, actualSize, qcow2 } = info;
  const onHost = actualSize === undefined ? "" : `, of which the host stores ${formatSize(actualSize)}`;
  const facts: Fact[] = [
    ["Disk", `${formatSize(virtualSize)} (${count(virtualSize)} bytes)`],
    ["File", `${formatSize(fileSize)} long${onHost}`],
  ];
  if (qcow2 === undefined) return facts;
  const { version, clusterSize, refcountBits, compressionType, encryption, dataFile } = qcow2;
  const clusterCount = Math.ceil(virtualSize / clusterSize);
  const subclusters = qcow2.extendedL2 ? `; each has 32 subclusters of ${formatSize(clusterSize / 32)}` : "";
  facts.push(
    ["Format", `qcow2 version ${version} (compat ${version === 2 ? "0.10" : "1.1"})`],
    ["Clusters", `${formatSize(clusterSize)}, of which the disk has ${count(clusterCount)}${subclusters}`],
    ["Refcounts", `${refcountBits} ${refcountBits === 1 ? "bit" : "bits"} wide${lazyText(qcow2)}`],
    ["Compression", `${compressionType}, for clusters that are compressed`],
    ["Encryption", encryption === undefined ? "none" : encryptionText(encryption)],
  );
  if (qcow2.backingFile !== undefined) {
    const format = qcow2.backingFormat === undefined ? "which is not named" : printable(qcow2.backingFormat);
    facts.push(["Backing file", `${printable(qcow2.backingFile)}, format ${format}`]);
  }
  if (dataFile !== undefined) {
    const raw = qcow2.dataFileRaw ? ", a raw image of the disk as well" : "";
    facts.push(["Data file", `${printable(dataFile)}${raw}`]);
  }
  facts.push(["State", stateText(qcow2)]);
  return facts;
}

function lazyText({ lazyRefcounts }: Qcow2Info): string {
  return lazyRefcounts ? "; writers may delay them (lazy refcounts)" : "";
}

function encryptionText(encryption: NonNullable<Qcow2Info["encryption"]>): string {
  if (encryption.format === "aes") return "AES, which is out of date";
  const { cipherAlgorithm, cipherMode } = encryption;
  return `LUKS, ${printable(cipherAlgorithm)} in mode ${printable(cipherMode)}`;
}

function stateText({ corrupt, dirty }: Qcow2Info): string {
  const marks = [
    ...(corrupt ? ["marked as corrupt, to be repaired before it is written"] : []),
    ...(dirty ? ["not closed properly, so that refcounts may be stale"] : []),
  ];
  return marks.length === 0 ? "closed properly" : marks.join("; ");
}

function tablesOf({ info: { qcow2 }, chain }: Inspection): ReportTable[] {
  const tables: ReportTable[] = [];
  if (chain.length > 1) {
    tables.push({
      title: "Backing chain",
      columns: ["Depth", "Image", "Format", "Disk", "On the host"],
      rows: chain.map(({ path, info, problem }, depth) => {
        const known = info === undefined
          ? [printable(problem ?? ""), "", ""]
          : [info.format, formatSize(info.virtualSize), formatSize(info.actualSize ?? 0)];
        return [String(depth), printable(path), ...known];
      }),
    });
  }
  if (qcow2 !== undefined && qcow2.snapshots.length > 0) {
    tables.push({
      title: "Snapshots",
      columns: ["ID", "Name", "Taken", "Disk", "Memory"],
      rows: qcow2.snapshots.map(snapshotRow),
    });
  }
  if (qcow2 !== undefined && qcow2.bitmaps.length > 0) {
    tables.push({
      title: "Bitmaps",
      columns: ["Name", "One bit for", "State"],
      rows: qcow2.bitmaps.map(({ name, granularity, inUse, auto }) => {
        const state = inUse ? "inconsistent: can only be removed" : auto ? "records writes" : "does not record";
        return [printable(name), formatSize(granularity), state];
      }),
    });
  }
  return tables;
}

function snapshotRow({ id, name, seconds, diskSize, vmStateSize }: Snapshot): string[] {
  const taken = new Date(seconds * 1000).toISOString().replace("T", " ").replace(/\.\d+Z$/, " UTC");
  return [
    printable(id),
    printable(name),
    taken,
    diskSize === undefined ? "not said" : formatSize(diskSize),
    vmStateSize === 0 ? "none" : formatSize(vmStateSize),
  ];
}

function fragmentationText(
  { pieces, dataLength, longestPiece }: Fragmentation,
  totals: Readonly<Record<GuestKind, number>>,
): string {
  const packed = totals.compressed > 0 ? `${formatSize(totals.compressed)} of the disk are compressed` : "";
  if (pieces === 0) return packed === "" ? "There is no data" : packed;
  const inPieces = pieces === 1
    ? `${formatSize(dataLength)} of data stand in one piece`
    : `${formatSize(dataLength)} of data stand in ${count(pieces)} pieces, of ${
      formatSize(dataLength / pieces)
    } on average and ${formatSize(longestPiece)} at most`;
  return packed === "" ? inPieces : `${inPieces}; ${packed}`;
}

function checkLines(soundness: Soundness | undefined, { qcow2 }: ImageInfo): string[] {
  if (soundness === undefined) return ["Raw images have nothing to check"];
  const { result, findings, problem } = soundness;
  const details = findings.map(({ message }) => printable(message));
  if (result === undefined) return [`Not carried to the end: ${printable(problem ?? "")}`, ...details];
  const { corruptions, leaks } = result;
  const found = corruptions + leaks;
  const more = found > findings.length ? [`and ${count(found - findings.length)} more`] : [];
  if (found === 0) return ["No errors: every cluster is counted as often as it is used"];
  const wasted = leaks === 0
    ? "no leaks"
    : `${count(leaks)} leaked ${leaks === 1 ? "cluster" : "clusters"}, ${
      formatSize(leaks * (qcow2?.clusterSize ?? 0))
    } of space`;
  const wrong = corruptions === 0
    ? "No errors"
    : `${count(corruptions)} ${corruptions === 1 ? "error" : "errors"} that endanger data`;
  return [`${wrong}, ${wasted}`, ...details, ...more];
}

function count(number: number): string {
  return number.toLocaleString("en-US");
}
