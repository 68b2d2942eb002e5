import assert from "node:assert/strict";
import { test } from "node:test";

import type { Token } from "marked";

import { lexed } from "../src/lexed.js";
import { Events, Sentences } from "../src/stream.js";
import { TABLES } from "../src/texts.js";
import { branch, leafOf, siblings, spans, type Turn } from "../src/tree.js";

const turn = (id: number, parent: number | null, role: Turn["role"] = "user"): Turn => ({ id, parent, role, content: `${id}`, files: [], facts: null });
// 1 - 2 - 3
//   \ 4 - 5
const TURNS = [turn(1, null), turn(2, 1, "assistant"), turn(3, 2), turn(4, 1, "assistant"), turn(5, 4)];

test("a branch goes from the first turn to its leaf", () => {
  assert.deepEqual(branch(TURNS, 3).map((each) => each.id), [1, 2, 3]);
  assert.deepEqual(branch(TURNS, 5).map((each) => each.id), [1, 4, 5]);
  assert.deepEqual(branch(TURNS, null), []);
  const circle = [turn(1, 2), turn(2, 1)];
  assert.deepEqual(branch(circle, 1).map((each) => each.id), [2, 1], "a damaged file makes no endless loop");
});

test("versions of a turn stand beside it, and each has its newest leaf", () => {
  assert.deepEqual(siblings(TURNS, TURNS[1]!).map((each) => each.id), [2, 4]);
  assert.equal(leafOf(TURNS, 2), 3);
  assert.equal(leafOf(TURNS, 4), 5);
  assert.equal(leafOf(TURNS, 1), 5);
});

test("spans cut by characters, not by halves of them, and leave nothing out", () => {
  assert.deepEqual(spans("a😀bc", [[2, ""], [1, "ngram"]]), [
    { text: "a😀", drafter: "" }, { text: "b", drafter: "ngram" }, { text: "c", drafter: "" },
  ]);
  assert.deepEqual(spans("ab", undefined), [{ text: "ab", drafter: "" }]);
});

test("events come whole, however the bytes are cut", () => {
  const bytes = new TextEncoder().encode('data: {"text":"grün 山"}\n\n: ping\n\ndata: {"facts":null}\n\n');
  for (let size = 1; size < 9; size++) {
    const events = new Events();
    const found: unknown[] = [];
    for (let at = 0; at < bytes.length; at += size) found.push(...events.push(bytes.slice(at, at + size)));
    assert.deepEqual(found, [{ text: "grün 山" }, { facts: null }]);
  }
});

test("text is spoken a sentence at a time, and all of it once", () => {
  const sentences = new Sentences();
  const text = "One. Two is 3.5 long! And a rest";
  const told: string[] = [];
  for (let end = 1; end <= text.length; end++) told.push(sentences.next(text.slice(0, end)));
  told.push(sentences.next(text, true));
  assert.deepEqual(told.filter((each) => each !== ""), ["One.", "Two is 3.5 long!", "And a rest"]);
});

test("every language has every text, with the same places", () => {
  const places = (text: string) => [...text.matchAll(/\{\d\}/g)].map(String).sort();
  for (const table of Object.values(TABLES)) {
    assert.deepEqual(Object.keys(table), Object.keys(TABLES.en));
    for (const [name, text] of Object.entries(table)) assert.deepEqual(places(text), places(TABLES.en[name as "ask"]), name);
  }
});

test("a text of any depth can be shown", () => {
  const list = Array.from({ length: 400 }, (_, depth) => `${"  ".repeat(depth)}- a`).join("\n");
  for (const deep of [">".repeat(100_000), "> ".repeat(100_000) + "x", list]) {
    const began = Date.now();
    assert.deepEqual(lexed(`before\n\n${deep}`).map((block) => block.type), ["text"]);
    assert.ok(Date.now() - began < 1000);
  }
  assert.deepEqual(lexed("> > one\n\n- a\n  - b").map((block) => block.type), ["blockquote", "space", "list"]);
  assert.equal(lexed("[".repeat(5000)).length, 1);
});

/** What is shown of a text: markup as <type text>. */
function seen(tokens: readonly Token[]): string {
  return tokens.map((token) => {
    if (token.type === "maths") return `<maths ${token.raw.trim()}>`;
    if ("tokens" in token && token.tokens) return token.type === "paragraph" || token.type === "text" ? seen(token.tokens) : `<${token.type} ${seen(token.tokens)}>`;
    return "text" in token ? String(token.text) : token.raw;
  }).join("");
}

test("maths stays as it was written", () => {
  const kept = [
    "$x^2$", "$a_1 + b_2 * c * d_3$", "$$\\sum_{i=1}^n x_i$$", "\\(\\frac{a}{b} * c * d\\)", "$\\$5$",
    "\\[ \\begin{aligned} a &= b \\\\ c &= d \\end{aligned} \\]", "\\[\na_1\n- b_1\n= c\n\\]", "$$\nx\n- y\n* z\n$$", "\\[ still being _written_ * here *",
  ];
  for (const text of kept) {
    assert.equal(seen(lexed(text)), `<maths ${text}>`, text);
    assert.match(seen(lexed(`So it is:\n\n${text}\n\nAnd **more**.`)), /^So it is:\s*<maths [^]*>\s*And <strong more>\.$/, text);
  }
  assert.equal(seen(lexed("If $a_1$ and $b_1$ are *big*, \\(x*y\\).")), "If <maths $a_1$> and <maths $b_1$> are <em big>, <maths \\(x*y\\)>.");
  assert.equal(seen(lexed("\\[ open _and_ on\n\nA *new* one.")), "<maths \\[ open _and_ on>A <em new> one.");
});

test("money and code are no maths", () => {
  for (const text of ["It is $5 or $6.", "$5-$6", "a $ b $ c", "US$ and C$", "5$"]) assert.equal(seen(lexed(text)), text, text);
  assert.deepEqual(lexed("`$x$` and `\\(y\\)`")[0]!.type, "paragraph");
  assert.equal(seen(lexed("`$x$` and `\\(y\\)`")), "$x$ and \\(y\\)");
  assert.equal(lexed("```tex\n\\[ x \\]\n$$ y $$\n```")[0]!.type, "code");
  assert.equal(seen(lexed("a \\* b \\_ c")), "a * b _ c");
});

test("dollars without end cost no time", () => {
  for (const text of ["$", "$a", "\\(", "\\[\n", "$$ ", "$$\n"].map((unit) => unit.repeat(2000))) {
    const began = Date.now();
    lexed(text);
    assert.ok(Date.now() - began < 2000, `${text.slice(0, 6)} took ${Date.now() - began} ms`);
  }
});
