/**
 * JSON as `qemu-img` prints it: four spaces deep, empty lists on two lines, and everything beyond ASCII escaped.
 *
 * @module
 */

/** What can be printed. */
export type JsonValue =
  | string
  | number
  | bigint
  | boolean
  | readonly JsonValue[]
  | { readonly [key: string]: JsonValue };

/**
 * Writes a value as JSON.
 *
 * @param value What to write; keys keep their order.
 * @param indentation Spaces in front of all lines but the first.
 * @returns The text, without a line end behind it.
 */
export function formatJson(value: JsonValue, indentation = ""): string {
  if (typeof value === "string") return quote(value);
  if (typeof value !== "object") return String(value);
  const inner = `${indentation}    `;
  if (isList(value)) return block("[", value.map((item) => formatJson(item, inner)), "]", indentation);
  const members = Object.entries(value).map(([key, item]) => `${quote(key)}: ${formatJson(item, inner)}`);
  return block("{", members, "}", indentation);
}

function isList(value: JsonValue): value is readonly JsonValue[] {
  return Array.isArray(value);
}

function block(open: string, items: readonly string[], close: string, indentation: string): string {
  const lines = items.map((item) => `\n${indentation}    ${item}`).join(",");
  return `${open}${lines}\n${indentation}${close}`;
}

function quote(text: string): string {
  return JSON.stringify(text).replace(/[\x7f-\uffff]/g, (unit) => {
    return `\\u${unit.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  });
}
