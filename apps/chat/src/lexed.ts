/** The blocks of a text in markdown. */

import { Marked, type Token, type TokenizerExtension } from "marked";

/** Quotes in quotes, of which the parser takes this many; a page can show them, and its stack is not their measure. */
const DEEPEST = 50;

/** Of a formula in TeX: no empty line, and no other formula, so that one without an end is not searched for far. */
const TEX = String.raw`(?:[^\\\n]|\n(?![ \t]*\n)|\\(?![()[\]])[^])`;
const TEX_OR_BREAK = String.raw`(?:[^\\\n$]|\n(?![ \t]*\n)|\\[^])`;
/** Between \( \), \[ \], $ $ and $$ $$. A dollar before a blank, or one behind which a digit stands, is money. */
const INLINE = new RegExp(String.raw`^(?:\\\(${TEX}+?\\\)|\\\[${TEX}+?\\\]|\$\$${TEX_OR_BREAK}+\$\$|\$(?![\s$])(?:[^$\n\\` + "`" + String.raw`]|\\.)*(?<!\s)\$(?!\d))`);
/** On lines of its own; one that is still being written goes on to the next empty line. */
const END = String.raw`(?=\n[ \t]*\n|$)`;
const BLOCK = new RegExp(String.raw`^ {0,3}(?:\\\[${TEX}*?(?:\\\]|${END})|\$\$${TEX_OR_BREAK}*(?:\$\$|${END}))[ \t]*(?:\n|$)`);

const maths = (level: "inline" | "block", pattern: RegExp): TokenizerExtension => ({
  name: "maths",
  level,
  start: (text) => (level === "block" ? text.match(/\n {0,3}(?:\\\[|\$\$)/)?.index : text.match(/\\[([]|\$/)?.index),
  tokenizer: (text) => {
    const raw = pattern.exec(text)?.[0];
    return raw === undefined ? undefined : { type: "maths", raw };
  },
});

const parser = new Marked({ gfm: true, extensions: [maths("inline", INLINE), maths("block", BLOCK)] });

/** A text that no reader would follow is one block of plain text: the rest of its chat has to be shown. */
export function lexed(text: string): Token[] {
  const plain: Token[] = [{ type: "text", raw: text, text }];
  if (new RegExp(`^(?:[ \\t]*>){${DEEPEST}}|^[ \\t]{${4 * DEEPEST},}(?:[-*+]|\\d+[.)])`, "m").test(text)) return plain;
  try {
    return parser.lexer(text);
  } catch (error) {
    if (error instanceof RangeError) return plain;
    throw error;
  }
}
