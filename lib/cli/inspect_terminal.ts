/**
 * Draws what a disk or a file consists of in the characters of a terminal.
 *
 * @module
 */

import type { Bin } from "../operations/inspect.ts";
import { BACKGROUND_KINDS, KINDS, NOTABLE_KINDS, type PartKind, type PartMap } from "./inspect_kinds.ts";
import { share } from "./inspect_report.ts";
import { formatSize } from "./sizes.ts";

/** How a picture is drawn. */
export interface TerminalPictureOptions {
  /** How many characters fit into a line. */
  readonly width: number;
  /** How many lines the picture has at most. */
  readonly maxRows: number;
  /** Whether to use colours. */
  readonly color: boolean;
}

/** Offsets stand in front of the lines, with two spaces before and behind. */
const GUTTER_WIDTH = 2 + 9 + 2;
/** How many blocks a line may have: numbers that make round offsets. */
const ROW_LENGTHS = [256, 192, 128, 96, 64, 48, 32, 24, 16, 8];
/** From this share on a block looks full. */
const FULL_SHARE = 0.95;
/** Blocks by how much of them is filled, from the fullest down. */
const SHADES: readonly (readonly [share: number, block: string])[] = [[FULL_SHARE, "█"], [0.5, "▓"], [0.15, "▒"], [
  0,
  "░",
]];
/** Beside the kind that prevails in a block, another one is shown from this share on. */
const SECOND_KIND_SHARE = 0.25;
/** Without colours a notable kind stands for its block, as long as it is in no more than this share of the blocks. */
const NOTABLE_SHARE = 0.25;
/** A smaller share is not told: the size says enough. */
const LEAST_SHARE = 0.001;
/** What blocks mean that are not full. */
const COLORED_NOTE = "░▒▓ are filled in part only";
const PLAIN_NOTE = "░▒▓ and small letters are filled in part only";
const RESET = "\x1b[0m";

/**
 * Draws a map: a line for each stretch, a block for each part of it, and what the blocks mean.
 *
 * @param map The map.
 * @param kinds All its kinds, from the one that matters most down.
 * @param options Size and colours.
 * @returns Lines without line ends.
 */
export function drawTerminalMap(
  map: PartMap,
  kinds: readonly PartKind[],
  options: TerminalPictureOptions,
): string[] {
  const cells = mergeBins(map, kinds, options);
  const rowLength = rowLengthFor(options.width);
  const cellSize = map.binSize * cells.binsPerCell;
  const rare = new Set<PartKind>(kinds.filter((kind) => {
    return NOTABLE_KINDS.has(kind) && cells.bins.filter((bin) => bin[kind]).length <= cells.bins.length * NOTABLE_SHARE;
  }));
  const lines: string[] = [];
  let anyPartial = false;
  for (let first = 0; first < cells.bins.length; first += rowLength) {
    const row = cells.bins.slice(first, first + rowLength).map((bin, index) => {
      const size = Math.min(cellSize, map.size - (first + index) * cellSize);
      const block = options.color ? coloredBlock(bin, size, kinds) : plainBlock(bin, size, kinds, rare);
      anyPartial ||= block.partial === true;
      return block;
    });
    lines.push(`  ${formatSize(first * cellSize).padStart(9)}  ${joinBlocks(row)}`);
  }
  const legend = kinds.filter((kind) => map.totals[kind]).sort((a, b) => (map.totals[b] ?? 0) - (map.totals[a] ?? 0));
  const note = anyPartial ? [`${" ".repeat(GUTTER_WIDTH)}${options.color ? COLORED_NOTE : PLAIN_NOTE}`] : [];
  return [...lines, ...(lines.length === 0 ? [] : [""]), ...legendLines(map, legend, options), ...note];
}

/**
 * How much of a disk one block of its picture stands for.
 *
 * @param map The map.
 * @param options Size of the picture.
 * @returns The size in bytes.
 */
export function blockSize(map: PartMap, options: TerminalPictureOptions): number {
  return map.binSize * binsPerBlock(map, options);
}

function rowLengthFor(width: number): number {
  return ROW_LENGTHS.find((length) => length + GUTTER_WIDTH <= width) ?? Math.max(1, width - GUTTER_WIDTH);
}

function binsPerBlock({ bins }: PartMap, { width, maxRows }: TerminalPictureOptions): number {
  return Math.max(1, Math.ceil(bins.length / (rowLengthFor(width) * maxRows)));
}

