import { assert, assertEquals, assertRejects } from "@std/assert";
import type { CompressedPart } from "../../lib/disk.ts";
import { Qcow2Error } from "../../lib/errors.ts";
import { compressClusters, decompressClusters } from "../../lib/image/cluster_jobs.ts";
import { ClusterThreads } from "../../lib/image/cluster_threads.ts";
import { Random } from "../random.ts";

const CLUSTER = 4096;
const COUNT = 700;

/** Memory that threads can use. */
function shared(length: number): Uint8Array {
  return new Uint8Array(new SharedArrayBuffer(length));
}

/** Clusters of which some compress well, some badly and some not at all; the last one is cut short. */
function clusters(random: Random): Uint8Array {
  const data = shared(COUNT * CLUSTER - 1000);
  for (let position = 0; position < data.length; position += CLUSTER) {
    const noise = random.pick([0, 500, 3000, CLUSTER]);
    data.fill(1 + position % 200, position, position + CLUSTER);
    for (let at = position; at < Math.min(position + noise, data.length); at++) data[at] = random.below(256);
  }
  return data;
}

const POSITIONS = Array.from({ length: COUNT }, (_, index) => index * CLUSTER).filter((_, index) => index % 5 !== 3);

/** Waits until there was time for threads to start: jobs are done one after the other until one was done elsewhere. */
async function warmUp(threads: ClusterThreads): Promise<void> {
  const small = { type: "zlib", clusterSize: CLUSTER, positions: [0] } as const;
  for (let count = 0; count < 20; count++) {
    await threads.compress({ ...small, data: shared(CLUSTER), into: shared(CLUSTER) });
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

Deno.test("ClusterThreads compress to the bytes that one thread compresses to, and decompress them", async () => {
  for (const type of ["zlib", "zstd"] as const) {
    const data = clusters(new Random(`threads ${type}`));
    const job = { type, clusterSize: CLUSTER, data, positions: POSITIONS };
    const expected = new Uint8Array(COUNT * CLUSTER);
    const expectedLengths = compressClusters({ ...job, into: expected });
    assert(expectedLengths.includes(0) && expectedLengths.some((length) => length > 0));
    using threads = new ClusterThreads(3);
    for (let turn = 0; turn < 3; turn++) {
      await warmUp(threads);
      const into = shared(COUNT * CLUSTER);
      assertEquals(await threads.compress({ ...job, into }), expectedLengths);
      assertEquals(into, expected);

      const parts: CompressedPart[] = POSITIONS.flatMap((position, index) => {
        const length = expectedLengths[index] ?? 0;
        const part = { position, length, hostOffset: position, inCluster: 100, count: 500, target: position };
        return length === 0 ? [] : [part];
      });
      const back = shared(data.length);
      await threads.decompress({ type, clusterSize: CLUSTER, bytes: into, parts, into: back });
      const alone = new Uint8Array(data.length);
      decompressClusters({ type, clusterSize: CLUSTER, bytes: into, parts, into: alone });
      assertEquals(back, alone);
      for (const { position } of parts) {
        assertEquals(back.subarray(position, position + 500), data.subarray(position + 100, position + 600));
      }
    }
  }
});

Deno.test("ClusterThreads do the work on the caller's thread where memory is not shared, or no thread can be had", async () => {
  const data = clusters(new Random("no threads"));
  const job = { type: "zlib", clusterSize: CLUSTER, data, positions: POSITIONS } as const;
  const expected = new Uint8Array(COUNT * CLUSTER);
  const expectedLengths = compressClusters({ ...job, into: expected });
  for (const module of [undefined, new URL("file:///nowhere/worker.ts"), new URL("data:text/plain,")]) {
    using threads = new ClusterThreads(2, module);
    for (const into of [new Uint8Array(COUNT * CLUSTER), shared(COUNT * CLUSTER), shared(COUNT * CLUSTER)]) {
      assertEquals(await threads.compress({ ...job, into }), expectedLengths);
      assertEquals(into, expected);
    }
  }
});

Deno.test("ClusterThreads tell of broken bytes what one thread tells, and where they stand", async () => {
  using threads = new ClusterThreads(2);
  await warmUp(threads);
  const part = { position: 0, length: 100, hostOffset: 0x50000, inCluster: 0, count: CLUSTER, target: 0 };
  for (const bytes of [shared(100).fill(0xff), new Uint8Array(100).fill(0xff)]) {
    const job = { type: "zlib", clusterSize: CLUSTER, bytes, parts: [part], into: shared(CLUSTER) } as const;
    const error = await assertRejects(() => threads.decompress(job), Qcow2Error);
    assertEquals([error.code, error.offset], ["corrupt", 0x50000]);
    assert(error.message.endsWith("(at 0x50000)"), error.message);
  }
});

Deno.test("ClusterThreads fail, and do not wait for ever, where a thread is lost at its work", async () => {
  const script = 'onmessage = () => { throw new Error("lost"); }; postMessage({ kind: "ready" });';
  using threads = new ClusterThreads(2, new URL(`data:text/javascript,${encodeURIComponent(script)}`));
  const job = {
    type: "zlib",
    clusterSize: CLUSTER,
    positions: [0],
    data: shared(CLUSTER),
    into: shared(CLUSTER),
  } as const;
  const error = await assertRejects(async () => {
    for (let count = 0; count < 1000; count++) {
      await threads.compress(job);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }, Qcow2Error);
  assertEquals(error.code, "io");
});

Deno.test("ClusterThreads end what they are at when they are disposed of", async () => {
  const script = 'postMessage({ kind: "ready" });';
  const threads = new ClusterThreads(2, new URL(`data:text/javascript,${encodeURIComponent(script)}`));
  const job = {
    type: "zlib",
    clusterSize: CLUSTER,
    positions: [0],
    data: shared(CLUSTER),
    into: shared(CLUSTER),
  } as const;
  const codes: string[] = [];
  for (let count = 0; count < 1000 && codes.length === 0; count++) {
    let isDone = false;
    const work = threads.compress(job).then(() => isDone = true, (error) => codes.push(error.code));
    await new Promise((resolve) => setTimeout(resolve, 5));
    if (isDone) continue;
    // A thread has it, which never answers.
    threads[Symbol.dispose]();
    await work;
  }
  assertEquals(codes, ["aborted"]);
});
