/**
 * The works that `peers.ts` measures: which images they need, and how each contender does them.
 *
 * @module
 */

import { Qcow2File } from "../mod.ts";
import { dataOf, GIB, MetadataOnlyFile, MIB } from "./_fixtures.ts";

/** Who does a work: this project, `qemu-img`, and whatever does the least that has to be done. */
export type Contender = "here" | "peer" | "limit";
/** All of them, in the order in which they take turns. */
export const CONTENDERS: readonly Contender[] = ["limit", "peer", "here"];

/** How large everything is, in bytes. */
export interface Scale {
  /** How often each contender is run. */
  readonly runs: number;
  /** Random data that is converted. */
  readonly random: number;
  /** A disk with holes, and how much of it is data. */
  readonly sparse: { readonly size: number; readonly data: number };
  /** Data that is compressed. */
  readonly files: number;
  /** A disk whose tables are checked, and how many clusters it has. */
  readonly tables: { readonly size: number; readonly clusters: number };
  /** Data that is compared, committed and rebased. */
  readonly middle: number;
  /** How many small requests are made. */
  readonly requests: number;
  /** Whether the targets mean something at this scale. */
  readonly isJudged: boolean;
}

/** The scales that can be asked for. */
export const SCALES: Readonly<Record<string, Scale>> = {
  full: {
    runs: 7,
    random: 4 * GIB,
    sparse: { size: 64 * GIB, data: GIB },
    files: 512 * MIB,
    tables: { size: 1024 * GIB, clusters: 10_000_000 },
    middle: GIB,
    requests: 20_000,
    isJudged: true,
  },
  quick: {
    runs: 3,
    random: 256 * MIB,
    sparse: { size: 16 * GIB, data: 128 * MIB },
    files: 64 * MIB,
    tables: { size: 64 * GIB, clusters: 600_000 },
    middle: 128 * MIB,
    requests: 5_000,
    isJudged: false,
  },
};

const CLUSTER = 65536;
const BLOCK = 4096;
/** Steps that lead all over a disk: odd numbers of blocks. */
const READ_STEP = 5003 * BLOCK;
const ALLOCATION_STEP = 100_003 * BLOCK;
const ALLOCATION_SIZE = 8 * GIB;
const REQUEST_DISK = GIB;
/** As many L2 tables of 64 KiB, of which as many are in memory. */
const THRASH = { tables: 2000, rounds: 5, cached: 100, span: 512 * MIB };

/** What a work is to cost at most, as multiples of what the others need. */
export interface Targets {
  /** Of the time of `qemu-img`. */
  readonly peer?: number;
  /** Of the time of the plain limit. */
  readonly limit?: number;
  /** More than the plain limit, in seconds. */
  readonly overLimit?: number;
}

/** A work, and how each contender does it: what it calls returns seconds. */
export interface PeerWork {
  readonly name: string;
  readonly what: "process" | "requests";
  readonly targets: Targets;
  /** How much of the host's memory it fills with what it writes, in bytes. */
  readonly fills?: number;
  readonly contenders: Readonly<Partial<Record<Contender, () => number>>>;
}

/** What the works need. */
export interface WorkOptions {
  readonly fixtures: Fixtures;
  /** The command that runs the program. */
  readonly program: readonly string[];
  /** The command that runs an empty program. */
  readonly empty: readonly string[];
}

/** Images in a folder, made at the first need. */
export class Fixtures {
  /** Where the images are. */
  readonly folder: string;
  /** How large they are. */
  readonly scale: Scale;
  readonly #made = new Set<string>();

  /**
   * @param folder The folder.
   * @param scale How large everything is.
   */
  constructor(folder: string, scale: Scale) {
    this.folder = folder;
    this.scale = scale;
  }

  /** A path for what a work makes. */
  get output(): string {
    return `${this.folder}/output`;
  }

