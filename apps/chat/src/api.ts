/** The server's routes that the page uses. Each raises ApiError with the server's own words, or Unreachable. */

import { Events } from "./stream.js";
import type { Facts, File, Turn } from "./tree.js";

export interface Options {
  model?: string;
  temperature?: number;
  top_p?: number;
  max_tokens?: number;
  seed?: number;
}

export interface Chat {
  readonly id: string;
  readonly title: string;
  readonly pinned: boolean;
  readonly system: string;
  readonly options: Options;
  readonly leaf: number | null;
  readonly place?: string;
}

export interface Model {
  readonly name: string;
  readonly size_bytes: number | null;
  readonly loaded: boolean;
  readonly exact: boolean;
  readonly context_length: number | null;
}

export interface Known {
  readonly name: string;
  readonly bytes: number | null;
  readonly licence: string;
  readonly use: "any" | "conditions" | "research";
  readonly url: string;
  readonly here: boolean;
  readonly drafts: boolean;
  /** whether the same file is on the Python package index */
  readonly mirror: boolean;
  readonly memory: { readonly bytes: number; readonly is_measured: boolean } | null;
  readonly speed: { readonly tok_per_s: number; readonly is_measured: boolean } | null;
  readonly download: Download | null;
}

export interface Download {
  readonly state: "running" | "paused" | "failed";
  readonly bytes: number;
  readonly total: number | null;
  readonly failure: string;
}

export interface State {
  readonly models: readonly Model[];
  readonly mended: string;
  readonly ready: boolean;
}

export interface Round {
  readonly drafter: string | null;
  readonly proposed: number;
  readonly accepted: number;
  readonly committed: number;
  readonly seconds: number;
}

export interface Part {
  readonly turn?: number;
  readonly text?: string;
  readonly rounds?: readonly Round[];
  readonly read?: readonly [number, number];
  readonly facts?: Facts | null;
}

export class ApiError extends Error {}
export class Unreachable extends Error {}
/** The server asks for its API key, or the one that was given is wrong. */
export class KeyNeeded extends ApiError {}

let key = "";

/** For all requests from now on, until the window is closed. */
export function useKey(given: string): void {
  key = given;
  sessionStorage.setItem("key", given);
}

async function call(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  let answer: Response;
  key ||= sessionStorage.getItem("key") ?? "";
  const headers = { ...(body === undefined ? {} : { "content-type": "application/json" }), ...(key === "" ? {} : { authorization: `Bearer ${key}` }) };
  const sent = { headers, ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }) };
  try {
    answer = await fetch(path, { method, ...sent, ...(signal ? { signal } : {}) });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Unreachable(String(error));
  }
  if (answer.ok) return answer;
  const found = (await answer.json().catch(() => ({}))) as { error?: { message?: string } };
  const message = found.error?.message ?? `${answer.status} ${answer.statusText}`;
  throw answer.status === 401 ? new KeyNeeded(message) : new ApiError(message);
}

async function json<T>(method: string, path: string, body?: unknown): Promise<T> {
  return (await (await call(method, path, body)).json()) as T;
}

const chatPath = (chat: string) => `/app/chats/${encodeURIComponent(chat)}`;

export const api = {
  state: () => json<State>("GET", "/app/state"),
  chats: (search: string) => json<Chat[]>("GET", `/app/chats?q=${encodeURIComponent(search)}`),
  chat: (chat: string) => json<Chat & { turns: Turn[] }>("GET", chatPath(chat)),
  create: (options: Options) => json<Chat>("POST", "/app/chats", { options }),
  change: (chat: string, fields: Partial<Omit<Chat, "id">> & { deleted?: boolean }) => json<Chat>("PATCH", chatPath(chat), fields),
  ask: (chat: string, parent: number | null, content: string, files: readonly File[]) =>
    json<Turn>("POST", `${chatPath(chat)}/turns`, { parent, content, files }),
  edit: (chat: string, turn: number, content: string) => json<Turn>("PUT", `${chatPath(chat)}/turns/${turn}`, { content }),
  models: () => json<Known[]>("GET", "/app/models"),
  importChats: (text: string) => json<{ chats: number }>("POST", "/app/import", text),
  exported: async (chat: string | null, format: "jsonl" | "markdown") =>
    (await call("GET", chat === null ? "/app/export" : `${chatPath(chat)}/export?format=${format}`)).blob(),

  /** Begins a download, or goes on with it; `models` tells how far it is. */
  download: (model: string, from: "hub" | "mirror") => json<object>("POST", `/app/models/${encodeURIComponent(model)}/download?from=${from}`),
  pause: (model: string) => json<object>("POST", `/app/models/${encodeURIComponent(model)}/pause`),

  /** The parts of an answer as they come. */
  async *answer(chat: string, parent: number, signal: AbortSignal): AsyncGenerator<Part> {
    const answer = await call("POST", `${chatPath(chat)}/answer`, { parent }, signal);
    const reader = answer.body!.getReader();
    const events = new Events();
    for (;;) {
      let read;
      try {
        read = await reader.read();
      } catch (error) {
        if (signal.aborted) throw error;
        throw new Unreachable(String(error));
      }
      if (read.done) return;
      for (const part of events.push(read.value)) yield part as Part;
    }
  },
};
