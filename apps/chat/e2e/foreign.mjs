// What pages of other origins can do with the server, in a real browser. URL names the server, PAGES the port of an empty
// page. The server lets http://friend.example:PAGES in. All names of .example are this machine, as DNS rebinding has it.
import assert from "node:assert/strict";

import { chromium } from "playwright-core";

const { URL: url, PAGES: pages } = process.env;
const chat = { messages: [{ role: "user", content: "What is the capital of France?" }], max_tokens: 20 };
const json = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(chat) };
const simple = { method: "POST", mode: "no-cors", headers: { "content-type": "text/plain" }, body: JSON.stringify(chat) };

const args = ["--no-sandbox", "--host-resolver-rules=MAP *.example 127.0.0.1"];
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args });

async function at(address) {
  const page = await browser.newPage();
  const answer = await page.goto(address);
  const get = (target, options) =>
    page.evaluate(
      async ([target, options]) => {
        try {
          const found = await fetch(target, options);
          return { status: found.status, type: found.type, text: await found.text() };
        } catch (error) {
          return { failed: error.name };
        }
      },
      [target, options],
    );
  return { status: answer.status(), get };
}

const answered = async () => (await (await fetch(`${url}/metrics`)).text()).match(/^edgespec_requests_total\{.*/gm) ?? [];

try {
  const stranger = await at(`http://stranger.example:${pages}/`);
  assert.equal(stranger.status, 200);
  for (const path of ["/v1/models", "/api/tags", "/props", "/metrics", "/app/chats"])
    assert.deepEqual(await stranger.get(url + path), { failed: "TypeError" }, path);
  assert.deepEqual(await stranger.get(`${url}/v1/chat/completions`, json), { failed: "TypeError" });
  assert.equal((await stranger.get(`${url}/v1/chat/completions`, simple)).type, "opaque");
  assert.deepEqual(await answered(), [], "no answer was written for a stranger");

  const rebound = await at(`http://rebound.example:${new URL(url).port}/`);
  assert.equal(rebound.status, 403);
  for (const [path, options] of [["/v1/models"], ["/api/tags"], ["/v1/chat/completions", json]])
    assert.equal((await rebound.get(path, options)).status, 403, path);
  assert.deepEqual(await answered(), [], "no answer was written for a name that points here");

  const friend = await at(`http://friend.example:${pages}/`);
  assert.equal((await friend.get(`${url}/v1/models`)).status, 200);
  const found = await friend.get(`${url}/v1/chat/completions`, json);
  assert.match(JSON.parse(found.text).choices[0].message.content, /Paris/);
  const keyed = { ...json, headers: { ...json.headers, authorization: "Bearer none" } };
  assert.equal((await friend.get(`${url}/v1/chat/completions`, keyed)).status, 200);
  assert.deepEqual(await friend.get(`${url}/app/chats`), { failed: "TypeError" }, "the user's chats");
  assert.equal((await answered()).length, 1);
} finally {
  await browser.close();
}
