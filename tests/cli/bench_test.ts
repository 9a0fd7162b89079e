import { assertEquals, assertMatch } from "@std/assert";
import { Qcow2File } from "../../lib/image/qcow2_file.ts";
import { assertQemuClean, readBytes } from "../images.ts";
import { qemuTest } from "../qemu.ts";
import { assertSame, Folder, makeFile, program, programNamed, qemuImg } from "./_program.ts";

/** Runs both programs, whose times differ, and compares what they leave. */
async function assertSameBench(image: string, ...args: string[]): Promise<void> {
  const prepare = () => {
    qemuImg("create", "-q", "-f", "qcow2", image, "1M");
  };
  const outcome = () => {
    using disk = Qcow2File.open(image);
    return readBytes(disk, 0, disk.size);
  };
  const timeless = ({ stdout, ...result }: { readonly stdout: string }) => {
    return { ...result, stdout: stdout.replace(/in \d+\.\d{3} seconds/, "in no time") };
  };
  prepare();
  const theirs = [timeless(qemuImg("bench", ...args)), outcome()];
  prepare();
  const ours = [timeless(await programNamed("qemu-img", ["bench", ...args])), outcome()];
  assertEquals(ours, theirs, args.join(" "));
}

qemuTest("bench does what qemu-img does, and prints what it prints", async () => {
  using folder = new Folder();
  const image = folder.path("disk.qcow2");
  for (
    const args of [
      ["-c", "10"],
      ["-c", "0x10", "-s", "1k", "-S", "2k", "-o", "64k"],
      ["-c", "010", "-d", "+4", "-q", "-U"],
      ["-c", "16", "-d", "4", "-w", "--pattern=0xff", "--flush-interval", "4", "--no-drain", "-S", "12k"],
      ["-c", "300", "-w", "--pattern", "7", "-t", "none", "-n"],
      ["-c", "5", "-i", "threads", "-f", "qcow2"],
      ["-c", "0"],
      ["-c", "3", "-s", "0"],
      ["-c", "5", "-o", "1020k"],
      ["-c", "1", "-o", "1021k"],
      ["-c", "1", "-o", "2M", "-w"],
      ["-c", "1", "-s", "2M"],
    ]
  ) {
    await assertSameBench(image, ...args, image);
    assertQemuClean(image);
  }
});

qemuTest("bench refuses what qemu-img refuses", async () => {
  using folder = new Folder();
  const image = folder.path("disk.raw");
  makeFile(image, 1 << 20);
  for (
    const args of [
      [],
      [image, image],
      ["-x", image],
      ["-c"],
      ["-c", "x", image],
      ["-c", "-1", image],
      ["-c", "2147483648", image],
      ["-c", "5k", image],
      ["-d", "x", image],
      ["-o", "x", image],
      ["-s", "3G", image],
      ["-S", "x", image],
      ["-t", "some", image],
      ["-i", "some", image],
      ["-n", image],
      ["-i", "native", image],
      ["--pattern", "256", "-w", image],
      ["--flush-interval", "100", image],
      ["--flush-interval", "x", image],
      ["-w", "--flush-interval", "10", image],
      ["-U", "-w", "-f", "raw", image],
      ["-f", "qcow2", image],
      [folder.path("none")],
    ]
  ) {
    await assertSame(["bench", ...args]);
  }
});

Deno.test("bench of a disk without bytes fails", async () => {
  using folder = new Folder();
  const image = folder.path("disk.raw");
  makeFile(image, 0);
  const { code, stdout, stderr } = await program("bench", "-c", "1", "-f", "raw", image);
  assertEquals([code, stderr], [1, "qcow2: Failed request: Input/output error\n"]);
  assertMatch(stdout, /^Sending 1 read requests, 4096 bytes each, 64 in parallel/);
});

Deno.test("bench explains itself", async () => {
  const { code, stdout } = await program("bench", "--help");
  assertEquals([code, stdout.startsWith("qcow2 bench: ")], [0, true]);
});
