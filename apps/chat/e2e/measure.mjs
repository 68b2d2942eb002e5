// Four figures of the page in a real browser, each with what it may be at most.
//   PYTHON=python3 node e2e/measure.mjs [typing] [memory] [first] [start]
// typing: frames while text streams at 100 tokens a second and somebody types. memory: of the page with 200 turns.
// first: from the library's first text to the page's. start: from edgespec-chat to a page that can be typed in.
import { spawn } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";

import { chromium } from "playwright-core";

const PYTHON = process.env.PYTHON ?? "python3";
const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const TURNS = 200, TOKENS_A_SECOND = 100, STREAM_S = 5, ANSWERS = 5;
const work = mkdtempSync(join(tmpdir(), "edgespec-measure-"));
const asked = process.argv.slice(2);
const missed = [];

function tell(what, value, unit, most) {
  const holds = most === undefined || value <= most;
  if (!holds) missed.push(what);
  console.log(`${what}: ${value.toFixed(value < 10 ? 1 : 0)} ${unit}${most === undefined ? "" : `, at most ${+most.toFixed(1)}: ${holds ? "yes" : "NO"}`}`);
}

/** A server that prints the time of each first text. */
async function served() {
  const data = join(work, "data");
  const server = spawn(PYTHON, [join(import.meta.dirname, "serve_timed.py")], { env: { ...process.env, EDGESPEC_DATA: data }, stdio: ["ignore", "pipe", "inherit"] });
  const firsts = [];
  server.stdout.on("data", (text) => firsts.push(...[...String(text).matchAll(/first ([\d.]+)/g)].map((found) => 1000 * Number(found[1]))));
  const url = await until(() => {
    const found = JSON.parse(readFileSync(join(data, "server.json"), "utf8"));
    return found.pid === server.pid && found.url;
  });
  await until(async () => (await (await fetch(`${url}/app/state`)).json()).ready);
  return { url, firsts, end: () => server.kill() };
}

