import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { main } from "../../lib/cli/main.ts";
import { Qcow2File } from "../../mod.ts";
import { importFlags } from "../../tools/imports.ts";
import { filled } from "../images.ts";
import { run } from "../qemu.ts";
import { Folder, makeFile, patch, program, VERSION } from "./_program.ts";

const CLUSTER = 65536;

/** Makes an image with data, zeroes, a compressed cluster, a snapshot and a bitmap. */
function makeImage(path: string, size = 4096 * CLUSTER): void {
  using disk = Qcow2File.create(path, { size });
  disk.writeAt(0, filled(40 * CLUSTER, 1));
  disk.createSnapshot("before", { date: new Date(0) });
  disk.addBitmap("changes");
  disk.writeAt(2 * CLUSTER, filled(CLUSTER, 2));
  disk.writeAt(1000 * CLUSTER, filled(200 * CLUSTER, 3));
  disk.writeZeroesAt(1100 * CLUSTER, 50 * CLUSTER, { unmap: true });
  disk.writeCompressedAt(2000 * CLUSTER, filled(CLUSTER, 4));
}

/** Runs the program on a terminal. */
async function onTerminal(stdoutColumns: number, ...args: string[]): Promise<string> {
  let text = "";
  const console = {
    stderrIsTerminal: false,
    stdoutColumns,
    out: (part: string) => void (text += part),
    err: (part: string) => void (text += part),
  };
  await main(args, console, { version: VERSION });
  return text;
}

/** Characters that do something to a terminal or to the order of what is read. */
const HARMFUL = /[^\P{Cc}\n]|\p{Cf}/u;
// deno-lint-ignore no-control-regex
const STYLES = /\x1b\[[0-9;]*m/g;

Deno.test("inspect shows an image in words and pictures", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeImage(path);
  const { code, stdout, stderr } = await program("inspect", path);
  assertEquals([code, stderr], [0, ""]);
  for (
    const line of [
      "A qcow2 image, version 3, of a disk of 256 MiB in clusters of 64 KiB",
      "  Disk         256 MiB (268,435,456 bytes)",
      "  Clusters     64 KiB, of which the disk has 4,096",
      "  State        closed properly",
      "  ID  Name    Taken                    Disk     Memory",
      "  1   before  1970-01-01 00:00:00 UTC  256 MiB  none",
      "  changes  64 KiB       records writes",
      "Disk, 256 MiB, one block for 512 KiB",
      "  No errors: every cluster is counted as often as it is used",
    ]
  ) assertStringIncludes(stdout, `${line}\n`);
  assertEquals(picturesOf(stdout), [
    "        0 B  █████···························································",
    "     32 MiB  ·····························································███",
    "     64 MiB  ██████████ZZZZZZ██████··········································",
    "     96 MiB  ··························································c·····",
    ...[128, 160, 192, 224].map((start) => `    ${start} MiB  ${"·".repeat(64)}`),
    `        0 B  H·BTTDDSDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD21TrR${"█".repeat(14)}`,
    `      4 MiB  ${"█".repeat(64)}`,
    `      8 MiB  ${"█".repeat(23)}${"·".repeat(41)}`,
    `     12 MiB  ${"·".repeat(9)}${"█".repeat(50)}CBB`,
  ]);
  assertEquals(stdout.match(STYLES), null);
  // The note stands below a picture with blocks that are not full, and only there.
  assertEquals(stdout.match(/small letters are filled in part only$/gm)?.length, 1);
});

Deno.test("inspect uses colours on a terminal and fits into its width", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeImage(path);
  for (const width of [20, 40, 80, 137, 200, 400]) {
    const text = await onTerminal(width, "inspect", path);
    assert(STYLES.test(text));
    const lines = text.replace(STYLES, "").split("\n");
    const pictures = lines.slice(lines.findIndex((line) => line.startsWith("Disk, ")));
    for (const line of pictures.filter((line) => width >= 40 || /[█▓▒░▄·]{4}/.test(line))) {
      assert([...line].length <= width, `${width}: ${line}`);
    }
  }
  const wide = picturesOf((await onTerminal(200, "inspect", path)).replace(STYLES, ""));
  assertEquals(wide[0]?.length, 13 + 128);
  // A kind that is rare is seen beside one that fills its block.
  assertStringIncludes(wide.join(), "▄");
});