  get randomRaw(): string {
    return this.#make("random.raw", (path) => writeRandom(path, this.scale.random));
  }

  get randomQcow2(): string {
    return this.#make("random.qcow2", (path) => convertByPeer(this.randomRaw, path));
  }

  get sparseRaw(): string {
    return this.#make("sparse.raw", (path) => writeSparse(path, this.scale.sparse.size, this.scale.sparse.data));
  }

  get sparseQcow2(): string {
    return this.#make("sparse.qcow2", (path) => convertByPeer(this.sparseRaw, path));
  }

  get filesRaw(): string {
    return this.#make("files.raw", (path) => writeFiles(path, this.scale.files));
  }

  compressed(type: "zlib" | "zstd"): string {
    return this.#make(
      `${type}.qcow2`,
      (path) => convertByPeer(this.filesRaw, path, ["-c", "-o", `compression_type=${type}`]),
    );
  }

  get empty(): string {
    return this.#make("empty.qcow2", (path) => runPeer("create", "-q", "-f", "qcow2", path, "1T"));
  }

  get tables(): string {
    return this.#make("tables.qcow2", (path) => writeTables(path, this.scale.tables.size, this.scale.tables.clusters));
  }

  get middleRaw(): string {
    return this.#make("middle.raw", (path) => writeRandom(path, this.scale.middle));
  }

  get middleQcow2(): string {
    return this.#make("middle.qcow2", (path) => convertByPeer(this.middleRaw, path));
  }

  get requestsRaw(): string {
    return this.#make("requests.raw", (path) => writeRandom(path, REQUEST_DISK));
  }

  /** Written in the same pieces as the raw one, since the host's memory for a file is made of what it was written in. */
  get requestsQcow2(): string {
    return this.#make("requests.qcow2", (path) => {
      using disk = Qcow2File.create(path, { size: REQUEST_DISK, durability: "unsafe" });
      const piece = dataOf(CLUSTER);
      for (let offset = 0; offset < REQUEST_DISK; offset += piece.length) disk.writeAt(offset, piece);
    });
  }

  get thrash(): string {
    return this.#make("thrash.qcow2", writeThrash);
  }

  #make(name: string, write: (path: string) => void): string {
    const path = `${this.folder}/${name}`;
    if (!this.#made.has(name)) {
      write(path);
      this.#made.add(name);
    }
    return path;
  }
}

/**
 * All works.
 *
 * @param options What they need.
 * @returns The works, in the order of the table.
 */
export function worksFor(options: WorkOptions): PeerWork[] {
  return [
    ...conversions(options),
    ...compressions(options),
    ...inspections(options),
    ...merges(options),
    ...requests(options),
  ];
}

function conversions({ fixtures, program }: WorkOptions): PeerWork[] {
  const { random, sparse } = fixtures.scale;
  const full = `${sizeText(random)} of random data`;
  const scattered = `${sizeText(sparse.size)} with ${sizeText(sparse.data)} of scattered data`;
  const work = (
    name: string,
    from: "raw" | "qcow2",
    source: () => string,
    raw: () => string,
    fills: number,
    limit?: number,
  ) =>
    ({
      name,
      what: "process",
      fills,
      targets: { peer: 1, ...(limit === undefined ? {} : { limit }) },
      contenders: {
        here: () => intoOutput(fixtures, [...program, "convert", "-f", from, "-O", other(from), source()]),
        peer: () => intoOutput(fixtures, ["qemu-img", "convert", "-f", from, "-O", other(from), source()]),
        limit: () => intoOutput(fixtures, ["cp", raw()]),
      },
    }) as const;
  return [
    work(`convert raw to qcow2, ${full}`, "raw", () => fixtures.randomRaw, () => fixtures.randomRaw, random, 1.25),
    work(`convert qcow2 to raw, ${full}`, "qcow2", () => fixtures.randomQcow2, () => fixtures.randomRaw, random, 1.25),
    work(`convert raw to qcow2, ${scattered}`, "raw", () => fixtures.sparseRaw, () => fixtures.sparseRaw, sparse.data),
    work(
      `convert qcow2 to raw, ${scattered}`,
      "qcow2",
      () => fixtures.sparseQcow2,
      () => fixtures.sparseRaw,
      sparse.data,
    ),
    {
      name: "convert an empty 1 TiB (limit: the program's help)",
      what: "process",
      targets: { overLimit: 0.05 },
      contenders: {
        here: () => intoOutput(fixtures, [...program, "convert", "-O", "qcow2", fixtures.empty]),
        peer: () => intoOutput(fixtures, ["qemu-img", "convert", "-O", "qcow2", fixtures.empty]),
        limit: () => timed([...program, "convert", "--help"]),
      },
    },
  ];
}

