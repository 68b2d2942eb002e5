import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createServer as createHttp } from "node:http";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { chmodSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { Client, ServerError } from "../src/client.js";
import { Server } from "../src/server.js";
import { status, why } from "../src/status.js";

const port = () =>
  new Promise<number>((resolve) => {
    const probe = createServer().listen(0, "127.0.0.1", () => {
      const { port } = probe.address() as AddressInfo;
      probe.close(() => resolve(port));
    });
  });
const live = () => new AbortController().signal;

/** A program that does what edgespec serve does: it listens, loads for a moment, then is ready. */
function program(body: string): string {
  const file = join(mkdtempSync(join(tmpdir(), "edge spec ü ")), "serve");
  writeFileSync(file, `#!${process.execPath}\n${body}`);
  chmodSync(file, 0o755);
  return file;
}

const SERVES = `
const http = require("node:http"), since = Date.now(), port = process.argv[process.argv.indexOf("--port") + 1];
http.createServer((q, s) => {
  if (q.method === "POST") return q.on("data", (body) => console.log(q.url, String(body))).on("end", () => s.end("{}"));
  if (q.url === "/v1/models") return s.end(JSON.stringify({ data: [{ id: process.argv.at(-1) }] }));
  s.writeHead(Date.now() - since < 400 ? 503 : 200).end("{}");
}).listen(Number(port), "127.0.0.1");`;

test("a server is started, waited for, and stopped", { skip: process.platform === "win32" && "the program is a script" }, async () => {
  const at = `http://127.0.0.1:${await port()}`;
  const lines: string[] = [];
  const server = new Server({ url: at, command: program(SERVES), model: "m", log: (line) => lines.push(line) });
  await server.ready(live());
  assert.ok(server.started);
  assert.match(lines[0]!, /serve --host 127.0.0.1 --port \d+ --model m$/);
  assert.equal(await server.client.model(), "m");

  const other = new Server({ url: at, command: "none", model: "m", log: () => {} });
  await other.ready(live());
  assert.ok(!other.started, "one that answers is used");
  other.stop();
  assert.equal(await new Client(at).health(), "ok", "and left alone");

  await other.leave();
  await server.leave();
  while ((await new Client(at).health()) !== undefined) await new Promise((resolve) => setTimeout(resolve, 20));
  const slots = lines.filter((line) => line.startsWith("/slots"));
  assert.deepEqual(slots, ["restore", "save"].map((action) => `/slots/0?action=${action} {"filename":"vscode"}`), "its own server's, once each");
});

test("an editor that disposes of the extension while it leaves loses nothing", { skip: process.platform === "win32" && "the program is a script" }, async () => {
  const at = `http://127.0.0.1:${await port()}`;
  const lines: string[] = [];
  const server = new Server({ url: at, command: program(SERVES), model: "m", log: (line) => lines.push(line) });
  await server.ready(live());
  const leaving = server.leave();
  server.stop();
  assert.ok(server.started, "until it has saved");
  await leaving;
  assert.ok(!server.started);
  while ((await new Client(at).health()) !== undefined) await new Promise((resolve) => setTimeout(resolve, 20));
  assert.ok(lines.some((line) => line.startsWith("/slots/0?action=save")), lines.join("\n"));
});

test("a server ends with the process that started it, also in the middle of a save", { skip: process.platform === "win32" && "the program is a script" }, async () => {
  const at = `http://127.0.0.1:${await port()}`;
  const hangs = SERVES.replace('.on("end", () => s.end("{}"))', '.on("end", () => q.url.includes("save") || s.end("{}"))');
  const host = `
    const { Server } = require(${JSON.stringify(join(__dirname, "../src/server.js"))});
    const server = new Server({ url: ${JSON.stringify(at)}, command: ${JSON.stringify(program(hangs))}, model: "m", log: () => {} });
    server.ready(new AbortController().signal).then(() => {
      void server.leave();
      server.stop();
      console.log("leaving");
      setTimeout(() => process.exit(0), 100);
    });`;
  const ran = spawnSync(process.execPath, ["-e", host], { encoding: "utf8", timeout: 20_000 });
  assert.equal(ran.stdout, "leaving\n", ran.stderr);
  const until = Date.now() + 5000;
  while ((await new Client(at).health()) !== undefined) {
    assert.ok(Date.now() < until, "it still runs");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
});

test("a server that cannot save is stopped all the same", { skip: process.platform === "win32" && "the program is a script" }, async () => {
  const at = `http://127.0.0.1:${await port()}`;
  const fails = SERVES.replace('s.end("{}"));', 'q.socket.destroy());');
  const closed = (line: string) => {
    if (line.includes("fetch")) throw new Error("Channel has been closed");
  };
  const server = new Server({ url: at, command: program(fails), model: "m", log: closed });
  await server.ready(live());
  await assert.rejects(server.leave(), /closed/);
  assert.ok(!server.started);
  while ((await new Client(at).health()) !== undefined) await new Promise((resolve) => setTimeout(resolve, 20));
});

test("a server of another window that goes while it loads is replaced", { skip: process.platform === "win32" && "the program is a script" }, async () => {
  const at = `http://127.0.0.1:${await port()}`;
  let asked = 0;
  const others = createHttp((_, response) => {
    asked++;
    response.writeHead(503, { connection: "close" }).end("{}", () => others.close());
  });
  await new Promise<void>((resolve) => others.listen(Number(new URL(at).port), "127.0.0.1", resolve));
  const server = new Server({ url: at, command: program(SERVES), model: "m", log: () => {} });
  await server.ready(AbortSignal.timeout(20_000));
  assert.equal(asked, 1);
  assert.ok(server.started);
  await server.stop();
});

test("of two windows that start a server at once, the slower one uses the other's", { skip: process.platform === "win32" && "the program is a script" }, async () => {
  const at = `http://127.0.0.1:${await port()}`;
  let looks = -1;
  const others = createHttp((_, response) => response.writeHead(looks < 0 || looks++ < 2 ? 503 : 200).end("{}"));
  const fails = program('setTimeout(() => { console.error("the port is in use"); process.exit(2); }, 300)');
  const server = new Server({
    url: at, command: fails, model: "m",
    log: (line) => {
      if (line.includes("serve --host")) others.listen(Number(new URL(at).port), "127.0.0.1");
      if (line.includes("in use")) looks = 0; // from now on it is loading twice
    },
  });
  try {
    await server.ready(AbortSignal.timeout(20_000));
    assert.ok(looks > 2 && !server.started);
  } finally {
    others.closeAllConnections();
    others.close();
  }
});

test("a server that was stopped has ended before another is looked for", { skip: process.platform === "win32" && "the program is a script" }, async () => {
  const at = `http://127.0.0.1:${await port()}`;
  const lingers = SERVES.replace("process.argv.at(-1)", "String(process.pid)") + 'process.on("SIGTERM", () => setTimeout(() => process.exit(0), 600));';
  const server = new Server({ url: at, command: program(lingers), model: "m", log: () => {} });
  await server.ready(live());
  const first = await server.client.model();
  void server.stop();
  await server.ready(live());
  assert.ok(server.started);
  assert.notEqual(await server.client.model(), first);
  await server.stop();
  assert.equal(await server.client.health(), undefined);
});

test("a server that asks for a key gets it, and says so where it is missing", { skip: process.platform === "win32" && "the program is a script" }, async () => {
  const at = `http://127.0.0.1:${await port()}`;
  const keyed = SERVES.replace('if (q.method', `const mine = q.url === "/health" || q.headers.authorization === "Bearer " + process.env.EDGESPEC_API_KEY;
  if (!mine) return s.writeHead(401).end('{"error":{"message":"wrong or missing API key"}}');
  if (q.method`);
  const server = new Server({ url: at, command: program(keyed), model: "m", log: () => {} });
  server.key = "a long secret";
  await server.ready(live());
  const refused = (error: unknown) => error instanceof ServerError && error.wantsKey && /missing API key/.test(error.message);
  try {
    assert.equal(await server.client.model(), "m", "what it starts asks for its key");
    for (const key of ["", "another secret"]) await assert.rejects(new Client(at, key).model(), refused);
  } finally {
    await server.stop();
  }
});

test("what stops a start is said", { skip: process.platform === "win32" && "the program is a script" }, async () => {
  const at = `http://127.0.0.1:${await port()}`;
  const options = { url: at, model: "m", log: () => {} };
  await assert.rejects(new Server({ ...options, command: "no-such-program" }).ready(live()), /no program no-such-program.*edgespec.command/);
  const fails = program('console.error("edgespec: no model m"); process.exit(2)');
  await assert.rejects(new Server({ ...options, command: fails }).ready(live()), /ended with 2: edgespec: no model m/);
  await assert.rejects(new Server({ ...options, url: "http://192.0.2.1:9", command: fails }).ready(AbortSignal.timeout(8000)), /192\.0\.2\.1|stopped/);
});

test("the status bar has figures, and one sentence of what took the time", () => {
  const timings = { prompt_n: 3, prompt_ms: 20, predicted_n: 24, predicted_ms: 400, draft_n: 20, draft_n_accepted: 15 };
  assert.equal(status("m", timings).text, "m  60 tok/s  75 % accepted");
  assert.match(why(timings), /^Writing 24 tokens took 400 ms; 75 % of 20 drafted tokens were accepted\.$/);
  assert.match(why({ ...timings, prompt_n: 900, prompt_ms: 900 }), /^Reading 900 tokens that were new took 900 ms/);
  assert.equal(status("m", {}).text, "m");
});
