import { assertEquals } from "@std/assert";

/** The files of `lib/` by their path beneath it, with what each of them imports, as it is written there. */
type Imports = ReadonlyMap<string, readonly string[]>;

/** The floors of the house. A floor uses itself and the ones before it, and never one that comes after. */
const FLOORS = [
  "errors.ts",
  "disk.ts",
  "format",
  "storage",
  "metadata",
  "image",
  "operations",
  "nbd",
  "cli",
];

/** Everything in which the imports of `lib/` break the rules of the house; nothing when they keep them. */
function violations(imports: Imports): string[] {
  return [...misplaced(imports), ...cycles(imports)];
}

function misplaced(imports: Imports): string[] {
  return [...imports].flatMap(([file, specifiers]) => {
    const floor = FLOORS.indexOf(floorOf(file));
    if (floor < 0) return [`${file} stands on no floor`];
    return specifiers.flatMap((specifier) => {
      if (file === "errors.ts") return [`${file} imports "${specifier}" and should import nothing`];
      if (/^@std\/assert\b/.test(specifier)) return [`${file} imports "${specifier}", which is for tests`];
      if (/^@disk\/qcow2\b/.test(specifier)) return [`${file} imports "${specifier}", the package itself, by name`];
      const target = resolve(file, specifier);
      if (target === undefined) return [];
      if (target.startsWith("../")) return [`${file} imports "${specifier}" from outside of lib`];
      if (!imports.has(target)) return [`${file} imports "${specifier}", which does not exist`];
      return FLOORS.indexOf(floorOf(target)) > floor
        ? [`${file} imports "${specifier}" from a floor below its own`]
        : [];
    });
  });
}

/** The circles in which files import each other, each told once. */
function cycles(imports: Imports): string[] {
  const found: string[] = [];
  const finished = new Set<string>();
  function visit(file: string, path: readonly string[]): void {
    const start = path.indexOf(file);
    if (start >= 0) found.push(`${[...path.slice(start), file].join(" -> ")} is a circle`);
    if (start >= 0 || finished.has(file)) return;
    for (const specifier of imports.get(file) ?? []) {
      const target = resolve(file, specifier);
      if (target !== undefined) visit(target, [...path, file]);
    }
    finished.add(file);
  }
  for (const file of imports.keys()) visit(file, []);
  return found;
}

/** The folder beneath `lib/` a file stands in, or the file itself where it stands in none. */
function floorOf(file: string): string {
  return file.split("/", 1)[0] ?? file;
}

