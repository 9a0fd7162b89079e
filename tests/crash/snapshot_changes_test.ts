import { assertEquals } from "@std/assert";
import { Buffer } from "node:buffer";
import { type BlockFile, type LayoutOptions, Qcow2Error, Qcow2File } from "../../mod.ts";
import { emptyImage, filled, KIB } from "../images.ts";
import { Random } from "../random.ts";
import { check } from "./examine.ts";
import { ScratchFile } from "./flat_file.ts";
import { hostFault, Recorder } from "./recorder.ts";
import { buildState, crashStates, describeState } from "./states.ts";

/** What an image holds: its disk, and its snapshots in order. */
interface World {
  readonly disk: Uint8Array;
  readonly snapshots: readonly (readonly [id: string, content: Uint8Array])[];
}

const CASES: readonly (LayoutOptions & { readonly name: string })[] = [
  { name: "512-byte clusters and 64-bit refcounts", size: 96 * KIB, clusterSize: 512, refcountBits: 64 },
  { name: "512-byte clusters in version 2", size: 96 * KIB, clusterSize: 512, version: 2 },
  { name: "4 KiB clusters", size: 200 * KIB, clusterSize: 4 * KIB },
  { name: "subclusters", size: 400 * KIB, clusterSize: 16 * KIB, extendedL2: true },
];

function worldOf(disk: Qcow2File): World {
  const read = (from: { size: number; readAt(offset: number, into: Uint8Array): void }): Uint8Array => {
    const bytes = new Uint8Array(from.size);
    from.readAt(0, bytes);
    return bytes;
  };
  return { disk: read(disk), snapshots: disk.snapshots.map(({ id }) => [id, read(disk.openSnapshot(id))] as const) };
}

function isSame(a: World, b: World): boolean {
  return Buffer.compare(a.disk, b.disk) === 0 && a.snapshots.length === b.snapshots.length &&
    a.snapshots.every(([id, content], index) => {
      const [otherId, other] = b.snapshots[index] ?? [];
      return id === otherId && other !== undefined && Buffer.compare(content, other) === 0;
    });
}

/** What is wrong with a state, if anything. */
function problemOf(file: BlockFile, worlds: readonly World[]): string | undefined {
  const { problem } = check(file);
  if (problem !== undefined) return problem.message;
  try {
    const world = worldOf(Qcow2File.open(file, { lock: false }));
    return worlds.some((candidate) => isSame(candidate, world)) ? undefined : "it is neither as before nor as after";
  } catch (error) {
    return error instanceof Qcow2Error ? `${error.code}: ${error.message}` : String(error);
  }
}

/** What is done to the disk: in one piece, or as the guest does it. */
interface Step {
  readonly atomic: boolean;
  readonly run: (disk: Qcow2File) => void;
}

function stepsOf(random: Random, size: number): Step[] {
  const change = {
    atomic: false,
    run: (disk: Qcow2File): void => {
      for (let count = 0; count < 6; count++) {
        disk.writeAt(random.below(size - 5000), random.bytes(random.between(1, 5000)));
      }
      const cluster = disk.allocationSize;
      disk.writeCompressedAt(4 * cluster, filled(4 * cluster, random.between(1, 255)));
      disk.writeZeroesAt(random.below(size - 5000), 5000, { unmap: true });
    },
  };
  const create = { atomic: true, run: (disk: Qcow2File): void => void disk.createSnapshot("name") };
  const apply = (id: string): Step => ({ atomic: true, run: (disk) => disk.applySnapshot(id) });
  const remove = (id: string): Step => ({ atomic: true, run: (disk) => disk.deleteSnapshot(id) });
  return [
    ...[create, change, create, change, create, remove("2"), change, apply("3"), create, apply("1"), change],
    ...[remove("1"), remove("4"), apply("3"), remove("3")],
  ];
}

for (const { name, ...options } of CASES) {
  Deno.test(`A power cut while a snapshot is made, applied or deleted changes all or nothing, with ${name}`, () => {
    const random = new Random(`snapshot crashes ${name}`);
    const recorder = new Recorder(emptyImage(options).toBytes());
    const disk = Qcow2File.open(recorder, { write: true });
    let states = 0;
    for (const [index, { atomic, run }] of stepsOf(random, options.size).entries()) {
      disk.flush();
      const before = worldOf(disk);
      const moments: { readonly base: Uint8Array<ArrayBuffer>; readonly changes: Recorder["changes"] }[] = [];
      const remember = (): void => {
        moments.push({ base: recorder.durable.content().slice(), changes: [...recorder.changes] });
      };
      recorder.onSync = remember;
      run(disk);
      disk.flush();
      remember();
      recorder.onSync = undefined;
      // The states are judged when it is known what comes after.
      const worlds = [before, worldOf(disk)];
      for (const { base, changes } of atomic ? moments : []) {
        const file = new ScratchFile(new Recorder(base).durable);
        for (const state of crashStates(changes, random, { listed: 12, subsets: 12, torn: 12 })) {
          buildState(file, changes, state);
          const problem = problemOf(file, worlds);
          if (problem !== undefined) throw new Error(`Step ${index}: ${problem}; the file ${describeState(state)}`);
          states++;
          file.restore();
        }
      }
    }
    assertEquals(states > 500, true, `${states} states`);
    const { corruptions, leaks } = disk.check();
    assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
  });

  Deno.test(`A host that fails while a snapshot is made, applied or deleted changes all or nothing, with ${name}`, () => {
    const random = new Random(`snapshot faults ${name}`);
    let image = emptyImage(options).toBytes();
    for (const [index, { atomic, run }] of stepsOf(random, options.size).entries()) {
      const whole = new Recorder(image);
      const reference = Qcow2File.open(whole, { write: true });
      const before = worldOf(reference);
      run(reference);
      reference.close();
      const after = worldOf(Qcow2File.open(whole, { lock: false }));
      for (const call of atomic ? ["write", "sync"] as const : []) {
        const count = whole.counts[call];
        for (let failing = 0; failing < count; failing += Math.max(1, Math.floor(count / 12))) {
          const recorder = new Recorder(image);
          recorder.failedWrites = "half";
          const disk = Qcow2File.open(recorder, { write: true });
          const earlier = recorder.counts[call];
          recorder.onCall = (made, number) => {
            if (made === call && number === earlier + failing) throw hostFault("no-space", call);
          };
          try {
            run(disk);
          } catch (error) {
            if (!(error instanceof Qcow2Error)) throw error;
          }
          recorder.onCall = undefined;
          const world = worldOf(disk);
          const where = `step ${index}, ${call} ${failing} fails`;
          assertEquals(isSame(world, before) || isSame(world, after), true, `${where}: neither as before nor as after`);
          try {
            disk.close();
          } catch (error) {
            assertEquals([call, error instanceof Qcow2Error && error.code], ["sync", "failed"]);
          }
          const file = new ScratchFile(new Recorder(recorder.content().slice()).durable);
          assertEquals(problemOf(file, [before, after]), undefined, where);
          if (call === "write") assertEquals(check(file).leaks, 0, where);
        }
      }
      image = whole.content().slice();
    }
  });
}
