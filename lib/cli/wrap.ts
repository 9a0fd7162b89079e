/**
 * Text in lines of a width.
 *
 * @module
 */

/**
 * Breaks a text between words. A word that is longer than a line stands in one of its own.
 *
 * @param text The text, of a single line.
 * @param width How many characters fit into a line.
 * @param indentation What stands in front of each line.
 * @returns The lines, at least one.
 */
export function wrap(text: string, width: number, indentation = ""): string[] {
  const lines: string[] = [];
  let line = indentation;
  for (const word of text.split(" ")) {
    const joined = line === indentation ? line + word : `${line} ${word}`;
    if (joined.length > width && line !== indentation) {
      lines.push(line);
      line = indentation + word;
    } else {
      line = joined;
    }
  }
  return [...lines, line];
}
