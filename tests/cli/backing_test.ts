import { qemuTest } from "../qemu.ts";
import { assertSame, Folder, qemuImg } from "./_program.ts";

qemuTest("create, convert and map treat backing files as qemu-img does", async () => {
  using folder = new Folder();
  const [base, middle, top, target] = ["base.raw", "middle.qcow2", "top.qcow2", "target.qcow2"].map((name) =>
    folder.path(name)
  );
  if (base === undefined || middle === undefined || top === undefined || target === undefined) return;
  qemuImg("create", "-q", "-f", "raw", base, "5M");
  Deno.writeFileSync(base, new Uint8Array(3 << 20).fill(7), { append: false });
  qemuImg("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", middle, "6M");
  qemuImg("create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2", top, "7M");
  const outcome = (): unknown => [qemuImg("info", target).code, qemuImg("compare", "-p", top, target).code];
  for (
    const args of [
      ["-b", base, "-F", "raw", target],
      ["-b", base, "-F", "raw", target, "1G"],
      ["-b", folder.path("missing"), "-F", "raw", target, "1G"],
      ["-u", "-b", folder.path("missing"), "-F", "raw", target],
      ["-u", "-b", folder.path("missing"), "-F", "raw", target, "1M"],
      ["-F", "raw", target, "1M"],
      ["-b", base, "-F", "nonsense", target],
      ["-b", base, "-F", "qcow2", target],
      ["-o", `backing_file=${base},backing_fmt=raw`, target],
      ["-b", target, "-F", "qcow2", target],
    ]
  ) await assertSame(["create", "-f", "qcow2", ...args]);
  // QEMU ends this one without a line feed.
  await assertSame(["create", "-f", "qcow2", "-b", base, target], { anyErrorText: true });
  await assertSame(["create", "-f", "raw", "-b", base, "-F", "raw", target, "1M"]);
  await assertSame(["create", "-f", "raw", "-F", "raw", target, "1M"]);
  for (
    const args of [
      ["-O", "qcow2", top, target],
      ["-c", "-O", "qcow2", top, target],
      ["-c", "-O", "qcow2", "-o", "compression_type=zstd", top, target],
      ["-O", "qcow2", "-B", middle, top, target],
      ["-O", "qcow2", "-B", middle, "-F", "qcow2", top, target],
      ["-c", "-O", "raw", top, target],
    ]
  ) await assertSame(["convert", ...args], { outcome });
  for (const image of [middle, top]) {
    await assertSame(["map", image]);
    await assertSame(["map", "--output=json", image]);
    await assertSame(["check", image]);
  }
});
