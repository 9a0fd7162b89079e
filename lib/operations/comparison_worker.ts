/**
 * The thread of `ComparisonThread`: tells whether two files of the host hold the same bytes.
 *
 * @module
 */

import { FileComparison, type Greeting, type Question, READY, STATE } from "./comparison_jobs.ts";

/** What a module finds around itself that runs as a worker. */
interface WorkerScope {
  onmessage: ((event: MessageEvent<Greeting | Question>) => void) | null;
}

const scope = globalThis as unknown as WorkerScope;
const comparison = new FileComparison();
let state: Int32Array | undefined;

/** Tells something to a caller that may be waiting for it. The event loop of a busy caller would tell it late. */
function tell(slot: number, value: number): void {
  if (state === undefined) return;
  Atomics.store(state, slot, value);
  Atomics.notify(state, slot);
}

scope.onmessage = ({ data }) => {
  if ("state" in data) {
    state = data.state;
    return tell(READY, STATE.same);
  }
  let areSame = false;
  try {
    areSame = comparison.areSame(data);
  } catch {
    // Whoever asked reads it again, and comes upon the same.
  }
  tell(data.slot, areSame ? STATE.same : STATE.unknown);
};
