/**
 * What `peers.ts` has measured, for people, for programs and as a picture.
 *
 * @module
 */

import type { Contender, Targets } from "./_peer_works.ts";

/** One work, with the times that it took. */
export interface Measurement {
  /** Its name. */
  readonly name: string;
  /** What is measured: the whole process, or the requests alone. */
  readonly what: "process" | "requests";
  /** What it is to cost at most. */
  readonly targets: Targets;
  /** The seconds of each run of each contender. */
  readonly seconds: Readonly<Partial<Record<Contender, readonly number[]>>>;
}

/** The middle of some numbers. */
export function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? NaN) + upper) / 2;
}

/** How the time of this project relates to that of another contender, by medians and by best times. */
export function ratios(
  { seconds }: Measurement,
  other: Contender,
): { readonly median: number; readonly best: number } | undefined {
  const ours = seconds.here;
  const theirs = seconds[other];
  if (ours === undefined || theirs === undefined) return undefined;
  return { median: median(ours) / median(theirs), best: Math.min(...ours) / Math.min(...theirs) };
}

/** Whether a measurement is within its targets: by its median, or by its best times where the machine was busy. */
export function isMet(measurement: Measurement): boolean {
  const { targets: { overLimit, ...multiples }, seconds: { here, limit } } = measurement;
  const isSoon = overLimit === undefined || here === undefined || limit === undefined ||
    Math.min(median(here) - median(limit), Math.min(...here) - Math.min(...limit)) <= overLimit;
  return isSoon && (["peer", "limit"] as const).every((other) => {
    const target = multiples[other];
    const found = ratios(measurement, other);
    return target === undefined || found === undefined || Math.min(found.median, found.best) <= target;
  });
}

/**
 * The measurements as a table in Markdown.
 *
 * @param measurements What was measured.
 * @param isJudged Whether to say which targets were met.
 * @returns Lines without a final line break.
 */
export function table(measurements: readonly Measurement[], isJudged: boolean): string {
  return [
    "| work | here | qemu-img | limit | here / qemu-img | here / limit | target |",
    "| --- | --- | --- | --- | --- | --- | --- |",
    ...measurements.map((measurement) => {
      const { name, seconds } = measurement;
      const cells = [
        name,
        times(seconds.here),
        times(seconds.peer),
        times(seconds.limit),
        ratioText(measurement, "peer"),
        ratioText(measurement, "limit"),
        targetText(measurement, isJudged),
      ];
      return `| ${cells.join(" | ")} |`;
    }),
  ].join("\n");
}

function times(seconds: readonly number[] | undefined): string {
  return seconds === undefined ? "" : `${digits(median(seconds))} (${digits(Math.min(...seconds))})`;
}

/** Three digits that matter. */
function digits(value: number): string {
  return value >= 100
    ? value.toFixed(0)
    : value >= 10
    ? value.toFixed(1)
    : value >= 1
    ? value.toFixed(2)
    : value.toFixed(3);
}

function ratioText(measurement: Measurement, other: Contender): string {
  const found = ratios(measurement, other);
  return found === undefined ? "" : `${found.median.toFixed(2)} (${found.best.toFixed(2)})`;
}

function targetText(measurement: Measurement, isJudged: boolean): string {
  const { peer, limit, overLimit } = measurement.targets;
  const wanted = [
    ...(peer === undefined ? [] : [`${round(peer)} of qemu-img`]),
    ...(limit === undefined ? [] : [`${round(limit)} of the limit`]),
    ...(overLimit === undefined ? [] : [`the limit and ${overLimit * 1000} ms`]),
  ];
  if (wanted.length === 0) return "";
  return `${wanted.join(", ")}${isJudged ? `: ${isMet(measurement) ? "met" : "missed"}` : ""}`;
}

function round(value: number): string {
  return String(Math.round(value * 100) / 100);
}

/**
 * The measurements for programs, with the machine that they were made on.
 *
 * @param measurements What was measured.
 * @param runs How often.
 * @returns JSON text.
 */
export function json(measurements: readonly Measurement[], runs: number): string {
  const machine = {
    os: Deno.build.os,
    arch: Deno.build.arch,
    processors: navigator.hardwareConcurrency,
    memory: Deno.systemMemoryInfo().total,
    kernel: Deno.osRelease(),
    deno: Deno.version.deno,
  };
  return `${JSON.stringify({ machine, runs, measurements }, undefined, 2)}\n`;
}

const ROW_HEIGHT = 22;
const LABEL_WIDTH = 410;
const PLOT_WIDTH = 430;
const TOP = 44;
/** The ratios at the edges of the chart. */
const LEFT_RATIO = 1 / 64;
const RIGHT_RATIO = 4;

/**
 * The measurements as a chart: for each work a bar from the time of `qemu-img` to the time here, on a scale that doubles.
 *
 * @param measurements What was measured; works without `qemu-img` are left out.
 * @returns An SVG document that needs nothing else.
 */
export function chart(measurements: readonly Measurement[]): string {
  const rows = measurements.flatMap((measurement) => {
    const found = ratios(measurement, "peer");
    return found === undefined ? [] : [{ name: measurement.name, ratio: found.median }];
  });
  const height = TOP + rows.length * ROW_HEIGHT + 12;
  const width = LABEL_WIDTH + PLOT_WIDTH + 80;
  const one = positionOf(1);
  const lines: string[] = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
    `font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="Time of each work as a multiple of qemu-img's">`,
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    `<text x="12" y="18" font-size="14" font-weight="bold" fill="#222">Time as a multiple of qemu-img's (shorter is faster)</text>`,
  ];
  for (let ratio = LEFT_RATIO; ratio <= RIGHT_RATIO; ratio *= 2) {
    const x = positionOf(ratio);
    lines.push(
      `<line x1="${x}" y1="${TOP - 6}" x2="${x}" y2="${height - 8}" stroke="${ratio === 1 ? "#555" : "#ddd"}"/>`,
      `<text x="${x}" y="${TOP - 10}" text-anchor="middle" fill="#555">${ratio < 1 ? `1/${1 / ratio}` : ratio}</text>`,
    );
  }
  rows.forEach(({ name, ratio }, index) => {
    const y = TOP + index * ROW_HEIGHT;
    const x = positionOf(ratio);
    lines.push(
      `<text x="${LABEL_WIDTH - 8}" y="${y + 14}" text-anchor="end" fill="#222">${escapeText(name)}</text>`,
      `<rect x="${Math.min(x, one)}" y="${y + 3}" width="${Math.max(1, Math.abs(x - one))}" height="${
        ROW_HEIGHT - 8
      }" ` +
        `fill="${ratio <= 1 ? "#2a9d5c" : "#d9822b"}"/>`,
      `<text x="${LABEL_WIDTH + PLOT_WIDTH + 12}" y="${y + 14}" fill="#222">${ratioLabel(ratio)}</text>`,
    );
  });
  lines.push("</svg>");
  return `${lines.join("\n")}\n`;
}

/** Where a ratio stands in the chart; those beyond its edges stand at them. */
function positionOf(ratio: number): number {
  const share = Math.log2(Math.min(RIGHT_RATIO, Math.max(LEFT_RATIO, ratio)) / LEFT_RATIO) /
    Math.log2(RIGHT_RATIO / LEFT_RATIO);
  return Math.round(LABEL_WIDTH + share * PLOT_WIDTH);
}

function ratioLabel(ratio: number): string {
  return ratio >= 0.1 ? ratio.toFixed(2) : `1/${Math.round(1 / ratio)}`;
}

function escapeText(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
