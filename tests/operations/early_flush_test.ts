import { assertEquals } from "@std/assert";
import { type Durability, Qcow2File, RawFile } from "../../mod.ts";
import { EarlyFlush } from "../../lib/operations/early_flush.ts";
import { MemoryBlockFile } from "../../lib/storage/mod.ts";
import { filled, MIB, RecordingFile } from "../images.ts";

/** A file that counts how often its host was asked to begin writing. */
class CountingFile extends RecordingFile {
  started = 0;

  constructor() {
    super(new MemoryBlockFile());
  }

  startSync(): void {
    this.started++;
  }
}

Deno.test("EarlyFlush asks the disk each time that another 64 MiB were written, and no disk that cannot", () => {
  const file = new CountingFile();
  using disk = RawFile.create(file, { size: MIB });
  const early = new EarlyFlush();
  for (let written = 0; written < 200; written++) early.note(disk, MIB);
  assertEquals(file.started, 3);
  early.note(disk, 500 * MIB);
  assertEquals(file.started, 4);
  using plain = RawFile.create(new MemoryBlockFile(), { size: MIB });
  early.note(plain, 500 * MIB);
});

Deno.test("startFlush() asks the host, where something is to be durable one day", () => {
  for (const [durability, started] of [["full", 1], ["none", 1], ["unsafe", 0]] as [Durability, number][]) {
    const file = new CountingFile();
    using disk = Qcow2File.create(file, { size: MIB, durability });
    disk.writeAt(0, filled(1000, 1));
    disk.startFlush();
    assertEquals(file.started, started, durability);
    const raw = new CountingFile();
    using other = RawFile.create(raw, { size: MIB, durability });
    other.writeAt(0, filled(1000, 1));
    other.startFlush();
    assertEquals(raw.started, started, durability);
  }
});
