/**
 * An image as a page: everything that is known of it, with drawings that tell what their parts stand for. The page needs
 * nothing else.
 *
 * @module
 */

import { GUEST_KINDS, HOST_KINDS, type Inspection } from "../operations/inspect.ts";
import { colorRules, DRAWING_WIDTH, drawMap, escapeMarkup } from "./inspect_drawing.ts";
import type { PartKind, PartMap } from "./inspect_kinds.ts";
import { type Report, reportOf, type ReportTable } from "./inspect_report.ts";
import { scaleOf } from "./inspect_svg.ts";

const STYLE = `
body{margin:0;background:var(--page);color:var(--ink);font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:${DRAWING_WIDTH}px;margin:0 auto;padding:32px 16px 64px}
h1{font-size:22px;margin:0;overflow-wrap:anywhere}
h2{font-size:16px;margin:36px 0 10px}
h2 small{font-weight:400;font-size:13px;color:var(--soft);margin-left:8px}
p{margin:4px 0}
.summary{color:var(--soft)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 20px;margin:20px 0 0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
table{border-collapse:collapse}
th{text-align:left;font-weight:400;color:var(--soft)}
th,td{padding:4px 24px 4px 0;border-bottom:1px solid var(--line);overflow-wrap:anywhere}
svg{width:100%;height:auto;display:block;overflow:visible}
.hit:hover{fill:var(--ink);fill-opacity:.25}
.good::before{content:"✓ ";color:var(--good)}
.bad::before{content:"✗ ";color:var(--bad)}
`;

/**
 * Writes a page about what was found of an image.
 *
 * @param path Path of the image.
 * @param inspection What was found.
 * @returns The text of an HTML file.
 */
export function writeInspectionPage(path: string, inspection: Inspection): string {
  const report = reportOf(path, inspection);
  const { guest, host } = inspection;
  return `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${escapeMarkup(report.title)}</title>
<style>${colorRules(":root")}${STYLE}</style>
</head>
<body>
<main>
<h1>${escapeMarkup(report.title)}</h1>
<p class="summary">${escapeMarkup(report.summary)}</p>
${factList(report)}
${section("Disk", scaleOf("Disk", guest), figure("Disk", guest, GUEST_KINDS))}
${host === undefined ? "" : section("File", scaleOf("File", host), figure("File", host, HOST_KINDS))}
${section("Fragmentation", "", paragraphs([report.fragmentation]))}
${section("Check", "", checkParagraphs(report))}
${report.problems.length === 0 ? "" : section("Not all could be read", "", paragraphs(report.problems))}
${report.tables.map((table) => section(table.title, "", tableOf(table))).join("\n")}
</main>
</body>
</html>
`;
}

function section(title: string, note: string, content: string): string {
  return `<h2>${escapeMarkup(title)}<small>${escapeMarkup(note)}</small></h2>\n${content}`;
}

function factList({ facts }: Report): string {
  const items = facts.map(([name, value]) => `<dt>${escapeMarkup(name)}</dt><dd>${escapeMarkup(value)}</dd>`);
  return `<dl>${items.join("\n")}</dl>`;
}

function figure(name: string, map: PartMap, kinds: readonly PartKind[]): string {
  const { elements, height } = drawMap(map, kinds, { tooltips: true });
  return `<svg viewBox="0 0 ${DRAWING_WIDTH} ${height}" role="img" aria-label="${name}">${elements}</svg>`;
}

function checkParagraphs({ check: [verdict = "", ...details], sound }: Report): string {
  return `<p class="${sound ? "good" : "bad"}">${escapeMarkup(verdict)}</p>${paragraphs(details)}`;
}

function paragraphs(lines: readonly string[]): string {
  return lines.map((line) => `<p>${escapeMarkup(line)}</p>`).join("");
}

function tableOf({ columns, rows }: ReportTable): string {
  const row = (cells: readonly string[], tag: "th" | "td") => {
    return `<tr>${cells.map((cell) => `<${tag}>${escapeMarkup(cell)}</${tag}>`).join("")}</tr>`;
  };
  return `<table>${row(columns, "th")}${rows.map((cells) => row(cells, "td")).join("\n")}</table>`;
}