async function until(look) {
  for (let tries = 0; tries < 6000; tries++) {
    try {
      const found = await look();
      if (found) return found;
    } catch {
      // not there yet
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`it did not come: ${look}`);
}

/** A chat of 200 turns, opened. */
async function long(page, url) {
  const answer = "An answer with **words**, `code` and a list:\n\n- one\n- two\n\n```python\nfor x in range(10):\n    print(x)\n```\n\n".repeat(2);
  const messages = Array.from({ length: TURNS }, (_, at) => ({ role: at % 2 ? "assistant" : "user", content: at % 2 ? answer : `question ${at}` }));
  await fetch(`${url}/app/import`, { method: "POST", body: JSON.stringify({ title: "long", messages }) });
  await page.goto(url);
  await page.getByRole("button", { name: "long" }).first().click();
  await page.locator(".turn").nth(TURNS - 1).waitFor();
}

/** Answers come from the page itself, a token at a time: the model here may be slower, and would take the page's cores. */
function streamHere({ rate, seconds }) {
  const words = "The **sea** is `wide`, and the ships on it are many.\n\n- a list\n- of things\n\n".split(/(?<= )/);
  const real = globalThis.fetch;
  globalThis.fetch = (path, options) => {
    if (!String(path).endsWith("/answer")) return real(path, options);
    const encoder = new TextEncoder();
    const event = (part) => encoder.encode(`data: ${JSON.stringify(part)}\n\n`);
    let sent = 0;
    const began = performance.now();
    return Promise.resolve(new Response(new ReadableStream({
      async pull(controller) {
        if (sent === 0) controller.enqueue(event({ turn: 1e9, parent: JSON.parse(options.body).parent }));
        const due = began + (1000 * sent) / rate - performance.now();
        if (due > 0) await new Promise((resolve) => setTimeout(resolve, due));
        const round = { drafter: "ngram", proposed: 1, accepted: 1, committed: 1, seconds: 1 / rate };
        if (sent < rate * seconds) controller.enqueue(event({ text: words[sent++ % words.length], rounds: [round] }));
        else {
          controller.enqueue(event({ facts: { finish: "stop" } }));
          controller.close();
        }
      },
    })));
  };
}

async function typing(browser, url) {
  const page = await browser.newPage();
  await page.addInitScript(streamHere, { rate: TOKENS_A_SECOND, seconds: STREAM_S });
  await long(page, url);
  await page.getByRole("textbox", { name: "Message" }).fill("Tell me of the sea.");
  await page.keyboard.press("Enter");
  await page.locator(".live").filter({ hasText: "tokens a second" }).waitFor();
  const events = await traced(browser, page, async () => {
    for (let at = 0; at < 10 * (STREAM_S - 2); at++) {
      await page.keyboard.type("typing "[at % 7]);
      await page.waitForTimeout(80);
    }
  });
  const frames = (name) => events.filter((event) => event.name === name);
  const drawn = frames("DrawFrame");
  const done = new Set(drawn.map((event) => event.args.frameSeqId));
  const due = frames("BeginFrame").slice(0, -1);  // the last may be on its way
  const gaps = drawn.map((event) => event.ts / 1e3).sort((a, b) => a - b).map((at, place, all) => at - (all[place - 1] ?? at));
  const longest = (field) => Math.max(...frames("RunTask").map((event) => (event[field] ?? 0) / 1e3));
  tell("typing, processor time of the page's longest task", longest("tdur"), "ms", 1000 / 60);
  tell("  with what it waited for a core", longest("dur"), "ms");
  tell("  longest time between two frames", Math.max(...gaps), "ms");
  tell("  frames that were due and not drawn", due.filter((event) => !done.has(event.args.frameSeqId)).length, `of ${due.length}`);
  await page.close();
}

/** The events of the page's thread, and those of its frames, while something is done. */
async function traced(browser, page, act) {
  const session = await browser.newBrowserCDPSession();
  const events = [];
  session.on("Tracing.dataCollected", ({ value }) => events.push(...value));
  await session.send("Tracing.start", { transferMode: "ReportEvents", traceConfig: { includedCategories: ["toplevel", "devtools.timeline", "disabled-by-default-devtools.timeline", "disabled-by-default-devtools.timeline.frame"] } });
  await act();
  const ended = new Promise((resolve) => session.once("Tracing.tracingComplete", resolve));
  await session.send("Tracing.end");
  await ended;
  await session.detach();
  if (process.env.TRACE) writeFileSync(process.env.TRACE, JSON.stringify(events));
  const threads = events.filter((event) => event.name === "thread_name" && event.args.name === "CrRendererMain");
  const busiest = threads.map(({ pid, tid }) => [pid, tid, events.filter((event) => event.pid === pid && event.tid === tid).length]).sort((a, b) => b[2] - a[2])[0];
  return events.filter((event) => event.pid === busiest[0] && (event.tid === busiest[1] || /Frame/.test(event.name)));
}

/** Memory that the page's process has to itself, as the browser's task manager counts it. */
async function memory(browser, url) {
  const page = await browser.newPage();
  await long(page, url);
  const session = await browser.newBrowserCDPSession();
  const { processInfo } = await session.send("SystemInfo.getProcessInfo");
  const own = processInfo.filter(({ type }) => type === "renderer").map(({ id }) => 1024 * Number(/RssAnon:\s+(\d+)/.exec(readFileSync(`/proc/${id}/status`, "utf8"))[1]));
  const cdp = await page.context().newCDPSession(page);
  await cdp.send("Performance.enable");
  const { metrics } = await cdp.send("Performance.getMetrics");
  tell(`memory of the page with ${TURNS} turns`, Math.max(...own) / 1e6, "MB", 150);
  tell("  of it the heap of its scripts", metrics.find(({ name }) => name === "JSHeapUsedSize").value / 1e6, "MB");
  await page.close();
}

async function first(browser, url, firsts) {
  const page = await browser.newPage();
  await page.goto(url);
  const late = [];
  for (let at = 0; at <= ANSWERS; at++) {
    await page.getByRole("textbox", { name: "Message" }).fill(`Say hello, number ${at}.`);
    const shown = page.evaluate(() => new Promise((resolve) => {
      const before = document.querySelectorAll(".turn.assistant").length;
      const look = () => {
        const turns = document.querySelectorAll(".turn.assistant");
        if (turns.length > before && turns[turns.length - 1].querySelector(".body").textContent !== "") resolve(Date.now());
        else requestAnimationFrame(look);
      };
      look();
    }));
    const known = firsts.length;
    await page.keyboard.press("Enter");
    const seen = await shown;
    await until(() => firsts.length > known);
    if (at > 0) late.push(seen - firsts[known]);  // the first loads what the later ones have
    await page.keyboard.press("Escape");
    await page.getByRole("button", { name: "Send" }).waitFor();
  }
  late.sort((a, b) => a - b);
  tell(`first text, after the library's, median of ${ANSWERS}`, late[Math.floor(ANSWERS / 2)], "ms", 50);
  tell("  most", late.at(-1), "ms");
  await page.close();
}

/** edgespec-chat as a user starts it, but for a window that nobody sees. The second start counts: it is warm. */
async function start() {
  const programs = join(work, "programs");
  const data = join(work, "started");
  const port = 9300 + (process.pid % 500);
  mkdirSync(programs);
  writeFileSync(join(programs, "chromium"), `#!/bin/sh\nexec ${CHROMIUM} --headless=new --no-sandbox --remote-debugging-port=${port} "$@"\n`);
  chmodSync(join(programs, "chromium"), 0o755);
  for (const times of ["cold", "warm"]) {
    const began = performance.now();
    const window = spawn(PYTHON, ["-m", "edgespec.server.window", "--window", "app"], {
      env: { ...process.env, EDGESPEC_DATA: data, PATH: `${programs}${delimiter}${process.env.PATH}` }, stdio: "ignore",
    });
    const browser = await until(() => chromium.connectOverCDP(`http://127.0.0.1:${port}`));
    const page = await until(() => browser.contexts()[0]?.pages().find((each) => each.url().startsWith("http")));
    await page.getByRole("textbox", { name: "Message" }).waitFor();
    const usable = performance.now() - began;
    await page.waitForFunction(async () => (await (await fetch("/app/state")).json()).ready);
    if (times === "warm") {
      tell("edgespec-chat to a window that can be typed in", usable / 1e3, "s", 2);
      tell("  until its model is loaded", (performance.now() - began) / 1e3, "s");
    }
    const ended = new Promise((resolve) => window.once("exit", resolve));
    await (await browser.newBrowserCDPSession()).send("Browser.close").catch(() => {});
    await ended;
  }
}

try {
  const wanted = (name) => asked.length === 0 || asked.includes(name);
  if (wanted("typing") || wanted("memory") || wanted("first")) {
    const server = await served();
    const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });
    if (wanted("memory")) await memory(browser, server.url);
    if (wanted("typing")) await typing(browser, server.url);
    if (wanted("first")) await first(browser, server.url, server.firsts);
    await browser.close();
    server.end();
  }
  if (wanted("start")) await start();
} finally {
  rmSync(work, { recursive: true, force: true });
}
process.exit(missed.length ? 1 : 0);
