import { assert, assertEquals } from "@std/assert";
import { checkImage, type CreateOptions, Qcow2Error, Qcow2File } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { copyOf, filled, KIB, MIB, readBytes, RecordingFile } from "../images.ts";

/** What the image is like that {@linkcode failEachWrite} makes. */
interface Made {
  readonly options?: Partial<CreateOptions>;
  /** Whether a bitmap watches. */
  readonly bitmap?: boolean;
  /** What happens to it before the host is full. */
  readonly prepare?: (disk: Qcow2File) => void;
}

/**
 * Lets a host be full at each write in turn, to the image or its data file, and asserts that the image is sound with all of its
 * content whatever failed.
 */
function failEachWrite(from: number, act: (disk: Qcow2File) => void, made: Made = {}): void {
  const { options = {}, bitmap = false, prepare } = made;
  for (let failing = 0;; failing++) {
    const inner = new MemoryBlockFile();
    const innerData = new MemoryBlockFile();
    const file = new RecordingFile(inner);
    const data = new RecordingFile(innerData);
    const created = { size: from, clusterSize: 512, refcountBits: 64, openDataFile: () => data, ...options };
    const disk = Qcow2File.create(file, created);
    if (bitmap) disk.addBitmap("watched", { granularity: 512 });
    const content = filled(50 * KIB, 3);
    disk.writeAt(0, content);
    prepare?.(disk);
    disk.flush();
    let writes = 0;
    file.onCall = data.onCall = ({ call }) => {
      if (call !== "write" && call !== "truncate" && call !== "preallocate") return;
      if (writes++ === failing) throw new Qcow2Error("no-space", "No space left on device");
    };
    let failed = false;
    try {
      act(disk);
    } catch (error) {
      failed = true;
      assert(error instanceof Qcow2Error && error.code === "no-space", String(error));
    }
    file.onCall = data.onCall = undefined;
    assertEquals(disk.check().corruptions, 0, `Write ${failing}`);
    assertEquals(readBytes(disk, 0, content.length), content);
    // The disk goes on being used, and what failed succeeds now.
    act(disk);
    const end = disk.size;
    disk.writeAt(end - 512, filled(512, 4));
    disk.close();
    assertEquals(checkImage(copyOf(inner)).corruptions, 0, `Write ${failing}`);
    using reopened = Qcow2File.open(copyOf(inner), { dataFile: () => copyOf(innerData) });
    assertEquals(readBytes(reopened, 0, content.length), content);
    assertEquals(readBytes(reopened, end - 1024, 1024), new Uint8Array(1024).fill(4, 512));
    for (const { inconsistent } of reopened.bitmaps) {
      // Where the header had told the new size already, nobody trusts the bitmaps any more.
      if (inconsistent || !bitmap) continue;
      const written = [{ offset: 0, length: content.length }, { offset: end - 512, length: 512 }];
      assertEquals([...reopened.dirtyExtents("watched")], written, `Write ${failing}`);
    }
    if (!failed) {
      if (bitmap) assertEquals(reopened.bitmaps.map(({ inconsistent }) => inconsistent), [false]);
      return;
    }
    assert(failing < 5000);
  }
}

Deno.test("resize() on a host that is full leaves a sound image when it grows", () => {
  failEachWrite(300 * KIB, (disk) => disk.resize(4 * MIB));
});

Deno.test("resize() on a host that is full leaves a sound image when it preallocates", () => {
  failEachWrite(100 * KIB, (disk) => disk.resize(200 * KIB, disk.size < 200 * KIB ? { preallocation: "full" } : {}));
});

Deno.test("resize() on a host that is full leaves a sound image when it shrinks", () => {
  failEachWrite(300 * KIB, (disk) => disk.resize(60 * KIB, { shrink: true }));
});

Deno.test("resize() on a host that is full leaves a sound image when bitmaps change with it", () => {
  failEachWrite(300 * KIB, (disk) => disk.resize(4 * MIB), { bitmap: true });
  failEachWrite(4 * MIB, (disk) => disk.resize(100 * KIB, { shrink: true }), { bitmap: true });
});

Deno.test("resize() on a host that is full leaves a sound image with subclusters", () => {
  const options = { clusterSize: 16 * KIB, extendedL2: true };
  for (const preallocation of ["off", "metadata", "full"] as const) {
    const grow = (disk: Qcow2File) => disk.resize(300 * KIB, disk.size < 300 * KIB ? { preallocation } : {});
    failEachWrite(100 * KIB + 512, grow, { options });
  }
  failEachWrite(300 * KIB, (disk) => disk.resize(60 * KIB, { shrink: true }), { options });
});

Deno.test("resize() on a host that is full leaves a sound image with a data file", () => {
  for (const dataFileRaw of [false, true]) {
    const options = { clusterSize: 4 * KIB, dataFile: "data", dataFileRaw };
    for (const preallocation of ["off", "falloc", "full"] as const) {
      const grow = (disk: Qcow2File) => disk.resize(2 * MIB, disk.size < 2 * MIB ? { preallocation } : {});
      failEachWrite(100 * KIB + 512, grow, { options, bitmap: true });
    }
    failEachWrite(300 * KIB, (disk) => disk.resize(60 * KIB, { shrink: true }), { options });
  }
});

Deno.test("applySnapshot() on a host that is full leaves a sound image when bitmaps change with it", () => {
  for (const size of [200 * KIB, 3 * MIB]) {
    failEachWrite(300 * KIB, (disk) => disk.applySnapshot("other"), {
      prepare: (disk) => {
        disk.resize(size, { shrink: true });
        disk.createSnapshot("other");
        disk.resize(300 * KIB, { shrink: true });
        disk.addBitmap("watched", { granularity: 512 });
        disk.writeAt(0, filled(512, 3));
      },
    });
  }
});

Deno.test("amend() on a host that is full leaves a sound image", () => {
  failEachWrite(100 * KIB, (disk) => disk.amend({ refcountBits: 8 }));
  failEachWrite(100 * KIB, (disk) => {
    if (disk.header.version === 3) disk.amend({ refcountBits: 16 });
    disk.amend({ version: 2 });
    disk.amend({ version: 3, lazyRefcounts: true });
  });
});