/** Where a relative import leads, beneath `lib/`; `undefined` for any other import. */
function resolve(file: string, specifier: string): string | undefined {
  if (!/^\.{1,2}\//.test(specifier)) return undefined;
  const path = file.split("/").slice(0, -1);
  for (const part of specifier.split("/")) {
    if (part === "." || part === "") continue;
    if (part === ".." && path.length > 0 && path.at(-1) !== "..") path.pop();
    else path.push(part);
  }
  return path.join("/");
}

/** What a module imports and re-exports, types included, as it is written there. */
function importsOf(source: string): string[] {
  // Examples in comments have imports too; these are none of the module's own.
  const code = source.replace(/^\s*\/\*.*?\*\//gms, "").replace(/^\s*\/\/.*$/gm, "");
  const statements = /^\s*(?:import|export)\s+(?:[\w\s{},*$]*?\bfrom\s*)?["']([^"'\n]+)["']/gm;
  const calls = /\bimport\(\s*["']([^"'\n]+)["']/g;
  return [...code.matchAll(statements), ...code.matchAll(calls)].flatMap((match) => match[1] ?? []);
}

function readImports(folder: URL, prefix = ""): Map<string, string[]> {
  const imports = new Map<string, string[]>();
  for (const entry of Deno.readDirSync(folder)) {
    const path = `${prefix}${entry.name}`;
    if (entry.isDirectory) {
      for (const [file, list] of readImports(new URL(`${entry.name}/`, folder), `${path}/`)) imports.set(file, list);
    } else if (entry.name.endsWith(".ts")) {
      imports.set(path, importsOf(Deno.readTextFileSync(new URL(entry.name, folder))));
    }
  }
  return imports;
}

/** A house in order, with some files added or replaced. */
function house(files: Record<string, string[]>): Imports {
  return new Map(Object.entries({
    "errors.ts": [],
    "disk.ts": ["./errors.ts"],
    "format/header.ts": ["../errors.ts", "./limits.ts"],
    "format/limits.ts": [],
    "image/qcow2_file.ts": ["../disk.ts", "../format/header.ts", "@std/io/types", "node:buffer"],
    "cli/info.ts": ["../image/qcow2_file.ts", "@std/cli/parse-args"],
    ...files,
  }));
}

Deno.test("lib/ keeps to its floors, without circles, and without assertions", () => {
  const imports = readImports(new URL("../lib/", import.meta.url));
  assertEquals(imports.has("errors.ts"), true);
  assertEquals(violations(imports), []);
});

Deno.test("violations() has nothing against a house in order", () => {
  assertEquals(violations(house({})), []);
});

Deno.test("violations() finds a floor that reaches below itself", () => {
  assertEquals(violations(house({ "format/limits.ts": ["../cli/help.ts"], "cli/help.ts": [] })), [
    'format/limits.ts imports "../cli/help.ts" from a floor below its own',
  ]);
});

Deno.test("violations() lets errors.ts import nothing and disk.ts nothing but errors.ts", () => {
  assertEquals(violations(house({ "errors.ts": ["node:buffer"], "disk.ts": ["./format/limits.ts"] })), [
    'errors.ts imports "node:buffer" and should import nothing',
    'disk.ts imports "./format/limits.ts" from a floor below its own',
  ]);
});

Deno.test("violations() finds a file that stands on no floor", () => {
  assertEquals(violations(house({ "utilities/misc.ts": [] })), ["utilities/misc.ts stands on no floor"]);
});

Deno.test("violations() finds an import that leaves lib", () => {
  assertEquals(violations(house({ "cli/info.ts": ["../../mod.ts"] })), [
    'cli/info.ts imports "../../mod.ts" from outside of lib',
  ]);
});

Deno.test("violations() finds an import of a file that does not exist", () => {
  assertEquals(violations(house({ "cli/info.ts": ["./nowhere.ts"] })), [
    'cli/info.ts imports "./nowhere.ts", which does not exist',
  ]);
});

Deno.test("violations() finds assertions and the package's own name in lib", () => {
  assertEquals(violations(house({ "cli/info.ts": ["@std/assert/equals", "@disk/qcow2"] })), [
    'cli/info.ts imports "@std/assert/equals", which is for tests',
    'cli/info.ts imports "@disk/qcow2", the package itself, by name',
  ]);
});

Deno.test("violations() finds a circle once, however long", () => {
  assertEquals(violations(house({ "format/limits.ts": ["./header.ts"] })), [
    "format/header.ts -> format/limits.ts -> format/header.ts is a circle",
  ]);
  assertEquals(violations(house({ "cli/a.ts": ["./b.ts"], "cli/b.ts": ["./c.ts"], "cli/c.ts": ["./a.ts"] })), [
    "cli/a.ts -> cli/b.ts -> cli/c.ts -> cli/a.ts is a circle",
  ]);
});

Deno.test("importsOf() reads every form of import, and none that stands in a comment", () => {
  const source = `
/**
 * import { a } from "./comment.ts";
 */
import "./effect.ts";
import whole, { part as renamed, type Kind } from "./several.ts";
import * as everything from './star.ts';
import type { Shape } from "./shape.ts";
import {
  first,
  second,
} from "./lines.ts";
export * from "./export_star.ts";
export { third, type Fourth } from "./export_named.ts";
export type { Fifth } from "./export_type.ts";
// import { b } from "./line_comment.ts";
export const from = "./not_an_import.ts";
const later = await import("./later.ts");
`;
  assertEquals(importsOf(source), [
    "./effect.ts",
    "./several.ts",
    "./star.ts",
    "./shape.ts",
    "./lines.ts",
    "./export_star.ts",
    "./export_named.ts",
    "./export_type.ts",
    "./later.ts",
  ]);
});
