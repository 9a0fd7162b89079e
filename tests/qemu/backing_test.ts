import { assertEquals } from "@std/assert";
import { type CreateOptions, Qcow2File } from "../../mod.ts";
import { assertCode, emptyImage, filled, MIB, qemuCheck, qemuImg, qemuIo, readBytes, withFolder } from "../images.ts";
import { qemuTest } from "../qemu.ts";
import { Random } from "../random.ts";

/** Changes a disk and an array in the same way; discards only where both end up with zeroes. */
function change(disk: Qcow2File, model: Uint8Array, random: Random): void {
  const unit = disk.allocationSize;
  const offset = random.below(disk.size);
  const length = Math.min(disk.size - offset, random.pick([100, 4096, 3 * unit + 77, 200_000]));
  const first = Math.ceil(offset / unit) * unit;
  switch (random.pick(["write", "write", "write", "compressed", "zero", "unmap", "discard", "flush"] as const)) {
    case "write": {
      const data = random.bytes(length);
      disk.writeAt(offset, data);
      model.set(data, offset);
      break;
    }
    case "compressed": {
      if (first >= disk.size) break;
      const data = filled(Math.min(disk.size - first, Math.ceil(length / unit) * unit), random.between(1, 255));
      disk.writeCompressedAt(first, data);
      model.set(data, first);
      break;
    }
    case "zero":
    case "unmap":
      disk.writeZeroesAt(offset, length, { unmap: random.oneIn(2) });
      model.fill(0, offset, offset + length);
      break;
    case "discard": {
      const end = offset + length === disk.size ? disk.size : Math.floor((offset + length) / unit) * unit;
      // Version 2 cannot hide the backing file, so that a discard changes nothing there.
      if (end <= first || disk.header.version === 2) break;
      disk.discardAt(offset, length);
      model.fill(0, first, end);
      break;
    }
    case "flush":
      disk.flush();
  }
}

const CASES: readonly Omit<CreateOptions, "size">[] = [
  { clusterSize: 512 },
  { clusterSize: 4096, version: 2 },
  { clusterSize: 65536, compressionType: "zstd" },
  { clusterSize: 65536, version: 2 },
  { clusterSize: 65536, refcountBits: 1 },
  { clusterSize: 2 * MIB, refcountBits: 64 },
];

for (const options of CASES) {
  qemuTest(`An overlay made here is an overlay to QEMU: ${JSON.stringify(options)}`, () =>
    withFolder((folder) => {
      const random = new Random(`overlay ${JSON.stringify(options)}`);
      const base = random.bytes(5 * MIB + 512);
      Deno.writeFileSync(`${folder}/base.raw`, base);
      qemuImg("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", `${folder}/middle.qcow2`, "7M");
      qemuIo(`${folder}/middle.qcow2`, ["write -P 34 1M 1M", "write -z 3M 128k", "write -P 35 6M 64k"]);
      const model = new Uint8Array(8 * MIB);
      model.set(base);
      model.fill(34, MIB, 2 * MIB).fill(0, 3 * MIB, 3 * MIB + 131072).fill(35, 6 * MIB, 6 * MIB + 65536);

      const path = `${folder}/top.qcow2`;
      const create = { ...options, size: 8 * MIB, backingFile: "middle.qcow2", backingFormat: "qcow2" };
      {
        using disk = Qcow2File.create(path, create);
        assertEquals(readBytes(disk, 0, disk.size), model);
        for (let step = 0; step < 80; step++) change(disk, model, random);
        assertEquals(readBytes(disk, 0, disk.size), model);
      }
      const check = qemuCheck(path);
      assertEquals([check.corruptions, check.leaks], [0, 0]);
      Deno.writeFileSync(`${folder}/model.raw`, model);
      qemuImg("compare", "-f", "raw", "-F", "qcow2", `${folder}/model.raw`, path);
      qemuIo(path, ["write -P 99 100k 300k"]);
      model.fill(99, 102400, 409600);
      using again = Qcow2File.open(path, { backing: "allow", write: true });
      assertEquals(readBytes(again, 0, again.size), model);
      // Nothing of this ever reached the images below.
      assertEquals(Deno.readFileSync(`${folder}/base.raw`), base);
    }));
}

