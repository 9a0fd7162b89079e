/**
 * Calls into the C library that the process runs on.
 *
 * @module
 */

import type { HoleFinder } from "./native_host.ts";

/** The symbols of a C library. */
export class Libc {
  readonly #addresses: Readonly<Record<string, Deno.PointerObject | null>>;

  private constructor(addresses: Readonly<Record<string, Deno.PointerObject | null>>) {
    this.#addresses = addresses;
  }

  /**
   * Looks symbols up in the first library of some that can be opened. The caller has made sure of the permission.
   *
   * The library is given back at once: a C library stays loaded as long as the process, and an open one would count as a leak
   * in every test of every user.
   *
   * @param libraries The names of the library, as hosts call it.
   * @param symbols The names of the symbols.
   * @returns The library, or undefined where none can be opened.
   */
  static load(libraries: readonly string[], symbols: readonly string[]): Libc | undefined {
    const wanted = Object.fromEntries(symbols.map((symbol) => [symbol, { type: "pointer", optional: true } as const]));
    for (const name of libraries) {
      try {
        const library = Deno.dlopen(name, wanted);
        const addresses = { ...library.symbols };
        library.close();
        return new Libc(addresses);
      } catch {
        // Another name may do.
      }
    }
    return undefined;
  }

  /**
   * Whether the library has a symbol.
   *
   * @param symbol One of the symbols that were looked up.
   * @returns Whether it was found.
   */
  has(symbol: string): boolean {
    return (this.#addresses[symbol] ?? null) !== null;
  }

  /**
   * A symbol as something to call.
   *
   * @param symbol One of the symbols that were looked up.
   * @param definition Its parameters and result.
   * @returns What to call.
   * @throws {Error} Where the library does not have it.
   */
  bind<const Fn extends Deno.ForeignFunction>(symbol: string, definition: Fn): Deno.UnsafeFnPointer<Fn>["call"] {
    const address = this.#addresses[symbol];
    if (address === undefined || address === null) throw new Error(`The C library has no ${symbol}`);
    const pointer = new Deno.UnsafeFnPointer(address as Deno.PointerObject<Fn>, definition);
    return pointer.call.bind(pointer) as Deno.UnsafeFnPointer<Fn>["call"];
  }

  /**
   * What reads the error number of this thread. It is right only immediately after the call that failed.
   *
   * @param symbol The function that tells where the error number stands.
   * @returns What to call.
   * @throws {Error} Where the library does not have it.
   */
  bindErrno(symbol: string): () => number {
    const location = this.bind(symbol, { parameters: [], result: "pointer" })();
    if (location === null) throw new Error("The C library has no error number");
    // The place is looked up once: a call between a failure and the look at its number could change the number.
    const view = new Deno.UnsafePointerView(location);
    return () => view.getInt32();
  }
}

/** How a system numbers the ways to seek that know of holes. */
export interface HoleSeeks {
  /** To the first byte of data. */
  readonly data: number;
  /** To the first byte of a hole. */
  readonly hole: number;
}

/**
 * Opens a library for `lseek` alone. It is called for every hole of a file, and a library that stays open is called in a third of
 * the time that a pointer takes.
 *
 * @param libraries The names of the library, as hosts call it.
 * @param descriptor The file.
 * @param whence The numbers of the system.
 * @returns What finds holes, or undefined where no library can be opened.
 */
export function openHoleFinder(
  libraries: readonly string[],
  descriptor: number,
  whence: HoleSeeks,
): HoleFinder | undefined {
  for (const name of libraries) {
    try {
      const library = Deno.dlopen(name, { lseek: { parameters: ["i32", "i64", "i32"], result: "i64" } });
      const { lseek } = library.symbols;
      return {
        seekData: (offset) => Number(lseek(descriptor, BigInt(offset), whence.data)),
        seekHole: (offset) => Number(lseek(descriptor, BigInt(offset), whence.hole)),
        close: () => library.close(),
      };
    } catch {
      // Another name may do.
    }
  }
  return undefined;
}

/**
 * A string as the C library wants it.
 *
 * @param text The string.
 * @returns Its UTF-8 bytes and a zero.
 */
export function cString(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(`${text}\0`);
}
