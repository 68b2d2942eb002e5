import assert from "node:assert/strict";
import { test } from "node:test";

import { around, Editors, PIECE_LINES, Pieces, similar } from "../src/context.js";

const text = (word: string, count = 10) => Array.from({ length: count }, (_, i) => `${word} ${i}`).join("\n");
const names = (pieces: Pieces) => pieces.except("").map((piece) => piece.filename);

test("pieces keep their order, and a file does not read its own", () => {
  const pieces = new Pieces(10_000);
  for (const filename of ["a", "b", "c"]) pieces.add({ filename, text: text(filename) });
  assert.deepEqual(names(pieces), ["a", "b", "c"]);
  assert.deepEqual(pieces.except("b").map((piece) => piece.filename), ["a", "c"]);
});

test("the same piece again changes nothing, a changed one goes behind", () => {
  const pieces = new Pieces(10_000);
  pieces.add({ filename: "a", text: text("a") });
  pieces.add({ filename: "b", text: text("b") });
  pieces.add({ filename: "a", text: text("a") });
  assert.deepEqual(names(pieces), ["a", "b"]);
  pieces.add({ filename: "a", text: text("a") + "\nnew" });
  assert.deepEqual(names(pieces), ["b", "a"]);
});

test("a full budget drops the older half at once", () => {
  const pieces = new Pieces(1000);
  let resets = 0;
  let before: string[] = [];
  for (let i = 0; i < 100; i++) {
    pieces.add({ filename: `f${i}`, text: text(`w${i}`) });
    const now = names(pieces);
    if (before.some((name) => !now.includes(name))) resets++;
    before = now;
    assert.ok(pieces.except("").reduce((sum, piece) => sum + piece.text.length, 0) <= 1000);
  }
  assert.ok(resets < 30, `the front changed ${resets} times in 100`);
});

test("blank pieces and those over the budget stay out; a budget of 0 keeps none", () => {
  const pieces = new Pieces(50);
  pieces.add({ filename: "a", text: " \n" });
  pieces.add({ filename: "b", text: "x".repeat(60) });
  pieces.add({ filename: "c", text: "x" });
  assert.deepEqual(names(pieces), ["c"]);
  pieces.resize(0);
  assert.deepEqual(names(pieces), []);
});

test("around gives the lines near a place", () => {
  const lines = Array.from({ length: 200 }, (_, i) => `${i}`);
  assert.equal(around(lines, 0).split("\n").length, PIECE_LINES);
  assert.ok(around(lines, 100).split("\n").includes("100"));
  assert.ok(around(lines, 199).split("\n").includes("199"));
  assert.equal(around(["a", "b"], 1), "a\nb");
});

test("similar counts shared lines", () => {
  assert.equal(similar("a\nb", "b\na\nc"), 1);
  assert.equal(similar("a\nb", "c\nd"), 0);
});

test("what was edited in a file is kept when another one is shown", () => {
  const pieces = new Pieces(10_000);
  const [a, b] = [{ name: "a", text: text("as shown") }, { name: "b", text: text("b") }];
  const editors = new Editors<typeof a>(({ name, text }) => pieces.add({ filename: name, text }));
  editors.change(a);
  a.text = text("as edited");
  editors.change(b);
  assert.ok(pieces.except("b").some((piece) => piece.text === text("as edited")));
  b.text = text("b as edited");
  editors.change(undefined);
  assert.ok(pieces.except("a").some((piece) => piece.text === text("b as edited")));
});
