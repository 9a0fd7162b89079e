/**
 * What is left out when the output of both programs is compared, because it cannot be the same. Everything else must be.
 *
 * @module
 */

/** Output without what cannot be the same in both folders. */
export function normalize(command: string | undefined, output: string): string {
  let text = output
    // Snapshots are made at different times.
    .replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/g, "DATE")
    .replace(/"date-n?sec": \d+/g, '"date": 0')
    // How much room a file takes, holes left out, is the host's choice: it may merge or split what it has not written yet.
    .replace(/^disk size: .*$/gm, "disk size: SOME")
    .replace(/"actual-size": \d+/g, '"actual-size": 0');
  // What is mended in an image that was not closed is told by clusters, and what it is by what had reached the file.
  text = text.replace(/^(Leaked cluster|ERROR cluster|Repairing|Rebuilding refcount structure).*\n/gm, "");
  // Which of several clusters has the most references to it depends on where they stand.
  if (command === "amend") {
    text = text.replace(
      /Cluster at offset 0x[0-9a-f]+ has a refcount of \d+/,
      "Cluster at offset SOME has a refcount of SOME",
    );
  }
  if (command === "check") {
    // A repair also tells where clusters stand; see below.
    text = text
      .replace(/^Image end offset: \d+$/gm, "Image end offset: SOME")
      .replace(/"image-end-offset": \d+/g, '"image-end-offset": 0')
      .replace(/[\d.]+% fragmented/g, "SOME% fragmented")
      .replace(/,?\n *"fragmented-clusters": \d+/g, "");
  }
  // QEMU prints how far a commit is whenever its main loop comes round, the pieces of a conversion come in any order, and a rebase
  // that fails or meets subclusters is told in more pieces, so that only the two ends are the same each time.
  if (command === "commit" || command === "convert" || command === "rebase") text = withoutSteps(text);
  return command === "map" && text.startsWith("[{") ? withoutHostOffsets(text) : text;
}

function withoutSteps(text: string): string {
  return text.replace(/( +\([\d.]+\/100%\)\r)( +\([\d.]+\/100%\)\r)+/g, "$1$2");
}

interface MapEntry {
  readonly start: number;
  length: number;
  readonly zero: boolean;
  readonly data: boolean;
  readonly [property: string]: unknown;
}

/**
 * A map without places on the host; stretches that were apart for their sake alone are merged. Where a cluster stands depends on the
 * order of allocations. QEMU copies with several coroutines, of which any may come first, and the format leaves the order open.
 *
 * Whether the host has a hole where there is data depends on that too, and QEMU asks the host only of files that are sparse enough.
 */
function withoutHostOffsets(text: string): string {
  const entries: MapEntry[] = JSON.parse(text);
  const merged: MapEntry[] = [];
  let lastKind = "";
  for (const { start, length, offset, zero, ...kind } of entries) {
    const key = JSON.stringify({ ...kind, zero: zero && !kind.data, hasOffset: offset !== undefined });
    const last = merged.at(-1);
    if (last !== undefined && key === lastKind) last.length += length;
    else merged.push({ start, length, zero: zero && !kind.data, ...kind });
    lastKind = key;
  }
  return merged.map((entry) => JSON.stringify(entry)).join("\n");
}
