import { assert, assertEquals } from "@std/assert";
import { checkImage, commit, type CreateOptions, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { KIB, readBytes } from "../images.ts";
import { Random } from "../random.ts";
import { ScratchFile } from "./flat_file.ts";
import { Recorder } from "./recorder.ts";
import { buildState, crashStates, describeState } from "./states.ts";

/** Looks at the states of both files, and says what is wrong. */
type Judge = (base: ScratchFile, image: ScratchFile, what: string) => void;

/** Two files, whose states after a power cut belong together: what one of them lost has nothing to do with what the other lost. */
class TwoFiles {
  states = 0;
  readonly recorders: readonly [Recorder, Recorder];
  readonly #scratches: readonly [ScratchFile, ScratchFile];
  readonly #random: Random;
  readonly #judge: Judge;

  constructor(base: Uint8Array, image: Uint8Array, random: Random, judge: Judge) {
    this.recorders = [new Recorder(base), new Recorder(image)];
    const [first, second] = this.recorders;
    this.#scratches = [new ScratchFile(first.durable), new ScratchFile(second.durable)];
    this.#random = random;
    this.#judge = judge;
    for (const [index, recorder] of this.recorders.entries()) {
      recorder.onSync = () => this.explore();
      recorder.onCommit = (start, end) => this.#scratches[index]?.touch(start, end);
    }
  }

  /** Judges states of what came after the last syncs: all those of one file with any of the other. */
  explore(): void {
    const [base, image] = this.recorders;
    const [baseScratch, imageScratch] = this.#scratches;
    const limits = { listed: 10, subsets: 6, torn: 6 };
    const baseStates = [...crashStates(base.changes, this.#random, limits)];
    const imageStates = [...crashStates(image.changes, this.#random, limits)];
    const pairs = [
      ...baseStates.map((state) => [state, this.#random.pick(imageStates)] as const),
      ...imageStates.map((state) => [this.#random.pick(baseStates), state] as const),
    ];
    for (const [ofBase, ofImage] of pairs) {
      for (const scratch of this.#scratches) scratch.restore();
      buildState(baseScratch, base.changes, ofBase);
      buildState(imageScratch, image.changes, ofImage);
      this.#judge(baseScratch, imageScratch, `base ${describeState(ofBase)}, image ${describeState(ofImage)}`);
      this.states++;
    }
    for (const scratch of this.#scratches) scratch.restore();
  }
}

const CASES: readonly (readonly [name: string, base: Partial<CreateOptions> | "raw", image: Partial<CreateOptions>])[] =
  [
    ["small clusters", { clusterSize: 512 }, { clusterSize: 4096 }],
    ["a raw base", "raw", { clusterSize: 512 }],
    ["version 2", { version: 2, clusterSize: 4096 }, { version: 2, clusterSize: 512 }],
    ["subclusters", { extendedL2: true, clusterSize: 16384 }, { extendedL2: true, clusterSize: 16384 }],
  ];

for (const [name, baseOptions, imageOptions] of CASES) {
  Deno.test(`A crash while committing costs nothing of what the image holds: ${name}`, async () => {
    const random = new Random(`commit ${name}`);
    const openBase = (file: Recorder | ScratchFile | MemoryBlockFile, write: boolean): Qcow2File | RawFile =>
      baseOptions === "raw" ? RawFile.open(file, { write }) : Qcow2File.open(file, { write });
    const baseFile = new MemoryBlockFile();
    const base = baseOptions === "raw"
      ? RawFile.create(baseFile, { size: 200 * KIB })
      : Qcow2File.create(baseFile, { size: 200 * KIB, ...baseOptions });
    base.writeAt(20 * KIB, random.bytes(120 * KIB));
    base.flush();
    const imageFile = new MemoryBlockFile();
    const named = { backingFile: "base", backingFormat: "raw", backing: () => base };
    const made = Qcow2File.create(imageFile, { ...named, ...imageOptions, size: 300 * KIB });
    for (let count = 0; count < 8; count++) {
      const offset = random.below(280 * KIB);
      if (random.oneIn(4)) made.writeZeroesAt(offset, random.below(20 * KIB));
      else made.writeAt(offset, random.bytes(random.between(1, 20 * KIB)));
    }
    const content = readBytes(made, 0, made.size);
    made.flush();
    const [baseBytes, imageBytes] = [baseFile.toBytes(), imageFile.toBytes()];
    made.close();

    let own = 0;
    const files = new TwoFiles(baseBytes, imageBytes, random, (baseState, imageState, what) => {
      for (const state of baseOptions === "raw" ? [imageState] : [imageState, baseState]) {
        assertEquals(checkImage(state).corruptions, 0, what);
      }
      using disk = Qcow2File.open(imageState, { backing: () => openBase(baseState, false) });
      assertEquals(readBytes(disk, 0, content.length), content, what);
      if ([...disk.extents()].some(({ depth, kind }) => depth === 0 && kind !== "unallocated")) own++;
    });
    const [baseRecorder, imageRecorder] = files.recorders;
    const image = Qcow2File.open(imageRecorder, { write: true, backing: () => openBase(baseRecorder, true) });
    await commit(image);
    image.close();
    files.explore();
    assert(files.states > 20 && own > 10 && own < files.states, `${files.states} states, ${own} before it was empty`);
  });
}
