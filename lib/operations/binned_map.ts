/**
 * What a long stretch of bytes consists of, in a bounded number of bins: however long it is, its picture has so many parts.
 *
 * @module
 */

import { alignUp } from "../format/geometry.ts";

/** How many bytes of each kind a bin holds; kinds that are missing have none. */
export type Bin<Kind extends string> = Readonly<Partial<Record<Kind, number>>>;

/** What a disk or a file consists of, in bins of equal size. */
export interface BinnedMap<Kind extends string> {
  /** Length of the whole in bytes. */
  readonly size: number;
  /** Bytes in each bin; the last one may be shorter. */
  readonly binSize: number;
  /** The bins, from the start to the end. */
  readonly bins: readonly Bin<Kind>[];
  /** How many bytes of each kind the whole holds. */
  readonly totals: Readonly<Record<Kind, number>>;
}

/** The most bins. It is what a picture can show: a square of 64 by 64. */
const MAX_BIN_COUNT = 4096;

/** Adds up stretches of kinds, in any order. */
export class MapBuilder<Kind extends string> {
  readonly #size: number;
  readonly #binSize: number;
  readonly #kinds: readonly Kind[];
  readonly #bytes: Float64Array;

  /**
   * @param size Length of the whole in bytes.
   * @param unit Bytes of which a bin holds a multiple, such as the cluster size.
   * @param kinds All kinds that there are.
   */
  constructor(size: number, unit: number, kinds: readonly Kind[]) {
    this.#size = size;
    this.#binSize = Math.max(unit, alignUp(Math.ceil(size / MAX_BIN_COUNT), unit));
    this.#kinds = kinds;
    this.#bytes = new Float64Array(Math.ceil(size / this.#binSize) * kinds.length);
  }

  /**
   * Adds a stretch. What lies behind the end of the whole is left out.
   *
   * @param kind What it is.
   * @param offset Where it begins, in bytes.
   * @param length How long it is, in bytes.
   */
  add(kind: Kind, offset: number, length: number): void {
    const column = this.#kinds.indexOf(kind);
    const end = Math.min(offset + length, this.#size);
    for (let position = offset; position < end;) {
      const bin = Math.floor(position / this.#binSize);
      const next = Math.min(end, (bin + 1) * this.#binSize);
      const cell = bin * this.#kinds.length + column;
      this.#bytes[cell] = (this.#bytes[cell] ?? 0) + next - position;
      position = next;
    }
  }

  /**
   * Ends the map.
   *
   * @param rest The kind of everything that was not added.
   * @returns The map.
   */
  build(rest: Kind): BinnedMap<Kind> {
    const bins: Bin<Kind>[] = [];
    const totals = Object.fromEntries(this.#kinds.map((kind) => [kind, 0])) as Record<Kind, number>;
    for (let index = 0; index * this.#kinds.length < this.#bytes.length; index++) {
      const bin: Partial<Record<Kind, number>> = {};
      let left = Math.min(this.#binSize, this.#size - index * this.#binSize);
      this.#kinds.forEach((kind, column) => {
        const bytes = this.#bytes[index * this.#kinds.length + column] ?? 0;
        if (bytes > 0) bin[kind] = bytes;
        left -= bytes;
      });
      if (left > 0) bin[rest] = (bin[rest] ?? 0) + left;
      for (const kind of this.#kinds) totals[kind] += bin[kind] ?? 0;
      bins.push(bin);
    }
    return { size: this.#size, binSize: this.#binSize, bins, totals };
  }
}
