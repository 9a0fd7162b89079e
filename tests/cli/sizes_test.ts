import { assertEquals, assertThrows } from "@std/assert";
import { CliError } from "../../lib/cli/errors.ts";
import { formatSize, parseSize, parseSizeArgument, toFixedHalfEven } from "../../lib/cli/sizes.ts";

Deno.test("parseSize() reads bytes and suffixes of either case", () => {
  assertEquals(parseSize("4096"), 4096n);
  assertEquals(parseSize("100b"), 100n);
  assertEquals(parseSize("64k"), 65536n);
  assertEquals(parseSize("64K"), 65536n);
  assertEquals(parseSize("1e"), 2n ** 60n);
  assertEquals(parseSize("010k"), 10240n);
});

Deno.test("parseSize() reads fractions the way QEMU counts them", () => {
  assertEquals(parseSize("1.5G"), 1610612736n);
  assertEquals(parseSize("1."), 1n);
  assertEquals(parseSize("1.k"), 1024n);
  assertEquals(parseSize("7.9E"), 9108079886394091136n);
  assertEquals(parseSize("1.5"), "invalid");
  assertEquals(parseSize(".5M"), "invalid");
});

Deno.test("parseSize() reads hexadecimal digits, of which B and E are two", () => {
  assertEquals(parseSize("0x400"), 1024n);
  assertEquals(parseSize("0x1b"), 27n);
  assertEquals(parseSize("0x1E"), 30n);
  assertEquals(parseSize("0x10k"), 16384n);
  assertEquals(parseSize("0x"), "invalid");
});

Deno.test("parseSize() refuses what is no size and what is beyond 64 bits", () => {
  for (const text of ["", "xyz", "-1", "1e3", "1kb", "1 M", "1M "]) assertEquals(parseSize(text), "invalid", text);
  assertEquals(parseSize("16E"), "out-of-range");
  assertEquals(parseSize("18446744073709551615"), 2n ** 64n - 1n);
});

Deno.test("parseSizeArgument() says what the size was for", () => {
  assertThrows(() => parseSizeArgument("image size", "x"), "Invalid image size specified. You may");
  assertThrows(() => parseSizeArgument("image size", "8E"), CliError, "Must be between 0 and 9223372036854775807.");
});

Deno.test("formatSize() writes three digits and changes the unit at 1000", () => {
  assertEquals(formatSize(0), "0 B");
  assertEquals(formatSize(999), "999 B");
  assertEquals(formatSize(1000), "0.977 KiB");
  assertEquals(formatSize(1023), "0.999 KiB");
  assertEquals(formatSize(1023999), "1e+03 KiB");
  assertEquals(formatSize(196 * 1024), "196 KiB");
  assertEquals(formatSize(1536), "1.5 KiB");
  assertEquals(formatSize(5636096), "5.38 MiB");
  assertEquals(formatSize(2 ** 40), "1 TiB");
});

Deno.test("toFixedHalfEven() rounds halves to the even digit, as C does", () => {
  assertEquals(toFixedHalfEven(3.125, 2), "3.12");
  assertEquals(toFixedHalfEven(9.375, 2), "9.38");
  assertEquals(toFixedHalfEven(2.5, 0), "2");
  assertEquals(toFixedHalfEven(3.5, 0), "4");
  assertEquals(toFixedHalfEven(0.4, 2), "0.40");
});
