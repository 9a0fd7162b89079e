/**
 * What this package does to an image, with the plain disk beside it.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import {
  type AmendOptions,
  type Disk,
  type OpenOptions,
  Qcow2Error,
  type Qcow2ErrorCode,
  Qcow2File,
} from "../../mod.ts";
import { assertBitmaps, assertExtents, assertHolds, assertReads, assertSnapshots, assertSound } from "./compare.ts";
import { type Change, isPossible } from "./limits.ts";
import { type ModelImage, randomContent } from "./model_image.ts";

const MAX_SNAPSHOTS = 4;
const MAX_BITMAPS = 4;
/** The most bits of a bitmap, so that one does not outweigh the disk. */
const MAX_BITMAP_BITS = 2 ** 21;
/** The largest disk over a backing file that is filled with zeroes where they hide it, in bytes. */
const MAX_EXPANDED_SIZE = 2 ** 26;

type Step = (session: Session) => void;

/** Each step as often as it is to be taken among the others. */
const STEPS: readonly (readonly [times: number, step: Step])[] = [
  [12, (session) => session.write()],
  [3, (session) => session.writeZeroes()],
  [3, (session) => session.discard()],
  [4, (session) => session.writeCompressed()],
  [5, (session) => session.read()],
  [1, (session) => session.lookAtExtents()],
  [2, (session) => session.flush()],
  [1, (session) => session.check()],
  [1, (session) => session.reopen()],
  [1, (session) => session.createSnapshot()],
  [1, (session) => session.applySnapshot()],
  [1, (session) => session.deleteSnapshot()],
  [1, (session) => session.readSnapshot()],
  [1, (session) => session.addBitmap()],
  [1, (session) => session.changeBitmap()],
  [2, (session) => session.resize()],
  [1, (session) => session.amend()],
];

const DECK: readonly Step[] = STEPS.flatMap(([times, step]) => Array.from({ length: times }, () => step));

/** An image that this package has open for writing. */
export class Session {
  readonly #image: ModelImage;
  /** Disks of snapshots that stay open, by the snapshot's identifier. */
  readonly #snapshotDisks = new Map<string, Disk>();
  #disk: Qcow2File;

  /** @param image The image. */
  constructor(image: ModelImage) {
    this.#image = image;
    this.#disk = this.#open();
  }

  /** Takes some random steps. */
  take(count: number): void {
    for (let step = 0; step < count; step++) this.#image.random.pick(DECK)(this);
  }

  /** Looks at all of the image, and closes it. */
  close(): void {
    this.#lookAtAll();
    this.#image.note("close");
    this.#disk.close();
  }

  write(): void {
    const { random, plain } = this.#image;
    const { offset, length } = this.#image.stretch();
    const data = randomContent(random, length);
    this.#image.note(`write ${length} bytes at ${offset}`);
    this.#disk.writeAt(offset, data);
    plain.write(offset, data);
  }

  writeZeroes(): void {
    const { random, plain } = this.#image;
    const { offset, length } = this.#image.stretch();
    const unmap = random.oneIn(2);
    this.#image.note(`write ${length} zeroes at ${offset}${unmap ? ", unmapping" : ""}`);
    this.#disk.writeZeroesAt(offset, length, { unmap });
    plain.clear(offset, length);
  }

  discard(): void {
    const { plain, kind, discardTakesEffect } = this.#image;
    const { offset, length } = this.#image.stretch();
    this.#image.note(`discard ${length} bytes at ${offset}`);
    this.#disk.discardAt(offset, length);
    plain.discard(offset, length, kind.clusterSize, discardTakesEffect);
  }

