/**
 * The kinds of images there are: the cross product of everything that an image can be created with.
 *
 * @module
 */

import { KIB, MIB } from "../images.ts";
import type { Random } from "../random.ts";

/** What an image is created with. */
export interface ImageKind {
  /** Format version. */
  readonly version: 2 | 3;
  /** Cluster size in bytes. */
  readonly clusterSize: number;
  /** Refcount width in bits. */
  readonly refcountBits: number;
  /** Whether L2 entries are extended. */
  readonly extendedL2: boolean;
  /** What it stands upon. */
  readonly backing: "none" | "raw" | "qcow2" | "compressed qcow2";
  /** How long that is beside the disk. */
  readonly backingLength: "equal" | "shorter" | "longer";
  /** Where the guest's clusters stand, if not in the image. */
  readonly dataFile: "none" | "ordinary" | "raw";
  /** How clusters are compressed. */
  readonly compression: "zlib" | "zstd";
  /** Whether the bit of lazy refcounts is set. */
  readonly lazyRefcounts: boolean;
  /** Whether the disk has a few clusters, or several L2 tables with most of it empty. */
  readonly span: "small" | "large";
  /** Who makes it. */
  readonly maker: "this package" | "QEMU";
}

type Dimension = keyof ImageKind;

/** All that each property can be. */
const DIMENSIONS: { readonly [D in Dimension]: readonly ImageKind[D][] } = {
  version: [3, 3, 3, 2],
  clusterSize: [512, KIB, 2 * KIB, 4 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB, MIB]
    .concat(2 * MIB),
  refcountBits: [1, 2, 4, 8, 16, 32, 64],
  extendedL2: [false, true],
  backing: ["none", "none", "raw", "qcow2", "compressed qcow2"],
  backingLength: ["equal", "shorter", "longer"],
  dataFile: ["none", "none", "ordinary", "raw"],
  compression: ["zlib", "zstd"],
  lazyRefcounts: [false, true],
  span: ["small", "large"],
  maker: ["this package", "QEMU"],
};

/** The smallest clusters that can have subclusters, in bytes. */
const MIN_EXTENDED_CLUSTER = 16 * KIB;

/** A kind at random, of those that the format allows. */
export function randomKind(random: Random): ImageKind {
  return allowed({
    version: random.pick(DIMENSIONS.version),
    clusterSize: random.pick(DIMENSIONS.clusterSize),
    refcountBits: random.pick(DIMENSIONS.refcountBits),
    extendedL2: random.pick(DIMENSIONS.extendedL2),
    backing: random.pick(DIMENSIONS.backing),
    backingLength: random.pick(DIMENSIONS.backingLength),
    dataFile: random.pick(DIMENSIONS.dataFile),
    compression: random.pick(DIMENSIONS.compression),
    lazyRefcounts: random.pick(DIMENSIONS.lazyRefcounts),
    span: random.pick(DIMENSIONS.span),
    maker: random.pick(DIMENSIONS.maker),
  });
}

/** The nearest kind that the format allows. */
function allowed(kind: ImageKind): ImageKind {
  const { version, clusterSize, backing, dataFile } = kind;
  if (version === 2) {
    // Version 2 has one width, one compression and no feature bits.
    return {
      ...kind,
      refcountBits: 16,
      extendedL2: false,
      dataFile: "none",
      compression: "zlib",
      lazyRefcounts: false,
      backingLength: backing === "none" ? "equal" : kind.backingLength,
    };
  }
  return {
    ...kind,
    extendedL2: kind.extendedL2 && clusterSize >= MIN_EXTENDED_CLUSTER,
    // A raw data file is the whole disk, so nothing can stand below it.
    backing: dataFile === "raw" ? "none" : backing,
    backingLength: backing === "none" || dataFile === "raw" ? "equal" : kind.backingLength,
    // It is mapped whole from the start.
    span: dataFile === "raw" ? "small" : kind.span,
  };
}

/**
 * Kinds that differ as much as they can: each is the one among some random ones with the most pairs of properties that none
 * before it has.
 *
 * @param random Where they come from.
 * @returns Kinds without end.
 */
export function* variedKinds(random: Random): Generator<ImageKind> {
  const candidateCount = 40;
  const seen = new Set<string>();
  for (;;) {
    let best: ImageKind | undefined;
    let most = -1;
    for (let count = 0; count < candidateCount; count++) {
      const kind = randomKind(random);
      const news = pairsOf(kind).filter((pair) => !seen.has(pair)).length;
      if (news <= most) continue;
      best = kind;
      most = news;
    }
    if (best === undefined) return;
    for (const pair of pairsOf(best)) seen.add(pair);
    yield best;
  }
}

function pairsOf(kind: ImageKind): string[] {
  const values = Object.entries(kind).map(([name, value]) => `${name}=${value}`);
  return values.flatMap((one, index) => values.slice(index + 1).map((other) => `${one} ${other}`));
}

/** A kind in words. */
export function describeKind(kind: ImageKind): string {
  const { version, clusterSize, refcountBits, backing, backingLength, dataFile } = kind;
  const size = clusterSize >= MIB
    ? `${clusterSize / MIB} MiB`
    : clusterSize >= KIB
    ? `${clusterSize / KIB} KiB`
    : `${clusterSize}-byte`;
  return [
    `version ${version}`,
    `${size} clusters`,
    `${refcountBits}-bit refcounts`,
    ...(kind.extendedL2 ? ["subclusters"] : []),
    ...(backing === "none"
      ? []
      : [`a ${backing} backing file ${backingLength === "equal" ? "as long" : backingLength}`]),
    ...(dataFile === "none" ? [] : [`a data file${dataFile === "raw" ? " that is raw" : ""}`]),
    kind.compression,
    ...(kind.lazyRefcounts ? ["lazy refcounts"] : []),
    ...(kind.span === "large" ? ["several L2 tables"] : []),
    `made by ${kind.maker}`,
  ].join(", ");
}
