import { assert, assertEquals } from "@std/assert";
import { checkImage, type CreateOptions, type HeaderExtension, Qcow2File, RawFile } from "../../mod.ts";
import { decodeHeader, encodeHeader, EXTENSION, extensionText } from "../../lib/format/mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { filled, KIB, readBytes } from "../images.ts";
import { Random } from "../random.ts";
import { everyCrash } from "./every_crash.ts";

const backing = () => RawFile.open(MemoryBlockFile.from(filled(300 * KIB, 5)));

/** Name and format of a backing file. */
type Reference = readonly [name: string, format: string] | undefined;

const SHORT: Reference = ["base.raw", "raw"];
const OTHER: Reference = ["other.qcow2", "qcow2"];
const LONG: Reference = [`${"folder/".repeat(100)}long.raw`, "raw"];
const LONGEST: Reference = ["/".padEnd(1023, "x"), "raw"];
const UNKNOWN: HeaderExtension = { type: 0x12345678, data: new TextEncoder().encode("nobody knows this") };
const LARGE: HeaderExtension = { type: 0x12345679, data: filled(700, 1) };

const CASES: readonly (readonly [
  name: string,
  created: Partial<CreateOptions>,
  extensions: readonly HeaderExtension[],
  from: Reference,
  to: Reference,
])[] = [
  ["another name and format", {}, [], SHORT, OTHER],
  ["the first one", {}, [UNKNOWN], undefined, SHORT],
  ["none any more", {}, [UNKNOWN], SHORT, undefined],
  ["a long name after a short one", {}, [UNKNOWN], SHORT, LONG],
  ["a short name after a long one", {}, [UNKNOWN], LONG, OTHER],
  ["one long name after another", {}, [], LONGEST, LONG],
  ["a long name after a longer one", {}, [], LONG, LONGEST],
  ["a first long name", { version: 2 }, [UNKNOWN], undefined, LONGEST],
  ["no long name any more", {}, [], LONGEST, undefined],
  ["version 2", { version: 2, clusterSize: 4096 }, [UNKNOWN], SHORT, LONG],
  ["small clusters", { clusterSize: 512 }, [UNKNOWN], SHORT, OTHER],
  ["a long name in small clusters", { clusterSize: 4096 }, [UNKNOWN], LONG, LONGEST],
  ["large extensions that stay where they are", {}, [LARGE, UNKNOWN], SHORT, OTHER],
  ["large extensions and long names", {}, [LARGE, UNKNOWN], LONG, LONGEST],
];

/** An image whose header has extensions of its own. */
function imageWith(options: Partial<CreateOptions>, extensions: readonly HeaderExtension[], reference: Reference) {
  const file = new MemoryBlockFile();
  const [backingFile, backingFormat] = reference ?? [];
  const named = backingFile === undefined || backingFormat === undefined ? {} : { backingFile, backingFormat, backing };
  const disk = Qcow2File.create(file, { size: 300 * KIB, ...options, ...named });
  disk.writeAt(100 * KIB, filled(10 * KIB, 1));
  disk.flush();
  const image = file.toBytes();
  disk.close();
  const header = decodeHeader(image);
  image.set(encodeHeader({ ...header, extensions: [...header.extensions, ...extensions] }));
  return image;
}

for (const [name, created, extensions, from, to] of CASES) {
  Deno.test(`A crash while the backing file is changed leaves the old reference or the new one: ${name}`, () => {
    const random = new Random(`backing file ${name}`);
    const image = imageWith(created, extensions, from);
    let finished = false;
    let seen = 0;
    const states = everyCrash(image, random, (recorder) => {
      using disk = Qcow2File.open(recorder, { write: true, backing });
      // What was written before is durable before the name changes.
      disk.writeAt(0, filled(5000, 2));
      disk.changeBackingFile(to?.[0], to?.[1]);
      finished = true;
    }, (state, what) => {
      assertEquals(checkImage(state).corruptions, 0, what);
      using disk = Qcow2File.open(state, { backing });
      const { header } = disk;
      const found = [header.backingFile, extensionText(header, EXTENSION.backingFormat)];
      const isNew = found[0] === to?.[0];
      assertEquals(found, isNew ? [...to ?? [undefined, undefined]] : [...from ?? [undefined, undefined]], what);
      if (isNew) {
        seen++;
        assertEquals(readBytes(disk, 0, 5000), filled(5000, 2), what);
      } else {
        assert(!finished, what);
      }
      assertEquals(readBytes(disk, 100 * KIB, 10 * KIB), filled(10 * KIB, 1), what);
      for (const extension of extensions) {
        assertEquals(header.extensions.find(({ type }) => type === extension.type), extension, what);
      }
    });
    assert(states > 4 && seen > 0, `${states} states, ${seen} with the new name`);
  });
}
