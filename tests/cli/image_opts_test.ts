import { assertEquals, assertStringIncludes } from "@std/assert";
import { qemuTest } from "../qemu.ts";
import { assertSame, Folder, makeFile, programNamed, qemuImg, qemuIo } from "./_program.ts";

/** A folder with a qcow2 image `a`, a raw image `b`, an overlay `o` above `a`, and an empty file `e`. */
function imagesIn(folder: Folder): (text: string) => string {
  const path = (name: string) => folder.path(name);
  qemuImg("create", "-q", "-f", "qcow2", path("a"), "1M");
  qemuIo(path("a"), "write -P 1 0 128k", "write -P 2 512k 64k");
  makeFile(path("b"), 1 << 20, { 0: "begin", 65536: "inside", 1000000: "end" });
  qemuImg("create", "-q", "-f", "qcow2", "-b", path("a"), "-F", "qcow2", path("o"));
  makeFile(path("e"), 0);
  return (text) => text.replace(/@(\w+)/g, (_, name) => path(name));
}

/** Compares what both programs say of the same description. */
async function assertAllSame(prefix: readonly string[], descriptions: readonly string[]): Promise<void> {
  using folder = new Folder();
  const named = imagesIn(folder);
  for (const description of descriptions) await assertSame([...prefix, named(description)].map(named));
}

qemuTest("--image-opts finds images by format, protocol and file as qemu-img does", async () => {
  await assertAllSame(["info", "--image-opts"], [
    "@a",
    "driver=qcow2,file.filename=@a",
    "driver=qcow2,file.driver=file,file.filename=@a",
    "file.filename=@a",
    "filename=@a",
    "driver=qcow2",
    "driver=raw",
    "driver=file",
    "driver=file,filename=@b",
    "driver=foo,file.filename=@a",
    "driver=raw,file.filename=@a,driver=qcow2",
    "driver=qcow2,file.filename=@nothing",
    "driver=qcow2,file.filename=@e",
    "driver=qcow2,file.filename=@b",
    "driver=qcow2,file.filename=",
    "driver=qcow2,file.filename=@a,foo=bar",
    "driver=qcow2,file.filename=@a,file.foo=bar",
    "=a",
  ]);
});

qemuTest(
  "--image-opts takes what qcow2 images, all images and files can be told, and refuses other values",
  async () => {
    await assertAllSame(["info", "--image-opts"], [
      "driver=qcow2,file.filename=@a,lazy-refcounts=on,overlap-check=all,cache-clean-interval=600",
      "driver=qcow2,file.filename=@a,lazy-refcounts",
      "driver=qcow2,file.filename=@a,nolazy-refcounts",
      "driver=qcow2,file.filename=@a,overlap-check.template=none,overlap-check.main-header=on",
      "driver=qcow2,file.filename=@a,overlap-check=none,overlap-check.template=all",
      "driver=qcow2,file.filename=@a,overlap-check=foo",
      "driver=qcow2,file.filename=@a,overlap-check.foo=on",
      "driver=qcow2,file.filename=@a,l2-cache-size=1M,l2-cache-entry-size=4k",
      "driver=qcow2,file.filename=@a,l2-cache-size=foo",
      "driver=qcow2,file.filename=@a,l2-cache-entry-size=1000",
      "driver=qcow2,file.filename=@a,cache-size=1M,l2-cache-size=2M",
      "driver=qcow2,file.filename=@a,cache-size=1M,refcount-cache-size=2M",
      "driver=qcow2,file.filename=@a,cache-size=1M,refcount-cache-size=1k,l2-cache-size=1k",
      "driver=qcow2,file.filename=@a,cache-clean-interval=99999999999",
      "driver=qcow2,file.filename=@a,pass-discard-request=off,pass-discard-snapshot=on,pass-discard-other=on",
      "driver=qcow2,file.filename=@a,read-only=maybe",
      "driver=qcow2,file.filename=@a,read-only=on,auto-read-only=on,cache.direct=on,cache.no-flush=off,node-name=n",
      "driver=qcow2,file.filename=@a,discard=foo",
      "driver=qcow2,file.filename=@a,detect-zeroes=foo",
      "driver=qcow2,file.filename=@a,detect-zeroes=unmap",
      "driver=qcow2,file.filename=@a,detect-zeroes=unmap,discard=unmap",
      "driver=qcow2,file.filename=@a,file.aio=threads,file.locking=off",
      "driver=qcow2,file.filename=@a,file.aio=foo",
      "driver=qcow2,file.filename=@a,file.locking=foo",
    ]);
  },
);

