/**
 * What QEMU does to an image, with the plain disk beside it.
 *
 * @module
 */

import { KIB, qemuImg, qemuIo } from "../images.ts";
import { run } from "../qemu.ts";
import type { ImageKind } from "./kinds.ts";
import { isPossible } from "./limits.ts";
import type { ModelImage } from "./model_image.ts";
import { qemuInfo } from "./qemu_judge.ts";

const MAX_SNAPSHOTS = 4;
/** Below this width QEMU may need more references for a while than a refcount can say. */
const MIN_SNAPSHOT_REFCOUNT_BITS = 16;
/** The largest clusters, in bytes, with which QEMU changes the refcount width in reasonable time. */
const MAX_AMENDED_CLUSTER_SIZE = 16 * KIB;

/** Lets QEMU write some requests, and now and then change more than that. Nobody has the image open. */
export function takeQemuSteps(image: ModelImage, count: number): void {
  qemuIo(image.path, Array.from({ length: count }, () => request(image)));
  for (const step of [writeCompressed, changeSnapshots, changeBitmaps, resize, amend]) {
    if (image.random.oneIn(2)) step(image);
  }
}

/** Does a request to the plain disk, and says it in the words of `qemu-io`. */
function request(image: ModelImage): string {
  const { random, plain, kind } = image;
  const { offset, length } = image.sectors();
  const value = random.between(1, 255);
  const command = ((): string => {
    switch (random.below(8)) {
      case 0:
        plain.clear(offset, length);
        return `write -z ${offset} ${length}`;
      case 1:
        plain.clear(offset, length);
        return `write -z -u ${offset} ${length}`;
      case 2:
        plain.discard(offset, length, kind.clusterSize, image.discardTakesEffect);
        return `discard ${offset} ${length}`;
      case 3:
        return "flush";
      case 4: {
        // In the middle of sectors.
        const from = Math.min(offset + random.below(512), plain.size - 1);
        const odd = Math.min(random.between(1, length), plain.size - from);
        plain.write(from, new Uint8Array(odd).fill(value));
        return `write -P ${value} ${from} ${odd}`;
      }
      default:
        plain.write(offset, new Uint8Array(length).fill(value));
        return `write -P ${value} ${offset} ${length}`;
    }
  })();
  image.note(`QEMU: ${command}`);
  return command;
}

function writeCompressed(image: ModelImage): void {
  const { plain, random, kind: { clusterSize } } = image;
  if (!isPossible("write compressed", image)) return;
  const { offset } = image.clusters();
  const length = Math.min(clusterSize, plain.size - offset);
  const value = random.between(1, 255);
  const command = `write -c -P ${value} ${offset} ${length}`;
  const { stdout, stderr } = run("qemu-io", ["-f", "qcow2", "-c", command, image.path]);
  // QEMU compresses nothing where clusters are allocated.
  const refused = /Input\/output error/.test(stdout + stderr);
  image.note(`QEMU: ${command}${refused ? " (refused)" : ""}`);
  if (refused) plain.record(offset, length);
  else plain.write(offset, new Uint8Array(length).fill(value));
}

function changeSnapshots(image: ModelImage): void {
  const { plain, random, kind } = image;
  if (kind.refcountBits < MIN_SNAPSHOT_REFCOUNT_BITS) return;
  const snapshot = plain.snapshots.length === 0 ? undefined : random.pick(plain.snapshots);
  switch (random.below(3)) {
    case 0: {
      if (plain.snapshots.length >= MAX_SNAPSHOTS || !isPossible("create snapshot", image)) return;
      const name = image.newName();
      image.note(`QEMU: create snapshot ${name}`);
      qemuImg("snapshot", "-c", name, image.path);
      plain.createSnapshot(qemuInfo(image.path).snapshots.at(-1)?.id ?? "", name);
      break;
    }
    case 1:
      // QEMU applies none where there are bitmaps.
      if (snapshot === undefined || plain.bitmaps.length > 0 || !isPossible("apply snapshot", image)) return;
      image.note(`QEMU: apply snapshot ${snapshot.name}`);
      qemuImg("snapshot", "-a", snapshot.name, image.path);
      plain.applySnapshot(snapshot);
      break;
    default:
      if (snapshot === undefined || !isPossible("delete snapshot", image)) return;
      image.note(`QEMU: delete snapshot ${snapshot.name}`);
      qemuImg("snapshot", "-d", snapshot.name, image.path);
      plain.deleteSnapshot(snapshot);
  }
}

