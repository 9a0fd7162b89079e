/**
 * What `inspect` prints for people.
 *
 * @module
 */

import { GUEST_KINDS, HOST_KINDS, type Inspection } from "../operations/inspect.ts";
import { type Report, reportOf, type ReportTable } from "./inspect_report.ts";
import { blockSize, drawTerminalMap } from "./inspect_terminal.ts";
import { formatSize } from "./sizes.ts";
import { wrap } from "./wrap.ts";

/** What {@linkcode formatInspection} prints for. */
export interface Terminal {
  /** How many characters fit into a line. */
  readonly width: number;
  /** Whether to use colours. */
  readonly color: boolean;
}

/** The picture of the disk may be so high, that of the file a little less. */
const GUEST_ROWS = 8;
const HOST_ROWS = 6;

/**
 * Writes down what was found of an image.
 *
 * @param path Path of the image.
 * @param inspection What was found.
 * @param terminal Where it is printed.
 * @returns Text to print.
 */
export function formatInspection(path: string, inspection: Inspection, terminal: Terminal): string {
  const report = reportOf(path, inspection);
  const { guest, host } = inspection;
  const guestPicture = { ...terminal, maxRows: GUEST_ROWS };
  const hostPicture = { ...terminal, maxRows: HOST_ROWS };
  const bold = (text: string) => terminal.color ? `\x1b[1m${text}\x1b[0m` : text;
  const section = (title: string, lines: readonly string[]) => `\n${bold(title)}\n${lines.join("\n")}\n`;
  const prose = (lines: readonly string[]) => lines.flatMap((line) => wrap(line, terminal.width, "  "));
  const perBlock = (size: number) => size === 0 ? "" : `, one block for ${formatSize(size)}`;
  return [
    `${bold(report.title)}\n${report.summary}\n`,
    `\n${factLines(report, terminal.width).join("\n")}\n`,
    ...report.tables.map((table) => section(table.title, tableLines(table))),
    section(
      `Disk, ${formatSize(guest.size)}${perBlock(guest.size === 0 ? 0 : blockSize(guest, guestPicture))}`,
      guest.size === 0 ? ["  Empty"] : drawTerminalMap(guest, GUEST_KINDS, guestPicture),
    ),
    host === undefined ? "" : section(
      `File, ${formatSize(host.size)}${perBlock(blockSize(host, hostPicture))}`,
      drawTerminalMap(host, HOST_KINDS, hostPicture),
    ),
    section("Fragmentation", prose([report.fragmentation])),
    section("Check", prose(report.check)),
    report.problems.length === 0 ? "" : section("Not all could be read", prose(report.problems)),
  ].join("");
}

function factLines({ facts }: Report, width: number): string[] {
  const indentation = 2 + Math.max(...facts.map(([name]) => name.length)) + 2;
  return facts.flatMap(([name, value]) => {
    const [first = "", ...rest] = wrap(value, width, " ".repeat(indentation));
    return [`  ${name}`.padEnd(indentation) + first.trimStart(), ...rest];
  });
}

function tableLines({ columns, rows }: ReportTable): string[] {
  const widths = columns.map((column, index) => Math.max(column.length, ...rows.map((row) => row[index]?.length ?? 0)));
  return [columns, ...rows].map((row) => {
    return `  ${row.map((cell, index) => cell.padEnd(widths[index] ?? 0)).join("  ")}`.trimEnd();
  });
}