qemuTest("--image-opts takes a part of a file for a raw image", async () => {
  const descriptions = [
    "driver=raw,file.filename=@b,offset=65536,size=131072",
    "driver=raw,file.filename=@b,size=512",
    "driver=raw,file.filename=@b,size=1000",
    "driver=raw,file.filename=@b,offset=foo",
    "driver=raw,file.filename=@b,offset=2M",
    "driver=raw,file.filename=@b,offset=64k,size=1M",
    "driver=qcow2,file.driver=raw,file.offset=0,file.file.filename=@a",
    "driver=qcow2,file.driver=raw,file.file.filename=@a",
  ];
  await assertAllSame(["info", "--image-opts"], [...descriptions, "driver=raw,file.filename=@b,offset=1000"]);
  await assertAllSame(["info", "--output=json", "--image-opts"], descriptions);
  await assertAllSame(["map", "--image-opts"], descriptions);
  await assertAllSame(["map", "--output=json", "--image-opts"], descriptions);
});

qemuTest("Names that begin with json: describe images as qemu-img has it", async () => {
  await assertAllSame(["info"], [
    'json:{"driver":"qcow2","file":{"driver":"file","filename":"@a"}}',
    'json:{"driver":"qcow2","file.filename":"@a","lazy-refcounts":true,"l2-cache-size":1048576}',
    "json:{'driver':'qcow2','file.filename':'@a'}",
    'json:{"driver":"raw","file":{"driver":"file","filename":"@b"},"size":1024}',
    'json:{"driver":"raw","file":{"driver":"file","filename":"@b"},"size":"1k","offset":512}',
    'json:{"driver":"file","filename":"@b"}',
    'json:{"driver":"qcow2","file":"foo"}',
    'json:{"driver":"qcow2","file":null}',
    'json:{"driver":"qcow2","file.filename":"@a"',
    "json:[]",
    "json:",
    "json:{",
    "json:{]",
    'json:{"a"}',
    'json:{"a":}',
    'json:{"a":1,}',
    'json:{"a":1 "b":2}',
    'json:{"a":tru}',
    'json:{"a":1,"a":2}',
    'json:{"a":"\\x"}',
    'json:{"a":#}',
    'json:{"driver":"qcow2","file.filename":"\\u0040a"}',
  ]);
  await assertAllSame(["info", "-f", "raw"], ['json:{"driver":"qcow2","file.filename":"@a"}']);
  await assertAllSame(["info", "--image-opts", "-f", "raw"], ["driver=qcow2,file.filename=@a"]);
});

qemuTest("A description replaces the backing file or leaves it out", async () => {
  const descriptions = [
    'json:{"driver":"qcow2","file.filename":"@o"}',
    'json:{"driver":"qcow2","file.filename":"@o","backing":null}',
    'json:{"driver":"qcow2","file.filename":"@o","backing":""}',
    'json:{"driver":"qcow2","file.filename":"@o","backing":"foo"}',
    'json:{"driver":"qcow2","file.filename":"@o","backing.driver":"raw"}',
    'json:{"driver":"qcow2","file.filename":"@o","backing":{"driver":"raw","file":{"driver":"file","filename":"@b"}}}',
    'json:{"driver":"qcow2","file.filename":"@a","backing":{"driver":"raw","file":{"driver":"file","filename":"@b"}}}',
    'json:{"driver":"qcow2","file.filename":"@o","backing.file.filename":"@nothing"}',
    'json:{"driver":"raw","file.filename":"@b","backing.file.filename":"@a"}',
  ];
  await assertAllSame(["map"], descriptions);
  await assertAllSame(["map", "--output=json"], descriptions);
  await assertAllSame(["info"], descriptions);
});

qemuTest("A data file is found where the description says, or as it is named where the program runs", async () => {
  using folder = new Folder();
  const [image, data, moved] = [folder.path("image"), folder.path("data"), folder.path("moved")];
  qemuImg("create", "-q", "-f", "qcow2", "-o", `data_file=${data}`, image, "1M");
  qemuIo(image, "write -P 1 0 128k");
  await assertSame(["map", "--output=json", image]);
  Deno.renameSync(data, moved);
  await assertSame(["map", image]);
  await assertSame(["map", "--image-opts", `driver=qcow2,file.filename=${image},data-file.filename=${moved}`]);
  const raw = `driver=qcow2,file.filename=${image},data-file.driver=file,data-file.filename=${moved}`;
  await assertSame(["map", "--output=json", "--image-opts", raw]);
});

