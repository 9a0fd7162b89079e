/**
 * An image of some kind, with the plain disk that it must be equal to.
 *
 * @module
 */

import { type CreateOptions, type OpenOptions, Qcow2File } from "../../mod.ts";
import { KIB, MIB, qemuImg } from "../images.ts";
import { qemuAvailable } from "../qemu.ts";
import type { Random } from "../random.ts";
import type { ImageKind } from "./kinds.ts";
import { PlainDisk } from "./plain_disk.ts";
import { SparseBytes } from "./sparse_bytes.ts";

/** How much around a place may hold data, in bytes, so that a run stays quick; more where that is only a few clusters. */
const REACH = MIB;
/** A stretch of the disk in bytes. */
export interface Stretch {
  readonly offset: number;
  readonly length: number;
}

/** An image, where it stands, what it must hold, and what was done to it. */
export class ModelImage {
  /** Where its files stand. */
  readonly folder: string;
  /** Where the image stands. */
  readonly path: string;
  /** What it must hold. */
  readonly plain: PlainDisk;
  /** Where the random numbers come from. */
  readonly random: Random;
  /** What it is; changes where it is amended. */
  kind: ImageKind;
  /** What was done to it so far, one line each. */
  readonly journal: string[] = [];
  /** Where something happens more often than elsewhere, in bytes from the start of the disk. */
  readonly #places: number[];
  readonly #base: { readonly path: string; readonly modified: number | undefined } | undefined;
  #nameCount = 0;

  /**
   * Makes an image.
   *
   * @param folder An empty folder for its files.
   * @param kind What it is.
   * @param random Where the random numbers come from.
   */
  constructor(folder: string, kind: ImageKind, random: Random) {
    this.folder = folder;
    this.path = `${folder}/disk.qcow2`;
    this.kind = kind;
    this.random = random;
    const size = randomSize(kind, random);
    this.#places = [0, size, ...tableBorders(kind, size, random)];
    const base = this.#makeBase(size);
    this.plain = new PlainDisk(base ?? new SparseBytes(size));
    this.plain.resize(size);
    this.#base = base === undefined ? undefined : modificationOf(this.basePath);
    this.#create(size);
    this.note(`create ${size} bytes`);
  }

  /** Where the backing file stands, if there is one. */
  get basePath(): string {
    return `${this.folder}/base.${this.kind.backing === "raw" ? "raw" : "qcow2"}`;
  }

  /** Where the data file stands, if there is one. */
  get dataPath(): string {
    return `${this.folder}/disk.data`;
  }

  /** How the image is opened. */
  get openOptions(): OpenOptions {
    return { backing: "allow", dataFile: "allow" };
  }

  /** Whether a discard changes what is read: version 2 cannot hide what a backing file holds. */
  get discardTakesEffect(): boolean {
    return this.kind.version === 3 || this.kind.backing === "none";
  }

  /** Writes down what is about to be done. */
  note(line: string): void {
    this.journal.push(line);
  }

  /** A name that was not given before. */
  newName(): string {
    return `n${this.#nameCount++}`.padEnd(this.random.pick([1, 1, 5, 40]), "n");
  }

  /** Notes that the disk ends elsewhere, so that something happens around there. */
  noteSize(size: number): void {
    this.#places.push(size);
  }

  /** A random stretch of the disk, seldom empty. */
  stretch(unit = this.#randomUnit()): Stretch {
    const { random, plain: { size }, kind: { clusterSize } } = this;
    const offset = this.#randomOffset(unit);
    const longest = random.pick([1, 512, clusterSize, 3 * clusterSize, 40 * clusterSize]);
    const wanted = random.oneIn(2) ? longest : random.between(random.oneIn(10) ? 0 : 1, longest);
    const most = Math.max(3 * clusterSize, REACH);
    return { offset, length: Math.min(Math.ceil(wanted / unit) * unit, most, size - offset) };
  }

