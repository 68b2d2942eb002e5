/** The blocks of a text in markdown. */

import { marked, type Token } from "marked";

/** Quotes in quotes, of which the parser takes this many; a page can show them, and its stack is not their measure. */
const DEEPEST = 50;

/** A text that no reader would follow is one block of plain text: the rest of its chat has to be shown. */
export function lexed(text: string): Token[] {
  const plain: Token[] = [{ type: "text", raw: text, text }];
  if (new RegExp(`^(?:[ \\t]*>){${DEEPEST}}|^[ \\t]{${4 * DEEPEST},}(?:[-*+]|\\d+[.)])`, "m").test(text)) return plain;
  try {
    return marked.lexer(text, { gfm: true });
  } catch (error) {
    if (error instanceof RangeError) return plain;
    throw error;
  }
}
