import { assert, assertEquals } from "@std/assert";
import { checkImage, type LayoutOptions, Qcow2Error, Qcow2File, RawFile } from "../../mod.ts";
import { encodeHeaderExtensions, EXTENSION } from "../../lib/format/mod.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import {
  assertCode,
  copyOf,
  emptyImage,
  filled,
  getUint64,
  GIB,
  KIB,
  MIB,
  RecordingFile,
  setUint32,
  setUint64,
  TIB,
} from "../images.ts";

/** How long anything a stranger's image says may take: far more than is needed, far less than a table walked by mistake. */
const PATIENCE_MILLISECONDS = 30_000;

/** An image of which some bytes were changed. */
function damaged(change: (file: MemoryBlockFile) => void, options: LayoutOptions = { size: GIB }): MemoryBlockFile {
  const file = emptyImage(options);
  change(file);
  return file;
}

/** Does to an image what a program does that was handed one: opens it both ways, looks at all of it, writes, checks. */
function use(file: MemoryBlockFile): void {
  {
    using disk = Qcow2File.open(copyOf(file));
    const bytes = new Uint8Array(Math.min(disk.size, 4 * KIB));
    if (disk.size > 0) disk.readAt(0, bytes);
    disk.readAt(disk.size - bytes.length, bytes);
    assert(disk.snapshots.length >= 0);
  }
  {
    using disk = Qcow2File.open(copyOf(file), { write: true });
    if (disk.size > 0) disk.writeAt(0, filled(Math.min(disk.size, 512), 1));
    disk.flush();
  }
  const { corruptions, leaks } = checkImage(copyOf(file), { repair: "all" });
  assert(corruptions >= 0 && leaks >= 0);
}

/** Asserts that using an image ends soon, and if it fails, in a `Qcow2Error`. */
function assertHarmless(file: MemoryBlockFile): void {
  const start = performance.now();
  try {
    use(file);
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error;
  }
  const milliseconds = performance.now() - start;
  assert(milliseconds < PATIENCE_MILLISECONDS, `It took ${milliseconds} ms`);
}

Deno.test("Qcow2File.open() refuses a file that is no image, however short", () => {
  const image = emptyImage({ size: MIB, clusterSize: 512 }).toBytes();
  for (let length = 0; length < 112; length++) {
    const error = assertCode(
      ["not-qcow2", "invalid-header"],
      () => Qcow2File.open(MemoryBlockFile.from(image.subarray(0, length))),
    );
    assertEquals(error.code === "not-qcow2", length < 4, `${length} bytes`);
  }
});

Deno.test("Qcow2File.open() refuses every version but 2 and 3", () => {
  for (const version of [0, 1, 4, 0xffffffff]) {
    const file = damaged((image) => setUint32(image, 4, version));
    assertEquals(assertCode("unsupported-version", () => Qcow2File.open(file)).offset, 4);
  }
});

Deno.test("Qcow2File.open() refuses a virtual size that no L1 table can map", () => {
  for (const size of [2n ** 64n - 1n, 2n ** 64n - 512n, 2n ** 63n, 2n ** 62n, 2n ** 53n]) {
    assertCode("limit-exceeded", () => Qcow2File.open(damaged((image) => setUint64(image, 24, size))));
  }
  for (const size of [2n ** 53n - 512n, 2n ** 50n, 2n ** 40n]) {
    assertCode("invalid-header", () => Qcow2File.open(damaged((image) => setUint64(image, 24, size))));
  }
});

Deno.test("Qcow2File.open() refuses an L1 table that is one entry too short for the size", () => {
  const size = 4 * GIB;
  Qcow2File.open(damaged((image) => setUint32(image, 36, 8), { size })).close();
  const error = assertCode(
    "invalid-header",
    () => Qcow2File.open(damaged((image) => setUint32(image, 36, 7), { size })),
  );
  assertEquals(error.offset, 36);
});

