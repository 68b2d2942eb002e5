import assert from "node:assert/strict";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { after, before, beforeEach, test } from "node:test";

import { Client, type Completion } from "../src/client.js";
import { Completer, slot } from "../src/completer.js";
import { Pieces } from "../src/context.js";
import { holeAt } from "../src/hole.js";

/** A server on a real socket, whose answer a test sets. */
let reply: (request: Record<string, unknown>, response: ServerResponse) => void;
let asked: Record<string, unknown>[] = [];
let ended = 0;
const server = createServer((request: IncomingMessage, response: ServerResponse) => {
  let body = "";
  request.on("data", (data) => (body += data));
  request.on("end", () => {
    response.on("close", () => response.writableFinished || ended++);
    asked.push(JSON.parse(body));
    reply(asked.at(-1)!, response);
  });
});
let url = "";
before(async () => {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
after(() => {
  server.closeAllConnections();
  server.close();
});
beforeEach(() => {
  asked = [];
  ended = 0;
  reply = (_, response) => response.end('{"content":"1 + 2","timings":{"predicted_n":3}}');
});

const told: Completion[] = [];
const completer = (pieces = new Pieces(1000)) => new Completer(() => new Client(url), pieces, (answer) => told.push(answer));
const wanted = (line: string, pause = 0) => ({ filename: "a.py", hole: holeAt([line, "y"], 0, line.length), tokens: 24, time: 500, several: true, pause });
const live = () => new AbortController().signal;

test("a request has the text around the hole and the pieces of other files", async () => {
  const pieces = new Pieces(1000);
  pieces.add({ filename: "b.py", text: "z = 1" });
  pieces.add({ filename: "a.py", text: "y = 2" });
  const answer = await completer(pieces).complete(wanted("x = "), live());
  assert.deepEqual(answer, { text: "1 + 2", replaces: 0 });
  assert.equal(told.at(-1)?.timings.predicted_n, 3);
  const { id_slot, ...rest } = asked[0]!;
  assert.equal(id_slot, slot("a.py"));
  assert.deepEqual(rest, {
    input_prefix: "", prompt: "x = ", input_suffix: "\ny", input_extra: [{ filename: "b.py", text: "z = 1" }],
    n_predict: 24, t_max_predict_ms: 500, stop: ["\ny\n"], temperature: 0, cache_prompt: true, stream: false,
  });
});

test("typing through an answer asks once", async () => {
  const one = completer();
  await one.complete(wanted("x = "), live());
  assert.equal((await one.complete(wanted("x = 1 "), live()))?.text, "+ 2");
  assert.equal(asked.length, 1);
  one.forget();
  await one.complete(wanted("x = 1 "), live());
  assert.equal(asked.length, 2);
});

test("in the middle of a line the server ends with the line, and at its end it writes on", async () => {
  const at = async (line: string, column: number, several = true) => {
    await completer().complete({ ...wanted(line), hole: holeAt([line, "", "y"], 0, column), several }, live());
    return asked.at(-1)!.stop;
  };
  assert.deepEqual(await at("f(x, y)", 2), ["\n"]);
  assert.deepEqual(await at("f()", 2), ["\ny\n"], "or where it would repeat what follows");
  assert.deepEqual(await at("    ", 4), ["\ny\n"]);
  assert.deepEqual(await at("    ", 4, false), ["\n"]);
});

test("a limit leaves whole lines", async () => {
  const one = completer();
  reply = (_, response) => response.end('{"content":"1\\ny = 2\\nz","stop_type":"limit"}');
  assert.equal((await one.complete(wanted("x = "), live()))?.text, "1\ny = 2");
  reply = (_, response) => response.end('{"content":"1\\ny = 2\\nz","stop_type":"eos"}');
  assert.equal((await completer().complete(wanted("x = "), live()))?.text, "1\ny = 2\nz");
});

test("a key within the pause sends nothing", async () => {
  const key = new AbortController();
  const waiting = completer().complete(wanted("x = ", 10_000), key.signal);
  key.abort();
  assert.equal(await waiting, undefined);
  assert.equal(asked.length, 0);
});

test("a key ends a request that is under way", async () => {
  const key = new AbortController();
  reply = () => key.abort();
  assert.equal(await completer().complete(wanted("x = "), key.signal), undefined);
  while (ended === 0) await new Promise((resolve) => setTimeout(resolve, 5));
});

test("an error of the server is told with its own words", async () => {
  reply = (_, response) => response.writeHead(400).end('{"error":{"message":"too long"}}');
  await assert.rejects(completer().complete(wanted("x = "), live()), /too long/);
  reply = (_, response) => response.writeHead(500).end("<html>");
  await assert.rejects(completer().complete(wanted("x = "), live()), /500/);
  reply = (_, response) => response.end('{"text":1}');
  await assert.rejects(completer().complete(wanted("x = "), live()), /no content/);
});