function compressions({ fixtures, program }: WorkOptions): PeerWork[] {
  const files = `${sizeText(fixtures.scale.files)} of files`;
  return (["zlib", "zstd"] as const).flatMap((type): PeerWork[] => {
    const options = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", `compression_type=${type}`];
    const back = ["convert", "-f", "qcow2", "-O", "raw"];
    return [{
      name: `convert -c with ${type}, ${files}`,
      what: "process",
      targets: { peer: 1 },
      contenders: {
        here: () => intoOutput(fixtures, [...program, ...options, fixtures.filesRaw]),
        peer: () => intoOutput(fixtures, ["qemu-img", ...options, fixtures.filesRaw]),
      },
    }, {
      name: `convert from compressed with ${type}, ${files}`,
      what: "process",
      fills: fixtures.scale.files,
      targets: { peer: 1 },
      contenders: {
        here: () => intoOutput(fixtures, [...program, ...back, fixtures.compressed(type)]),
        peer: () => intoOutput(fixtures, ["qemu-img", ...back, fixtures.compressed(type)]),
        limit: () => intoOutput(fixtures, ["cp", fixtures.filesRaw]),
      },
    }];
  });
}

function inspections({ fixtures, program, empty }: WorkOptions): PeerWork[] {
  const { middle, tables } = fixtures.scale;
  const clusters = `${sizeText(tables.size)} with ${tables.clusters.toLocaleString("en")} clusters`;
  const work = (name: string, args: () => readonly string[]): PeerWork => ({
    name,
    what: "process",
    targets: { peer: 1 },
    contenders: { here: () => timed([...program, ...args()]), peer: () => timed(["qemu-img", ...args()]) },
  });
  return [
    work(`compare raw with qcow2, ${sizeText(middle)} of random data`, () => {
      return ["compare", "-f", "raw", "-F", "qcow2", fixtures.middleRaw, fixtures.middleQcow2];
    }),
    work(`check, ${clusters}`, () => ["check", fixtures.tables]),
    work(`map, ${clusters}`, () => ["map", "--output=json", fixtures.tables]),
    work(`measure, ${clusters}`, () => ["measure", "-O", "qcow2", fixtures.tables]),
    {
      name: "info (limit: an empty program)",
      what: "process",
      targets: { overLimit: 0.04 },
      contenders: {
        here: () => timed([...program, "info", fixtures.empty]),
        peer: () => timed(["qemu-img", "info", fixtures.empty]),
        limit: () => timed(empty),
      },
    },
    {
      name: "help (limit: an empty program)",
      what: "process",
      targets: {},
      contenders: {
        here: () => timed([...program, "help"]),
        peer: () => timed(["qemu-img", "--help"]),
        limit: () => timed(empty),
      },
    },
  ];
}

