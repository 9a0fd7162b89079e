/**
 * Hosts that fail: each call of a sequence in turn, once or from then on, and hosts without room.
 *
 * @module
 */

import type { Qcow2ErrorCode } from "../../mod.ts";
import { KIB, MIB } from "../images.ts";
import { Random } from "../random.ts";
import type { Effort } from "./exploration.ts";
import { type CallCounts, type FaultyCall, hostFault, type Recorder } from "./recorder.ts";
import { type ImageOptions, preparedImage } from "./sequences.ts";
import { Session, type SessionReport } from "./session.ts";

/** Few states of each epoch, since there are so many epochs. */
export const FAULT_EFFORT: Effort = {
  limits: { listed: 2, subsets: 2, torn: 2 },
  samples: { repair: 20, overwrite: 60, qemu: 0 },
};

/** A sequence whose steps may fail. */
export interface FaultySequence {
  /** Its name. */
  readonly name: string;
  /** The image at the start. */
  readonly image: ImageOptions;
  /** The most bytes of L2 tables to keep in memory. */
  readonly cacheSize?: number;
  /** What to do, each step whether the one before failed or not. */
  readonly steps: readonly ((session: Session) => void)[];
}

/** How a host fails. */
export type Fault =
  | {
    /** Which call fails. */
    readonly call: FaultyCall;
    /** The first one to fail, counted from 0. */
    readonly index: number;
    /** Whether all after it fail too. */
    readonly forever: boolean;
    /** How. */
    readonly code: "io" | "no-space";
    /** How much of what it should write a write that fails has written all the same. */
    readonly written: Recorder["failedWrites"];
  }
  | {
    /** The host has no room behind this, in bytes. */
    readonly room: number;
  };

const flush = (session: Session): void => session.flush();
const write = (offset: number, length: number) => (session: Session): void => session.write(offset, length);
const compress = (offset: number, length: number) => (session: Session): void =>
  session.writeCompressed(offset, length);
const discard = (offset: number, length: number) => (session: Session): void => session.discard(offset, length);
const zero = (offset: number, length: number, unmap: boolean) => (session: Session): void =>
  session.writeZeroes(offset, length, unmap);

/** The sequences whose every call fails in turn. */
export const FAULTY_SEQUENCES: readonly FaultySequence[] = [
  {
    name: "fresh clusters under several L2 tables",
    image: { size: 256 * KIB, clusterSize: 512, poisonLength: 8 * KIB },
    cacheSize: 1,
    steps: [
      write(0, 3000),
      write(40000, 700),
      flush,
      write(80000, 5000),
      write(100, 600),
      write(130000, 512),
      write(200000, 1200),
      flush,
      write(235000, 2000),
    ],
  },
  {
    name: "discards, zeroes and reuse",
    image: { size: 64 * KIB, clusterSize: 512, filled: [[0, 48 * KIB]], poisonLength: 2 * KIB },
    cacheSize: 1,
    steps: [
      discard(0, 8 * KIB),
      write(50 * KIB, 3 * KIB),
      flush,
      zero(10 * KIB + 100, 4 * KIB, false),
      write(11 * KIB, 1000),
      write(0, 4 * KIB),
      zero(20 * KIB, 6 * KIB, true),
      flush,
      write(20 * KIB + 7, 5 * KIB),
      discard(40 * KIB, 4 * KIB),
    ],
  },
  {
    name: "new refcount blocks",
    image: { size: 96 * KIB, clusterSize: 512, refcountBits: 64, poisonLength: 3 * KIB },
    steps: [write(0, 24 * KIB), write(60 * KIB, 700), flush, write(30 * KIB, 30 * KIB), flush, write(100, 30 * KIB)],
  },
  {
    name: "compressed clusters",
    image: { size: 128 * KIB, clusterSize: 4096, filled: [[64 * KIB, 8 * KIB]], poisonLength: 10 * KIB },
    steps: [
      compress(0, 20 * KIB),
      flush,
      compress(60 * KIB, 12 * KIB),
      write(5000, 3000),
      discard(8 * KIB, 4 * KIB),
      flush,
      compress(4 * KIB, 8 * KIB),
    ],
  },
  {
    name: "clusters of 64 KiB",
    image: { size: 512 * KIB, poisonLength: 100 * KIB },
    steps: [
      write(1000, 70000),
      flush,
      write(300000, 140000),
      zero(65536, 65536, false),
      write(66000, 600),
      flush,
      discard(0, 131072),
      flush,
      write(10, 10),
    ],
  },
];