Deno.test("Qcow2File.open() refuses cluster sizes outside of 512 bytes to 2 MiB at once", () => {
  for (const clusterBits of [0, 3, 8, 22, 31, 32, 63, 64, 0xffffffff]) {
    assertCode("unsupported", () => Qcow2File.open(damaged((image) => setUint32(image, 20, clusterBits))));
  }
});

Deno.test("Qcow2File.open() refuses refcounts wider than 64 bits", () => {
  for (const order of [7, 32, 0xffffffff]) {
    assertCode("unsupported", () => Qcow2File.open(damaged((image) => setUint32(image, 96, order))));
  }
});

Deno.test("Qcow2File.open() refuses tables longer than the limits before it reserves memory for them", () => {
  const before = Deno.memoryUsage();
  const fields: readonly [name: string, offset: number, value: number][] = [
    ["L1 table", 36, 32 * MIB / 8 + 1],
    ["L1 table", 36, 0xffffffff],
    ["refcount table", 56, 8 * MIB / 65536 + 1],
    ["refcount table", 56, 0xffffffff],
    ["snapshot table", 60, 65537],
    ["snapshot table", 60, 0xffffffff],
  ];
  for (const [name, offset, value] of fields) {
    const error = assertCode(
      "limit-exceeded",
      () => Qcow2File.open(damaged((image) => setUint32(image, offset, value))),
    );
    assertEquals(error.offset, offset, name);
  }
  const after = Deno.memoryUsage();
  assert(after.external - before.external < 64 * MIB, "Memory was reserved for a table beyond its limit");
});

Deno.test("Qcow2File.open() refuses a refcount table of no clusters", () => {
  assertCode("invalid-header", () => Qcow2File.open(damaged((image) => setUint32(image, 56, 0))));
});

Deno.test("Qcow2File.open() refuses tables that are not aligned, nowhere, or beyond what an entry can say", () => {
  for (const [offset, prepare] of [[40, 0], [48, 0], [64, 1]] as const) {
    for (const value of [1n, 512n, 0x30200n, 0n, 2n ** 56n, 2n ** 63n, 2n ** 64n - 65536n]) {
      const file = damaged((image) => {
        setUint32(image, 60, prepare);
        setUint64(image, offset, value);
      });
      assertCode(["invalid-header", "limit-exceeded"], () => Qcow2File.open(file));
    }
  }
});

Deno.test("Qcow2File.open() refuses a header length that the format does not allow", () => {
  for (const length of [0, 72, 96, 103, 65537, 0x7fffffff, 0xffffffff]) {
    assertCode("invalid-header", () => Qcow2File.open(damaged((image) => setUint32(image, 100, length))));
  }
});

Deno.test("Qcow2File.open() refuses a header extension that runs past the first cluster", () => {
  for (const length of [65536, 65536 - 112 - 7, 0x7fffffff, 0xffffffff]) {
    const file = damaged((image) => {
      setUint32(image, 112, 0x12345678);
      setUint32(image, 116, length);
    });
    assertCode("invalid-header", () => Qcow2File.open(file));
  }
});

Deno.test("Qcow2File.open() refuses a header extension that runs into the name of the backing file", () => {
  const file = damaged((image) => {
    setUint64(image, 8, 160n);
    setUint32(image, 16, 4);
    setUint32(image, 112, 0x12345678);
    setUint32(image, 116, 48);
  });
  assertCode("invalid-header", () => Qcow2File.open(file));
});

Deno.test("Qcow2File.open() refuses a header extension of a known type that is there twice", () => {
  for (const type of Object.values(EXTENSION)) {
    if (type === EXTENSION.end || type === EXTENSION.backingFormat) continue;
    const file = damaged((image) => {
      setUint32(image, 112, type);
      setUint32(image, 116, 0);
      setUint32(image, 120, type);
      setUint32(image, 124, 0);
      setUint64(image, 128, 0n);
    });
    assertCode("invalid-header", () => Qcow2File.open(file));
  }
});

