import { assertSame, Folder, makeFile, qemuImg } from "./_program.ts";
import { qemuTest } from "../qemu.ts";

/** A guest that has an image open and may write to it, until it is disposed of. */
async function writer(format: string, path: string): Promise<AsyncDisposable> {
  const guest = new Deno.Command("qemu-io", { args: ["-f", format, path], stdin: "piped", stdout: "piped" }).spawn();
  const input = guest.stdin.getWriter();
  await input.write(new TextEncoder().encode("length\n"));
  const output = guest.stdout.getReader();
  // The image is open once the first answer has come.
  for (let said = ""; !said.includes("1 MiB");) said += new TextDecoder().decode((await output.read()).value);
  return {
    async [Symbol.asyncDispose]() {
      await input.close();
      await output.cancel();
      await guest.status;
    },
  };
}

qemuTest("A raw image that a guest writes to can be read, but not converted", async () => {
  using folder = new Folder();
  const [disk, other, overlay, target] = ["disk", "other", "overlay", "target"].map((name) => folder.path(name));
  if (disk === undefined || other === undefined || overlay === undefined || target === undefined) return;
  makeFile(disk, 1 << 20, { 65536: "data" });
  makeFile(other, 1 << 20, { 65536: "data" });
  qemuImg("create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", overlay);
  await using _guest = await writer("raw", disk);
  for (
    const args of [
      ["info", "-f", "raw", disk],
      ["info", disk],
      ["info", "--backing-chain", overlay],
      ["map", "-f", "raw", disk],
      ["map", overlay],
      ["measure", "-O", "qcow2", "-f", "raw", disk],
      ["compare", "-f", "raw", "-F", "raw", disk, other],
      ["dd", "-f", "raw", "-O", "raw", `if=${disk}`, `of=${target}`],
      ["check", overlay],
      ["rebase", "-f", "qcow2", "-b", disk, "-F", "raw", overlay],
      ["convert", "-f", "raw", disk, target],
    ]
  ) {
    await assertSame(args);
  }
});

qemuTest("A qcow2 image that a guest writes to cannot be read, nor what stands on it", async () => {
  using folder = new Folder();
  const [disk, overlay, target] = [folder.path("disk"), folder.path("overlay"), folder.path("target")];
  qemuImg("create", "-q", "-f", "qcow2", disk, "1M");
  qemuImg("create", "-q", "-f", "qcow2", "-b", disk, "-F", "qcow2", overlay);
  await using _guest = await writer("qcow2", disk);
  for (
    const args of [
      ["info", disk],
      ["info", "-U", disk],
      ["map", overlay],
      ["compare", disk, disk],
      ["check", overlay],
      ["snapshot", "-l", disk],
      ["convert", "-O", "raw", overlay, target],
      ["rebase", "-f", "qcow2", "-b", disk, "-F", "qcow2", overlay],
      ["commit", overlay],
    ]
  ) {
    await assertSame(args);
  }
});
