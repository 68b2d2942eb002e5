/** Answers that were given, so that typing on, or going back, needs no request. */

import type { Hole } from "./hole.js";

interface Answer {
  readonly filename: string;
  readonly before: string;
  readonly after: string;
  readonly text: string;
}

/** Answers that are kept. */
const KEPT = 200;

export class Answers {
  private kept: Answer[] = [];

  add(filename: string, hole: Hole, text: string): void {
    this.kept.push({ filename, before: hole.prefix + hole.typed, after: hole.suffix, text });
    if (this.kept.length > KEPT) this.kept.shift();
  }

  /** The rest of an answer that the typed text has followed so far; undefined where none fits. Newest first. */
  find(filename: string, hole: Hole): string | undefined {
    const now = hole.prefix + hole.typed;
    for (const answer of [...this.kept].reverse()) {
      if (answer.filename !== filename || !now.startsWith(answer.before)) continue;
      const typed = now.slice(answer.before.length);
      const goesOn = answer.text.startsWith(typed) && (typed === "" || typed.length < answer.text.length);
      if (goesOn && same(answer.after, hole.suffix)) return answer.text.slice(typed.length);
    }
    return undefined;
  }

  clear(): void {
    this.kept = [];
  }
}

/** Whether the text behind is the same, but for brackets that the editor has closed by itself since. */
function same(then: string, now: string): boolean {
  return now.endsWith(then) && /^[)\]}>"'`]*$/.test(now.slice(0, now.length - then.length));
}
