import { assertEquals, assertThrows } from "@std/assert";
import { type Arguments, type OptionDefinition, parseArguments } from "../../lib/cli/arguments.ts";
import { UsageError } from "../../lib/cli/errors.ts";

const OPTIONS: readonly OptionDefinition[] = [
  { name: "help", short: "h" },
  { name: "format", short: "f", shortOnly: true, takesValue: true },
  { name: "quiet", short: "q", shortOnly: true },
  { name: "output", takesValue: true },
  { name: "object", takesValue: true },
  { name: "force-share", short: "U" },
];

function parse(...args: string[]): Arguments {
  return parseArguments("info", args, OPTIONS);
}

Deno.test("parseArguments() reads values in the same argument and in the next", () => {
  for (const args of [["-f", "raw"], ["-fraw"], ["-qf", "raw"], ["-qfraw"], ["-f", "qcow2", "-f", "raw"]]) {
    assertEquals(parse(...args).last("format"), "raw", args.join(" "));
  }
  for (const args of [["--output=json"], ["--output", "json"], ["--ou", "json"], ["--out=json"]]) {
    assertEquals(parse(...args).last("output"), "json", args.join(" "));
  }
});

Deno.test("parseArguments() takes options behind operands, and none behind two dashes", () => {
  const parsed = parse("disk", "-q", "--", "-U", "--output");
  assertEquals(parsed.operands, ["disk", "-U", "--output"]);
  assertEquals([parsed.has("quiet"), parsed.has("force-share"), parsed.has("output")], [true, false, false]);
});

Deno.test("parseArguments() leaves values as they are", () => {
  for (const value of ["", "007", "-1", "--", "a=b", "true", "false", ":", "1e3"]) {
    assertEquals(parse("-f", value).all("format"), [value]);
    assertEquals(parse(`--output=${value}`).all("output"), [value]);
  }
  assertEquals(parse("007", "-").operands, ["007", "-"]);
});

Deno.test("parseArguments() keeps all values of an option that is repeated", () => {
  assertEquals(parse("-f", "a", "-fb", "-f", "").all("format"), ["a", "b", ""]);
});

Deno.test("parseArguments() tells an unknown option as getopt does", () => {
  for (
    const [args, shown] of [
      [["-z"], "-z"],
      [["--foo"], "--foo"],
      [["--o", "json"], "--o"],
      [["--format=raw"], "--format=raw"],
      [["--force-share=3"], "--force-share=3"],
      [["-qz"], "-qz"],
      [["-U=3"], "info"],
    ] as const
  ) {
    assertThrows(() => parse(...args), UsageError, `unrecognized option '${shown}'`);
  }
});

Deno.test("parseArguments() tells an option that lacks its value", () => {
  assertThrows(() => parse("-f"), UsageError, "missing argument for option '-f'");
  assertThrows(() => parse("--output"), UsageError, "missing argument for option '--output'");
});