/** Both end when everything is durable. */
function merges({ fixtures, program }: WorkOptions): PeerWork[] {
  const { folder, scale: { middle } } = fixtures;
  const size = String(middle);
  const base = `${folder}/base.qcow2`;
  const overlay = `${folder}/overlay.qcow2`;
  const other = `${folder}/other.qcow2`;
  const commit = (command: readonly string[]) => (): number => {
    runPeer("create", "-q", "-f", "qcow2", base, size);
    if (!exists(overlay)) {
      runPeer("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay);
      runPeer("convert", "-n", "-f", "raw", "-O", "qcow2", fixtures.middleRaw, overlay);
    }
    return timed([...command, "commit", "-q", "-d", overlay]);
  };
  const rebase = (command: readonly string[]) => (): number => {
    const image = fixtures.output;
    runPeer("create", "-q", "-f", "qcow2", other, size);
    runPeer("create", "-q", "-f", "qcow2", "-b", fixtures.middleQcow2, "-F", "qcow2", image);
    return timed([...command, "rebase", "-q", "-b", other, "-F", "qcow2", image]);
  };
  return [
    {
      name: `commit, ${sizeText(middle)} of random data`,
      what: "process",
      fills: middle,
      targets: { peer: 1 },
      contenders: { here: commit(program), peer: commit(["qemu-img"]) },
    },
    {
      name: `rebase, ${sizeText(middle)} of random data`,
      what: "process",
      fills: middle,
      targets: { peer: 1 },
      contenders: { here: rebase(program), peer: rebase(["qemu-img"]) },
    },
  ];
}

/** One request after the other, each waited for. */
interface Requests {
  readonly count: number;
  readonly length: number;
  /** How far each begins behind the one before; at the end of the disk it goes on at its beginning. */
  readonly step: number;
  readonly size: number;
  readonly write: boolean;
}

function requests({ fixtures }: WorkOptions): PeerWork[] {
  const count = fixtures.scale.requests;
  const small = { length: BLOCK, count, size: REQUEST_DISK, step: READ_STEP };
  const existing = (name: string, work: Omit<Requests, "write">, write: boolean, targets: Targets): PeerWork => {
    const whole: Requests = { ...work, write };
    return {
      name,
      what: "requests",
      targets,
      contenders: {
        here: () => {
          using disk = Qcow2File.open(fixtures.requestsQcow2, { write, durability: "unsafe" });
          return onDisk(disk, whole);
        },
        peer: () => byPeer(fixtures.requestsQcow2, whole),
        limit: () => onPlainFile(fixtures.requestsRaw, whole, false),
      },
    };
  };
  const fresh = (name: string, work: Omit<Requests, "write">, targets: Targets): PeerWork => {
    const whole: Requests = { ...work, write: true };
    return {
      name,
      what: "requests",
      fills: work.count * work.length,
      targets,
      contenders: {
        here: () => {
          remove(fixtures.output);
          using disk = Qcow2File.create(fixtures.output, { size: work.size, durability: "unsafe" });
          return onDisk(disk, whole);
        },
        peer: () => {
          remove(fixtures.output);
          runPeer("create", "-q", "-f", "qcow2", fixtures.output, String(work.size));
          return byPeer(fixtures.output, whole);
        },
        limit: () => {
          remove(fixtures.output);
          return onPlainFile(fixtures.output, whole, true);
        },
      },
    };
  };
  const sequential = ([["64 KiB", CLUSTER], ["1 MiB", MIB]] as const).flatMap(([label, length]): PeerWork[] => {
    const work = { length, count: REQUEST_DISK / length, size: REQUEST_DISK, step: length };
    const targets = { peer: 1, limit: 1 / 0.95 };
    return [
      existing(`sequential ${label} reads`, work, false, targets),
      existing(`sequential ${label} rewrites`, work, true, targets),
      fresh(`sequential ${label} allocating writes`, work, targets),
    ];
  });
  return [
    existing("4 KiB reads all over the disk", small, false, { peer: 0.2, limit: 1.3 }),
    existing("4 KiB rewrites all over the disk", small, true, { peer: 0.2, limit: 1.3 }),
    fresh("4 KiB allocating writes all over 8 GiB", { ...small, size: ALLOCATION_SIZE, step: ALLOCATION_STEP }, {
      peer: 0.2,
      limit: 1.3,
    }),
    ...sequential,
    ...thrash(fixtures),
  ];
}

function thrash(fixtures: Fixtures): PeerWork[] {
  const { tables, rounds, cached, span } = THRASH;
  const whole = { count: tables * rounds, length: BLOCK, step: span, size: tables * span };
  const cacheSize = cached * BLOCK;
  const peerCache = cached * CLUSTER;
  const what = `${tables.toLocaleString("en")} L2 tables in turn, ${cached} in memory`;
  return [{
    name: `reads over ${what}`,
    what: "requests",
    targets: { peer: 1 },
    contenders: {
      here: () => {
        using disk = Qcow2File.open(fixtures.thrash, { cacheSize });
        return onDisk(disk, { ...whole, write: false });
      },
      peer: () => byPeer(fixtures.thrash, { ...whole, write: false }, peerCache),
    },
  }, {
    name: `allocating writes over ${what}`,
    what: "requests",
    targets: { peer: 1 },
    contenders: {
      here: () => {
        remove(fixtures.output);
        // In the order that a crash cannot hurt, as QEMU writes.
        using disk = Qcow2File.create(fixtures.output, { size: whole.size, cacheSize });
        return onDisk(disk, { ...whole, write: true });
      },
      peer: () => {
        remove(fixtures.output);
        runPeer("create", "-q", "-f", "qcow2", fixtures.output, String(whole.size));
        return byPeer(fixtures.output, { ...whole, write: true }, peerCache);
      },
    },
  }];
}

/** The offsets of requests, one after the other, as `qemu-img bench` makes them. */
function* offsetsOf({ count, step, size, length }: Requests): Generator<number> {
  let offset = 0;
  for (let index = 0; index < count; index++) {
    yield offset;
    offset += step;
    if (offset + length > size) offset %= size;
  }
}

function onDisk(disk: Qcow2File, requests: Requests): number {
  const offsets = [...offsetsOf(requests)];
  const data = dataOf(requests.length);
  const start = performance.now();
  if (requests.write) { for (const offset of offsets) disk.writeAt(offset, data); }
  else for (const offset of offsets) disk.readAt(offset, data);
  return (performance.now() - start) / 1000;
}

function onPlainFile(path: string, requests: Requests, create: boolean): number {
  using file = Deno.openSync(path, { read: true, write: requests.write, create });
  const offsets = [...offsetsOf(requests)];
  const isSequential = requests.step === requests.length;
  const data = dataOf(requests.length);
  const start = performance.now();
  for (const offset of offsets) {
    if (!isSequential) file.seekSync(offset, Deno.SeekMode.Start);
    if (requests.write) file.writeSync(data);
    else file.readSync(data);
  }
  return (performance.now() - start) / 1000;
}

/** Has `qemu-img` make the requests, and takes its word for how long they took. */
function byPeer(path: string, { count, length, step, write }: Requests, cacheSize?: number): number {
  const image = cacheSize === undefined ? ["-f", "qcow2", path] : [
    "--image-opts",
    `driver=qcow2,file.filename=${path},l2-cache-size=${cacheSize},l2-cache-entry-size=${CLUSTER}`,
  ];
  const sizes = ["-c", String(count), "-d", "1", "-s", String(length), "-S", String(step)];
  const { success, stdout, stderr } = new Deno.Command("qemu-img", {
    args: ["bench", ...sizes, ...write ? ["-w"] : [], ...image],
  }).outputSync();
  const seconds = /Run completed in ([\d.]+) seconds/.exec(new TextDecoder().decode(stdout))?.[1];
  if (!success || seconds === undefined) throw new Error(`qemu-img bench failed: ${new TextDecoder().decode(stderr)}`);
  return Number(seconds);
}

/** Runs a command that writes into the output, which is gone before. */
function intoOutput(fixtures: Fixtures, command: readonly string[]): number {
  remove(fixtures.output);
  return timed([...command, fixtures.output]);
}

/** How long a command takes, in seconds. */
function timed([program = "", ...args]: readonly string[]): number {
  const command = new Deno.Command(program, { args, stdout: "null", stderr: "inherit" });
  const start = performance.now();
  const { success } = command.outputSync();
  const seconds = (performance.now() - start) / 1000;
  if (!success) throw new Error(`${program} ${args.join(" ")} failed`);
  return seconds;
}

function runPeer(...args: readonly string[]): void {
  timed(["qemu-img", ...args]);
}

function convertByPeer(source: string, target: string, options: readonly string[] = []): void {
  runPeer("convert", ...options, "-f", "raw", "-O", "qcow2", source, target);
}

function remove(path: string): void {
  if (exists(path)) Deno.removeSync(path);
}

function exists(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

function other(format: "raw" | "qcow2"): "raw" | "qcow2" {
  return format === "raw" ? "qcow2" : "raw";
}

function sizeText(bytes: number): string {
  return bytes >= 1024 * GIB ? `${bytes / 1024 / GIB} TiB` : bytes >= GIB ? `${bytes / GIB} GiB` : `${bytes / MIB} MiB`;
}

function writeRandom(path: string, size: number): void {
  using file = Deno.createSync(path);
  const piece = new Uint8Array(CLUSTER);
  for (let offset = 0; offset < size; offset += piece.length) {
    crypto.getRandomValues(piece);
    file.writeSync(piece);
  }
}

/** Random clusters at random places, between holes. */
function writeSparse(path: string, size: number, data: number): void {
  using file = Deno.createSync(path);
  file.truncateSync(size);
  const places = new Set<number>();
  while (places.size < data / CLUSTER) places.add(Math.floor(Math.random() * (size / CLUSTER)));
  const piece = new Uint8Array(CLUSTER);
  for (const place of [...places].sort((a, b) => a - b)) {
    crypto.getRandomValues(piece);
    file.seekSync(place * CLUSTER, Deno.SeekMode.Start);
    file.writeSync(piece);
  }
}

/** What compresses as files do: the runtime's own executable and the source code of this project, over and over. */
function writeFiles(path: string, size: number): void {
  using file = Deno.createSync(path);
  const sources = ["lib/image/qcow2_file.ts", "lib/metadata/mapping.ts", "README.md", "docs/architecture.md"];
  const contents = [
    Deno.readFileSync(Deno.execPath()).subarray(0, 32 * MIB),
    ...sources.map((name) => Deno.readFileSync(new URL(`../${name}`, import.meta.url))),
  ];
  for (let done = 0; done < size;) {
    for (const content of contents) {
      const piece = content.subarray(0, size - done);
      for (let written = 0; written < piece.length;) written += file.writeSync(piece.subarray(written));
      done += piece.length;
    }
  }
}

/** An image with many clusters, of which the host has nothing but the tables. */
function writeTables(path: string, size: number, clusters: number): void {
  const data = dataOf(16 * MIB);
  using disk = Qcow2File.create(new MetadataOnlyFile(data, path), { size, durability: "unsafe" });
  const perPiece = Math.ceil(clusters * CLUSTER / size * (16 * MIB) / CLUSTER);
  for (let piece = 0; piece * perPiece < clusters; piece++) {
    const count = Math.min(clusters - piece * perPiece, perPiece);
    disk.writeAt(piece * 16 * MIB, data.subarray(0, count * CLUSTER));
  }
}

function writeThrash(path: string): void {
  const { tables, span } = THRASH;
  using disk = Qcow2File.create(path, { size: tables * span, durability: "unsafe" });
  const block = dataOf(BLOCK);
  for (let table = 0; table < tables; table++) disk.writeAt(table * span, block);
}
