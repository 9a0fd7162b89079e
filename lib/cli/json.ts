/**
 * JSON as `qemu-img` prints it: the keys in the order of QEMU's dictionaries, four spaces deep, empty lists on two lines, and
 * everything beyond ASCII escaped.
 *
 * @module
 */

/** What can be printed. */
export type JsonValue =
  | string
  | number
  | bigint
  | boolean
  | null
  | readonly JsonValue[]
  | { readonly [key: string]: JsonValue };

/**
 * Writes a value as JSON.
 *
 * @param value What to write.
 * @param indentation Spaces in front of all lines but the first.
 * @returns The text, without a line end behind it.
 */
export function formatJson(value: JsonValue, indentation = ""): string {
  const inner = `${indentation}    `;
  return write(value, (item) => formatJson(item, inner), (items, open, close) => {
    const lines = items.map((item) => `\n${inner}${item}`).join(",");
    return `${open}${lines}\n${indentation}${close}`;
  });
}

/**
 * Writes a value as JSON on one line.
 *
 * @param value What to write.
 * @returns The text.
 */
export function formatJsonLine(value: JsonValue): string {
  return write(value, formatJsonLine, (items, open, close) => `${open}${items.join(", ")}${close}`);
}

function write(
  value: JsonValue,
  inner: (item: JsonValue) => string,
  block: (items: readonly string[], open: string, close: string) => string,
): string {
  if (typeof value === "string") return quote(value);
  if (typeof value !== "object" || value === null) return String(value);
  if (isList(value)) return block(value.map(inner), "[", "]");
  const members = Object.entries(value).sort(([one], [other]) => compareKeys(one, other));
  return block(members.map(([key, item]) => `${quote(key)}: ${inner(item)}`), "{", "}");
}

function isList(value: JsonValue): value is readonly JsonValue[] {
  return Array.isArray(value);
}

/**
 * Tells which of two keys comes first in a dictionary of QEMU.
 *
 * @param one A key.
 * @param other Another key.
 * @returns Less than zero where the first one does.
 */
export function compareKeys(one: string, other: string): number {
  return placeOf(one) - placeOf(other);
}

/** How many slots the hash tables have in which QEMU keeps its dictionaries. */
const SLOT_COUNT = 512;
const MAX_SHIFT = 24;
const SHIFT_STEP = 5;

/** Where a key stands in a dictionary of QEMU: the slot that its hash leads to. The keys are printed slot by slot. */
function placeOf(key: string): number {
  const bytes = new TextEncoder().encode(key);
  let hash = Math.imul(0x238f13af, bytes.length);
  bytes.forEach((byte, index) => hash = (hash + (byte << (index * SHIFT_STEP % MAX_SHIFT))) | 0);
  return ((Math.imul(1103515243, hash) + 12345) >>> 0) % SLOT_COUNT;
}

function quote(text: string): string {
  const escaped = JSON.stringify(text).replace(/\\u00[01]./g, (escape) => `\\u${escape.slice(2).toUpperCase()}`);
  return escaped.replace(/[\x7f-\uffff]/g, (unit) => {
    return `\\u${unit.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  });
}
