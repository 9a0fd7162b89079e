/**
 * The operating system that the process runs on, as the native part sees it.
 *
 * @module
 */

import { linuxHost } from "./linux.ts";
import { macosHost } from "./macos.ts";
import type { NativeHost } from "./native_host.ts";

let loaded: NativeHost | null | undefined;

/**
 * Whether the native part may be used: where it can be, and where the permission is there already.
 *
 * @returns Whether to try {@linkcode nativeHost}.
 */
function nativeAllowed(): boolean {
  if (Deno.build.os !== "linux" && Deno.build.os !== "darwin") return false;
  return Deno.permissions.querySync({ name: "ffi" }).state === "granted";
}

/**
 * The operating system beneath, loaded at the first call.
 *
 * @returns The system, or undefined where the native part cannot be used.
 */
export function nativeHost(): NativeHost | undefined {
  // Not remembered: the permission may be given later.
  if (!nativeAllowed()) return undefined;
  if (loaded === undefined) {
    try {
      loaded = (Deno.build.os === "linux" ? linuxHost() : macosHost()) ?? null;
    } catch {
      loaded = null;
    }
  }
  return loaded ?? undefined;
}