  /** A random stretch of whole sectors, which is not empty. */
  sectors(): Stretch {
    const { offset, length } = this.stretch(Math.max(512, this.#randomUnit()));
    return { offset, length: Math.max(512, length) };
  }

  /** A random stretch of whole clusters; a last one that the end of the disk cuts counts as whole. */
  clusters(): Stretch {
    return this.stretch(this.kind.clusterSize);
  }

  /** A random size, larger or smaller than that of the disk, near to it or to one it had. */
  newSize(): number {
    const { random, plain: { size: current }, kind: { clusterSize, version, backing } } = this;
    // Version 2 hides what a backing file holds by writing zeroes, as many as there are.
    const near = random.pick(version === 2 && backing !== "none" ? [current] : [...this.#places, current]);
    const sectors = Math.max(1, Math.min(4 * clusterSize, REACH) / 512);
    const size = near + (random.below(2 * sectors) - sectors) * 512;
    return Math.max(512, random.oneIn(4) ? size - size % clusterSize : size);
  }

  /** Fails where the backing file was changed. */
  assertBaseUntouched(): void {
    if (this.#base !== undefined && modificationOf(this.#base.path).modified !== this.#base.modified) {
      throw new Error("The backing file was changed");
    }
  }

  #randomUnit(): number {
    const { random, kind: { clusterSize } } = this;
    return random.pick([1, 512, 512, 4 * KIB, Math.max(512, clusterSize / 32), clusterSize]);
  }

  #randomOffset(unit: number): number {
    const { random, plain: { size }, kind: { clusterSize } } = this;
    const reach = Math.max(3 * clusterSize, REACH);
    const place = Math.min(random.pick(this.#places), size);
    const offset = Math.max(0, Math.min(size - 1, place + random.below(2 * reach) - reach));
    return offset - offset % unit;
  }

  /** Makes the backing file, and tells what it holds. */
  #makeBase(size: number): SparseBytes | undefined {
    const { kind, random } = this;
    if (kind.backing === "none") return undefined;
    const most = Math.max(1, Math.floor(Math.min(size / 2, 3 * kind.clusterSize) / 512));
    const difference = random.between(1, most) * 512;
    const baseSize = kind.backingLength === "equal"
      ? size
      : Math.max(512, kind.backingLength === "shorter" ? size - difference : size + difference);
    this.#places.push(baseSize);
    const base = new SparseBytes(baseSize);
    for (let count = 0; count < 12; count++) {
      const place = Math.min(random.pick(this.#places), baseSize - 1);
      const offset = Math.max(0, place - random.below(REACH));
      base.write(offset, randomContent(random, Math.min(baseSize - offset, random.between(1, REACH / 4))));
    }
    this.#writeBase(base);
    return base;
  }

  #writeBase(base: SparseBytes): void {
    const { kind, basePath } = this;
    if (kind.backing === "raw") {
      base.writeFile(basePath);
      return;
    }
    const compressed = kind.backing === "compressed qcow2";
    if (this.#isMadeByQemu) {
      const raw = `${this.folder}/base.raw`;
      base.writeFile(raw);
      qemuImg("convert", ...(compressed ? ["-c"] : []), "-f", "raw", "-O", "qcow2", raw, basePath);
      Deno.removeSync(raw);
      return;
    }
    using disk = Qcow2File.create(basePath, {
      size: base.size,
      compressionType: kind.compression,
      durability: "none",
    });
    for (const { offset, length } of base.stretches()) {
      const bytes = base.read(offset, length);
      if (compressed) disk.writeCompressedAt(offset, bytes);
      else disk.writeAt(offset, bytes);
    }
  }

  /** Without QEMU, this package makes all images. */
  get #isMadeByQemu(): boolean {
    return this.kind.maker === "QEMU" && qemuAvailable;
  }

  #create(size: number): void {
    const { kind, path } = this;
    const format = kind.backing === "raw" ? "raw" : "qcow2";
    // QEMU looks for data files in its working folder, so the name says where it is.
    if (this.#isMadeByQemu) {
      const options = [
        `compat=${kind.version === 2 ? "0.10" : "1.1"}`,
        `cluster_size=${kind.clusterSize}`,
        `refcount_bits=${kind.refcountBits}`,
        ...(kind.extendedL2 ? ["extended_l2=on"] : []),
        ...(kind.compression === "zstd" ? ["compression_type=zstd"] : []),
        ...(kind.lazyRefcounts ? ["lazy_refcounts=on"] : []),
        ...(kind.dataFile === "none" ? [] : [`data_file=${this.dataPath}`]),
        ...(kind.dataFile === "raw" ? ["data_file_raw=on"] : []),
      ];
      const backing = kind.backing === "none" ? [] : ["-b", `base.${format}`, "-F", format];
      qemuImg("create", "-q", "-f", "qcow2", "-o", options.join(","), ...backing, path, String(size));
      return;
    }
    const options: CreateOptions = {
      size,
      version: kind.version,
      clusterSize: kind.clusterSize,
      refcountBits: kind.refcountBits,
      extendedL2: kind.extendedL2,
      compressionType: kind.compression,
      lazyRefcounts: kind.lazyRefcounts,
      ...(kind.dataFile === "none" ? {} : { dataFile: this.dataPath, dataFileRaw: kind.dataFile === "raw" }),
      ...(kind.backing === "none" ? {} : { backingFile: `base.${format}`, backingFormat: format }),
    };
    Qcow2File.create(path, options).close();
  }
}

/** Bytes that compress in every way: not at all, well, to nothing, by half. */
export function randomContent(random: Random, length: number): Uint8Array<ArrayBuffer> {
  switch (random.below(5)) {
    case 0:
      return new Uint8Array(length);
    case 1:
      return new Uint8Array(length).fill(random.between(1, 255));
    case 2: {
      const bytes = new Uint8Array(length).fill(random.between(1, 255));
      bytes.set(random.bytes(Math.floor(length / 2)));
      return bytes;
    }
    default:
      return random.bytes(length);
  }
}

/** How much of a disk one L2 table maps, in bytes. */
function tableSpan({ clusterSize, extendedL2 }: ImageKind): number {
  return clusterSize * clusterSize / (extendedL2 ? 16 : 8);
}

function randomSize(kind: ImageKind, random: Random): number {
  const { clusterSize } = kind;
  if (kind.span === "small") {
    const clusters = random.between(1, Math.max(5, Math.min(300, 8 * MIB / clusterSize)));
    return Math.max(512, clusters * clusterSize - (random.oneIn(3) ? 0 : random.below(clusterSize / 512) * 512));
  }
  const tables = random.between(1, clusterSize < 2 * KIB ? 100 : 4);
  return tables * tableSpan(kind) + random.below(3 * clusterSize / 512) * 512;
}

/** Where a few L2 tables begin. */
function tableBorders(kind: ImageKind, size: number, random: Random): number[] {
  const tables = Math.floor(size / tableSpan(kind));
  return tables === 0 ? [] : [1, random.between(1, tables)].map((table) => table * tableSpan(kind));
}

function modificationOf(path: string): { readonly path: string; readonly modified: number | undefined } {
  return { path, modified: Deno.statSync(path).mtime?.getTime() };
}