Deno.test("Qcow2File.open() takes of two formats of the backing file the last one, as QEMU does", () => {
  const file = damaged((image) => {
    const bytes = encodeHeaderExtensions(["qcow2", "raw"].map((format) => {
      return { type: EXTENSION.backingFormat, data: new TextEncoder().encode(format) };
    }));
    image.writeAt(112, bytes);
    image.writeAt(112 + bytes.length, new TextEncoder().encode("base"));
    setUint64(image, 8, BigInt(112 + bytes.length));
    setUint32(image, 16, 4);
  });
  using disk = Qcow2File.open(file, {
    write: true,
    backing: ({ format }) => {
      assertEquals(format, "raw");
      return RawFile.open(new MemoryBlockFile());
    },
  });
  disk.changeBackingFile("other", "qcow2");
  assertEquals(disk.header.extensions.filter(({ type }) => type === EXTENSION.backingFormat).length, 1);
});

Deno.test("Qcow2File.open() keeps two header extensions of an unknown type", () => {
  const file = damaged((image) => {
    for (const offset of [112, 120]) {
      setUint32(image, offset, 0x12345678);
      setUint32(image, offset + 4, 0);
    }
    setUint64(image, 128, 0n);
  });
  using disk = Qcow2File.open(file);
  assertEquals(disk.header.extensions.map(({ type }) => type), [0x12345678, 0x12345678]);
});

Deno.test("Qcow2File.open() refuses a backing file name that lies outside of the first cluster or is too long", () => {
  for (
    const [offset, size] of [[65535n, 2], [65536n, 1], [70000n, 1], [2n ** 40n, 8], [2n ** 63n, 8], [50n, 8]] as const
  ) {
    const file = damaged((image) => {
      setUint64(image, 8, offset);
      setUint32(image, 16, size);
    });
    assertCode(["invalid-header", "limit-exceeded"], () => Qcow2File.open(file));
  }
  for (const size of [1024, 0xffffffff]) {
    const file = damaged((image) => {
      setUint64(image, 8, 1024n);
      setUint32(image, 16, size);
    });
    assertCode("invalid-header", () => Qcow2File.open(file));
  }
});

Deno.test("Qcow2File.open() refuses unknown methods of encryption and compression", () => {
  assertCode("unsupported", () => Qcow2File.open(damaged((image) => setUint32(image, 32, 3))));
  const file = damaged((image) => {
    setUint64(image, 72, 8n);
    image.writeAt(104, new Uint8Array([2]));
  });
  assertCode("unsupported", () => Qcow2File.open(file));
});

Deno.test("Qcow2File.open() refuses a compression type and feature bit that contradict each other", () => {
  assertCode("invalid-header", () => Qcow2File.open(damaged((image) => setUint64(image, 72, 8n))));
  assertCode("invalid-header", () => Qcow2File.open(damaged((image) => image.writeAt(104, new Uint8Array([1])))));
});

Deno.test("Qcow2File.open() for writing refuses an L1 entry that points to the L1 table", () => {
  const file = damaged((image) => setUint64(image, 0x30000, 0x8000000000030000n));
  const error = assertCode("corrupt", () => Qcow2File.open(file, { write: true }));
  assert(error.message.includes("active L1 table"), error.message);
});

Deno.test("Qcow2File.open() for writing refuses an L1 entry that points to the header or to refcounts", () => {
  for (const [offset, what] of [[0x10000n, "refcount table"], [0x20000n, "refcount block"]] as const) {
    const file = damaged((image) => setUint64(image, 0x30000, 0x8000000000000000n | offset));
    const error = assertCode("corrupt", () => Qcow2File.open(file, { write: true }));
    assert(error.message.includes(what), error.message);
  }
});

