import { assertEquals } from "@std/assert";
import { formatJson } from "../../lib/cli/json.ts";

Deno.test("formatJson() indents by four and puts the end of an empty list on a line of its own", () => {
  assertEquals(
    formatJson({ a: 1, b: [], c: [true, { d: 2n ** 63n }] }),
    '{\n    "a": 1,\n    "b": [\n    ],\n    "c": [\n        true,\n        {\n            "d": 9223372036854775808\n' +
      "        }\n    ]\n}",
  );
});

Deno.test("formatJson() escapes what is not ASCII", () => {
  assertEquals(formatJson('a"\\\n\u007fé😀'), '"a\\"\\\\\\n\\u007F\\u00E9\\uD83D\\uDE00"');
});
