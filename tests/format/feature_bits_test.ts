import { assertEquals } from "@std/assert";
import {
  decodeFeatureNames,
  describeUnknownFeatures,
  encodeFeatureNames,
  FEATURE_NAMES,
  type FeatureName,
  KNOWN_INCOMPATIBLE,
} from "../../lib/format/mod.ts";

Deno.test("Feature names take 48 bytes each: kind, bit, name", () => {
  const data = encodeFeatureNames([{ kind: "compatible", bit: 3, name: "speed" }, {
    kind: "autoclear",
    bit: 63,
    name: "x",
  }]);
  assertEquals(data.length, 96);
  assertEquals([...data.subarray(0, 8)], [1, 3, ...new TextEncoder().encode("speed"), 0]);
  assertEquals([...data.subarray(48, 52)], [2, 63, 120, 0]);
});

Deno.test("Feature names are the same after encoding and decoding", () => {
  assertEquals(decodeFeatureNames(encodeFeatureNames(FEATURE_NAMES)), FEATURE_NAMES);
  const longest: FeatureName[] = [{ kind: "incompatible", bit: 9, name: "n".repeat(46) }];
  assertEquals(decodeFeatureNames(encodeFeatureNames(longest)), longest);
});

Deno.test("decodeFeatureNames() leaves out kinds that do not exist and entries that are cut short", () => {
  const data = encodeFeatureNames(FEATURE_NAMES);
  data[0] = 3;
  assertEquals(decodeFeatureNames(data), FEATURE_NAMES.slice(1));
  assertEquals(decodeFeatureNames(data.subarray(0, 95)), []);
});

Deno.test("describeUnknownFeatures() is empty for the bits that the format defines", () => {
  assertEquals(describeUnknownFeatures(KNOWN_INCOMPATIBLE, []), "");
  assertEquals(describeUnknownFeatures(0n, FEATURE_NAMES), "");
});

Deno.test("describeUnknownFeatures() uses the image's own names, and the mask for bits without one", () => {
  const names = [
    { kind: "incompatible", bit: 7, name: "flying cars" },
    { kind: "compatible", bit: 8, name: "not this one" },
    { kind: "incompatible", bit: 200, name: "nor this one" },
  ] as const;
  assertEquals(describeUnknownFeatures(1n << 7n, names), "flying cars");
  assertEquals(describeUnknownFeatures(1n << 8n | 1n, names), "Unknown incompatible feature: 100");
  assertEquals(
    describeUnknownFeatures(1n << 7n | 1n << 63n, names),
    "flying cars, Unknown incompatible feature: 8000000000000000",
  );
});
