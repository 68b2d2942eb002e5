import assert from "node:assert/strict";
import { test } from "node:test";

import { shown, wholeLines } from "../src/answer.js";
import { Answers } from "../src/answers.js";
import { holeAt } from "../src/hole.js";

const file = "a.py";

test("typing through an answer leaves its rest, and going back the whole", () => {
  const answers = new Answers();
  answers.add(file, holeAt(["def f(", ""], 0, 6), "a, b):\n    return a");
  assert.equal(answers.find(file, holeAt(["def f(a, ", ""], 0, 9)), "b):\n    return a");
  assert.equal(answers.find(file, holeAt(["def f(a, b):", "    re", ""], 1, 6)), "turn a");
  assert.equal(answers.find(file, holeAt(["def f(", ""], 0, 6)), "a, b):\n    return a");
});

test("text that leaves the answer, another file, or another suffix finds nothing", () => {
  const answers = new Answers();
  answers.add(file, holeAt(["x = ", "y"], 0, 4), "1 + 2");
  assert.equal(answers.find(file, holeAt(["x = 2", "y"], 0, 5)), undefined);
  assert.equal(answers.find("b.py", holeAt(["x = ", "y"], 0, 4)), undefined);
  assert.equal(answers.find(file, holeAt(["x = ", "z"], 0, 4)), undefined);
  assert.equal(answers.find(file, holeAt(["x = 1 + 2", "y"], 0, 9)), undefined, "nothing is left of it");
});

test("a bracket that the editor closed by itself does not hide an answer", () => {
  const answers = new Answers();
  answers.add(file, holeAt(["f", "g"], 0, 1), "(a)");
  assert.equal(answers.find(file, holeAt(["f()", "g"], 0, 2)), "a)");
});

test("an answer that was empty is not asked for again", () => {
  const answers = new Answers();
  answers.add(file, holeAt(["x", ""], 0, 1), "");
  assert.equal(answers.find(file, holeAt(["x", ""], 0, 1)), "");
});

test("several lines are shown only if they are wanted", () => {
  const open = holeAt(["if a:"], 0, 5);
  assert.equal(shown("\n  b\n  c\n", open, true)?.text, "\n  b\n  c");
  assert.equal(shown("\n  b", open, false), undefined);
  assert.equal(shown("a)\nmore", holeAt(["f( + 1"], 0, 2), false)?.text, "a)");
});

test("a text that was cut off loses the line without an end, but not its first", () => {
  assert.equal(wholeLines("a\nb\nc = "), "a\nb");
  assert.equal(wholeLines("a = "), "a = ");
  assert.equal(wholeLines("\n  a = "), "\n  a = ");
  assert.equal(wholeLines("a\n\n"), "a\n");
});

test("an answer ends where the file goes on", () => {
  const hole = holeAt(["a = 1", "", "c = 3"], 1, 0);
  assert.equal(shown("b = 2\nc = 3\nd = 4", hole, true)?.text, "b = 2");
});

test("closers right of the cursor are replaced if the answer brings them", () => {
  const hole = holeAt(["f()"], 0, 2);
  assert.deepEqual(shown("a, b)", hole, true), { text: "a, b)", replaces: 1 });
  assert.deepEqual(shown("a, b", hole, true), { text: "a, b", replaces: 0 });
  assert.deepEqual(shown("g(a)", hole, true), { text: "g(a)", replaces: 0 }, "it closes its own bracket");
  assert.deepEqual(shown("g(a))", hole, true), { text: "g(a))", replaces: 1 });
  assert.equal(shown('a"', holeAt(['f("")'], 0, 3), true)?.replaces, 1, "it closes the quote that stands in front");
  assert.equal(shown('a")', holeAt(['f("")'], 0, 3), true)?.replaces, 2);
});
