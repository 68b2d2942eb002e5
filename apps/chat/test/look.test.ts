import assert from "node:assert/strict";
import { test } from "node:test";

import { lookOf } from "../src/look.js";

const BEFORE = JSON.stringify({ language: "de", theme: "contrast" });

test("the look is the cookie's", () => {
  assert.deepEqual(lookOf("a=b; edgespec-look=en.dark; c=d", BEFORE, "de"), { language: "en", theme: "dark" });
});

test("without a cookie it is what a version before has stored", () => {
  assert.deepEqual(lookOf("", BEFORE, "en"), { language: "de", theme: "contrast" });
  assert.deepEqual(lookOf("", JSON.stringify({ theme: "dark" }), "de"), { language: "de", theme: "dark" });
});

test("a language and a theme that the page does not have are none", () => {
  for (const cookie of ["edgespec-look=xx.pink", "edgespec-look=toString.constructor"]) {
    assert.deepEqual(lookOf(cookie, null, "de"), { language: "de", theme: "auto" });
  }
  for (const stored of [null, "", "{", "null", "5", '"de"', '{"language": ["de"], "theme": {}}', '{"language": "toString", "theme": "pink"}']) {
    assert.deepEqual(lookOf("", stored, "de"), { language: "de", theme: "auto" });
    assert.deepEqual(lookOf("", stored, "fr"), { language: "en", theme: "auto" });
  }
});
