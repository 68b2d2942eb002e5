import assert from "node:assert/strict";
import { test } from "node:test";

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