function mergeBins(
  map: PartMap,
  kinds: readonly PartKind[],
  options: TerminalPictureOptions,
): { readonly bins: Bin<PartKind>[]; readonly binsPerCell: number } {
  const binsPerCell = binsPerBlock(map, options);
  const bins: Bin<PartKind>[] = [];
  for (let first = 0; first < map.bins.length; first += binsPerCell) {
    const merged: Partial<Record<PartKind, number>> = {};
    for (const bin of map.bins.slice(first, first + binsPerCell)) {
      for (const kind of kinds) {
        const bytes = bin[kind];
        if (bytes !== undefined) merged[kind] = (merged[kind] ?? 0) + bytes;
      }
    }
    bins.push(merged);
  }
  return { bins, binsPerCell };
}

/** A character with the colours that it is drawn in. */
interface Block {
  readonly style: string;
  readonly character: string;
  /** Whether the character says that a part of the block is empty. */
  readonly partial?: boolean;
}

/** A block shows the kind that prevails, by its colour, and how much of it is filled; its lower half another one. */
function coloredBlock(bin: Bin<PartKind>, size: number, kinds: readonly PartKind[]): Block {
  const [main, second] = present(bin, kinds);
  if (main === undefined) return { style: foreground("unallocated"), character: KINDS.unallocated.character };
  const notable = kinds.find((kind) => kind !== main && bin[kind] && NOTABLE_KINDS.has(kind));
  const other = notable ??
    (second !== undefined && (bin[second] ?? 0) >= size * SECOND_KIND_SHARE ? second : undefined);
  if (other !== undefined) return { style: `${foreground(other)}${background(main)}`, character: "▄" };
  return { style: foreground(main), ...shade(filled(bin, size)) };
}

function plainBlock(
  bin: Bin<PartKind>,
  size: number,
  kinds: readonly PartKind[],
  rare: ReadonlySet<PartKind>,
): Block {
  const notable = kinds.find((kind) => bin[kind] && rare.has(kind));
  if (notable !== undefined) return { style: "", character: KINDS[notable].character };
  const [main = "unallocated"] = present(bin, kinds);
  const { character } = KINDS[main];
  const full = filled(bin, size);
  if (main === "data") return { style: "", ...shade(full) };
  const partial = full > 0 && full < 0.5;
  return { style: "", character: partial ? character.toLowerCase() : character, partial };
}

/** The share of a block that is not empty. */
function filled(bin: Bin<PartKind>, size: number): number {
  let empty = 0;
  for (const kind of BACKGROUND_KINDS) empty += bin[kind] ?? 0;
  return 1 - empty / size;
}

function shade(share: number): { readonly character: string; readonly partial: boolean } {
  return { character: SHADES.find(([from]) => share >= from)?.[1] ?? "░", partial: share < FULL_SHARE };
}

/** The kinds of a bin that mean something, those of which there is most first. */
function present(bin: Bin<PartKind>, kinds: readonly PartKind[]): PartKind[] {
  return kinds.filter((kind) => bin[kind] && !BACKGROUND_KINDS.has(kind)).sort((a, b) => (bin[b] ?? 0) - (bin[a] ?? 0));
}

function foreground(kind: PartKind): string {
  return `\x1b[38;5;${KINDS[kind].terminalColor}m`;
}

function background(kind: PartKind): string {
  return `\x1b[48;5;${KINDS[kind].terminalColor}m`;
}

/** Colours are set where they change only. */
function joinBlocks(blocks: readonly Block[]): string {
  let text = "";
  let style = "";
  for (const block of blocks) {
    if (block.style !== style) text += `${style === "" ? "" : RESET}${block.style}`;
    style = block.style;
    text += block.character;
  }
  return style === "" ? text : `${text}${RESET}`;
}

/** What the blocks mean, with sizes, as many in a line as fit. */
function legendLines(
  map: PartMap,
  kinds: readonly PartKind[],
  { width, color }: TerminalPictureOptions,
): string[] {
  const items = kinds.map((kind) => {
    const { label, character } = KINDS[kind];
    const block = !color ? character : BACKGROUND_KINDS.has(kind) ? character : "█";
    const bytes = map.totals[kind] ?? 0;
    const part = bytes / map.size < LEAST_SHARE ? "" : `, ${share(bytes, map.size)}`;
    const text = ` ${label} ${formatSize(bytes)}${part}`;
    return {
      length: text.length + 1,
      text: `${joinBlocks([{ style: color ? foreground(kind) : "", character: block }])}${text}`,
    };
  });
  const longest = Math.max(0, ...items.map(({ length }) => length));
  const indentation = Math.min(GUTTER_WIDTH, Math.max(2, width - longest));
  const columnWidth = longest + 3;
  const perLine = Math.max(1, Math.floor((width - indentation + 3) / columnWidth));
  const lines: string[] = [];
  for (let first = 0; first < items.length; first += perLine) {
    const line = items.slice(first, first + perLine).map(({ text, length }) => text + " ".repeat(columnWidth - length));
    lines.push(`${" ".repeat(indentation)}${line.join("").trimEnd()}`);
  }
  return lines;
}
