/**
 * What `inspect` prints for programs.
 *
 * @module
 */

import type { BinnedMap, ChainLink, CheckFinding, Inspection, Soundness, UntrustedVerdict } from "../operations/mod.ts";
import { fullBackingName } from "./image_names.ts";
import { infoToJson } from "./info_format.ts";
import type { PartMap } from "./inspect_kinds.ts";
import type { JsonValue } from "./json.ts";

/** Values by their names. */
type JsonObject = { readonly [key: string]: JsonValue };

/**
 * Turns what was found of an image into JSON.
 *
 * @param path Path of the image.
 * @param inspection What was found.
 * @returns An object; `docs/schemas/inspect.json` describes it.
 */
export function inspectionToJson(path: string, inspection: Inspection): JsonValue {
  const { info, fileSize, chain, guest, host, fragmentation, soundness, problems } = inspection;
  const backingFile = info.qcow2?.backingFile;
  const backing = backingFile === undefined ? {} : { fullBackingName: fullBackingName(path, backingFile) };
  return {
    "filename": path,
    "info": infoToJson({ ...info, path, formatName: info.format, ...backing }),
    "backing-chain": chain.map(linkToJson),
    "disk": mapToJson(guest),
    "file": { "length": fileSize, ...(host === undefined ? {} : mapToJson(host)) },
    "fragmentation": {
      "pieces": fragmentation.pieces,
      "data-length": fragmentation.dataLength,
      "longest-piece": fragmentation.longestPiece,
    },
    ...(soundness === undefined ? {} : { "check": soundnessToJson(soundness) }),
    "problems": problems,
  };
}

/**
 * Turns the verdict on an image into JSON.
 *
 * @param path Path of the image.
 * @param verdict The verdict.
 * @returns An object; `docs/schemas/untrusted.json` describes it.
 */
export function verdictToJson(path: string, verdict: UntrustedVerdict): JsonValue {
  return {
    "filename": path,
    "verdict": verdict.acceptable ? "accept" : "refuse",
    "format": verdict.format,
    "file-length": verdict.fileSize,
    ...(verdict.virtualSize === undefined ? {} : { "virtual-size": verdict.virtualSize }),
    "findings": verdict.findings.map((finding): JsonObject => ({ ...finding })),
  };
}

function linkToJson({ path, info, problem }: ChainLink): JsonValue {
  return {
    "filename": path,
    ...(info === undefined ? {} : { "format": info.format, "virtual-size": info.virtualSize }),
    ...(problem === undefined ? {} : { "problem": problem }),
  };
}

function soundnessToJson({ result, findings, problem }: Soundness): JsonValue {
  return {
    "complete": result !== undefined,
    ...(result === undefined ? {} : {
      "corruptions": result.corruptions,
      "leaks": result.leaks,
      "total-clusters": result.totalClusters,
      "allocated-clusters": result.allocatedClusters,
      "fragmented-clusters": result.fragmentedClusters,
      "compressed-clusters": result.compressedClusters,
      "image-end-offset": result.imageEndOffset,
    }),
    "findings": findings.map(findingToJson),
    ...(problem === undefined ? {} : { "problem": problem }),
  };
}

function findingToJson({ kind, message, hostOffset }: CheckFinding): JsonValue {
  return { "kind": kind, "message": message, "offset": hostOffset };
}

/** Parts that follow each other and are wholly of one kind are one region. */
function mapToJson<Kind extends string>(map: BinnedMap<Kind>): JsonObject {
  return { "size": map.size, "totals": kindsToJson(map.totals), "regions": regionsOf(map) };
}

function regionsOf({ size, binSize, bins }: PartMap): JsonValue[] {
  const regions: { start: number; length: number; kinds: Record<string, number> }[] = [];
  bins.forEach((bin, index) => {
    const start = index * binSize;
    const length = Math.min(binSize, size - start);
    const kinds: Record<string, number> = { ...bin };
    const last = regions.at(-1);
    const [kind = "", ...others] = Object.keys(kinds);
    if (last !== undefined && others.length === 0 && last.kinds[kind] === last.length) {
      last.length += length;
      last.kinds[kind] = last.length;
    } else {
      regions.push({ start, length, kinds });
    }
  });
  return regions.map(({ start, length, kinds }) => ({ "start": start, "length": length, "kinds": kindsToJson(kinds) }));
}

/** Kinds of which there is nothing are left out. */
function kindsToJson(kinds: Readonly<Record<string, number>>): JsonObject {
  const present = Object.entries(kinds).filter(([, bytes]) => bytes > 0);
  return Object.fromEntries(present.map(([kind, bytes]) => [kind.toLowerCase().replaceAll(" ", "-"), bytes]));
}
