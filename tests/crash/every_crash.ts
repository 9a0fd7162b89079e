/**
 * Judges every state that a power cut can leave of one operation.
 *
 * @module
 */

import type { Random } from "../random.ts";
import { ScratchFile } from "./flat_file.ts";
import { Recorder, type RecorderMutations } from "./recorder.ts";
import { buildState, crashStates, describeState } from "./states.ts";

/** Does something to an image, and judges every state that a power cut in between could leave. */
export function everyCrash(
  image: Uint8Array,
  random: Random,
  act: (file: Recorder) => void,
  judge: (state: ScratchFile, what: string) => void,
  mutations: RecorderMutations = {},
): number {
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
  act(recorder);
  explore();
  return states;
}
