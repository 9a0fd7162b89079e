import { assertEquals } from "@std/assert";
import { deflateRawSync, deflateSync, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { compressCluster, decompressCluster } from "../../lib/format/compression.ts";
import { zstdFrameLength } from "../../lib/format/zstd_frame.ts";
import { assertCode } from "../images.ts";
import { Random } from "../random.ts";

const TYPES = ["zlib", "zstd"] as const;

/** Bytes that compress, more or less well. */
function compressible(random: Random, length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  for (let position = 0; position < length;) {
    const end = Math.min(length, position + random.between(1, 200));
    if (random.oneIn(3)) bytes.set(random.bytes(end - position), position);
    else bytes.fill(random.below(256), position, end);
    position = end;
  }
  return bytes;
}

function withTail(bytes: Uint8Array, tail: Uint8Array): Uint8Array<ArrayBuffer> {
  const joined = new Uint8Array(bytes.length + tail.length);
  joined.set(bytes);
  joined.set(tail, bytes.length);
  return joined;
}

Deno.test("decompressCluster() gives back what compressCluster() took, whatever stands behind it", () => {
  const random = new Random("compression");
  for (const type of TYPES) {
    for (let bits = 9; bits <= 21; bits++) {
      const cluster = compressible(random, 2 ** bits);
      const compressed = compressCluster(type, cluster);
      if (compressed === undefined) continue;
      assertEquals(compressed.length < cluster.length, true);
      const read = decompressCluster(type, withTail(compressed, random.bytes(random.below(511))), cluster.length);
      assertEquals(new Uint8Array(read), cluster);
    }
  }
});

Deno.test("compressCluster() gives up where compression saves nothing", () => {
  const random = new Random("incompressible");
  const noise = new Uint8Array(Uint32Array.from({ length: 16384 }, () => random.next()).buffer);
  for (const type of TYPES) assertEquals(compressCluster(type, noise) === undefined, true);
});

Deno.test("decompressCluster() reads streams that look back 32 KiB", () => {
  const random = new Random("window");
  const cluster = new Uint8Array(65536);
  const block = random.bytes(32000);
  cluster.set(block);
  cluster.set(block, 32000);
  const stream = deflateRawSync(cluster, { windowBits: 15 });
  assertEquals(new Uint8Array(decompressCluster("zlib", stream, cluster.length)), cluster);
});

Deno.test("decompressCluster() reads clusters of several zstd frames", () => {
  const random = new Random("frames");
  const cluster = compressible(random, 65536);
  let frames: Uint8Array = new Uint8Array();
  for (const [from, to] of [[0, 100], [100, 40000], [40000, 65536]]) {
    frames = withTail(frames, zstdCompressSync(cluster.subarray(from, to)));
  }
  assertEquals(new Uint8Array(decompressCluster("zstd", withTail(frames, random.bytes(300)), 65536)), cluster);
});

Deno.test("decompressCluster() refuses broken, short, long and foreign streams", () => {
  const cluster = new Uint8Array(65536).fill(7);
  const raw = deflateRawSync(cluster);
  const zstd = zstdCompressSync(cluster);
  assertCode("corrupt", () => decompressCluster("zlib", raw.subarray(0, raw.length - 4), 65536));
  assertCode("corrupt", () => decompressCluster("zlib", deflateSync(cluster), 65536));
  assertCode("corrupt", () => decompressCluster("zlib", raw, 32768));
  assertCode("corrupt", () => decompressCluster("zlib", raw, 131072));
  assertCode("corrupt", () => decompressCluster("zstd", zstd.subarray(0, zstd.length - 2), 65536));
  assertCode("corrupt", () => decompressCluster("zstd", zstd, 32768));
  assertCode("corrupt", () => decompressCluster("zstd", zstd, 131072));
  assertCode("corrupt", () => decompressCluster("zstd", raw, 65536));
  assertCode("corrupt", () => decompressCluster("zlib", new Uint8Array(), 65536));
});

Deno.test("decompressCluster() ends for any bytes", () => {
  const random = new Random("noise");
  const good = zstdCompressSync(compressible(random, 65536));
  for (let round = 0; round < 300; round++) {
    const bytes = good.slice();
    for (let flip = random.between(1, 4); flip > 0; flip--) {
      bytes[random.below(Math.min(64, bytes.length))] = random.below(256);
    }
    for (const type of TYPES) {
      try {
        assertEquals(decompressCluster(type, bytes, 65536).length, 65536);
      } catch (error) {
        assertCode("corrupt", () => {
          throw error;
        });
      }
    }
  }
});

Deno.test("zstdFrameLength() finds where a frame ends, and none in other bytes", () => {
  const random = new Random("frame length");
  for (const size of [0, 1, 255, 256, 65536, 300_000]) {
    const content = compressible(random, size);
    const frame = zstdCompressSync(content);
    const length = zstdFrameLength(withTail(frame, random.bytes(40))) ?? 0;
    // The compressor may put an empty frame behind the one with the content.
    assertEquals(new Uint8Array(zstdDecompressSync(frame.subarray(0, length))), content);
    assertEquals(zstdFrameLength(frame.subarray(0, length - 1)), undefined);
  }
  assertEquals(zstdFrameLength(random.bytes(100)), undefined);
});
