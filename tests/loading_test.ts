import { assert, assertEquals } from "@std/assert";
import { importFlags } from "../tools/imports.ts";

const ROOT = new URL("../", import.meta.url);

/** What `deno info --json` says of a module, as far as it is used here. */
interface ModuleInfo {
  readonly specifier: string;
  readonly dependencies?: readonly { readonly isDynamic?: boolean; readonly code?: { readonly specifier: string } }[];
}

/** The modules that are loaded before a module runs, types left out: those of this package by their path in it. */
async function loadedBy(path: string): Promise<string[]> {
  const { code, stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["info", "--json", ...await importFlags(), path],
    cwd: ROOT,
    stderr: "inherit",
  }).output();
  assertEquals(code, 0);
  const { roots: [root], modules }: { roots: string[]; modules: ModuleInfo[] } = JSON.parse(
    new TextDecoder().decode(stdout),
  );
  const known = new Map(modules.map((module) => [module.specifier, module]));
  const loaded = new Set<string>();
  const visit = (specifier: string): void => {
    if (loaded.has(specifier)) return;
    loaded.add(specifier);
    for (const { isDynamic = false, code } of known.get(specifier)?.dependencies ?? []) {
      if (!isDynamic && code !== undefined) visit(code.specifier);
    }
  };
  visit(root ?? "");
  return [...loaded].map((specifier) => specifier.replace(ROOT.href, ""));
}

Deno.test("The program loads nothing of the engine before it knows its command, so that help has none", async () => {
  const loaded = await loadedBy("cli.ts");
  assert(loaded.includes("lib/cli/help.ts"));
  assertEquals(loaded.filter((path) => /^lib\/(format|storage|metadata|image|operations|nbd)\//.test(path)), []);
});

Deno.test("Opening an image loads no module of the runtime that few images need", async () => {
  for (const path of ["lib/cli/info.ts", "lib/cli/check.ts", "lib/image/qcow2_file.ts"]) {
    const loaded = await loadedBy(path);
    assert(loaded.includes("lib/metadata/mapping.ts"), path);
    assertEquals(loaded.filter((module) => /^node:(zlib|path|url|process)$/.test(module)), [], path);
  }
});