Deno.test("inspect shows an image whose disk is empty, one without any disk, and a raw one", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  Qcow2File.create(path, { size: 1024 ** 4 }).close();
  const empty = await program("inspect", path);
  assertStringIncludes(empty.stdout, "Disk, 1 TiB, one block for 2 GiB\n");
  assertStringIncludes(empty.stdout, "  There is no data\n");
  assertEquals(picturesOf(empty.stdout).at(-1), "        0 B  HRr1");
  Qcow2File.create(path, { size: 0 }).close();
  assertStringIncludes((await program("inspect", path)).stdout, "Disk, 0 B\n  Empty\n");
  makeFile(folder.path("disk.raw"), 1 << 20, { 0: "data" });
  const raw = await program("inspect", folder.path("disk.raw"));
  assertStringIncludes(raw.stdout, "A raw image of a disk of 1 MiB\n");
  assertStringIncludes(raw.stdout, "  Raw images have nothing to check\n");
  for (const option of ["svg", "html"]) {
    for (const image of ["disk.raw", "disk.qcow2"]) {
      assertEquals((await program("inspect", `--${option}`, folder.path("x"), folder.path(image))).code, 0);
    }
  }
});

Deno.test("inspect tells of damage, and of what it could not read", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeImage(path);
  using disk = Qcow2File.open(path, { lock: false });
  const { l1TableOffset } = disk.header;
  disk.close();
  patch(path, [l1TableOffset + 6, 2]);
  const { code, stdout } = await program("inspect", path);
  assertEquals(code, 0);
  assertStringIncludes(stdout, "that endanger data");
  assertStringIncludes(stdout, "\nNot all could be read\n  L2 table offset");
  assertStringIncludes(stdout, `        0 B  ${"!".repeat(64)}\n`);
});

Deno.test("inspect lists the backing chain, and opens it unless told otherwise", async () => {
  using folder = new Folder();
  const path = folder.path("top.qcow2");
  const base = Qcow2File.create(folder.path("base.qcow2"), { size: 64 * CLUSTER });
  base.writeAt(0, filled(4 * CLUSTER, 1));
  base.close();
  Qcow2File.create(path, { size: 64 * CLUSTER, backingFile: "base.qcow2", backingFormat: "qcow2" }).close();
  const opened = await program("inspect", path);
  assertStringIncludes(opened.stdout, `  1      ${folder.path("base.qcow2")}  qcow2   4 MiB`);
  assertEquals(picturesOf(opened.stdout)[0], `        0 B  BBBB${"·".repeat(60)}`);
  const closed = await program("inspect", "--no-backing", path);
  assertStringIncludes(closed.stdout, "Opening it was not allowed");
  assertEquals(picturesOf(closed.stdout)[0], `        0 B  ${"B".repeat(64)}`);
});

Deno.test("inspect lets no text from an image reach the terminal or a page as a command", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  const evil = `<script>"&'\x1b]0;owned\x07\x9b31m\u202e`;
  {
    using disk = Qcow2File.create(path, { size: CLUSTER });
    disk.createSnapshot(evil);
    disk.addBitmap(evil);
  }
  const text = (await program("inspect", path)).stdout;
  assertEquals(HARMFUL.test(text), false);
  assertStringIncludes(text, "\\u{1b}]0;owned");
  for (const option of ["svg", "html"]) {
    const picture = folder.path(option);
    await program("inspect", `--${option}`, picture, path);
    const written = Deno.readTextFileSync(picture);
    assertEquals(written.includes("<script>"), false);
    assertEquals(HARMFUL.test(written), false);
    if (option === "html") assertStringIncludes(written, "&#60;script&#62;&#34;&#38;&#39;");
  }
});

