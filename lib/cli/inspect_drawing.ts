/**
 * Draws what a disk or a file consists of as a part of an SVG.
 *
 * The whole is laid out in rows of cells, each of which stands for as many bytes. A cell is filled from below with its kinds, each as
 * high as its share, but high enough to be seen; neighbours that look alike are one shape. So the number of shapes
 * has a bound whatever the size of the image.
 *
 * @module
 */

import type { Bin } from "../operations/inspect.ts";
import { BACKGROUND_KINDS, KINDS, NOTABLE_KINDS, type PartKind, type PartMap } from "./inspect_kinds.ts";
import { share } from "./inspect_report.ts";
import { formatSize } from "./sizes.ts";

/** Width of every drawing, in pixels of its own. */
export const DRAWING_WIDTH = 992;

const LEFT_MARGIN = 76;
const COLUMN_COUNT = 128;
const MAX_ROW_COUNT = 32;
/** Distance of neighbouring cells where there are many, and where there are few. */
const PITCH = 7;
const MAX_PITCH = 35;
const GAP = 1;
/** The least height, the least that can be seen, and that of what must not be overlooked. */
const MIN_HEIGHT = 1;
const MIN_VISIBLE_HEIGHT = 2;
const MIN_NOTABLE_HEIGHT = 3;
/** A notable kind is drawn higher than its share as long as it is in no more than this share of the cells. */
const NOTABLE_SHARE = 0.25;
const LABEL_DISTANCE = 28;
const LEGEND_COLUMNS = 4;
const LEGEND_ROW_HEIGHT = 18;

/** A part of an SVG. */
export interface Drawing {
  /** Its elements, from y = 0 downwards. */
  readonly elements: string;
  /** How high it is. */
  readonly height: number;
}

/** How a map is drawn. */
export interface MapDrawingOptions {
  /** Whether parts of the drawing tell what they stand for where one points to them. */
  readonly tooltips: boolean;
}

interface Cell {
  readonly size: number;
  readonly content: Bin<PartKind>;
}

/** A kind in a cell, as high as it is drawn. */
interface Layer {
  readonly kind: PartKind;
  readonly height: number;
}

/** Cells of a row that look alike. */
interface Run {
  readonly row: number;
  readonly first: number;
  count: number;
  readonly look: string;
  readonly layers: readonly Layer[];
}

/**
 * Draws a map with its legend.
 *
 * @param map The map.
 * @param kinds All its kinds, from the one that matters most down.
 * @param options How to draw it.
 * @returns The drawing.
 */
export function drawMap(map: PartMap, kinds: readonly PartKind[], options: MapDrawingOptions): Drawing {
  const binsPerCell = Math.max(1, Math.ceil(map.bins.length / (COLUMN_COUNT * MAX_ROW_COUNT)));
  const cells = cellsOf(map, kinds, binsPerCell);
  const cellSize = map.binSize * binsPerCell;
  const pitch = pitchFor(cells.length);
  const rowCount = Math.ceil(cells.length / COLUMN_COUNT);
  const rare = rareKinds(cells, kinds);
  const runs = runsOf(cells, (cell) => layersOf(cell, kinds, rare, pitch - GAP));
  const height = rowCount * pitch;
  const grid = `<g transform="translate(${LEFT_MARGIN} 0)">${backgroundOf(cells.length, pitch, kinds)}${
    pathsOf(runs, pitch)
  }${gridLines(Math.min(cells.length, COLUMN_COUNT) * pitch, height, pitch)}${
    options.tooltips ? tooltipsOf(runs, map, cells, cellSize, pitch) : ""
  }</g>`;
  const legend = drawLegend(map, kinds);
  return {
    elements: `${rowLabels(rowCount, cellSize * COLUMN_COUNT, pitch)}${grid}` +
      `<g transform="translate(${LEFT_MARGIN} ${height + 22})">${legend.elements}</g>`,
    height: height + 22 + legend.height,
  };
}

/**
 * How much of the whole one cell of a drawing stands for.
 *
 * @param map The map.
 * @returns The size in bytes.
 */
export function cellSizeOf(map: PartMap): number {
  return map.binSize * Math.max(1, Math.ceil(map.bins.length / (COLUMN_COUNT * MAX_ROW_COUNT)));
}

/**
 * Makes text harmless within SVG and HTML.
 *
 * @param text Any text.
 * @returns The text with its markup characters written as entities.
 */
