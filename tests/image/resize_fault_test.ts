import { assert, assertEquals } from "@std/assert";
import { checkImage, Qcow2Error, Qcow2File } from "../../mod.ts";
import { copyOf, emptyImage, filled, KIB, MIB, readBytes, RecordingFile } from "../images.ts";

/** Lets a host be full at each write in turn, and asserts that the image is sound with all of its content whatever failed. */
function failEachWrite(from: number, act: (disk: Qcow2File) => void): void {
  for (let failing = 0;; failing++) {
    const inner = emptyImage({ size: from, clusterSize: 512, refcountBits: 64 });
    const file = new RecordingFile(inner);
    const disk = Qcow2File.open(file, { write: true });
    const content = filled(50 * KIB, 3);
    disk.writeAt(0, content);
    disk.flush();
    let writes = 0;
    file.onCall = ({ call }) => {
      if (call !== "write" && call !== "truncate") return;
      if (writes++ === failing) throw new Qcow2Error("no-space", "No space left on device");
    };
    let failed = false;
    try {
      act(disk);
    } catch (error) {
      failed = true;
      assert(error instanceof Qcow2Error && error.code === "no-space", String(error));
    }
    file.onCall = undefined;
    assertEquals(disk.check().corruptions, 0, `Write ${failing}`);
    assertEquals(readBytes(disk, 0, content.length), content);
    // The disk goes on being used, and what failed succeeds now.
    act(disk);
    disk.writeAt(disk.size - 512, filled(512, 4));
    disk.close();
    assertEquals(checkImage(copyOf(inner)).corruptions, 0, `Write ${failing}`);
    using reopened = Qcow2File.open(copyOf(inner));
    assertEquals(readBytes(reopened, 0, content.length), content);
    if (!failed) return;
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

Deno.test("amend() on a host that is full leaves a sound image", () => {
  failEachWrite(100 * KIB, (disk) => disk.amend({ refcountBits: 8 }));
  failEachWrite(100 * KIB, (disk) => {
    if (disk.header.version === 3) disk.amend({ refcountBits: 16 });
    disk.amend({ version: 2 });
    disk.amend({ version: 3, lazyRefcounts: true });
  });
});
