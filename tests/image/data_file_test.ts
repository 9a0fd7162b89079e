import { assertEquals } from "@std/assert";
import { type CreateOptions, Qcow2File } from "../../mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { assertCode, filled, getUint64, KIB, MIB, readBytes, RecordingFile, setUint64, withFolder } from "../images.ts";

const CLUSTER = 64 * KIB;
const L2_OFFSET = 4 * CLUSTER;

/** An image in memory with a data file in memory. */
function create(options: Partial<CreateOptions> = {}): { disk: Qcow2File; image: RecordingFile; data: RecordingFile } {
  const image = new RecordingFile(new MemoryBlockFile());
  const data = new RecordingFile(new MemoryBlockFile());
  const disk = Qcow2File.create(image, { size: MIB, dataFile: "data", openDataFile: () => data, ...options });
  return { disk, image, data };
}

Deno.test("Qcow2File.open() opens no data file unless it is allowed to", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    Qcow2File.create(image, { size: MIB, dataFile: "disk.data" }).close();
    assertEquals(Deno.statSync(`${folder}/disk.data`).size, MIB);
    const error = assertCode("data-file-refused", () => Qcow2File.open(image));
    assertEquals(error.found, "disk.data");
    Qcow2File.open(image, { dataFile: "allow" }).close();
    Deno.renameSync(`${folder}/disk.data`, `${folder}/moved`);
    assertCode("not-found", () => Qcow2File.open(image, { dataFile: "allow" }));
    const { path, name, raw } = referenceOf(image);
    assertEquals({ path, name, raw }, { path: `${folder}/disk.data`, name: "disk.data", raw: false });
  }));

function referenceOf(image: string) {
  const references: { path: string | undefined; name: string | undefined; raw: boolean }[] = [];
  const dataFile = new MemoryBlockFile();
  using _disk = Qcow2File.open(image, {
    dataFile: (reference) => {
      references.push(reference);
      return dataFile;
    },
  });
  const [reference] = references;
  if (reference === undefined) throw new Error("The function was not called");
  return reference;
}

Deno.test("Qcow2File.open() takes names of data files for local files, and never for the image itself", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    for (const [name, code] of [["json:{}", "unsupported"], ["disk.qcow2", "corrupt"]] as const) {
      Qcow2File.create(image, { size: MIB, dataFile: name, openDataFile: () => new MemoryBlockFile() }).close();
      assertCode(code, () => Qcow2File.open(image, { dataFile: "allow" }));
    }
    assertCode("corrupt", () => Qcow2File.create(image, { size: MIB, dataFile: image }));
  }));

Deno.test("Qcow2File.create() never replaces a data file that holds something, unless it is told to", () =>
  withFolder((folder) => {
    const image = `${folder}/disk.qcow2`;
    const data = `${folder}/data`;
    Deno.writeFileSync(data, filled(CLUSTER, 7));
    const options = { size: MIB, dataFile: "data", dataFileRaw: true } as const;
    assertCode("already-exists", () => Qcow2File.create(image, options));
    assertEquals(Deno.readFileSync(data), filled(CLUSTER, 7));
    assertCode("not-found", () => Qcow2File.open(image));
    {
      using disk = Qcow2File.create(image, { ...options, existingDataFile: "reuse" });
      assertEquals(readBytes(disk, 0, CLUSTER), filled(CLUSTER, 7));
      assertEquals(readBytes(disk, CLUSTER, CLUSTER), filled(CLUSTER, 0));
    }
    {
      using disk = Qcow2File.create(image, { ...options, existingDataFile: "overwrite" });
      assertEquals(readBytes(disk, 0, MIB), filled(MIB, 0));
    }
    assertEquals(Deno.readFileSync(data), filled(MIB, 0));
  }));

Deno.test("Qcow2File.create() takes over a data file of nothing but zeroes, whatever its length", () =>
  withFolder((folder) => {
    const data = `${folder}/data`;
    for (const size of [CLUSTER, 2 * MIB]) {
      Deno.writeFileSync(data, new Uint8Array(size));
      Qcow2File.create(`${folder}/disk.qcow2`, { size: MIB, dataFile: "data" }).close();
      assertEquals(Deno.statSync(data).size, MIB);
    }
    // The last byte of all counts as well.
    Deno.writeFileSync(data, filled(1, 1), { append: true });
    assertCode("already-exists", () => Qcow2File.create(`${folder}/disk.qcow2`, { size: MIB, dataFile: "data" }));
  }));

Deno.test("Qcow2File.create() takes its new data file away again where the image cannot be made", () =>
  withFolder((folder) => {
    Deno.writeTextFileSync(`${folder}/disk.qcow2`, "");
    assertCode("already-exists", () => {
      return Qcow2File.create(`${folder}/disk.qcow2`, { size: MIB, dataFile: "data", createNew: true });
    });
    assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name), ["disk.qcow2"]);
  }));

Deno.test("Qcow2File.create() refuses what does not go together with a data file", () => {
  const file = () => new MemoryBlockFile();
  const openDataFile = file;
  const cases: Partial<CreateOptions>[] = [
    { dataFileRaw: true },
    { dataFile: "data", version: 2 },
    { dataFile: "" },
    { dataFile: "data", dataFileRaw: true, backingFile: "base", backingFormat: "raw" },
  ];
  for (const options of cases) {
    assertCode("invalid-argument", () => Qcow2File.create(file(), { size: MIB, openDataFile, ...options }));
  }
});

