import { assert, assertEquals, assertRejects } from "@std/assert";
import { check, type CheckFinding, checkImage, type Progress, Qcow2Error, Qcow2File, repair } from "../../mod.ts";
import { copyOf, emptyImage, filled, GIB, MIB, withFolder } from "../images.ts";

/** Asserts that progress goes forward, to the end, and tells how often it was told of. */
function assertForward(told: readonly Progress[]): number {
  let last = 0;
  for (const { done, total } of told) {
    assert(done >= last && done <= total, `${last}, then ${done} of ${total}`);
    assertEquals(total, told[0]?.total);
    last = done;
  }
  assertEquals(last, told[0]?.total);
  return told.length;
}

Deno.test("check() and repair() find what checkImage() finds, and tell how far they are", async () => {
  const file = emptyImage({ size: MIB, clusterSize: 512 });
  {
    using disk = Qcow2File.open(file, { write: true });
    for (let index = 0; index < 64; index++) disk.writeAt(index * 1024, filled(512, index + 1));
    disk.createSnapshot("one");
    for (let index = 0; index < 64; index++) disk.writeAt(index * 1024, filled(512, index + 2));
    disk.close();
  }
  const [leaking, broken] = [[0, 7], [0, 7, 0, 0]].map((refcounts) => {
    using disk = Qcow2File.open(copyOf(file));
    const cluster = (disk.l2Table(0)?.[4]?.hostOffset ?? 0) / disk.allocationSize;
    const damaged = copyOf(file);
    damaged.writeAt((disk.refcountTable[0] ?? 0) + cluster * 2, new Uint8Array(refcounts));
    return damaged;
  });
  const cases = [[file, undefined], [leaking, undefined], [leaking, "leaks"], [broken, undefined], [
    broken,
    "all",
  ]] as const;
  for (const [image = file, kind] of cases) {
    const told: Progress[] = [];
    const messages: string[] = [];
    const expected: string[] = [];
    const options = {
      onProgress: (progress: Progress) => void told.push(progress),
      onFinding: ({ message }: CheckFinding) => void messages.push(message),
    };
    const result =
      await (kind === undefined ? check(copyOf(image), options) : repair(copyOf(image), { ...options, kind }));
    const onFinding = ({ message }: CheckFinding) => void expected.push(message);
    assertEquals(result, checkImage(copyOf(image), { onFinding, ...(kind === undefined ? {} : { repair: kind }) }));
    assertEquals(messages, expected);
    assert(assertForward(told) > (kind === undefined ? 4 : 8));
  }
});

Deno.test("check() lets others have their turn, and ends when it is told to", async () => {
  const controller = new AbortController();
  const told: Progress[] = [];
  const file = emptyImage({ size: GIB });
  const aborted = await assertRejects(
    () =>
      check(copyOf(file), {
        signal: controller.signal,
        onProgress: (progress) => {
          told.push(progress);
          controller.abort();
        },
      }),
    Qcow2Error,
  );
  assertEquals(aborted.code, "aborted");
  assertEquals(told.length, 1);
  const early = await assertRejects(() => repair(copyOf(file), { signal: controller.signal }), Qcow2Error);
  assertEquals(early.code, "aborted");
});

Deno.test("check() and repair() give the file back when they are ended", () =>
  withFolder(async (folder) => {
    const path = `${folder}/disk.qcow2`;
    Qcow2File.create(path, { size: GIB }).close();
    for (const work of [check, repair]) {
      const signal = AbortSignal.abort();
      await assertRejects(() => work(path, { signal }), Qcow2Error);
      Qcow2File.open(path, { write: true }).close();
    }
  }));
