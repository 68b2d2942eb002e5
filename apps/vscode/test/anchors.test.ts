import assert from "node:assert/strict";
import { test } from "node:test";

import { Anchors, CHARACTERS_BEHIND, LINES_BEHIND } from "../src/anchors.js";
import { holeAt } from "../src/hole.js";

const LINES = 8;

/** What is sent with the cursor at the end of the text before "|". */
function sent(anchors: Anchors, text: string, filename = "a.py") {
  const [before, behind] = text.split("|") as [string, string];
  const line = before.split("\n").length - 1;
  return anchors.anchored(filename, holeAt((before + behind).split("\n"), line, before.length - before.lastIndexOf("\n") - 1));
}

test("a line that is finished stays behind the suffix, and keys add to it", () => {
  const anchors = new Anchors(LINES);
  sent(anchors, "a\nif b|\nz");
  assert.deepEqual(sent(anchors, "a\nif b:\n    |\nz"), { prefix: "a\n", typed: "if b:\n    ", suffix: "\nz" });
  assert.deepEqual(sent(anchors, "a\nif b:\n    c|\nz"), { prefix: "a\n", typed: "if b:\n    c", suffix: "\nz" });
});

test("by default no line stays there, and what was typed on the line does", () => {
  assert.equal(LINES_BEHIND, 0);
  const anchors = new Anchors();
  sent(anchors, "a\nif b|\nz");
  assert.deepEqual(sent(anchors, "a\nif b:|\nz"), { prefix: "a\n", typed: "if b:", suffix: "\nz" });
  assert.deepEqual(sent(anchors, "a\nif b:\n    c|\nz"), { prefix: "a\nif b:\n", typed: "    c", suffix: "\nz" });
});

test("so few lines and characters stay there", () => {
  const anchors = new Anchors(LINES);
  const typed = (lines: number) => `a\n${"b\n".repeat(lines)}|\nz`;
  sent(anchors, typed(0));
  assert.equal(sent(anchors, typed(LINES)).prefix, "a\n");
  assert.equal(sent(anchors, typed(LINES + 1)).typed, "");
  assert.equal(sent(anchors, typed(LINES + 2)).typed, "b\n", "from the new anchor on");
  sent(anchors, "a\n|\nz");
  assert.equal(sent(anchors, `a\n${"b".repeat(CHARACTERS_BEHIND)}\n|\nz`).typed, "");
});

test("another place, file or text around it has its own anchor", () => {
  for (const other of ["a\nb\nc|\nzz", "a\nb\nz\n|", "x\nb\nc|\nz"]) {
    const anchors = new Anchors(LINES);
    sent(anchors, "a\nb|\nz");
    assert.ok(!sent(anchors, other).typed.includes("\n"), other);
  }
  const anchors = new Anchors(LINES);
  sent(anchors, "a\nb|\nz");
  assert.equal(sent(anchors, "a\nb\nc|\nz", "b.py").typed, "c");
});

test("without text above there is no anchor", () => {
  const anchors = new Anchors(LINES);
  sent(anchors, "a|\nz");
  assert.equal(sent(anchors, "a\nb|\nz").typed, "b");
});
