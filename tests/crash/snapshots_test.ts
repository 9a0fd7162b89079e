import { Buffer } from "node:buffer";
import { assert, assertEquals } from "@std/assert";
import { type BlockFile, Qcow2File } from "../../mod.ts";
import { KIB, MIB, qemuImg } from "../images.ts";
import { qemuTest } from "../qemu.ts";
import type { Problem } from "./examine.ts";
import { explore, SHORT, Tally } from "./exploration.ts";
import { FlatBytes, ScratchFile } from "./flat_file.ts";
import { type ImageOptions, KINDS, preparedImage, type Sequence } from "./sequences.ts";
import { taggedBytes } from "./tags.ts";

/** The number of the writes between the snapshots; no sequence is as long. */
const BETWEEN_SNAPSHOTS = 0x50000000;
/** Where the header keeps the number of entries and the offset of the active L1 table. */
const L1_FIELDS_OFFSET = 36;
const L1_FIELDS_LENGTH = 12;

const LAYOUTS: readonly { readonly name: string; readonly layout: ImageOptions }[] = [
  {
    name: "512-byte clusters and 2-bit refcounts",
    layout: { size: 64 * KIB, clusterSize: 512, refcountBits: 2, filled: [[0, 40 * KIB]] },
  },
  {
    name: "4 KiB clusters",
    layout: { size: 256 * KIB, clusterSize: 4096, filled: [[0, 100 * KIB], [200 * KIB, 999]] },
  },
  {
    name: "4 KiB clusters in version 2",
    layout: { size: 256 * KIB, clusterSize: 4096, version: 2, filled: [[0, 99999]] },
  },
  { name: "64 KiB clusters", layout: { size: MIB, refcountBits: 64, filled: [[0, 500 * KIB]] } },
  {
    name: "subclusters of 512 bytes",
    layout: { size: MIB, clusterSize: 16 * KIB, extendedL2: true, filled: [[0, 500 * KIB], [700 * KIB, 999]] },
  },
];

/** An image with two snapshots, of QEMU's making. */
function withSnapshots(layout: ImageOptions): Uint8Array {
  const path = Deno.makeTempFileSync({ prefix: "qcow2-crash-" });
  try {
    Deno.writeFileSync(path, preparedImage(layout));
    qemuImg("snapshot", "-c", "one", path);
    const disk = Qcow2File.open(path, { write: true });
    const { allocationSize, size } = disk;
    for (let offset = 0; offset < size - 2 * allocationSize; offset += 5 * allocationSize) {
      disk.writeAt(offset, taggedBytes(BETWEEN_SNAPSHOTS, offset, allocationSize + 100));
    }
    disk.close();
    qemuImg("snapshot", "-c", "two", path);
    return Deno.readFileSync(path);
  } finally {
    Deno.removeSync(path);
  }
}

/** A file with the L1 table of a snapshot in place of the active one, for reading. */
class SnapshotView extends ScratchFile {
  constructor(file: BlockFile, l1TableOffset: number, l1EntryCount: number) {
    const content = new Uint8Array(file.size);
    file.readAt(0, content);
    const view = new DataView(content.buffer, L1_FIELDS_OFFSET, L1_FIELDS_LENGTH);
    view.setUint32(0, l1EntryCount);
    view.setBigUint64(4, BigInt(l1TableOffset));
    super(new FlatBytes(content));
  }
}

/** What each snapshot holds. */
function readSnapshots(file: BlockFile): Buffer[] {
  const { snapshots, size } = Qcow2File.open(file, { lock: false });
  return snapshots.map(({ l1TableOffset, l1EntryCount }) => {
    const bytes = Buffer.alloc(size);
    Qcow2File.open(new SnapshotView(file, l1TableOffset, l1EntryCount), { lock: false }).readAt(0, bytes);
    return bytes;
  });
}

const tally = new Tally();

for (const { name, layout } of LAYOUTS) {
  qemuTest(`A power cut costs nothing that was flushed, and no snapshot anything: ${name}`, () => {
    const image = withSnapshots(layout);
    const expected = readSnapshots(new ScratchFile(new FlatBytes(image)));
    assertEquals(expected.length, 2);
    assert(expected[0]?.equals(expected[1] ?? Buffer.alloc(0)) === false);
    const further = (file: BlockFile): Problem | undefined => {
      const wrong = readSnapshots(file).findIndex((bytes, index) => !bytes.equals(expected[index] ?? Buffer.alloc(0)));
      return wrong < 0 ? undefined : { kind: "data", message: `Snapshot ${wrong} is not what it was` };
    };
    for (const [kind, run] of Object.entries(KINDS)) {
      const sequence: Sequence = { name: `${kind} with snapshots and ${name}`, image: () => image, cacheSize: 1, run };
      tally.add(explore(sequence, SHORT, { further }));
    }
    assertEquals(tally.describeFindings(), "");
    console.log(`Crashes, with snapshots: ${tally}`);
  });
}
