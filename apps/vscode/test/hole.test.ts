import assert from "node:assert/strict";
import { test } from "node:test";

import { holeAt, isClosing, LINES_ABOVE, LINES_BELOW, restOfLine } from "../src/hole.js";

const numbered = (count: number) => Array.from({ length: count }, (_, i) => `line ${i}`);

test("the hole begins at the start of its line", () => {
  const hole = holeAt(["a", "if (b) c", "d"], 1, 4);
  assert.deepEqual(hole, { prefix: "a\n", typed: "if (", suffix: "b) c\nd" });
  assert.equal(restOfLine(hole), "b) c");
});

test("on the first line there is no text above", () => {
  assert.deepEqual(holeAt(["abc"], 0, 3), { prefix: "", typed: "abc", suffix: "" });
});

test("a key on a line changes only what was typed", () => {
  const before = holeAt(["a", "b", "c"], 1, 1);
  const after = holeAt(["a", "bx", "c"], 1, 2);
  assert.equal(after.prefix, before.prefix);
  assert.equal(after.suffix, before.suffix);
});

test("the first line that is sent moves in steps", () => {
  const lines = numbered(1000);
  const first = (line: number) => holeAt(lines, line, 0).prefix.split("\n", 1)[0];
  const seen = new Set(Array.from({ length: 1000 }, (_, line) => line).slice(1).map(first));
  assert.ok(seen.size <= Math.ceil(1000 / LINES_ABOVE));
  for (const line of [500, 777, 999]) {
    const sent = holeAt(lines, line, 0).prefix.split("\n").length - 1;
    assert.ok(sent >= LINES_ABOVE && sent < 2 * LINES_ABOVE, `${sent} lines above ${line}`);
  }
});

test("below there are so many lines at most", () => {
  assert.equal(holeAt(numbered(1000), 10, 0).suffix.split("\n").length, 1 + LINES_BELOW);
});

test("brackets that an editor closes are told from text", () => {
  for (const rest of ["", " ", ")", '");', "]}"]) assert.ok(isClosing(rest), rest);
  for (const rest of ["x)", "(", " + 1"]) assert.ok(!isClosing(rest), rest);
});