qemuTest(
  "An overlay takes its size from the backing file, and reads zeroes behind the end of a shorter one",
  () =>
    withFolder((folder) => {
      Deno.writeFileSync(`${folder}/base.raw`, filled(MIB, 5));
      const backing = { backingFile: "base.raw", backingFormat: "raw" };
      using same = Qcow2File.create(`${folder}/same.qcow2`, backing);
      assertEquals(same.size, MIB);
      using longer = Qcow2File.create(`${folder}/longer.qcow2`, { ...backing, size: 2 * MIB });
      assertEquals(readBytes(longer, MIB - 1, 2), new Uint8Array([5, 0]));
      using shorter = Qcow2File.create(`${folder}/shorter.qcow2`, { ...backing, size: MIB / 2 });
      assertEquals(readBytes(shorter, MIB / 2 - 1, 1), filled(1, 5));
      assertEquals([...longer.extents()].map(({ kind, length, depth }) => [kind, length, depth]), [
        ["data", MIB, 1],
        ["unallocated", MIB, 0],
      ]);
    }),
);

qemuTest(
  "Nothing but local files is opened, nothing without its format, and nothing unless it is allowed",
  () =>
    withFolder((folder) => {
      const path = `${folder}/disk.qcow2`;
      const names: readonly (readonly [name: string, format: string | undefined])[] = [
        ['json:{"driver":"null-co"}', "raw"],
        ["nbd://localhost/x", "raw"],
        ["file:base.raw", "raw"],
        ["base.raw", undefined],
        ["base.raw", "vmdk"],
      ];
      Deno.writeFileSync(`${folder}/base.raw`, filled(MIB, 5));
      for (const [name, format] of names) {
        const backing = { backingFile: name, ...(format === undefined ? {} : { backingFormat: format }) };
        Deno.writeFileSync(path, emptyImage({ size: MIB, ...backing }).toBytes());
        assertCode("backing-refused", () => Qcow2File.open(path));
        assertCode("unsupported", () => Qcow2File.open(path, { backing: "allow" }));
      }
      qemuImg("create", "-q", "-u", "-f", "qcow2", "-b", "missing.raw", "-F", "raw", path, "1M");
      assertCode("not-found", () => Qcow2File.open(path, { backing: "allow" }));
      // The caller may open what it likes.
      const seen: unknown[] = [];
      using disk = Qcow2File.open(path, {
        backing: (reference) => {
          seen.push(reference);
          return Qcow2File.create(`${folder}/other.qcow2`, { size: MIB });
        },
      });
      assertEquals(readBytes(disk, 0, 10), filled(10, 0));
      assertEquals(seen, [{ name: "missing.raw", format: "raw", path: `${folder}/missing.raw` }]);
    }),
);

qemuTest("A chain that comes back to itself is found, also through links", () =>
  withFolder((folder) => {
    for (const [name, backing] of [["a", "b"], ["b", "c"], ["c", "link"]]) {
      qemuImg(
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-b",
        `${backing}.qcow2`,
        "-F",
        "qcow2",
        `${folder}/${name}.qcow2`,
        "1M",
      );
    }
    Deno.symlinkSync(`${folder}/a.qcow2`, `${folder}/link.qcow2`);
    const error = assertCode("corrupt", () => Qcow2File.open(`${folder}/a.qcow2`, { backing: "allow" }));
    assertEquals(error.message.includes("leads back"), true);
    qemuImg("create", "-q", "-u", "-f", "qcow2", "-b", "self.qcow2", "-F", "qcow2", `${folder}/self.qcow2`, "1M");
    assertCode("corrupt", () => Qcow2File.open(`${folder}/self.qcow2`, { backing: "allow" }));
  }));

Deno.test("create() refuses a backing file without its format, and leaves nothing where it cannot be opened", () =>
  withFolder((folder) => {
    const path = `${folder}/disk.qcow2`;
    assertCode("invalid-argument", () => Qcow2File.create(path, { size: MIB, backingFile: "base.raw" }));
    assertCode("not-found", () => Qcow2File.create(path, { backingFile: "base.raw", backingFormat: "raw" }));
    assertCode("invalid-argument", () => Qcow2File.create(path, {}));
    assertEquals([...Deno.readDirSync(folder)], []);
  }));
