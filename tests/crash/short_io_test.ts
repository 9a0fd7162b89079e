import { assert, assertEquals } from "@std/assert";
import { checkImage, Qcow2Error, Qcow2File } from "../../mod.ts";
import { FsBlockFile, MemoryBlockFile } from "../../lib/storage/mod.ts";
import { KIB, MIB, readBytes } from "../images.ts";
import { Random } from "../random.ts";
import { FakeFsFile } from "./fake_fs_file.ts";
import { type ImageOptions, preparedImage } from "./sequences.ts";
import { taggedBytes } from "./tags.ts";

const LAYOUTS: readonly ImageOptions[] = [
  { size: 512 * KIB, clusterSize: 512, poisonLength: 20000 },
  { size: MIB, clusterSize: 4096, refcountBits: 1 },
  { size: 4 * MIB, poisonLength: 100000 },
];

/** A disk on a fake file, and the file. */
function openFake(content: Uint8Array, random: Random): { disk: Qcow2File; fake: FakeFsFile } {
  const fake = new FakeFsFile(content, random);
  const file = FsBlockFile.from(fake.asFsFile(), { name: "fake file", writable: true });
  return { disk: Qcow2File.open(file, { write: true, lock: false, cacheSize: 1 }), fake };
}

function contentOf(fake: FakeFsFile): Uint8Array {
  return fake.flat.content().slice();
}

function assertSound(content: Uint8Array): void {
  assertEquals(checkImage(MemoryBlockFile.from(content)).corruptions, 0);
}

Deno.test("Short reads and short writes of the host go unnoticed", () => {
  for (const layout of LAYOUTS) {
    const random = new Random(`short ${layout.clusterSize}`);
    const { disk, fake } = openFake(preparedImage(layout), random);
    const model = new Uint8Array(disk.size);
    for (let turn = 0; turn < 200; turn++) {
      const offset = random.below(disk.size);
      const length = Math.min(random.between(1, 3 * disk.allocationSize), disk.size - offset);
      if (turn % 5 === 4) {
        disk.writeZeroesAt(offset, length, { unmap: turn % 2 === 0 });
        model.fill(0, offset, offset + length);
      } else {
        const data = taggedBytes(turn, offset, length);
        disk.writeAt(offset, data);
        model.set(data, offset);
      }
      if (turn % 50 === 49) disk.flush();
      assertEquals(readBytes(disk, offset, length), model.slice(offset, offset + length));
    }
    disk.flush();
    assertEquals(readBytes(disk, 0, disk.size), model);
    const result = checkImage(MemoryBlockFile.from(contentOf(fake)));
    assertEquals([result.corruptions, result.leaks], [0, 0]);
    disk.close();
  }
});

/** What hosts throw. */
const HOST_ERRORS: readonly (readonly [error: () => Error, codes: readonly string[]])[] = [
  [() => new Error("No space left on device (os error 28)"), ["no-space"]],
  [() => new Error("Disk quota exceeded (os error 122)"), ["no-space"]],
  [() => new Error("Input/output error (os error 5)"), ["io"]],
  [() => new Deno.errors.PermissionDenied("Operation not permitted (os error 1)"), ["permission-denied"]],
  [() => new Deno.errors.BadResource("Bad file descriptor"), ["io"]],
];

Deno.test("Whatever the host throws at whatever call comes out as a Qcow2Error with a code that fits", () => {
  const image = preparedImage({ size: 256 * KIB, clusterSize: 512, filled: [[0, 20 * KIB]], poisonLength: 3000 });
  const work = (disk: Qcow2File, told: (error: unknown) => void): void => {
    const steps = [
      () => disk.writeAt(0, taggedBytes(1, 0, 5000)),
      () => disk.writeAt(100_000, taggedBytes(2, 100_000, 3000)),
      () => disk.flush(),
      () => disk.discardAt(0, 4096),
      () => disk.writeAt(200_000, taggedBytes(3, 200_000, 3000)),
      () => disk.readAt(0, new Uint8Array(200_000)),
      () => disk.flush(),
    ];
    for (const step of steps) {
      try {
        step();
      } catch (error) {
        told(error);
      }
    }
  };
  let told = 0;
  let faults = 0;
  for (const [makeError, codes] of HOST_ERRORS) {
    const whole = openFake(image, new Random("errors"));
    const opened = whole.fake.callCount;
    work(whole.disk, (error) => {
      throw error;
    });
    const last = whole.fake.callCount;
    for (let index = opened; index < last; index++) {
      for (const forever of [false, true]) {
        const { disk, fake } = openFake(image, new Random("errors"));
        let broken = false;
        fake.onCall = (call, count) => {
          if (count < index || (count > index && !forever)) return;
          broken ||= call === "syncDataSync";
          throw makeError();
        };
        faults++;
        work(disk, (error) => {
          assert(error instanceof Qcow2Error, String(error));
          assert(codes.includes(error.code) || (broken && error.code === "failed"), `${error.code}: ${error.message}`);
          told++;
        });
        fake.onCall = undefined;
        // What was there before, and was not written since, is there after all of it.
        assertEquals(readBytes(disk, 8192, 8192), taggedBytes(0x40000000, 8192, 8192));
        if (!broken) {
          disk.writeAt(0, taggedBytes(4, 0, 5000));
          disk.flush();
          assertEquals(readBytes(disk, 0, 5000), taggedBytes(4, 0, 5000));
          assertSound(contentOf(fake));
        }
      }
    }
  }
  console.log(`Faults: ${faults} at single calls of the runtime, ${told} errors told`);
  assert(told > 0);
});
