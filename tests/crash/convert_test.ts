import { assert, assertEquals, assertRejects } from "@std/assert";
import { checkImage, convert, type Disk, Qcow2Error, Qcow2File, RawFile } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { copyOf, emptyImage, KIB, MIB, readBytes } from "../images.ts";
import { type FaultyCall, hostFault, Recorder } from "./recorder.ts";
import { preparedImage } from "./sequences.ts";

const SOURCE = preparedImage({
  size: 2 * MIB,
  clusterSize: 4096,
  filled: [[0, 300 * KIB], [MIB, 100 * KIB], [2 * MIB - 5000, 5000]],
});

function source(): { file: MemoryBlockFile; disk: Qcow2File } {
  const file = MemoryBlockFile.from(SOURCE, { writable: false });
  return { file, disk: Qcow2File.open(file, { lock: false }) };
}

/** Converts on a host that fails, and asserts that it is told and that the source is whole. */
async function assertToldAndWhole(makeTarget: () => Disk, codes: readonly string[]): Promise<void> {
  const { file, disk } = source();
  const before = readBytes(disk, 0, disk.size);
  let target: Disk | undefined;
  const error = await assertRejects(async () => {
    target = makeTarget();
    await convert(disk, target, { targetIsZero: true });
    target.close();
  }, Qcow2Error);
  assert(codes.includes(error.code), `${error.code}: ${error.message}`);
  try {
    target?.close();
  } catch (atClose) {
    assert(atClose instanceof Qcow2Error);
  }
  assertEquals(readBytes(disk, 0, disk.size), before);
  disk.close();
  assertEquals(file.toBytes(), SOURCE);
}

Deno.test("convert() into a full host says no-space and leaves the source whole, whatever room there was", async () => {
  const { disk } = source();
  const enough = new MemoryBlockFile();
  const whole = Qcow2File.create(enough, { size: disk.size, clusterSize: 4096, lock: false });
  await convert(disk, whole, { targetIsZero: true });
  whole.close();
  const { size: needed } = enough;
  let count = 0;
  for (let maxSize = 0; maxSize < needed; maxSize += 8192) {
    let file: MemoryBlockFile | undefined;
    await assertToldAndWhole(() => {
      file = new MemoryBlockFile({ maxSize });
      return Qcow2File.create(file, { size: disk.size, clusterSize: 4096, durability: "none", lock: false });
    }, ["no-space"]);
    count++;
    // What is left is no trap: it opens and is sound, or does not open.
    if (file === undefined) continue;
    try {
      const { corruptions } = checkImage(copyOf(file));
      assertEquals(corruptions, 0);
    } catch (error) {
      assert(error instanceof Qcow2Error && error.code === "not-qcow2", String(error));
    }
  }
  assert(count > 50);
});

Deno.test("convert() into a raw file on a full host says no-space and leaves the source whole", async () => {
  for (const maxSize of [0, 4096, 300 * KIB, 2 * MIB - 1]) {
    await assertToldAndWhole(
      () => RawFile.create(new MemoryBlockFile({ maxSize }), { size: 2 * MIB, lock: false }),
      ["no-space"],
    );
  }
});

Deno.test("convert() on a target that fails at any call says so and leaves the source whole", async () => {
  const { disk } = source();
  const makeTarget = (recorder: Recorder): Qcow2File => {
    return Qcow2File.open(recorder, { write: true, lock: false });
  };
  const empty = emptyImage({ size: disk.size, clusterSize: 4096 }).toBytes();
  const whole = new Recorder(empty);
  const target = makeTarget(whole);
  await convert(disk, target, { targetIsZero: true });
  target.close();
  for (const call of ["write", "sync"] satisfies FaultyCall[]) {
    for (let index = 0; index < whole.counts[call]; index++) {
      await assertToldAndWhole(() => {
        const recorder = new Recorder(empty);
        recorder.onCall = (made, count) => {
          if (made === call && count >= index) throw hostFault(index % 2 === 0 ? "io" : "no-space", call);
        };
        return makeTarget(recorder);
      }, ["io", "no-space"]);
    }
  }
});

Deno.test("convert() of a source that fails says so, and the target holds no more than it was given", async () => {
  for (const index of [0, 1, 2]) {
    const recorder = new Recorder(SOURCE);
    const disk = Qcow2File.open(recorder, { lock: false });
    const targetFile = emptyImage({ size: disk.size, clusterSize: 4096 });
    const target = Qcow2File.open(targetFile, { write: true, lock: false });
    recorder.counts.read = 0;
    recorder.onCall = (call, count) => {
      if (call === "read" && count >= index) throw hostFault("io", call);
    };
    const error = await assertRejects(() => convert(disk, target, { targetIsZero: true }), Qcow2Error);
    assertEquals(error.code, "io");
    target.close();
    const { corruptions, leaks } = checkImage(copyOf(targetFile));
    assertEquals({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
    assertEquals(recorder.content(), SOURCE);
  }
});