Deno.test("Qcow2File.open() for writing refuses tables of the header that lie over each other", () => {
  const changes: readonly [what: string, change: (image: MemoryBlockFile) => void][] = [
    ["a refcount table on the L1 table", (image) => setUint64(image, 48, 0x30000n)],
    ["an L1 table on the refcount table", (image) => setUint64(image, 40, 0x10000n)],
    ["a refcount table that reaches into the L1 table", (image) => setUint32(image, 56, 3)],
    ["an L1 table on a refcount block", (image) => setUint64(image, 40, 0x20000n)],
  ];
  for (const [what, change] of changes) {
    const file = damaged(change);
    const before = file.toBytes();
    let code: string | undefined;
    try {
      using disk = Qcow2File.open(file, { write: true });
      disk.writeAt(0, filled(512, 1));
      disk.flush();
    } catch (error) {
      if (!(error instanceof Qcow2Error)) throw error;
      code = error.code;
    }
    assertEquals(code, "corrupt", what);
    const after = file.toBytes();
    // The corrupt bit is all that may have changed.
    after[79] = before[79] ?? 0;
    assertEquals(after.subarray(0, before.length), before, what);
  }
});

Deno.test("Qcow2File.writeAt() does not touch metadata that an L2 entry points to, and marks the image as corrupt", () => {
  for (const target of [0x0n, 0x10000n, 0x20000n, 0x30000n, 0x40000n]) {
    const file = emptyImage({ size: GIB });
    {
      using disk = Qcow2File.open(file, { write: true });
      disk.writeAt(0, filled(65536, 1));
      disk.writeAt(65536, filled(65536, 2));
    }
    // Offset 0 without any flag would say unallocated; with the zero flag clear and COPIED set it is the header.
    const image = copyOf(file);
    const table = getUint64(image, 0x30000) & 0x00fffffffffffe00n;
    assertEquals(table, 0x40000n);
    if (target === 0n) continue;
    setUint64(image, Number(table) + 8, 0x8000000000000000n | target);
    const before = image.toBytes();
    using disk = Qcow2File.open(image, { write: true });
    disk.writeAt(0, filled(512, 3));
    assertCode("corrupt", () => disk.writeAt(65536, filled(512, 4)));
    assertEquals(disk.header.incompatibleFeatures, 2n);
    assertCode("marked-corrupt", () => disk.writeAt(0, filled(512, 5)));
    disk.close();
    const after = image.toBytes();
    assertEquals(getUint64(copyOf(image), 72), 2n);
    assertEquals(after.subarray(0x10000, 0x50000), before.subarray(0x10000, 0x50000));
  }
});

Deno.test("Qcow2File refuses to read through unaligned table entries, and goes on elsewhere", () => {
  const file = emptyImage({ size: 2 * GIB });
  {
    using disk = Qcow2File.open(file, { write: true });
    disk.writeAt(0, filled(512, 1));
    disk.writeAt(65536, filled(512, 2));
    disk.writeAt(GIB, filled(512, 3));
  }
  const image = copyOf(file);
  setUint64(image, 0x30008, 0x8000000000040200n);
  const table = Number(getUint64(image, 0x30000) & 0x00fffffffffffe00n);
  setUint64(image, table, getUint64(image, table) + 512n);
  using disk = Qcow2File.open(copyOf(image));
  assertCode("corrupt", () => disk.readAt(0, new Uint8Array(512)));
  assertCode("corrupt", () => disk.readAt(600 * MIB, new Uint8Array(512)));
  const bytes = new Uint8Array(512);
  disk.readAt(65536, bytes);
  assertEquals(bytes, filled(512, 2));
  disk.readAt(GIB, bytes);
  assertEquals(bytes, filled(512, 3));
  // Reading an image that was opened for reading changes nothing.
  assertEquals(disk.header.incompatibleFeatures, 0n);
});

Deno.test("Qcow2File takes the zero flag in version 2 for corruption", () => {
  const file = emptyImage({ size: MIB, version: 2 });
  {
    using disk = Qcow2File.open(file, { write: true });
    disk.writeAt(0, filled(512, 1));
  }
  const image = copyOf(file);
  setUint64(image, 0x40000, getUint64(image, 0x40000) | 1n);
  using disk = Qcow2File.open(image);
  assertCode("corrupt", () => disk.readAt(0, new Uint8Array(512)));
});

