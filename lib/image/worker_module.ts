/**
 * Modules that run as workers.
 *
 * @module
 */

/**
 * Whether a thread could load a module. Without the permission to read it, the runtime would complain on its own.
 *
 * @param module Where the module is.
 * @returns Whether it may be read, as far as it has to be.
 */
export function mayLoad(module: URL): boolean {
  if (module.protocol !== "file:") return true;
  return Deno.permissions.querySync({ name: "read", path: module }).state === "granted";
}
