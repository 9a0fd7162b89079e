/**
 * How the kinds of parts that a disk or a file consists of are called and shown, in a terminal and as a drawing.
 *
 * @module
 */

import type { Bin, GuestKind, HostKind } from "../operations/inspect.ts";

/** A kind of part of a disk or of a file. */
export type PartKind = GuestKind | HostKind;

/** What a disk or a file consists of, whichever of the two it is. */
export interface PartMap {
  /** Length of the whole in bytes. */
  readonly size: number;
  /** Bytes in each bin; the last one may be shorter. */
  readonly binSize: number;
  /** The bins, from the start to the end. */
  readonly bins: readonly Bin<PartKind>[];
  /** How many bytes of each kind the whole holds. */
  readonly totals: Bin<PartKind>;
}

/** How a kind is called and shown. */
export interface KindAppearance {
  /** What it is called. */
  readonly label: string;
  /** What that means, in a few words. */
  readonly meaning: string;
  /**
   * The character for it where there are no colours; no two kinds of one map have the same. A small letter stands for a block
   * of which it fills less than half.
   */
  readonly character: string;
  /** Its colour in a terminal, out of the table of 256. */
  readonly terminalColor: number;
  /** Its colour on a light page. */
  readonly lightColor: string;
  /** Its colour on a dark page. */
  readonly darkColor: string;
}

/** The kinds that mean that there is nothing. */
export const BACKGROUND_KINDS: ReadonlySet<PartKind> = new Set<PartKind>(["unallocated", "free"]);

/** Kinds that are shown however little there is of them: metadata, and what is wrong. */
export const NOTABLE_KINDS: ReadonlySet<PartKind> = new Set<PartKind>([
  "damaged",
  "overlap",
  "leaked",
  "header",
  "encryption header",
  "L1 table",
  "refcount table",
  "refcount block",
  "L2 table",
  "bitmaps",
  "snapshots",
]);

/** How each kind is shown. Data is blue, what is kept for somebody else is green, metadata is warm, trouble is red. */
export const KINDS: Readonly<Record<PartKind, KindAppearance>> = {
  "data": appearance("data", "what the disk holds", "█", 33, "#2f6fde", "#4c8dff"),
  "compressed": appearance("compressed", "data in compressed clusters", "C", 98, "#8250df", "#a27bf0"),
  "backing": appearance("backing", "data of a backing file", "B", 36, "#1b9e77", "#3fb68b"),
  "zero": appearance("zero", "zeroes that the image notes", "Z", 247, "#a7b1bd", "#6e7b8a"),
  "unallocated": appearance("unallocated", "nothing; reads as zeroes", "·", 240, "#e1e6ec", "#272e37"),
  "damaged": appearance("damaged", "cannot be read", "!", 196, "#d1242f", "#ff5c57"),
  "unknown": appearance("not looked at", "more tables than the limit", "?", 180, "#d8c49a", "#7d6f4d"),
  "header": appearance("header", "where everything begins", "H", 129, "#8a1c7c", "#e07be0"),
  "encryption header": appearance("encryption header", "keys of the encryption", "E", 94, "#6e4a1e", "#c69a6d"),
  "L1 table": appearance("L1 table", "upper half of the disk's map", "1", 199, "#c2185b", "#ff6fa5"),
  "L2 table": appearance("L2 tables", "lower half of the disk's map", "2", 211, "#f08fb0", "#b65a7c"),
  "refcount table": appearance("refcount table", "where the refcounts are", "R", 172, "#b35900", "#f0883e"),
  "refcount block": appearance("refcount blocks", "how often clusters are used", "r", 179, "#e0a030", "#c08a35"),
  "bitmaps": appearance("bitmaps", "records of what was written", "B", 71, "#5a8f29", "#8fce4f"),
  "snapshots": appearance("snapshot tables", "maps of snapshots", "T", 30, "#00707a", "#2fd0dc"),
  "shared data": appearance("shared data", "held by the disk and by snapshots", "D", 75, "#79a8e8", "#2f5fae"),
  "snapshot data": appearance("snapshot data", "held by snapshots alone", "S", 80, "#2fa8a0", "#2a8b93"),
  "free": appearance("free", "unused", "·", 240, "#e1e6ec", "#272e37"),
  "leaked": appearance("leaked", "unused, but not free", "!", 208, "#e8590c", "#ff9a4d"),
  "overlap": appearance("overlap", "used for two things at once", "X", 196, "#d1242f", "#ff5c57"),
};

function appearance(
  label: string,
  meaning: string,
  character: string,
  terminalColor: number,
  lightColor: string,
  darkColor: string,
): KindAppearance {
  return { label, meaning, character, terminalColor, lightColor, darkColor };
}