Deno.test("Guest clusters stand in the data file at their own offsets, without refcounts", () => {
  const { disk, image, data } = create();
  disk.writeAt(0, filled(512, 1));
  disk.writeAt(3 * CLUSTER + 100, filled(CLUSTER, 2));
  disk.flush();
  assertEquals(getUint64(image, L2_OFFSET), 0x8000000000000000n);
  assertEquals(getUint64(image, L2_OFFSET + 8), 0n);
  assertEquals(getUint64(image, L2_OFFSET + 24), 0x8000000000030000n);
  const bytes = new Uint8Array(CLUSTER);
  data.readAt(3 * CLUSTER + 100, bytes);
  assertEquals(bytes, filled(CLUSTER, 2));
  assertEquals(disk.firstZeroRefcount(), 5 * CLUSTER);
  assertEquals([...disk.extents()].map(({ kind, length, hostOffset }) => [kind, length, hostOffset]), [
    ["data", CLUSTER, 0],
    ["unallocated", 2 * CLUSTER, undefined],
    ["data", 2 * CLUSTER, 3 * CLUSTER],
    ["unallocated", 11 * CLUSTER, undefined],
  ]);
  const { corruptions, leaks, allocatedClusters } = disk.check();
  assertEquals({ corruptions, leaks, allocatedClusters }, { corruptions: 0, leaks: 0, allocatedClusters: 3 });
  disk.close();
});

Deno.test("Bytes in the data file are durable before the entries that make them the guest's", () => {
  const { disk, image, data } = create();
  const order: string[] = [];
  data.onCall = ({ call }) => order.push(`data ${call}`);
  image.onCall = ({ call, offset }) => order.push(`image ${call}${call === "write" ? ` ${offset / CLUSTER}` : ""}`);
  disk.writeAt(0, filled(CLUSTER, 1));
  disk.flush();
  order.length = 0;
  disk.writeAt(CLUSTER, filled(CLUSTER, 1));
  disk.flush();
  assertEquals(order, ["data write", "data sync", "image write 4", "image sync"]);
  disk.close();
});

Deno.test("A raw data file is mapped from the start and holds what the disk holds, zeroes as well", () => {
  for (const extendedL2 of [false]) {
    const { disk, image, data } = create({ dataFileRaw: true, ...(extendedL2 ? { extendedL2 } : {}) });
    assertEquals(getUint64(image, L2_OFFSET), 0x8000000000000000n);
    assertEquals(getUint64(image, L2_OFFSET + 8), 0x8000000000010000n);
    const model = filled(MIB, 9);
    disk.writeAt(0, model);
    const zero = (offset: number, length: number) => model.fill(0, offset, offset + length);
    disk.writeZeroesAt(CLUSTER, 2 * CLUSTER);
    zero(CLUSTER, 2 * CLUSTER);
    disk.writeZeroesAt(5 * CLUSTER - 1000, 2 * CLUSTER, { unmap: true });
    zero(5 * CLUSTER - 1000, 2 * CLUSTER);
    disk.discardAt(10 * CLUSTER, CLUSTER);
    zero(10 * CLUSTER, CLUSTER);
    disk.writeAt(10 * CLUSTER + 1000, filled(1000, 5));
    model.fill(5, 10 * CLUSTER + 1000, 10 * CLUSTER + 2000);
    disk.flush();
    assertEquals(readBytes(disk, 0, MIB), model);
    const raw = new Uint8Array(MIB);
    data.readAt(0, raw);
    assertEquals(raw, model);
    disk.close();
  }
});

Deno.test("A data file ends where the disk ends, also in the middle of a cluster", () => {
  for (const dataFileRaw of [false, true]) {
    const { disk, data } = create({ size: CLUSTER + 512, dataFileRaw });
    disk.writeAt(CLUSTER + 100, filled(10, 1));
    disk.writeZeroesAt(0, CLUSTER + 512);
    disk.writeAt(CLUSTER + 100, filled(10, 1));
    assertEquals(data.size, CLUSTER + 512);
    disk.discardAt(0, CLUSTER + 512);
    disk.writeAt(CLUSTER + 100, filled(10, 1));
    assertEquals(readBytes(disk, CLUSTER, 512), new Uint8Array(512).fill(1, 100, 110));
    assertEquals(data.size, CLUSTER + 512);
    disk.close();
  }
});

Deno.test("Compressed clusters and entries that point elsewhere are refused with a data file", () => {
  const { disk } = create();
  assertCode("unsupported", () => disk.writeCompressedAt(0, filled(CLUSTER, 1)));
  disk.close();
  for (const entry of [0x4000000000050000n, 0x8000000000050000n]) {
    const image = new MemoryBlockFile();
    const data = new MemoryBlockFile();
    const other = Qcow2File.create(image, { size: MIB, dataFile: "data", openDataFile: () => data });
    other.writeAt(0, filled(512, 1));
    other.flush();
    setUint64(image, L2_OFFSET + 8, entry);
    const bytes = image.toBytes();
    other.close();
    using damaged = Qcow2File.open(MemoryBlockFile.from(bytes), { dataFile: () => new MemoryBlockFile() });
    assertCode("corrupt", () => readBytes(damaged, CLUSTER, 512));
    assertEquals(damaged.check().corruptions, (entry & (1n << 62n)) === 0n ? 0 : 1);
  }
});

Deno.test("An image with a data file and snapshots can be read only", () => {
  const image = new MemoryBlockFile();
  Qcow2File.create(image, { size: MIB, dataFile: "data", openDataFile: () => new MemoryBlockFile() }).flush();
  const bytes = image.toBytes();
  new DataView(bytes.buffer).setUint32(60, 1);
  new DataView(bytes.buffer).setUint32(68, CLUSTER);
  const dataFile = () => new MemoryBlockFile();
  assertCode("unsupported", () => Qcow2File.open(MemoryBlockFile.from(bytes), { write: true, dataFile }));
});
