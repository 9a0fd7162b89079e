/**
 * Judges every state that a power cut can leave of one operation.
 *
 * @module
 */

import type { Random } from "../random.ts";
import { ScratchFile } from "./flat_file.ts";
import { Recorder, type RecorderMutations } from "./recorder.ts";
import { buildState, crashStates, describeState } from "./states.ts";

/** Looks at the states of a crash while something is done to an image, and says what is wrong. */
export type Judge = (state: ScratchFile, what: string) => void;

/** An image whose crashes are explored at every sync. */
export interface Exploration {
  /** What to do something to. */
  readonly recorder: Recorder;
  /** Explores what came after the last sync, and tells how many states there were. */
  finish(): number;
}

/** Begins to judge every state that a power cut could leave of what is done to an image. */
export function exploring(
  image: Uint8Array,
  random: Random,
  judge: Judge,
  mutations: RecorderMutations = {},
): Exploration {
  const recorder = new Recorder(image);
  Object.assign(recorder.mutations, mutations);
  const scratch = new ScratchFile(recorder.durable);
  let states = 0;
  let epoch = 0;
  const explore = () => {
    epoch++;
    // What the last sync made durable is behind the scratch file's back.
    scratch.restore();
    for (const state of crashStates(recorder.changes, random, { listed: 20, subsets: 10, torn: 10 })) {
      buildState(scratch, recorder.changes, state);
      judge(scratch, `epoch ${epoch} ${describeState(state)}`);
      scratch.restore();
      states++;
    }
  };
  recorder.onSync = explore;
  recorder.onCommit = (start, end) => scratch.touch(start, end);
  const finish = () => {
    explore();
    return states;
  };
  return { recorder, finish };
}

/** Does something to an image, and judges every state that a power cut in between could leave. */
export function everyCrash(
  image: Uint8Array,
  random: Random,
  act: (file: Recorder) => void,
  judge: Judge,
  mutations: RecorderMutations = {},
): number {
  const { recorder, finish } = exploring(image, random, judge, mutations);
  act(recorder);
  return finish();
}

/** Two files that belong together, such as an image and its data file. */
export type Pair<T> = readonly [image: T, dataFile: T];

/** Does something to two files that belong together, and judges every pair of states that a power cut could leave of them. */
export function everyCrashOfPair(
  contents: Pair<Uint8Array>,
  random: Random,
  act: (files: Pair<Recorder>) => void,
  judge: (states: Pair<ScratchFile>, what: string) => void,
): number {
  const recorders: Pair<Recorder> = [new Recorder(contents[0]), new Recorder(contents[1])];
  const scratch: Pair<ScratchFile> = [new ScratchFile(recorders[0].durable), new ScratchFile(recorders[1].durable)];
  const limits = { listed: 10, subsets: 6, torn: 6 };
  let states = 0;
  let epoch = 0;
  const explore = () => {
    epoch++;
    const [image, data] = recorders.map(({ changes }) => [...crashStates(changes, random, limits)]);
    if (image === undefined || data === undefined) return;
    for (const imageState of image) {
      // Nothing, everything, and something of the other file.
      for (const dataState of new Set([data[0], data[1], random.pick(data)])) {
        if (dataState === undefined) continue;
        buildState(scratch[0], recorders[0].changes, imageState);
        buildState(scratch[1], recorders[1].changes, dataState);
        judge(scratch, `epoch ${epoch} image ${describeState(imageState)}, data file ${describeState(dataState)}`);
        scratch.forEach((file) => file.restore());
        states++;
      }
    }
  };
  recorders.forEach((recorder, index) => {
    recorder.onSync = explore;
    recorder.onCommit = (start, end) => scratch[index]?.touch(start, end);
  });
  act(recorders);
  explore();
  return states;
}