Deno.test("inspect prints for programs what it shows", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeImage(path);
  const { stdout } = await program("inspect", "--output", "json", path);
  const found = JSON.parse(stdout);
  assertEquals(found.filename, path);
  assertEquals(found.info, JSON.parse((await program("info", "--output", "json", path)).stdout));
  assertEquals(found.disk.totals.compressed, CLUSTER);
  assertEquals(found.file.totals["l1-table"], CLUSTER);
  assertEquals([found.check.complete, found.check.corruptions, found.check.findings], [true, 0, []]);
  for (const map of [found.disk, found.file]) {
    let position = 0;
    const totals: Record<string, number> = {};
    for (const { start, length, kinds } of map.regions) {
      assertEquals(start, position);
      position += length;
      for (const [kind, bytes] of Object.entries<number>(kinds)) totals[kind] = (totals[kind] ?? 0) + bytes;
    }
    assertEquals([position, totals], [map.size, map.totals]);
  }
});

Deno.test("inspect draws pictures that need nothing else and have a bounded number of parts", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  {
    using disk = Qcow2File.create(path, { size: 1024 ** 4, clusterSize: 4096 });
    // Every part of the disk looks different from its neighbours.
    for (let index = 0; index < 4096; index++) disk.writeAt(index * 2 ** 28, filled(4096 * (1 + index % 3), 1));
  }
  for (const [option, maxLength] of [["svg", 300_000], ["html", 2_000_000]] as const) {
    const picture = folder.path(`picture.${option}`);
    assertEquals((await program("inspect", `--${option}`, picture, path)).code, 0);
    const text = Deno.readTextFileSync(picture);
    assert(text.length < maxLength, `${text.length}`);
    assertBalanced(text);
    assertEquals(/(?:href|src|url|@import|<script)/.exec(text.replace("http://www.w3.org/2000/svg", "")), null);
    for (const words of ["one cell for 256 MiB", "L2 tables", "refcount blocks", "prefers-color-scheme:dark"]) {
      assertStringIncludes(text, words);
    }
    // What is there once in a file of megabytes can be seen nevertheless.
    assert(/<path class="k-header" d="M0 \d/.test(text));
  }
});

Deno.test("inspect --image-opts shows the image that is described, wherever it stands", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeImage(path);
  const whole = await program("inspect", path);
  const described = await program("inspect", "--image-opts", `driver=qcow2,file.driver=file,file.filename=${path}`);
  assertEquals(described, whole);

  // An image that begins in the middle of a file.
  const inside = folder.path("inside");
  const image = Deno.readFileSync(path);
  const offset = 3 * CLUSTER;
  Deno.writeFileSync(inside, new Uint8Array([...new Uint8Array(offset), ...image]));
  const window = `driver=qcow2,file.driver=raw,file.offset=${offset},file.file.filename=${inside}`;
  const { code, stdout, stderr } = await program("inspect", "--image-opts", window);
  assertEquals([code, stderr], [0, ""]);
  assertEquals(picturesOf(stdout), picturesOf(whole.stdout));

  const both = await program("inspect", "-f", "qcow2", "--image-opts", `driver=qcow2,file.filename=${path}`);
  assertEquals(both, {
    code: 1,
    stdout: "",
    stderr: "qcow2: --image-opts and --format are mutually exclusive\n",
  });
});

Deno.test("inspect --max-tables bounds what is looked at, in both directions", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeImage(path);
  const whole = await program("inspect", path);
  const bounded = await program("inspect", "--max-tables", "64k", path);
  assertEquals(bounded.code, 0);
  assertStringIncludes(bounded.stdout, "Tables are longer than 65536 bytes in all");
  assert(!whole.stdout.includes("Tables are longer"));
  assertEquals(await program("inspect", "--max-tables", "2G", path), whole);
  const { code, stderr } = await program("inspect", "--max-tables", "many", path);
  assertEquals(code, 1);
  assertStringIncludes(stderr, "maximum length of tables");
});