export function escapeMarkup(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

/**
 * The colours of all kinds, for light and dark surroundings, as rules of a style sheet.
 *
 * @param scope The selector of the element that the drawing stands in.
 * @returns The rules.
 */
export function colorRules(scope: string): string {
  const variables = (color: "lightColor" | "darkColor") => {
    return Object.entries(KINDS).map(([kind, appearance]) => `--${classOf(kind)}:${appearance[color]}`).join(";");
  };
  const light = `--page:#ffffff;--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;--good:#1a7f37;--bad:#d1242f`;
  const dark = `--page:#0d1117;--ink:#e6edf3;--soft:#9198a1;--line:#3d444d;--good:#3fb950;--bad:#ff5c57`;
  const fills = Object.keys(KINDS).map((kind) => `.${classOf(kind)}{fill:var(--${classOf(kind)})}`).join("");
  return `${scope}{${light};${variables("lightColor")}}` +
    `@media(prefers-color-scheme:dark){${scope}{${dark};${variables("darkColor")}}}` +
    `${fills}text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:var(--ink)}` +
    `.soft{fill:var(--soft)}.axis{font-size:10px;text-anchor:end;fill:var(--soft)}.legend{font-size:12px}` +
    `.grid{stroke:var(--page);stroke-width:${GAP};fill:none}.hit{fill:transparent}`;
}

function classOf(kind: string): string {
  return `k-${kind.toLowerCase().replaceAll(" ", "-")}`;
}

function cellsOf(map: PartMap, kinds: readonly PartKind[], binsPerCell: number): Cell[] {
  const cells: Cell[] = [];
  for (let first = 0; first < map.bins.length; first += binsPerCell) {
    const content: Partial<Record<PartKind, number>> = {};
    for (const bin of map.bins.slice(first, first + binsPerCell)) {
      for (const kind of kinds) {
        const bytes = bin[kind];
        if (bytes !== undefined) content[kind] = (content[kind] ?? 0) + bytes;
      }
    }
    const offset = first * map.binSize;
    cells.push({ size: Math.min(map.binSize * binsPerCell, map.size - offset), content });
  }
  return cells;
}

/** A map of a few cells has larger ones. */
function pitchFor(cellCount: number): number {
  if (cellCount > COLUMN_COUNT) return PITCH;
  return Math.max(PITCH, Math.min(MAX_PITCH, Math.floor(COLUMN_COUNT * PITCH / Math.max(1, cellCount))));
}

function rareKinds(cells: readonly Cell[], kinds: readonly PartKind[]): Set<PartKind> {
  return new Set(kinds.filter((kind) => {
    return NOTABLE_KINDS.has(kind) &&
      cells.filter(({ content }) => content[kind]).length <= cells.length * NOTABLE_SHARE;
  }));
}

/** The kinds of a cell from the bottom up, the largest first, with heights that fill the cell as far as it is filled. */
function layersOf(
  { size, content }: Cell,
  kinds: readonly PartKind[],
  rare: ReadonlySet<PartKind>,
  height: number,
): Layer[] {
  const present = kinds.filter((kind) => content[kind] && !BACKGROUND_KINDS.has(kind));
  const layers = present.map((kind) => {
    const least = rare.has(kind) ? MIN_NOTABLE_HEIGHT : NOTABLE_KINDS.has(kind) ? 0 : MIN_VISIBLE_HEIGHT;
    return { kind, height: Math.max(least, Math.round((content[kind] ?? 0) / size * height)) };
  }).filter((layer) => layer.height > 0).sort((a, b) => b.height - a.height);
  // What was made higher takes its room from the largest.
  let excess = layers.reduce((sum, layer) => sum + layer.height, 0) - height;
  return layers.map((layer) => {
    if (excess <= 0) return layer;
    const taken = Math.min(excess, layer.height - MIN_HEIGHT);
    excess -= taken;
    return { ...layer, height: layer.height - taken };
  });
}

function runsOf(cells: readonly Cell[], layersOfCell: (cell: Cell) => Layer[]): Run[] {
  const runs: Run[] = [];
  cells.forEach((cell, index) => {
    const layers = layersOfCell(cell);
    const look = layers.map(({ kind, height }) => `${kind} ${height}`).join();
    const row = Math.floor(index / COLUMN_COUNT);
    const last = runs.at(-1);
    if (last !== undefined && last.row === row && last.look === look) last.count++;
    else runs.push({ row, first: index % COLUMN_COUNT, count: 1, look, layers });
  });
  return runs;
}

function backgroundOf(cellCount: number, pitch: number, kinds: readonly PartKind[]): string {
  const background = kinds.find((kind) => BACKGROUND_KINDS.has(kind)) ?? "unallocated";
  const rows: string[] = [];
  for (let first = 0; first < cellCount; first += COLUMN_COUNT) {
    const width = Math.min(COLUMN_COUNT, cellCount - first) * pitch;
    rows.push(`M0 ${first / COLUMN_COUNT * pitch}h${width}v${pitch}h-${width}z`);
  }
  return `<path class="${classOf(background)}" d="${rows.join("")}"/>`;
}

/** One path for each kind. */
function pathsOf(runs: readonly Run[], pitch: number): string {
  const paths = new Map<PartKind, string[]>();
  for (const { row, first, count, layers } of runs) {
    let bottom = (row + 1) * pitch - GAP;
    for (const { kind, height } of layers) {
      const shapes = paths.get(kind) ?? [];
      paths.set(kind, shapes);
      shapes.push(`M${first * pitch} ${bottom - height}h${count * pitch}v${height}h-${count * pitch}z`);
      bottom -= height;
    }
  }
  return [...paths].map(([kind, shapes]) => `<path class="${classOf(kind)}" d="${shapes.join("")}"/>`).join("");
}

/** Lines in the colour of the page make cells of what was drawn in runs. */
function gridLines(width: number, height: number, pitch: number): string {
  const lines: string[] = [];
  for (let x = pitch; x <= width; x += pitch) lines.push(`M${x - GAP / 2} 0v${height}`);
  for (let y = pitch; y <= height; y += pitch) lines.push(`M0 ${y - GAP / 2}h${width}`);
  return lines.length === 0 ? "" : `<path class="grid" d="${lines.join("")}"/>`;
}

function rowLabels(rowCount: number, rowSize: number, pitch: number): string {
  const step = Math.ceil(LABEL_DISTANCE / pitch);
  const labels: string[] = [];
  for (let row = 0; row < rowCount; row += step) {
    const y = row * pitch + pitch / 2 + 3.5;
    labels.push(`<text class="axis" x="${LEFT_MARGIN - 8}" y="${y}">${formatSize(row * rowSize)}</text>`);
  }
  return labels.join("");
}

function tooltipsOf(
  runs: readonly Run[],
  map: PartMap,
  cells: readonly Cell[],
  cellSize: number,
  pitch: number,
): string {
  return runs.map(({ row, first, count }) => {
    const start = row * COLUMN_COUNT + first;
    const offset = start * cellSize;
    const end = Math.min(map.size, offset + count * cellSize);
    const sums = new Map<string, number>();
    for (const { content } of cells.slice(start, start + count)) {
      for (const [kind, bytes] of Object.entries(content)) sums.set(kind, (sums.get(kind) ?? 0) + bytes);
    }
    const parts = [...sums].sort(([, a], [, b]) => b - a).map(([kind, bytes]) => {
      return `${KINDS[kind as PartKind].label} ${formatSize(bytes)} (${share(bytes, end - offset)})`;
    });
    const title = `${formatSize(offset)} to ${formatSize(end)}: ${parts.join(", ")}`;
    return `<rect class="hit" x="${first * pitch}" y="${row * pitch}" width="${count * pitch}" height="${pitch}">` +
      `<title>${escapeMarkup(title)}</title></rect>`;
  }).join("");
}

function drawLegend(map: PartMap, kinds: readonly PartKind[]): Drawing {
  const present = kinds.filter((kind) => map.totals[kind]).sort((a, b) => (map.totals[b] ?? 0) - (map.totals[a] ?? 0));
  const columnWidth = (DRAWING_WIDTH - LEFT_MARGIN - 16) / LEGEND_COLUMNS;
  const items = present.map((kind, index) => {
    const bytes = map.totals[kind] ?? 0;
    const { label, meaning } = KINDS[kind];
    const x = index % LEGEND_COLUMNS * columnWidth;
    const y = Math.floor(index / LEGEND_COLUMNS) * LEGEND_ROW_HEIGHT;
    return `<g transform="translate(${x} ${y})"><title>${escapeMarkup(meaning)}</title>` +
      `<rect class="${classOf(kind)}" y="-10" width="11" height="11" rx="2"/>` +
      `<text class="legend" x="17">${escapeMarkup(label)} <tspan class="soft">${
        escapeMarkup(`${formatSize(bytes)}, ${share(bytes, map.size)}`)
      }</tspan></text></g>`;
  });
  return { elements: items.join(""), height: Math.ceil(present.length / LEGEND_COLUMNS) * LEGEND_ROW_HEIGHT };
}
