/** One completion: what is kept already, else a pause, then a request that the next key ends. */

import { Anchors } from "./anchors.js";
import { shown, stops, wholeLines, type Shown } from "./answer.js";
import { Answers } from "./answers.js";
import type { Client, Completion } from "./client.js";
import type { Pieces } from "./context.js";
import { isClosing, restOfLine, type Hole } from "./hole.js";

export interface Wanted {
  readonly filename: string;
  readonly hole: Hole;
  /** most tokens; milliseconds (see Limits); more lines than one */
  readonly tokens: number;
  readonly time: number;
  readonly several: boolean;
  /** milliseconds to wait for a further key; 0 where the user asked by hand */
  readonly pause: number;
}

export class Completer {
  private readonly answers = new Answers();
  private readonly anchors = new Anchors();

  /** told: hears of each answer, for the status bar. */
  constructor(
    private readonly client: () => Client,
    private readonly pieces: Pieces,
    private readonly told: (completion: Completion) => void,
  ) {}

  /** undefined: nothing to show, or `signal` was set off. Raises ServerError and what fetch raises. */
  async complete(wanted: Wanted, signal: AbortSignal): Promise<Shown | undefined> {
    const { filename, hole, tokens, time } = wanted;
    // In the middle of a line its rest is what is missing.
    const several = wanted.several && isClosing(restOfLine(hole));
    const kept = this.answers.find(filename, hole);
    if (kept !== undefined) return shown(kept, hole, several);
    if (wanted.pause > 0) await pause(wanted.pause, signal);
    if (signal.aborted) return undefined;
    try {
      const limits = { tokens, time, stop: stops(hole, several) };
      const anchored = this.anchors.anchored(filename, hole);
      const completion = await this.client().infill(anchored, this.pieces.except(filename), slot(filename), limits, signal);
      this.told(completion);
      const text = completion.stop_type === "limit" ? wholeLines(completion.content) : completion.content;
      this.answers.add(filename, hole, text);
      return shown(text, hole, several);
    } catch (error) {
      if (signal.aborted) return undefined;
      throw error;
    }
  }

  /** Answers of another model are worth nothing. */
  forget(): void {
    this.answers.clear();
  }
}

/** The same number for the same file: a newer request of a file ends its older one, and finds what was read. */
export function slot(filename: string): number {
  let hash = 7;
  for (const character of filename) hash = (31 * hash + character.codePointAt(0)!) % 1_000_003;
  return hash;
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
