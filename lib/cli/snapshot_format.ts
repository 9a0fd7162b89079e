/**
 * Lists of internal snapshots, for people and as JSON.
 *
 * @module
 */

import type { Snapshot } from "../format/snapshot_table.ts";
import type { JsonValue } from "./json.ts";
import { formatSize } from "./sizes.ts";

const NANOSECONDS = 1_000_000_000n;

/**
 * Writes down snapshots as a table.
 *
 * @param snapshots The snapshots.
 * @returns The table's lines, the first of which names the columns. Times are local.
 */
export function formatSnapshotTable(snapshots: readonly Snapshot[]): string[] {
  const head = row("ID".padEnd(10), "TAG".padEnd(17), "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
  return [head, ...snapshots.map(formatSnapshot)];
}

function formatSnapshot(snapshot: Snapshot): string {
  const count = snapshot.instructionCount ?? -1n;
  return row(
    `${snapshot.id.padEnd(9)} `,
    `${snapshot.name.padEnd(16)} `,
    formatSize(snapshot.vmStateSize),
    formatLocalTime(new Date(snapshot.seconds * 1000)),
    formatClock(snapshot.vmClockNanoseconds),
    count === -1n ? "" : String(count),
  );
}

function row(id: string, tag: string, size: string, date: string, clock: string, count: string): string {
  return `${id}${tag}${size.padStart(8)}${date.padStart(20)}${clock.padStart(13)}${count.padStart(11)}`;
}

function formatLocalTime(date: Date): string {
  const day = [date.getFullYear(), date.getMonth() + 1, date.getDate()].map(twoDigits).join("-");
  return `${day} ${[date.getHours(), date.getMinutes(), date.getSeconds()].map(twoDigits).join(":")}`;
}

function formatClock(nanoseconds: bigint): string {
  const seconds = nanoseconds / NANOSECONDS;
  const milliseconds = nanoseconds / 1_000_000n % 1000n;
  const parts = [seconds / 3600n, seconds / 60n % 60n, seconds % 60n];
  return `${parts.map(twoDigits).join(":")}.${String(milliseconds).padStart(3, "0")}`;
}

function twoDigits(value: number | bigint): string {
  return String(value).padStart(2, "0");
}

/**
 * Turns snapshots into JSON.
 *
 * @param snapshots The snapshots.
 * @returns A list of objects with the keys in the order of `qemu-img`.
 */
export function snapshotsToJson(snapshots: readonly Snapshot[]): JsonValue[] {
  return snapshots.map((snapshot) => {
    const count = snapshot.instructionCount ?? -1n;
    return {
      ...(count === -1n ? {} : { "icount": count }),
      "vm-clock-nsec": snapshot.vmClockNanoseconds % NANOSECONDS,
      "name": snapshot.name,
      "date-sec": snapshot.seconds,
      "date-nsec": snapshot.nanoseconds,
      "vm-clock-sec": snapshot.vmClockNanoseconds / NANOSECONDS,
      "id": snapshot.id,
      "vm-state-size": snapshot.vmStateSize,
    };
  });
}