Deno.test("inspect never draws over an image", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeImage(path);
  const before = Deno.readFileSync(path);
  const { code, stderr } = await program("inspect", "--svg", path, path);
  assertEquals(code, 1);
  assertStringIncludes(stderr, "Is another process using the image");
  assertEquals(Deno.readFileSync(path), before);
  const missing = await program("inspect", "--html", folder.path("no/folder"), path);
  assertEquals([missing.code, missing.stdout], [1, ""]);
  assertStringIncludes(missing.stderr, "No such file or directory");
  assertEquals(folder.names(), ["disk.qcow2"]);
});

Deno.test("inspect fails in one line where there is nothing to show", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  for (const args of [["inspect", path], ["inspect", "--untrusted", path]]) {
    const { code, stderr } = await program(...args);
    assertEquals(code, 1);
    assertStringIncludes(stderr, `Could not open '${path}': Could not open '${path}': No such file or directory\n`);
  }
  for (
    const args of [[], [path, path], ["--max-size", "1G", path], ["--untrusted", "--svg", "x", path], [
      "--untrusted",
      "--max-tables",
      "1G",
      path,
    ]]
  ) {
    assertEquals((await program("inspect", ...args)).code, 1);
  }
});

Deno.test("inspect --untrusted says yes or no, in JSON and by its exit status", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  makeImage(path);
  const accepted = await program("inspect", "--untrusted", "-f", "qcow2", path);
  assertEquals([accepted.code, accepted.stderr], [0, ""]);
  assertEquals(JSON.parse(accepted.stdout), {
    "filename": path,
    "verdict": "accept",
    "format": "qcow2",
    "file-length": Deno.statSync(path).size,
    "virtual-size": 4096 * CLUSTER,
    "findings": [
      { rule: "snapshots", severity: "note", message: "Image has 1 internal snapshot", offset: 60, found: 1 },
      { rule: "bitmaps", severity: "note", message: "Image has 1 persistent bitmap" },
    ],
  });
  const small = await program("inspect", "--untrusted", "--max-size", "1M", path);
  assertEquals([small.code, JSON.parse(small.stdout).verdict], [2, "refuse"]);
  assertEquals((await program("inspect", "--untrusted", "-f", "raw", path)).code, 2);
});

Deno.test("inspect --untrusted opens nothing but the file", async () => {
  using folder = new Folder();
  const path = folder.path("disk.qcow2");
  const base = folder.path("base.qcow2");
  makeImage(base);
  Qcow2File.create(path, { size: CLUSTER, backingFile: "base.qcow2", backingFormat: "qcow2" }).close();
  const root = new URL("../../", import.meta.url).pathname;
  const flags = (await importFlags()).map((flag) => flag.replace("=", `=${root}`));
  // The runtime refuses everything else.
  const options = ["run", "--no-prompt", "--no-check", `--allow-read=${path}`, ...flags];
  const args = ["inspect", "--untrusted", path];
  const { code, stdout, stderr } = run(Deno.execPath(), [...options, `${root}cli.ts`, ...args]);
  assertEquals([code, stderr], [2, ""]);
  assertEquals(JSON.parse(stdout).findings[0].rule, "backing-file");
});

/** The lines of the pictures in a text. */
function picturesOf(text: string): string[] {
  return text.split("\n").filter((line) => /^ +[\d.]+ (?:B|[KMGT]iB) {2}\S+$/.test(line));
}

/** Every element of a text is closed where it should be. */
function assertBalanced(text: string): void {
  const open: string[] = [];
  for (const [, slash, name = "", self] of text.matchAll(/<(\/?)([a-z][\w-]*)[^>]*?(\/?)>/g)) {
    if (self === "/" || name === "meta") continue;
    if (slash === "/") assertEquals(open.pop(), name);
    else open.push(name);
  }
  assertEquals(open, []);
}
