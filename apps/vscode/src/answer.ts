/** From what the model wrote to what is shown. */

import { restOfLine, type Hole } from "./hole.js";

export interface Shown {
  readonly text: string;
  /** characters right of the cursor that the text takes the place of */
  readonly replaces: number;
}

/** undefined: nothing worth showing. */
export function shown(written: string, hole: Hole, several: boolean): Shown | undefined {
  let text = written.replace(/\r\n?/g, "\n");
  if (!several) text = text.split("\n", 1)[0] ?? "";
  text = withoutSuffix(text, hole.suffix).replace(/\s+$/, "");
  if (text.trim() === "") return undefined;
  return { text, replaces: brought(text, restOfLine(hole)) };
}

/** A text that a limit cut off, without its last line, which has no end. A first line is shown as far as it goes. */
export function wholeLines(written: string): string {
  const end = written.lastIndexOf("\n");
  return end < 0 || written.slice(0, end).trim() === "" ? written : written.slice(0, end);
}

/** The server need not write what `shown` would cut off. */
export function stops(hole: Hole, several: boolean): string[] {
  if (!several) return ["\n"];
  const next = lineBehind(hole.suffix);
  return next === undefined ? [] : [`\n${next}\n`];
}

/** The first line behind the hole's own that is not blank. */
function lineBehind(suffix: string): string | undefined {
  return suffix.split("\n").slice(1).find((line) => line.trim() !== "");
}

/** Text up to where it goes on as the suffix does: a model often writes past the hole. */
function withoutSuffix(text: string, suffix: string): string {
  const next = lineBehind(suffix);
  if (next === undefined) return text;
  const lines = text.split("\n");
  const at = lines.findIndex((line, i) => i > 0 && line === next);
  return at < 0 ? text : lines.slice(0, at).join("\n");
}

/** How many closers right of the cursor the text brings itself, on its first line. */
function brought(text: string, rest: string): number {
  const closers = /^[)\]}"'`]*/.exec(rest)?.[0] ?? "";
  const unmatched = unmatchedClosers(text.split("\n", 1)[0] ?? "");
  let count = 0;
  while (count < closers.length && closers[count] === unmatched[count]) count++;
  return count;
}

/** Closing brackets and quotes of a line that it did not open: "a, g(b))" has one. */
function unmatchedClosers(line: string): string {
  const open: string[] = [];
  let unmatched = "";
  for (const character of line) {
    const closes = { ")": "(", "]": "[", "}": "{" }[character];
    if ("([{".includes(character)) open.push(character);
    else if (closes !== undefined && open.at(-1) === closes) open.pop();
    else if (closes !== undefined) unmatched += character;
    else if (`"'\``.includes(character) && line.split(character).length % 2 === 0) unmatched += character;
  }
  return unmatched;
}
