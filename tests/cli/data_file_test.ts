import { assertEquals, assertStringIncludes } from "@std/assert";
import { filled, MIB, qemuImg, qemuIo } from "../images.ts";
import { qemuTest } from "../qemu.ts";
import { assertSame, Folder, program } from "./_program.ts";

qemuTest("create, map, check and convert handle data files and subclusters as qemu-img does", async () => {
  using folder = new Folder();
  const [image, data, copy] = [folder.path("image"), folder.path("data"), folder.path("copy")];
  for (const options of [`data_file=${data}`, "extended_l2=on", `data_file=${data},data_file_raw=on,extended_l2=on`]) {
    const ours = await program("create", "-f", "qcow2", "-o", options, image, "1M");
    assertEquals([ours.code, ours.stderr], [0, ""]);
    const theirs = folder.path("theirs");
    const theirOptions = options.replace(data, folder.path("theirs.data"));
    const printed = qemuImg("create", "-f", "qcow2", "-o", theirOptions, theirs, "1M");
    assertEquals(ours.stdout, printed.replaceAll(folder.path("theirs.data"), data).replaceAll(theirs, image));
    qemuIo(image, ["write -P 1 0 1M"]);
    for (const args of [["map"], ["map", "--output=json"], ["check"]]) {
      const { code, stdout } = await program(...args, image);
      assertEquals([code, stdout], [0, qemuImg(...args, image)], `${args} with ${options}`);
    }
    assertEquals((await program("convert", image, copy)).code, 0);
    assertEquals(Deno.readFileSync(copy), filled(MIB, 1));
    assertEquals((await program("convert", "-O", "qcow2", "-o", "extended_l2=on", image, copy)).code, 0);
    qemuImg("compare", "-q", image, copy);
    for (const name of folder.names()) Deno.removeSync(folder.path(name));
  }
});

/** Does something with another working directory. */
async function within(path: string, act: () => Promise<void>): Promise<void> {
  const before = Deno.cwd();
  Deno.chdir(path);
  try {
    await act();
  } finally {
    Deno.chdir(before);
  }
}

qemuTest("A relative name of a data file begins in the working directory, as it does for qemu-img", async () => {
  using folder = new Folder();
  const [here, there] = [folder.path("here"), folder.path("there")];
  Deno.mkdirSync(here);
  Deno.mkdirSync(there);
  await within(here, async () => {
    const image = `${there}/image`;
    for (const makes of ["create", "convert"]) {
      const source = folder.path("source");
      qemuImg("create", "-q", "-f", "raw", source, "1M");
      const options = ["-O", "qcow2", "-o", "data_file=data"];
      const made = makes === "convert"
        ? await program("convert", ...options, source, image)
        : await program("create", "-q", "-f", "qcow2", "-o", "data_file=data", image, "1M");
      assertEquals(made, { code: 0, stdout: "", stderr: "" });
      assertEquals([...Deno.readDirSync(here)].map(({ name }) => name), ["data"]);
      qemuIo("../there/image", ["write -P 1 0 64k"]);
      assertEquals((await program("convert", image, folder.path("copy"))).code, 0);
      assertEquals(Deno.readFileSync(folder.path("copy")).subarray(0, 65536), filled(65536, 1));
      assertEquals((await program("resize", "-q", image, "2M")).code, 0);
      assertEquals(Deno.statSync("data").size, 2 * MIB);
      assertEquals((await program("map", "--output=json", image)).stdout, qemuImg("map", "--output=json", image));
      Deno.removeSync("data");
    }
    await assertSame(["map", image]);
  });
});

qemuTest("create refuses what does not go with data files and subclusters in QEMU's words", async () => {
  using folder = new Folder();
  for (
    const options of [
      "data_file_raw=on",
      "data_file=x,compat=0.10",
      "extended_l2=on,cluster_size=8k",
      "extended_l2=on,compat=0.10",
    ]
  ) {
    const path = folder.path("image");
    const { code, stderr } = await program("create", "-q", "-f", "qcow2", "-o", options, path, "1M");
    assertEquals(code, 1);
    let theirs = "";
    try {
      qemuImg("create", "-q", "-f", "qcow2", "-o", options, path, "1M");
    } catch (error) {
      theirs = String(error);
    }
    assertStringIncludes(theirs, stderr.replace("qcow2: ", "").trim());
  }
});

Deno.test("create keeps a data file that holds something, where qemu-img would empty it", async () => {
  using folder = new Folder();
  Deno.writeFileSync(folder.path("data"), filled(512, 1));
  const options = `data_file=${folder.path("data")}`;
  const { code, stderr } = await program("create", "-q", "-f", "qcow2", "-o", options, folder.path("image"), "1M");
  assertEquals(code, 1);
  assertStringIncludes(stderr, "exists and holds 512 bytes");
  assertEquals(Deno.readFileSync(folder.path("data")), filled(512, 1));
  assertEquals(folder.names(), ["data"]);
});

qemuTest("a new data file has its first block allocated, as that of qemu-img has", async () => {
  using folder = new Folder();
  const [image, data] = [folder.path("disk.qcow2"), folder.path("data")];
  await assertSame(["create", "-q", "-f", "qcow2", "-o", `data_file=${data}`, image, "1M"], {
    prepare: () => folder.names().forEach((name) => Deno.removeSync(folder.path(name))),
    outcome: () => qemuImg("map", "--output=json", "-f", "raw", data),
  });
});

qemuTest("snapshot -a tells of bitmaps before it tells that a data file allows no snapshots", async () => {
  using folder = new Folder();
  const image = folder.path("disk.qcow2");
  qemuImg("create", "-q", "-f", "qcow2", "-o", `data_file=${folder.path("data")}`, image, "1M");
  qemuImg("bitmap", "--add", image, "one");
  await assertSame(["snapshot", "-a", "x", image]);
});
