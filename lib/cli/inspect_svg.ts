/**
 * An image as a drawing: what its disk and its file consist of, in one SVG that needs nothing else.
 *
 * @module
 */

import { GUEST_KINDS, HOST_KINDS, type Inspection } from "../operations/inspect.ts";
import { cellSizeOf, colorRules, type Drawing, DRAWING_WIDTH, drawMap, escapeMarkup } from "./inspect_drawing.ts";
import type { PartKind, PartMap } from "./inspect_kinds.ts";
import { type Report, reportOf } from "./inspect_report.ts";
import { formatSize } from "./sizes.ts";

const MARGIN = 16;
/** Longer texts would leave the drawing. */
const MAX_TITLE_LENGTH = 90;
const MAX_LINE_LENGTH = 140;

/**
 * Draws what was found of an image.
 *
 * @param path Path of the image.
 * @param inspection What was found.
 * @returns The text of an SVG file.
 */
export function drawInspection(path: string, inspection: Inspection): string {
  const report = reportOf(path, inspection);
  const { guest, host } = inspection;
  const parts: Drawing[] = [
    titleOf(report),
    panel("Disk", guest, GUEST_KINDS),
    ...(host === undefined ? [] : [panel("File", host, HOST_KINDS)]),
    footer(report),
  ];
  let y = MARGIN;
  const groups = parts.map(({ elements, height }) => {
    const group = `<g transform="translate(0 ${y})">${elements}</g>`;
    y += height;
    return group;
  });
  const height = y + MARGIN;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${DRAWING_WIDTH} ${height}" width="${DRAWING_WIDTH}" ` +
    `height="${height}" role="img" aria-label="${escapeMarkup(`${report.title}: ${report.summary}`)}">\n` +
    `<style>${colorRules("svg")}.title{font-size:17px;font-weight:600}.heading{font-size:14px;font-weight:600}` +
    `.line{font-size:12px}.good{fill:var(--good)}.bad{fill:var(--bad)}</style>\n` +
    `<rect fill="var(--page)" width="${DRAWING_WIDTH}" height="${height}"/>\n${groups.join("\n")}\n</svg>\n`;
}

/**
 * What stands above a map: what it is a map of.
 *
 * @param name `Disk` or `File`.
 * @param map The map.
 * @returns Such as `one cell for 8 MiB`.
 */
export function scaleOf(name: string, map: PartMap): string {
  const cells = map.size === 0 ? "nothing" : `one cell for ${formatSize(cellSizeOf(map))}`;
  const origin = name === "Disk" ? "as its guest sees it" : "as the host stores it";
  return `${formatSize(map.size)} ${origin}, ${cells}`;
}

function titleOf({ title, summary }: Report): Drawing {
  return {
    elements: `<text class="title" x="${MARGIN}" y="18">${escapeMarkup(cut(title, MAX_TITLE_LENGTH))}</text>` +
      `<text class="line soft" x="${MARGIN}" y="38">${escapeMarkup(cut(summary, MAX_LINE_LENGTH))}</text>`,
    height: 56,
  };
}

function panel(name: string, map: PartMap, kinds: readonly PartKind[]): Drawing {
  const { elements, height } = drawMap(map, kinds, { tooltips: false });
  return {
    elements: `<text class="heading" x="${MARGIN}" y="14">${name} <tspan class="line soft" dx="6" ` +
      `font-weight="400">${escapeMarkup(scaleOf(name, map))}</tspan></text>` +
      `<g transform="translate(0 26)">${elements}</g>`,
    height: 26 + height + 18,
  };
}

function footer({ fragmentation, check, sound, problems }: Report): Drawing {
  const lines = [
    `<tspan class="${sound ? "good" : "bad"}">${sound ? "✓" : "✗"}</tspan> ${
      escapeMarkup(cut(check[0] ?? "", MAX_LINE_LENGTH))
    }`,
    escapeMarkup(cut(fragmentation, MAX_LINE_LENGTH)),
    ...problems.slice(0, 3).map((problem) => escapeMarkup(cut(problem, MAX_LINE_LENGTH))),
  ];
  const elements = lines.map((line, index) => `<text class="line" x="${MARGIN}" y="${12 + index * 18}">${line}</text>`);
  return { elements: elements.join(""), height: lines.length * 18 };
}

function cut(text: string, length: number): string {
  const characters = [...text];
  return characters.length <= length ? text : `${characters.slice(0, length - 1).join("")}…`;
}
