/**
 * An image that goes back and forth between this package and QEMU, with a plain array that must hold the same.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { checkImage, type OpenOptions, Qcow2File } from "../../mod.ts";
import { assertQemuClean, KIB, qemuImg, qemuIo, readBytes } from "../images.ts";
import type { Random } from "../random.ts";

/** What {@linkcode exchange} does with an image. */
export interface ExchangeOptions {
  /** Path of the image. */
  readonly image: string;
  /** Path of a raw file for comparisons. */
  readonly twin: string;
  /** What the disk holds; changed along with it. */
  readonly model: Uint8Array;
  /** Cluster size in bytes. */
  readonly clusterSize: number;
  /** Where the random numbers come from. */
  readonly random: Random;
  /** How to open the image here. */
  readonly open?: OpenOptions;
  /** How many times each side has it. */
  readonly rounds?: number;
  /** How many requests each time. */
  readonly requests?: number;
  /** Whether clusters are written compressed here. */
  readonly compressed?: boolean;
  /** Called after each round, with nobody having the image open. */
  readonly afterRound?: () => void;
}

interface Request {
  readonly kind: "write" | "zero" | "unmap" | "discard" | "compressed";
  readonly offset: number;
  readonly length: number;
  readonly value: number;
}

/** Lets both sides write in turn, and asserts after each turn that both read the same and that both find the image clean. */
export function exchange(options: ExchangeOptions): void {
  const { image, twin, model, open = {}, rounds = 4, requests = 40 } = options;
  for (let round = 0; round < rounds; round++) {
    const list = Array.from({ length: requests }, () => randomRequest(options));
    for (const request of list) apply(model, options.clusterSize, request);
    if (round % 2 === 0) writeHere(image, { ...open, write: true }, list);
    else qemuIo(image, list.map(commandOf));
    assertSame(image, twin, model, open);
    options.afterRound?.();
  }
}

/** Asserts that an image holds what it should, for both sides, and that both find it clean. */
export function assertSame(image: string, twin: string, model: Uint8Array, open: OpenOptions = {}): void {
  {
    using disk = Qcow2File.open(image, open);
    assertEqualBytes(readBytes(disk, 0, disk.size), model);
  }
  const { corruptions, leaks } = checkImage(image);
  assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
  assertQemuClean(image);
  Deno.writeFileSync(twin, model);
  qemuImg("compare", "-q", "-f", "qcow2", "-F", "raw", image, twin);
}

function assertEqualBytes(actual: Uint8Array, expected: Uint8Array): void {
  const different = actual.findIndex((byte, index) => byte !== expected[index]);
  assertEquals(
    { at: different, found: actual[different], length: actual.length },
    { at: -1, found: undefined, length: expected.length },
    `expected ${expected[different]} at ${different}`,
  );
}

function randomRequest({ model, clusterSize, random, compressed = false }: ExchangeOptions): Request {
  const unit = random.pick([512, 512, 2 * KIB, clusterSize / 32 >= 512 ? clusterSize / 32 : 512, clusterSize]);
  const size = model.length;
  const kind = random.pick<Request["kind"]>(
    ["write", "write", "write", "zero", "unmap", "discard", ...(compressed ? ["compressed" as const] : [])],
  );
  const value = random.between(1, 255);
  if (kind === "compressed") {
    return { kind, value, length: clusterSize, offset: random.below(Math.floor(size / clusterSize)) * clusterSize };
  }
  const odd = kind === "write" && random.oneIn(4) ? random.below(512) : 0;
  const offset = Math.min(size - 512, random.below(Math.ceil(size / unit)) * unit + odd);
  const length = random.pick([unit, 512, 3 * unit, random.between(1, 5 * clusterSize / 512) * 512]);
  return { kind, value, offset, length: random.oneIn(20) ? size - offset : Math.min(length, size - offset) };
}

function apply(model: Uint8Array, clusterSize: number, { kind, offset, length, value }: Request): void {
  const end = offset + length;
  if (kind !== "discard") {
    model.fill(kind === "zero" || kind === "unmap" ? 0 : value, offset, end);
    return;
  }
  const first = Math.ceil(offset / clusterSize) * clusterSize;
  const last = end === model.length ? end : Math.floor(end / clusterSize) * clusterSize;
  if (first < last) model.fill(0, first, last);
}

function writeHere(image: string, options: OpenOptions, requests: readonly Request[]): void {
  using disk = Qcow2File.open(image, options);
  for (const { kind, offset, length, value } of requests) {
    if (kind === "write") disk.writeAt(offset, new Uint8Array(length).fill(value));
    else if (kind === "compressed") disk.writeCompressedAt(offset, new Uint8Array(length).fill(value));
    else if (kind === "discard") disk.discardAt(offset, length);
    else disk.writeZeroesAt(offset, length, { unmap: kind === "unmap" });
  }
}

function commandOf({ kind, offset, length, value }: Request): string {
  switch (kind) {
    case "write":
    case "compressed":
      // QEMU compresses no cluster that is allocated.
      return `write -P ${value} ${offset} ${length}`;
    case "discard":
      return `discard ${offset} ${length}`;
    case "zero":
      return `write -z ${offset} ${length}`;
    case "unmap":
      return `write -z -u ${offset} ${length}`;
  }
}
