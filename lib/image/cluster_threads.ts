/**
 * Threads that compress and decompress clusters.
 *
 * @module
 */

import type { DecompressJob, Decompressor } from "../disk.ts";
import { Qcow2Error } from "../errors.ts";
import { compressClusters, type CompressJob, decompressClusters, MAX_JOB_LENGTH } from "./cluster_jobs.ts";
import type { Answer, Question } from "./cluster_worker.ts";
import { mayLoad } from "./worker_module.ts";

/** More threads than this would wait for the one that reads and writes. */
const MAX_THREADS = 16;
/** A few jobs are done sooner than a thread has started. */
const JOBS_BEFORE_THREADS = 2;

/** A job that a thread is at. */
interface PendingJob {
  readonly resolve: (lengths: number[]) => void;
  readonly reject: (error: unknown) => void;
}

/** A thread, and what it is at. */
interface Thread {
  readonly worker: Worker;
  isReady: boolean;
  /** The jobs that it was given, by number. */
  readonly jobs: Map<number, PendingJob>;
}

/**
 * Compresses and decompresses clusters on as many threads as the machine has processors. They are started once there is enough to do.
 * Until they are there, where they cannot be started at all, and for memory that is not shared, the caller's thread does the work:
 * the results are the same.
 */
export class ClusterThreads implements Decompressor, Disposable {
  /** How many threads there will be. */
  readonly count: number;
  readonly #module: URL;
  #threads: Thread[] | undefined;
  #jobCount = 0;
  #failure: Qcow2Error | undefined;

  /**
   * @param count How many threads; as many as there are processors without it.
   * @param module What they run, for tests.
   */
  constructor(
    count: number = Math.min(navigator.hardwareConcurrency, MAX_THREADS),
    module: URL = new URL("./cluster_worker.ts", import.meta.url),
  ) {
    this.count = count;
    this.#module = module;
  }

  /**
   * Compresses clusters.
   *
   * @param job Which, and how. All of its memory is to be left alone until the promise is settled.
   * @returns How many bytes each was compressed to; 0 for those that would not become fewer.
   * @throws {Qcow2Error} With code `unsupported` where the runtime cannot compress in that way, `io` where a thread was lost.
   */
  async compress(job: CompressJob): Promise<number[]> {
    const perThread = Math.max(1, Math.floor(MAX_JOB_LENGTH / job.clusterSize));
    const parts: Promise<number[]>[] = [];
    for (let first = 0; first < job.positions.length; first += perThread) {
      parts.push(this.#compress({ ...job, positions: job.positions.slice(first, first + perThread) }));
    }
    return (await Promise.all(parts)).flat();
  }

  async #compress(job: CompressJob): Promise<number[]> {
    const thread = this.#threadFor(job.data, job.into);
    return thread === undefined ? compressClusters(job) : await this.#ask(thread, { compress: job });
  }

  /**
   * Decompresses parts of clusters.
   *
   * @param job Which, and how. All of its memory is to be left alone until the promise is settled.
   * @throws {Qcow2Error} With code `corrupt` where the bytes are broken, `unsupported` where the runtime cannot decompress them, `io`
   * where a thread was lost.
   */
  async decompress(job: DecompressJob): Promise<void> {
    const thread = this.#threadFor(job.bytes, job.into);
    if (thread === undefined) decompressClusters(job);
    else await this.#ask(thread, { decompress: job });
  }

  /** Ends the threads. What they are at fails with the code `aborted`. */
  [Symbol.dispose](): void {
    const error = new Qcow2Error("aborted", "Threads that compress were ended");
    for (const { worker, jobs } of this.#threads ?? []) {
      worker.terminate();
      for (const { reject } of jobs.values()) reject(error);
      jobs.clear();
    }
    this.#threads = [];
  }

  /** The thread with the fewest jobs, or undefined where the caller had better do it. */
  #threadFor(...memory: readonly Uint8Array[]): Thread | undefined {
    if (this.#failure !== undefined) throw this.#failure;
    if (!memory.every(({ buffer }) => buffer instanceof SharedArrayBuffer)) return undefined;
    if (++this.#jobCount <= JOBS_BEFORE_THREADS || this.count < 2) return undefined;
    this.#threads ??= this.#start();
    let found: Thread | undefined;
    for (const thread of this.#threads) {
      if (thread.isReady && thread.jobs.size < (found?.jobs.size ?? Infinity)) found = thread;
    }
    return found;
  }

  #start(): Thread[] {
    const threads: Thread[] = [];
    try {
      if (!mayLoad(this.#module)) return threads;
      for (let index = 0; index < this.count; index++) {
        const worker = new Worker(this.#module, { type: "module", name: "clusters" });
        const thread: Thread = { worker, isReady: false, jobs: new Map() };
        worker.onmessage = (event: MessageEvent<Answer>) => this.#take(thread, event.data);
        worker.onerror = (event) => {
          event.preventDefault();
          this.#lose(thread, event.message);
        };
        threads.push(thread);
      }
    } catch {
      // Nobody can start workers here, or not so many.
    }
    return threads;
  }

  #ask(thread: Thread, job: { compress: CompressJob } | { decompress: DecompressJob }): Promise<number[]> {
    const question: Question = { id: this.#jobCount, ...job };
    return new Promise((resolve, reject) => {
      thread.jobs.set(question.id, { resolve, reject });
      thread.worker.postMessage(question);
    });
  }

  #take(thread: Thread, answer: Answer): void {
    if (answer.kind === "ready") {
      thread.isReady = true;
      return;
    }
    const job = thread.jobs.get(answer.id);
    thread.jobs.delete(answer.id);
    if (answer.kind === "done") {
      job?.resolve(answer.lengths);
      return;
    }
    const { code, message, offset } = answer;
    job?.reject(new Qcow2Error(code, message, offset === undefined ? {} : { offset }));
  }

  /** Goes on without a thread. What it was at has failed, and whatever comes after it fails. */
  #lose(thread: Thread, reason: string): void {
    thread.worker.terminate();
    this.#threads = this.#threads?.filter((other) => other !== thread) ?? [];
    if (thread.jobs.size === 0) return;
    this.#failure = new Qcow2Error("io", `A thread that compresses was lost: ${reason}`);
    for (const { reject } of thread.jobs.values()) reject(this.#failure);
    thread.jobs.clear();
  }
}