  writeCompressed(): void {
    const { random, plain } = this.#image;
    if (!this.#may("write compressed")) return;
    const { offset, length } = this.#image.clusters();
    const data = randomContent(random, length);
    this.#image.note(`write ${length} bytes compressed at ${offset}`);
    this.#disk.writeCompressedAt(offset, data);
    plain.write(offset, data);
  }

  read(): void {
    const { offset, length } = this.#image.stretch();
    this.#image.note(`read ${length} bytes at ${offset}`);
    assertReads(this.#disk, this.#image.plain.content, offset, length);
  }

  lookAtExtents(): void {
    const { offset, length } = this.#image.stretch();
    this.#image.note(`list extents of ${length} bytes at ${offset}`);
    assertExtents(this.#disk, this.#image.plain.content, offset, length);
  }

  flush(): void {
    this.#image.note("flush");
    this.#disk.flush();
  }

  check(): void {
    this.#image.note("check");
    assertSound(this.#disk.check());
  }

  reopen(): void {
    this.#image.note("reopen");
    this.#disk.close();
    this.#snapshotDisks.clear();
    this.#disk = this.#open();
  }

  createSnapshot(): void {
    const { plain, kind } = this.#image;
    if (plain.snapshots.length >= MAX_SNAPSHOTS || !this.#may("create snapshot")) return;
    const name = this.#image.newName();
    this.#image.note(`create snapshot ${name}`);
    const id = this.#attempt(
      () => this.#disk.createSnapshot(name).id,
      "refcount-overflow",
      () => this.#mayOverflow(2 ** kind.refcountBits - 1),
    );
    if (id !== undefined) plain.createSnapshot(id, name);
  }

  applySnapshot(): void {
    const { plain, kind, random } = this.#image;
    if (plain.snapshots.length === 0 || !this.#may("apply snapshot")) return;
    const snapshot = random.pick(plain.snapshots);
    this.#image.note(`apply snapshot ${snapshot.name}`);
    // Bitmaps know of it even where it is refused, unless the size would have changed.
    if (snapshot.content.size === plain.size) plain.record(0, plain.size);
    const done = this.#attempt(
      () => {
        this.#disk.applySnapshot(snapshot.id);
        return true;
      },
      "refcount-overflow",
      () => this.#mayOverflow(2 ** kind.refcountBits - 1),
    );
    if (done !== undefined) plain.applySnapshot(snapshot);
  }

  deleteSnapshot(): void {
    const { plain, random } = this.#image;
    if (plain.snapshots.length === 0 || !this.#may("delete snapshot")) return;
    const snapshot = random.pick(plain.snapshots);
    this.#image.note(`delete snapshot ${snapshot.name}`);
    this.#disk.deleteSnapshot(snapshot.id);
    this.#snapshotDisks.delete(snapshot.id);
    plain.deleteSnapshot(snapshot);
  }

  readSnapshot(): void {
    const { plain, random } = this.#image;
    if (plain.snapshots.length === 0) return;
    const { id, name, content } = random.pick(plain.snapshots);
    this.#image.note(`read snapshot ${name}`);
    const disk = this.#snapshotDisks.get(id) ?? this.#disk.openSnapshot(id);
    this.#snapshotDisks.set(id, disk);
    for (let count = 0; count < 5; count++) {
      const { offset, length } = this.#image.stretch();
      const from = Math.min(offset, content.size);
      assertReads(disk, content, from, Math.min(length, content.size - from));
    }
  }

  addBitmap(): void {
    const { plain, random } = this.#image;
    if (plain.bitmaps.length >= MAX_BITMAPS || !this.#may("add bitmap")) return;
    const name = this.#image.newName();
    const smallest = Math.max(9, Math.ceil(Math.log2(plain.size / MAX_BITMAP_BITS)));
    const granularity = 2 ** random.between(smallest, Math.max(smallest, random.pick([12, 16, 20, 31])));
    const disabled = random.oneIn(3);
    this.#image.note(`add bitmap ${name} of ${granularity} bytes${disabled ? ", disabled" : ""}`);
    this.#disk.addBitmap(name, { granularity, disabled });
    plain.addBitmap(name, granularity, !disabled);
  }

  changeBitmap(): void {
    const { plain, random } = this.#image;
    if (plain.bitmaps.length === 0) return;
    const bitmap = random.pick(plain.bitmaps);
    const { name } = bitmap;
    switch (random.below(5)) {
      case 0:
        this.#image.note(`clear bitmap ${name}`);
        this.#disk.clearBitmap(name);
        bitmap.clear();
        break;
      case 1: {
        const source = random.pick(plain.bitmaps);
        this.#image.note(`merge bitmap ${source.name} into ${name}`);
        this.#disk.mergeBitmap(source.name, name);
        bitmap.merge(source, plain.size);
        break;
      }
      case 2:
        this.#image.note(`remove bitmap ${name}`);
        this.#disk.removeBitmap(name);
        plain.removeBitmap(bitmap);
        break;
      case 3:
        this.#image.note(`${bitmap.auto ? "disable" : "enable"} bitmap ${name}`);
        if (bitmap.auto) this.#disk.disableBitmap(name);
        else this.#disk.enableBitmap(name);
        bitmap.auto = !bitmap.auto;
        break;
      default:
        this.#image.note("look at bitmaps");
        assertBitmaps(this.#disk, plain);
    }
  }

  resize(): void {
    const { plain, random, kind } = this.#image;
    if (!random.oneIn(2) || !this.#may("resize")) return;
    const size = this.#image.newSize();
    const grows = size > plain.size && size - plain.size <= 8 * kind.clusterSize;
    const preallocation = grows ? random.pick(["off", "off", "metadata", "falloc", "full"] as const) : "off";
    this.#image.note(`resize to ${size}${preallocation === "off" ? "" : `, preallocating ${preallocation}`}`);
    this.#disk.resize(size, { shrink: true, preallocation });
    plain.resize(size);
    this.#image.noteSize(size);
  }

  amend(): void {
    const { random, kind } = this.#image;
    if (!random.oneIn(3) || !this.#may("amend")) return;
    switch (random.below(4)) {
      case 0:
        this.#amendVersion();
        break;
      case 2:
        if (random.oneIn(4)) this.#amendDataFile();
        break;
      case 1: {
        if (kind.version === 2) break;
        const refcountBits = 2 ** random.below(7);
        this.#amendWith({ refcountBits }, "refcount-overflow", () => this.#mayOverflow(2 ** refcountBits - 1));
        break;
      }
      default:
        if (kind.version === 3) this.#amendWith({ lazyRefcounts: random.oneIn(2) });
    }
  }

  #amendVersion(): void {
    const { kind, plain } = this.#image;
    if (kind.version === 2) {
      this.#amendWith({ version: 3 });
      return;
    }
    if (kind.refcountBits !== 16 || plain.bitmaps.length > 0) return;
    // Over a backing file, what reads as zeroes gets zeroes of its own.
    if (kind.backing !== "none" && plain.size > MAX_EXPANDED_SIZE) return;
    // Version 2 cannot say that a snapshot has another size, and knows none of these features.
    const cannotSay = () =>
      kind.extendedL2 || kind.dataFile !== "none" || kind.compression !== "zlib" ||
      plain.snapshots.some(({ content }) => content.size !== plain.content.size);
    if (this.#amendWith({ version: 2, lazyRefcounts: false }, "unsupported", cannotSay)) {
      this.#image.kind = { ...this.#image.kind, compression: "zlib" };
    }
  }

  #amendDataFile(): void {
    const { kind } = this.#image;
    const mayRefuse = () => kind.dataFile === "none";
    if (this.#amendWith({ dataFile: this.#image.dataPath, dataFileRaw: false }, "invalid-argument", mayRefuse)) {
      this.#image.kind = { ...this.#image.kind, dataFile: "ordinary" };
    }
  }

  #amendWith(options: AmendOptions, refusal?: Qcow2ErrorCode, mayRefuse: () => boolean = () => false): boolean {
    this.#image.note(`amend ${JSON.stringify(options)}`);
    const done = this.#attempt(
      () => {
        this.#disk.amend(options);
        return true;
      },
      refusal,
      mayRefuse,
    );
    if (done === undefined) return false;
    const { kind } = this.#image;
    const { version = kind.version, refcountBits = kind.refcountBits, lazyRefcounts = kind.lazyRefcounts } = options;
    this.#image.kind = { ...kind, version, refcountBits, lazyRefcounts };
    this.#snapshotDisks.clear();
    return true;
  }

  #may(change: Change): boolean {
    return isPossible(change, this.#image);
  }

  /** Does what may be refused, for a reason that is there; then nothing may have changed. */
  #attempt<T>(fn: () => T, refusal: Qcow2ErrorCode | undefined, mayRefuse: () => boolean): T | undefined {
    try {
      return fn();
    } catch (error) {
      if (!(error instanceof Qcow2Error) || error.code !== refusal || !mayRefuse()) throw error;
      this.#image.note(`(refused: ${error.code})`);
      this.#lookAtAll();
      return undefined;
    }
  }

  /** Whether refcounts might not fit if each of them was doubled: no change does more. */
  #mayOverflow(largest: number): boolean {
    const { clusterSize } = this.#image.kind;
    this.#disk.flush();
    const { size } = Deno.statSync(this.#image.path);
    for (let offset = 0; offset < size; offset += clusterSize) {
      if (2 * this.#disk.refcountAt(offset) > largest) return true;
    }
    return false;
  }

  #lookAtAll(): void {
    const { plain, kind } = this.#image;
    assertHolds(this.#disk, plain.content);
    assertSnapshots(this.#disk, plain);
    assertBitmaps(this.#disk, plain);
    assertSound(this.#disk.check());
    const { version, refcountOrder, compatibleFeatures, incompatibleFeatures } = this.#disk.header;
    assertEquals(
      { version, bits: 2 ** refcountOrder, lazy: (compatibleFeatures & 1n) !== 0n, marks: incompatibleFeatures & 3n },
      { version: kind.version, bits: kind.refcountBits, lazy: kind.lazyRefcounts, marks: 0n },
    );
  }

  #open(): Qcow2File {
    const { random, path, openOptions } = this.#image;
    const options: OpenOptions = {
      ...openOptions,
      write: true,
      // Syncs take long; that they come where they must is shown elsewhere.
      durability: random.oneIn(5) ? "full" : "none",
      ...(random.oneIn(2) ? { cacheSize: random.pick([1, 8192, 65536]) } : {}),
    };
    return Qcow2File.open(path, options);
  }
}