function changeBitmaps(image: ModelImage): void {
  const { plain, random } = image;
  const change = (...args: string[]): void => {
    image.note(`QEMU: bitmap ${args.join(" ")}`);
    qemuImg("bitmap", ...args.slice(0, -1), image.path, args.at(-1) ?? "");
  };
  if (plain.bitmaps.length === 0) {
    if (!isPossible("add bitmap", image)) return;
    const name = image.newName();
    const granularity = 2 ** Math.max(16, Math.ceil(Math.log2(plain.size / 2 ** 21)));
    if (granularity > 2 ** 31) return;
    change("--add", "-g", String(granularity), name);
    plain.addBitmap(name, granularity, true);
    return;
  }
  const bitmap = random.pick(plain.bitmaps);
  switch (random.below(4)) {
    case 0:
      change("--clear", bitmap.name);
      bitmap.clear();
      break;
    case 1: {
      const source = random.pick(plain.bitmaps);
      change("--merge", source.name, bitmap.name);
      bitmap.merge(source, plain.size);
      break;
    }
    case 2:
      change(bitmap.auto ? "--disable" : "--enable", bitmap.name);
      bitmap.auto = !bitmap.auto;
      break;
    default:
      change("--remove", bitmap.name);
      plain.removeBitmap(bitmap);
  }
}

function resize(image: ModelImage): void {
  const { plain, random, kind } = image;
  if (!random.oneIn(2) || !isPossible("resize", image)) return;
  const size = image.newSize();
  const oldSize = plain.size;
  // QEMU has no way to hide the backing file in version 2.
  if (size > oldSize && kind.version === 2 && kind.backing !== "none") return;
  const { code, stderr } = run("qemu-img", ["resize", "-q", "--shrink", "-f", "qcow2", image.path, String(size)]);
  // Nor can it make a part of a compressed cluster zero.
  const refused = kind.extendedL2 && stderr.includes("Failed to zero out new clusters: Operation not supported");
  image.note(`QEMU: resize to ${size}${refused ? " (refused)" : ""}`);
  if (refused) return;
  if (code !== 0) throw new Error(`qemu-img resize ended with ${code}: ${stderr}`);
  plain.resize(size);
  image.noteSize(size);
  if (size <= oldSize) return;
  // It shows what an earlier end of the disk has cut off in its last cluster.
  const tail = Math.min(size, Math.ceil(oldSize / kind.clusterSize) * kind.clusterSize) - oldSize;
  if (tail > 0) qemuIo(image.path, [`write -z ${oldSize} ${tail}`]);
  plain.clear(oldSize, tail);
}

function amend(image: ModelImage): void {
  const { kind, random } = image;
  if (!random.oneIn(3) || !isPossible("amend", image)) return;
  const change = (option: string, changes: Partial<ImageKind>): void => {
    image.note(`QEMU: amend ${option}`);
    qemuImg("amend", "-f", "qcow2", "-o", option, image.path);
    image.kind = { ...kind, ...changes };
  };
  if (kind.version === 2) {
    change("compat=1.1", { version: 3 });
    return;
  }
  const lazyRefcounts = random.oneIn(2);
  // Widths that any refcount here fits into.
  const refcountBits = random.pick([16, 32, 64]);
  // QEMU walks over all clusters that the refcount table could describe.
  const isQuick = kind.clusterSize <= MAX_AMENDED_CLUSTER_SIZE;
  if (!isQuick || random.oneIn(2)) change(`lazy_refcounts=${lazyRefcounts ? "on" : "off"}`, { lazyRefcounts });
  else change(`refcount_bits=${refcountBits}`, { refcountBits });
}
