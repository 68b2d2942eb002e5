// The extension in a real extension host: code-server from npm, driven in Chromium, with a real model. The extension
// starts the server itself, stops it and starts it again. tests/test_vscode.py runs it.
//   CODE_SERVER=.../code-server EDGESPEC=.../edgespec node e2e/run.mjs edgespec.vsix [FOLDER for a picture]
// EDGESPEC_MODEL: another model. EDGESPEC_URL: use the server there, for times. CHROMIUM: the browser. playwright-core
// is taken from apps/chat.
import assert from "node:assert/strict";
import { spawn, execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const { chromium } = createRequire(new URL("../../chat/package.json", import.meta.url))("playwright-core");
const [vsix, pictures] = process.argv.slice(2);
const program = process.env.CODE_SERVER ?? "code-server";
const free = () => new Promise((resolve) => {
  const probe = createServer().listen(0, "127.0.0.1", () => {
    const { port } = probe.address();
    probe.close(() => resolve(port));
  });
});
const isOwn = process.env.EDGESPEC_URL === undefined;
const server = process.env.EDGESPEC_URL ?? `http://127.0.0.1:${await free()}`;
const work = mkdtempSync(join(tmpdir(), "edgespec-vscode-"));
const folder = join(work, "project");
mkdirSync(folder);
mkdirSync(join(work, "user", "User"), { recursive: true });
writeFileSync(join(work, "user", "User", "settings.json"), JSON.stringify({ "edgespec.url": server, "edgespec.command": process.env.EDGESPEC ?? "edgespec", "edgespec.model": process.env.EDGESPEC_MODEL ?? "default", "edgespec.debounce": 50, "workbench.startupEditor": "none", "editor.quickSuggestions": { other: "off", comments: "off", strings: "off" }, "editor.wordBasedSuggestions": "off" }));
const filler = Array.from({ length: 60 }, (_, i) => `def scale_${i}(value, factor=${i}):\n    """Return value times factor ${i}."""\n    return value * factor\n`);
writeFileSync(join(folder, "shapes.py"), [...filler.slice(0, 20), "\n\n", ...filler.slice(40, 48)].join("\n"));
writeFileSync(join(folder, "other.py"), "def area_of_circle(radius):\n    return 3.14159 * radius ** 2\n");

const port = await free();
const asked = async (path) => {
  try {
    const answer = await fetch(server + path, { headers: { connection: "close" } });
    return answer.ok ? await answer.json() : undefined;
  } catch {
    return undefined;
  }
};
const until = async (what, holds, seconds = 60) => {
  for (const end = Date.now() + 1000 * seconds; !(await holds()); await new Promise((resolve) => setTimeout(resolve, 200)))
    if (Date.now() > end) throw new Error(`it did not come to this: ${what}`);
  console.log(what);
};
const common = ["--extensions-dir", join(work, "ext"), "--user-data-dir", join(work, "user")];
execFileSync(program, [...common, "--install-extension", vsix], { stdio: "ignore" });
const host = spawn(program, [...common, "--auth", "none", "--bind-addr", `127.0.0.1:${port}`, "--disable-telemetry", "--disable-update-check", "--disable-workspace-trust", folder], { stdio: "ignore", env: { ...process.env, EDGESPEC_DATA: join(work, "data") } });
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
let failed = false;

/** Takes the first of what the editor lists for a text. keys: open the list of commands, or of files. */
async function pick(page, keys, text) {
  await page.keyboard.press(keys);
  await page.locator(".quick-input-widget input").waitFor();
  await page.keyboard.type(text);
  await page.waitForTimeout(700);
  await page.keyboard.press("Enter");
}

/** The server that the extension has started: stopped and started by commands. */
async function started(page, bar) {
  const rows = async () => (await asked("/slots"))?.[0]?.n_past ?? 0;
  assert.ok((await rows()) > 100, "rows were read");
  await pick(page, "F1", "edgespec: Stop the Server");
  await until("a command stops it", async () => (await asked("/v1/models")) === undefined);
  await pick(page, "F1", "edgespec: Start the Server");
  await until("a command starts it", async () => (await asked("/health")) !== undefined, 120);
  await bar.first().waitFor({ timeout: 60_000 });
}

try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
  for (let tries = 0; ; tries++) {
    try {
      await page.goto(`http://127.0.0.1:${port}/?folder=${folder}`);
      break;
    } catch (error) {
      if (tries > 60) throw error;
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  }
  await page.locator(".monaco-workbench").waitFor({ timeout: 60_000 });
  await until("the extension has a server", async () => (await asked("/health")) !== undefined, 120);
  const [{ id: model }] = (await asked("/v1/models")).data;
  const bar = page.locator(".statusbar-item", { hasText: model });
  await bar.first().waitFor({ timeout: 60_000 });
  const open = async (name) => {
    await pick(page, "Control+P", name);
    await page.locator(".tab.active", { hasText: name }).waitFor();
    await page.waitForTimeout(500);
  };
  await open("other.py");
  await open("shapes.py");
  await page.keyboard.press("Control+G");
  await page.locator(".quick-input-widget input").waitFor();
  await page.keyboard.type("82");
  await page.keyboard.press("Enter");
  await page.waitForTimeout(500);
  const ghost = () => page.locator("[class*=ghost-text]").allTextContents();
  const waits = [];
  const shown = async (what, type) => {
    await page.keyboard.press("Escape");
    await page.waitForTimeout(400);
    const began = performance.now();
    await type();
    await page.waitForFunction(() => [...document.querySelectorAll("[class*=ghost-text]")].some((each) => each.textContent.trim()), undefined, { timeout: 60_000, polling: 10 });
    waits.push(performance.now() - began);
    console.log(`${what}: ${waits.at(-1).toFixed(0)} ms from the last key to grey text, debounce of 50 ms included: ${JSON.stringify((await ghost()).join(""))}`);
  };
  await shown("cold", () => page.keyboard.type("def area_of_square(", { delay: 5 }));
  if (pictures) {
    mkdirSync(pictures, { recursive: true });
    await page.screenshot({ path: join(pictures, "vscode.png") });
  }
  const text = (await ghost()).join("");
  await page.keyboard.press("Tab");
  await page.waitForTimeout(300);
  const line = await page.evaluate(() => [...document.querySelectorAll(".view-line")].map((each) => each.textContent.replaceAll("\u00a0", " ")).find((each) => each.includes("area_of_square")));
  assert.ok(line.length > "def area_of_square(".length, `Tab took it: ${line} (${text})`);
  await page.keyboard.press("End");
  await page.keyboard.press("Enter");
  for (const typed of ["def ", "area_", "of_cube("]) {
    await page.keyboard.type(typed.slice(0, -1), { delay: 5 });
    await page.waitForTimeout(1500);
    await shown(`one more key: ${typed}`, () => page.keyboard.type(typed.slice(-1)));
  }
  const lineNow = () => page.evaluate(() => [...document.querySelectorAll(".view-line")].map((each) => each.textContent.replaceAll("\u00a0", " ")).find((each) => each.includes("of_cube(")));
  const [before, [first]] = [await lineNow(), (await ghost()).join("").split("\n")];
  await page.keyboard.press("Control+ArrowDown");
  await page.waitForTimeout(300);
  const after = await lineNow();
  assert.ok(after.length > "def area_of_cube(".length, `Ctrl+Down took a line: ${before} -> ${after} (${first})`);
  if (isOwn) await started(page, bar);
  console.log("ok");
} catch (error) {
  failed = true;
  console.log(String(error));
  const page = browser.contexts()[0]?.pages()[0];
  await page?.screenshot({ path: join(tmpdir(), "vscode-failed.png") });
} finally {
  await browser.close();
  host.kill();
}
if (isOwn && !failed) await until("the server has ended with the editor", async () => (await asked("/v1/models")) === undefined);
process.exit(failed ? 1 : 0);
