/**
 * Defects on purpose: the rules of the flush order left out one by one, and what the ancestor of this engine did wrong. The
 * explorer has to find each of them.
 *
 * @module
 */

import type { BreakableRule } from "../../lib/metadata/flush_order.ts";
import type { ImageMetadata } from "../../lib/metadata/image_metadata.ts";
import { getUint64, setUint64 } from "../images.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { rolesOf, type Verdict } from "./blame.ts";
import { SECTOR_SIZE } from "./flat_file.ts";
import type { Change, RecorderMutations } from "./recorder.ts";
import type { Session, SubjectOptions } from "./session.ts";

/** A defect. */
export interface Mutation {
  /** What is wrong. */
  readonly name: string;
  /** What the explorer has to call it. */
  readonly verdicts: readonly Verdict[];
  /** What else it breaks, and may be blamed for. */
  readonly alsoBreaks: readonly Verdict[];
  /** The names of the sequences that can show it; all of them without it. */
  readonly sequences?: RegExp;
  /** How the disk is opened. */
  readonly subject: SubjectOptions;
  /** What the recorder plays. */
  readonly prepare: (session: Session) => void;
}

/** A defect that is an option of the flush order. */
function brokenRule(rule: BreakableRule, name: string, alsoBreaks: readonly Verdict[] = []): Mutation {
  return { name, verdicts: [rule], alsoBreaks, subject: { brokenRules: new Set([rule]) }, prepare: () => {} };
}

/** A defect of the recorder that needs to see the engine's tables. */
function recorderMutation(
  name: string,
  verdicts: readonly Verdict[],
  mutate: (session: Session, metadata: () => ImageMetadata) => RecorderMutations,
): Mutation {
  let current: ImageMetadata | undefined;
  const metadata = (): ImageMetadata => {
    if (current === undefined) throw new Error("The disk is not open");
    return current;
  };
  return {
    name,
    verdicts,
    alsoBreaks: [],
    subject: { onMetadata: (opened) => current = opened },
    prepare: (session) => {
      Object.assign(session.recorder.mutations, mutate(session, metadata));
    },
  };
}

/** Where a change begins, as host offset in bytes. */
function placeOf({ firstSector }: Change): number {
  return firstSector * SECTOR_SIZE;
}

/** Rule 4 is kept by the sync after the guest's bytes: here these are durable only after the next one. */
const lateData = recorderMutation("Rule 4: bytes in fresh clusters come late", [4], (session, metadata) => ({
  late: (change) => {
    const { mapping, refcounts, geometry } = metadata();
    const offset = placeOf(change);
    const cluster = Math.floor(offset / geometry.clusterSize);
    if (change.kind !== "write" || offset < geometry.clusterSize) return false;
    const { table } = refcounts;
    if (offset >= table.offset && offset < table.offset + table.bytes.length) return false;
    if (offset >= mapping.l1.offset && offset < mapping.l1.offset + mapping.l1.bytes.length) return false;
    // What the file knows is no fresh cluster; tables that it does not know yet are the other rules' affair.
    if (rolesOf(session.recorder.durable.content()).has(cluster)) return false;
    return !isTable(metadata(), cluster);
  },
}));

function isTable({ mapping, refcounts, geometry }: ImageMetadata, cluster: number): boolean {
  if (mapping.unlinkedTables.has(cluster * geometry.clusterSize)) return true;
  for (let index = 0; index < refcounts.table.entryCount; index++) {
    if (refcounts.blockOffset(index) === cluster * geometry.clusterSize) return true;
  }
  return false;
}

/** The same for rule 3. */
const lateTables = recorderMutation("Rule 3: new L2 tables come late", [3], (_session, metadata) => ({
  late: (change) => {
    const { mapping, geometry } = metadata();
    const offset = placeOf(change);
    return mapping.unlinkedTables.has(offset - offset % geometry.clusterSize);
  },
}));

/** Changes 64-bit entries of the L1 table on their way into the file. */
const noCopiedFlags = recorderMutation(
  "Ancestor 1: L1 entries lack the COPIED flag",
  ["always"],
  (_session, metadata) => ({
    mangle: (offset, data) => {
      const { offset: l1Offset, bytes } = metadata().mapping.l1;
      if (offset < l1Offset || offset >= l1Offset + bytes.length) return data;
      const file = MemoryBlockFile.from(data);
      for (let position = 0; position < data.length; position += 8) {
        setUint64(file, position, getUint64(file, position) & (2n ** 63n - 1n));
      }
      return file.toBytes();
    },
  }),
);

/** The refcounts of clusters that lost their last reference never reach the file. */
const leakAtEachSession = recorderMutation(
  "Ancestor 2: a cluster leaks at each open, write, close",
  ["always"],
  (session, metadata) => ({
    lose: (offset) => {
      const { geometry } = metadata();
      // Only refcounts are written while everything else is durable.
      const cluster = Math.floor(offset / geometry.clusterSize);
      return session.recorder.changes.length === 0 && isTable(metadata(), cluster);
    },
  }),
);

const noOrder = recorderMutation(
  "Ancestor 3: L1 table and refcounts reach the file with no sync between",
  [1, 2, 3, 4, 5],
  () => ({ mergeSyncs: true }),
);

const swallowedErrors = recorderMutation("Ancestor 5: writes that fail are taken for done", ["always", "flush"], () => {
  let count = 0;
  return { lose: () => ++count % 7 === 0 };
});

/** All of them. */
export const MUTATIONS: readonly Mutation[] = [
  brokenRule(1, "Rule 1: refcounts after the entries that use them"),
  brokenRule(2, "Rule 2: refcount blocks together with the refcount table"),
  {
    ...brokenRule(2, "Rule 2: a grown refcount table together with the header"),
    sequences: /growth of the refcount table$/,
  },
  // The L1 table comes before the first sync then, and so before refcounts and data are durable.
  brokenRule(3, "Rule 3: L2 tables together with the L1 table", [1, 4]),
  lateTables,
  lateData,
  { ...brokenRule(5, "Rule 5: refcounts fall before the references are gone"), sequences: /discard/ },
  noCopiedFlags,
  { ...leakAtEachSession, sequences: /discard/ },
  noOrder,
  {
    ...brokenRule(5, "Ancestor 4: discard rewrites tables without any order", [1, 2, 3, 4]),
    sequences: /discard/,
    prepare: (session) => {
      session.recorder.mutations.mergeSyncs = true;
    },
  },
  swallowedErrors,
];
