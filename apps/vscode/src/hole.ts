/** The text around the cursor, as the server takes it.
 *
 * The hole begins at the start of its line: what stands left of the cursor goes behind the middle token. So a further
 * key changes only the end of what the model has read.
 */

export interface Hole {
  /** whole lines above the cursor's line */
  readonly prefix: string;
  /** the cursor's line, left of the cursor */
  readonly typed: string;
  /** from the cursor on */
  readonly suffix: string;
}

/** Lines above the cursor that are sent: between one and two times this. */
export const LINES_ABOVE = 192;
/** Lines below the cursor that are sent. */
export const LINES_BELOW = 64;

/** `line` and `character` count from 0, in UTF-16 units, as in the editor. */
export function holeAt(lines: readonly string[], line: number, character: number): Hole {
  const own = lines[line] ?? "";
  // The first line moves in steps: were it to move with the cursor, the whole text would be read again at every line.
  const first = Math.max(0, (Math.floor(line / LINES_ABOVE) - 1) * LINES_ABOVE);
  const above = lines.slice(first, line);
  return {
    prefix: above.length > 0 ? above.join("\n") + "\n" : "",
    typed: own.slice(0, character),
    suffix: [own.slice(character), ...lines.slice(line + 1, line + 1 + LINES_BELOW)].join("\n"),
  };
}

/** What stands right of the cursor on its line. */
export function restOfLine(hole: Hole): string {
  return hole.suffix.split("\n", 1)[0] ?? "";
}

/** Closing brackets and quotes alone, as an editor sets them by itself. */
export function isClosing(rest: string): boolean {
  return /^[\s)\]}>"'`;,:]*$/.test(rest);
}