const TWISTED: readonly [what: string, image: () => MemoryBlockFile][] = [
  ["an L1 table of 32 MiB without content", () =>
    damaged((image) => {
      setUint32(image, 36, 32 * MIB / 8);
      setUint64(image, 40, 0x100000n);
    })],
  ["a refcount table of 8 MiB without content", () =>
    damaged((image) => {
      setUint32(image, 56, 8 * MIB / 65536);
      setUint64(image, 48, 0x100000n);
    })],
  ["a refcount table of 8 MiB, all entries the same", () =>
    damaged((image) => {
      const table = new Uint8Array(8 * MIB);
      const view = new DataView(table.buffer);
      for (let at = 0; at < table.length; at += 8) view.setUint32(at + 4, 0x20000);
      image.writeAt(0x100000, table);
      setUint32(image, 56, 8 * MIB / 65536);
      setUint64(image, 48, 0x100000n);
    })],
  ["a refcount table of 8 MiB that points all over the place", () =>
    damaged((image) => {
      const table = new Uint8Array(8 * MIB);
      const view = new DataView(table.buffer);
      for (let at = 0; at < table.length; at += 8) view.setUint32(at, at + 8);
      image.writeAt(0x100000, table);
      setUint32(image, 56, 8 * MIB / 65536);
      setUint64(image, 48, 0x100000n);
    })],
  ["an L1 table of 8 MiB that points all over the place", () =>
    damaged((image) => {
      const table = new Uint8Array(8 * MIB);
      const view = new DataView(table.buffer);
      for (let at = 0; at < table.length; at += 8) view.setUint32(at, 0x80000000 + at / 8 + 1);
      image.writeAt(0x100000, table);
      setUint32(image, 36, 8 * MIB / 8);
      setUint64(image, 40, 0x100000n);
    })],
  ["65,536 snapshots behind the end of the file", () =>
    damaged((image) => {
      setUint32(image, 60, 65536);
      setUint64(image, 64, 0x100000n);
    })],
  ["65,536 empty snapshots", () =>
    damaged((image) => {
      image.truncate(0x100000 + 65536 * 40);
      setUint32(image, 60, 65536);
      setUint64(image, 64, 0x100000n);
    })],
  ["a snapshot with an L1 table of 32 MiB and more", () =>
    damaged((image) => {
      image.truncate(0x200000);
      setUint32(image, 60, 1);
      setUint64(image, 64, 0x100000n);
      setUint64(image, 0x100000, 0x110000n);
      setUint32(image, 0x100008, 0xffffffff);
    })],
  ["a snapshot with 4 GiB of extra data", () =>
    damaged((image) => {
      image.truncate(0x200000);
      setUint32(image, 60, 1);
      setUint64(image, 64, 0x100000n);
      setUint32(image, 0x100024, 0xffffffff);
    })],
  ["4 billion bitmaps", () =>
    damaged((image) => {
      setUint32(image, 112, EXTENSION.bitmaps);
      setUint32(image, 116, 24);
      setUint32(image, 120, 0xffffffff);
      setUint64(image, 128, 2n ** 52n);
      setUint64(image, 136, 0x40000n);
      setUint64(image, 144, 0n);
    })],
  ["a LUKS header of 2^52 bytes", () =>
    damaged((image) => {
      setUint32(image, 112, EXTENSION.fullDiskEncryption);
      setUint32(image, 116, 16);
      setUint64(image, 120, 0x40000n);
      setUint64(image, 128, 2n ** 52n);
      setUint64(image, 136, 0n);
    })],
  ["a disk of 512 TiB", () => damaged(() => undefined, { size: 512 * TIB })],
];
for (const [what, image] of TWISTED) {
  Deno.test(`Using an image with ${what} ends soon`, () => assertHarmless(image()));
}

Deno.test("An image that is refused for its tables is not read beyond its first cluster", () => {
  for (const offset of [36, 56, 60]) {
    const file = new RecordingFile(damaged((image) => setUint32(image, offset, 0xffffffff)));
    assertCode("limit-exceeded", () => Qcow2File.open(file));
    assertEquals(file.calls.every((call) => call.call === "read" && call.offset + call.length <= 65536), true);
  }
});
