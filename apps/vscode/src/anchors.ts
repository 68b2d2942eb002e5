/** Where a hole is anchored: its text above the anchor stands in front of the suffix, the text since then behind it.
 *
 * A hole that is anchored at its own line has the server read the suffix again for every line that is finished.
 */

import type { Hole } from "./hole.js";

/** Whole lines and characters that may stand behind the suffix. The server takes no more than 128 tokens there.
 *
 * No lines yet: what models write with lines there was not compared with what they write without. */
export const LINES_BEHIND = 0;
export const CHARACTERS_BEHIND = 320;

interface Anchor {
  readonly filename: string;
  readonly prefix: string;
  readonly suffix: string;
}

export class Anchors {
  private last: Anchor | undefined;

  constructor(private readonly lines = LINES_BEHIND) {}

  /** The same text with the anchor of the last request, if all that was sent before and behind it is as it was. */
  anchored(filename: string, hole: Hole): Hole {
    const { last } = this;
    if (last !== undefined && last.filename === filename && last.suffix === hole.suffix && hole.prefix.startsWith(last.prefix)) {
      const since = hole.prefix.slice(last.prefix.length);
      if (since.length <= CHARACTERS_BEHIND && since.split("\n").length - 1 <= this.lines)
        return { prefix: last.prefix, typed: since + hole.typed, suffix: hole.suffix };
    }
    // Without text above there is no anchor: the server takes the hole's own line.
    this.last = hole.prefix === "" ? undefined : { filename, prefix: hole.prefix, suffix: hole.suffix };
    return hole;
  }
}