qemuTest("Every command takes descriptions", async () => {
  using folder = new Folder();
  const named = imagesIn(folder);
  const prepare = () => imagesIn(folder);
  const outcome = () => {
    return ["a", "b"].map((name) => {
      const { "actual-size": _, ...rest } = JSON.parse(qemuImg("info", "--output=json", folder.path(name)).stdout);
      return rest;
    });
  };
  const a = named("driver=qcow2,file.filename=@a");
  for (
    const args of [
      ["check", "--image-opts", a],
      ["check", "--output=json", "--image-opts", a],
      ["check", "--image-opts", named("driver=file,filename=@b")],
      ["check", "--output=json", named('json:{"driver":"qcow2","file.filename":"@a"}')],
      ["snapshot", "-l", "--image-opts", a],
      ["resize", "--image-opts", a, "2M"],
      ["resize", "--image-opts", named("driver=qcow2,read-only=on,file.filename=@a"), "2M"],
      ["resize", "--image-opts", named("driver=raw,file.filename=@b,size=512"), "2M"],
      ["resize", "--image-opts", named("driver=raw,file.filename=@b,offset=512"), "2M"],
      ["amend", "-o", "lazy_refcounts=on", "--image-opts", a],
      ["bitmap", "--add", "--image-opts", a, "bitmap"],
      ["map", "-U", "--image-opts", `${a},force-share=on`],
      ["map", "-U", "--image-opts", `${a},force-share=off`],
      ["snapshot", "-U", "-c", "x", "--image-opts", a],
    ]
  ) {
    await assertSame(args, { prepare, outcome: args[0] === "snapshot" ? () => {} : outcome });
  }
});

qemuTest("convert takes descriptions of sources and of the target", async () => {
  using folder = new Folder();
  const named = imagesIn(folder);
  const target = folder.path("target");
  const prepare = () => makeFile(target, 2 << 20, { 0: "old", 1048576: "older" });
  const outcome = () => Deno.readFileSync(target);
  const source = named("driver=qcow2,file.filename=@a");
  for (
    const args of [
      ["--image-opts", source, target],
      ["--image-opts", source, named("driver=raw,file.filename=@b,offset=64k"), target],
      ["--image-opts", "-f", "qcow2", source, target],
      ["--target-image-opts", named("@a"), `driver=raw,file.filename=${target}`],
      ["-n", "--target-image-opts", named("@a"), `driver=raw,file.filename=${target}`],
      ["-n", "--target-image-opts", named("@a"), `driver=raw,file.filename=${target},offset=1M`],
      ["-n", "--target-image-opts", named("@a"), `driver=raw,file.filename=${target},offset=1M,size=512`],
      ["-n", "--target-image-opts", "-O", "raw", named("@a"), `driver=raw,file.filename=${target}`],
      ["-n", "--target-image-opts", named("@a"), named("driver=raw,file.filename=@nothing")],
      [named("@a"), `file:${target}`],
      [named("@a"), `json:{"driver":"raw","file.filename":"${target}"}`],
    ]
  ) {
    await assertSame(["convert", ...args], { prepare, outcome });
  }
});

Deno.test("What QEMU knows and this program does not is refused by name", async () => {
  using folder = new Folder();
  makeFile(folder.path("b"), 1 << 20);
  for (
    const [description, name] of [
      ["driver=blkdebug,image.filename=@b", "blkdebug"],
      ["driver=vmdk,file.filename=@b", "vmdk"],
      ["driver=qcow2,file.driver=nbd,file.host=localhost", "nbd"],
    ] as const
  ) {
    const args = ["info", "--image-opts", description.replace("@b", folder.path("b"))];
    const { code, stdout, stderr } = await programNamed("qemu-img", args);
    assertEquals([code, stdout], [1, ""]);
    assertStringIncludes(stderr, `Format '${name}' is not supported`);
  }
});

Deno.test("Names that stand in an image are never descriptions", async () => {
  using folder = new Folder();
  const [image, other] = [folder.path("image"), folder.path("other")];
  makeFile(other, 1 << 20);
  const name = `json:{"driver":"raw","file.filename":"${other}"}`;
  await programNamed("qemu-img", ["create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw", image, "1M"]);
  const { code, stderr } = await programNamed("qemu-img", ["map", image]);
  assertEquals(code, 1);
  assertStringIncludes(stderr, "is no local file");
});
