/**
 * A thread of `ClusterThreads`: does one job after the other, in memory that it shares with whoever gives it.
 *
 * @module
 */

import type { DecompressJob } from "../disk.ts";
import { Qcow2Error, type Qcow2ErrorCode } from "../errors.ts";
import { compressClusters, type CompressJob, decompressClusters } from "./cluster_jobs.ts";

/** What a thread is asked, with a number for its answer. */
export type Question =
  & { readonly id: number }
  & ({ readonly compress: CompressJob } | { readonly decompress: DecompressJob });

/** What a thread answers. Once, before all else, it says that it is there. */
export type Answer =
  | { readonly kind: "ready" }
  | { readonly kind: "done"; readonly id: number; readonly lengths: number[] }
  | {
    readonly kind: "failed";
    readonly id: number;
    readonly code: Qcow2ErrorCode;
    readonly message: string;
    readonly offset: number | undefined;
  };

/** What a module finds around itself that runs as a worker. */
interface WorkerScope {
  onmessage: ((event: MessageEvent<Question>) => void) | null;
  readonly postMessage: (answer: Answer) => void;
}

const scope = globalThis as unknown as WorkerScope;

scope.onmessage = ({ data: question }) => {
  const { id } = question;
  try {
    let lengths: number[] = [];
    if ("compress" in question) lengths = compressClusters(question.compress);
    else decompressClusters(question.decompress);
    scope.postMessage({ kind: "done", id, lengths });
  } catch (error) {
    const { code, message, offset } = error instanceof Qcow2Error ? error : new Qcow2Error("io", String(error));
    scope.postMessage({ kind: "failed", id, code, message, offset });
  }
};
scope.postMessage({ kind: "ready" });
