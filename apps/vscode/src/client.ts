/** The server's routes that completion needs. */

import type { Piece } from "./context.js";
import type { Hole } from "./hole.js";

export interface Timings {
  readonly prompt_n?: number;
  readonly prompt_ms?: number;
  readonly predicted_n?: number;
  readonly predicted_ms?: number;
  readonly draft_n?: number;
  readonly draft_n_accepted?: number;
}

export interface Completion {
  readonly content: string;
  /** why the text ended; "limit": it would go on */
  readonly stop_type?: string;
  readonly timings: Timings;
}

/** Milliseconds for a slot's file. An editor that closes waits for its extensions a little longer. */
const SLOT_MS = 3000;

export interface Limits {
  /** most tokens */
  readonly tokens: number;
  /** milliseconds after which nothing follows the first line; 0: no such limit */
  readonly time: number;
  /** what ends the text */
  readonly stop: readonly string[];
}

export class ServerError extends Error {
  /** status: of HTTP, where the server has refused the request. */
  constructor(
    message: string,
    readonly status?: number,
  ) {
    super(message);
  }

  /** Whether the server asks for a key, and was given none or another one. */
  get wantsKey(): boolean {
    return this.status === 401;
  }
}

export class Client {
  /** key: what the server asks requests for; "": nothing. */
  constructor(
    readonly url: string,
    private readonly key = "",
  ) {}

  /** Whether a server answers, and has its model: "ok", "loading", or undefined. */
  async health(): Promise<"ok" | "loading" | undefined> {
    try {
      const answer = await fetch(new URL("/health", this.url), { signal: AbortSignal.timeout(2000) });
      return answer.ok ? "ok" : answer.status === 503 ? "loading" : undefined;
    } catch {
      return undefined;
    }
  }

  /** The name of the model that is loaded. Raises ServerError. */
  async model(): Promise<string> {
    const text = await this.asked("/v1/models", { signal: AbortSignal.timeout(2000) });
    const listed = parsed(text) as { data?: { id?: string }[] } | undefined;
    const name = listed?.data?.[0]?.id;
    if (!name) throw new ServerError(`the server at ${this.url} names no model`);
    return name;
  }

  /** What the server has read goes to a file of its own, or comes back from there. Raises ServerError. */
  async slot(action: "save" | "restore"): Promise<void> {
    await this.post(`/slots/0?action=${action}`, { filename: "vscode" }, AbortSignal.timeout(SLOT_MS));
  }

  /** Fill a hole. Raises ServerError, and AbortError where `signal` is set off: the server then stops within a round.
   *
   * slot: whose newer request ends the older one.
   */
  async infill(hole: Hole, pieces: readonly Piece[], slot: number, limits: Limits, signal: AbortSignal): Promise<Completion> {
    const body = {
      id_slot: slot,
      input_prefix: hole.prefix,
      prompt: hole.typed,
      input_suffix: hole.suffix,
      input_extra: pieces,
      n_predict: limits.tokens,
      t_max_predict_ms: limits.time,
      stop: limits.stop,
      temperature: 0,
      cache_prompt: true,
      stream: false,
    };
    const text = await this.post("/infill", body, signal);
    const read = parsed(text) as Partial<Completion> | undefined;
    if (typeof read?.content !== "string") throw new ServerError("the server's answer has no content");
    return { ...read, content: read.content, timings: read.timings ?? {} };
  }

  private post(path: string, body: unknown, signal: AbortSignal): Promise<string> {
    return this.asked(path, { method: "POST", body: JSON.stringify(body), signal });
  }

  /** The text of an answer. Raises ServerError for a refusal. */
  private async asked(path: string, how: RequestInit): Promise<string> {
    const headers = { "content-type": "application/json", ...(this.key === "" ? {} : { authorization: `Bearer ${this.key}` }) };
    const answer = await fetch(new URL(path, this.url), { ...how, headers });
    const text = await answer.text();
    if (!answer.ok) throw new ServerError(message(text) ?? `the server answered ${answer.status}`, answer.status);
    return text;
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function message(text: string): string | undefined {
  const error = (parsed(text) as { error?: { message?: string } } | undefined)?.error;
  return error?.message;
}