/** One whose images are larger: growth of the refcount table. */
export const GROWTH_SEQUENCE: FaultySequence = {
  name: "growth of the refcount table",
  image: { size: 2 * MIB, clusterSize: 512, refcountBits: 64, filled: [[0, 1968 * KIB]] },
  cacheSize: 1,
  steps: [
    write(1968 * KIB, 8 * KIB),
    flush,
    write(1976 * KIB, 16 * KIB),
    write(2000 * KIB, 12 * KIB),
    flush,
    discard(0, 4 * KIB),
    flush,
    write(0, 1 * KIB),
  ],
};

/** What came of a faulty run. */
export interface FaultReport extends SessionReport {
  /** How often each call was made. */
  readonly calls: CallCounts;
  /** The codes that the engine threw. */
  readonly codes: ReadonlySet<Qcow2ErrorCode>;
  /** The length of the file at the end. */
  readonly fileSize: number;
}

/**
 * Runs a sequence on a host that fails. The engine has to throw a `Qcow2Error` with a code that fits, and nothing else; then
 * the host is well again, and the disk has either to refuse with the code `failed`, or to do everything that is asked of it.
 *
 * @param sequence What to do.
 * @param fault How the host fails; not at all without it.
 */
export function runFaulty(sequence: FaultySequence, fault?: Fault): FaultReport {
  const session = new Session({
    name: `${sequence.name}, ${describeFault(fault)}`,
    image: imageOf(sequence),
    cacheSize: sequence.cacheSize,
    canPunch: true,
    random: new Random(sequence.name),
    maxFindings: 3,
    ...FAULT_EFFORT,
  });
  const { recorder } = session;
  for (const call of Object.keys(recorder.counts)) recorder.counts[call as FaultyCall] = 0;
  session.paused = fault !== undefined;
  recorder.onCall = (call, count, end) => {
    const code = faultOf(fault, call, count, end, recorder.size);
    if (code === undefined) return;
    // What came before has been explored without the fault.
    session.paused = false;
    throw hostFault(code, call);
  };
  if (fault !== undefined && "written" in fault) recorder.failedWrites = fault.written;
  const codes = new Set<Qcow2ErrorCode>();
  for (const step of sequence.steps) {
    const code = session.attempt(() => step(session));
    if (code !== undefined) codes.add(code);
  }
  const calls = { ...recorder.counts };
  recorder.onCall = undefined;
  const isSyncFault = fault !== undefined && "call" in fault && fault.call === "sync";
  const refused = session.attempt(() => session.flush()) !== undefined;
  if (refused) {
    // Only a failed sync leaves no way on.
    if (!isSyncFault) session.note("on a host that is well again", { kind: "error", message: "a flush fails" });
    for (const again of [flush, write(0, 512), write(session.size - 512, 512)]) {
      const code = session.attempt(() => again(session));
      if (code === "failed") continue;
      session.note("after a failed sync", { kind: "error", message: `a change has the code ${code}, expected failed` });
    }
  } else {
    for (const step of sequence.steps) step(session);
    session.flush();
    session.readBack();
    session.close();
  }
  return { ...session.finish(), calls, codes, fileSize: recorder.size };
}

const images = new Map<string, Uint8Array>();

function imageOf({ name, image }: FaultySequence): Uint8Array {
  let content = images.get(name);
  if (content === undefined) images.set(name, content = preparedImage(image));
  return content;
}

function faultOf(
  fault: Fault | undefined,
  call: FaultyCall,
  count: number,
  end: number,
  size: number,
): "io" | "no-space" | undefined {
  if (fault === undefined) return undefined;
  if ("room" in fault) {
    const grows = (call === "write" || call === "truncate") && end > size;
    return grows && end > fault.room ? "no-space" : undefined;
  }
  if (call !== fault.call || count < fault.index || (count > fault.index && !fault.forever)) return undefined;
  return fault.code;
}

function describeFault(fault: Fault | undefined): string {
  if (fault === undefined) return "on a host without fault";
  if ("room" in fault) return `on a host with room for ${fault.room} bytes`;
  const { call, index, forever, code, written } = fault;
  return `${code} at ${call} ${index}${forever ? " and all after it" : ""}${
    written === "nothing" ? "" : `, ${written} of it done`
  }`;
}

/** Every fault of every call of a sequence. */
export function* allFaults({ calls, fileSize }: FaultReport, firstRoom: number, roomStep: number): Generator<Fault> {
  for (const call of ["read", "write", "truncate", "sync", "punch"] as const) {
    for (let index = 0; index < calls[call]; index++) {
      for (const forever of [false, true]) {
        for (const code of call === "read" ? ["io"] as const : ["io", "no-space"] as const) {
          yield { call, index, forever, code, written: "nothing" };
        }
      }
      if (call !== "write") continue;
      yield { call, index, forever: true, code: "no-space", written: "half" };
      yield { call, index, forever: index % 2 === 0, code: "io", written: "all" };
    }
  }
  for (let room = firstRoom; room < fileSize; room += roomStep) yield { room };
}
