/**
 * Where the backing file of an image stands, told by its name alone.
 *
 * @module
 */

/**
 * The path that the name of a backing file means: beside the image, unless it is absolute or has a protocol.
 *
 * @param imagePath Path of the image.
 * @param backingName Name of the backing file, as it stands in the image.
 * @returns The full name.
 */
export function fullBackingName(imagePath: string, backingName: string): string {
  if (/^[^:/]*:/.test(backingName) || backingName.startsWith("/")) return backingName;
  return imagePath.slice(0, imagePath.lastIndexOf("/") + 1) + backingName;
}
