/** Finds the server, or starts one and stops it again. */

import { spawn, type ChildProcess } from "node:child_process";

import { Client } from "./client.js";
import { HERE, programFor } from "./program.js";

export type Health = "ok" | "loading" | undefined;

export interface Options {
  readonly url: string;
  readonly command: string;
  readonly model: string;
  readonly log: (line: string) => void;
}

/** Milliseconds between two looks at a server that loads. */
const LOOK_MS = 250;

export class Server {
  /** What requests are sent with, and what a server that is started here asks for; "": none. */
  key = "";
  private child: ChildProcess | undefined;
  private failed = "";
  private leaving = false;
  /** whether the server that was started here has what an earlier one had read */
  private hasRead = false;
  /** Settles once the last server that was stopped here has ended: until then it may still answer. */
  private ended = Promise.resolve();

  constructor(private readonly options: Options) {}

  get client(): Client {
    return new Client(this.options.url, this.key);
  }

  /** Returns once a server has its model. Starts one when none answers. Raises an Error that says what to do. */
  async ready(signal: AbortSignal): Promise<void> {
    await this.ended;
    if (!this.started) this.failed = "";
    for (;;) {
      const health = await this.client.health();
      if (signal.aborted) throw new Error("stopped");
      if (health === "ok") break;
      if (health === "loading" && !this.started) this.failed = ""; // another window's: it was a little faster
      if (this.failed !== "") throw new Error(this.failed);
      // One that loads for another window may go with it, at any time.
      if (health === undefined && !this.started) this.start();
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    }
    if (!this.started || this.hasRead) return;
    this.hasRead = true;
    await this.client.slot("restore").catch(() => undefined); // the first time there is none
  }

  /** Before the editor closes. A server that was started here keeps what it has read for the next one.
   *
   * The editor disposes of its extensions as soon as this has begun, and does not wait for its end: a stop meanwhile has
   * to wait, or the server would be gone before it has written anything.
   */
  async leave(): Promise<void> {
    this.leaving = this.started;
    try {
      if (this.started) await this.client.slot("save").catch((error: unknown) => this.options.log(String(error)));
    } finally {
      this.leaving = false;
      void this.stop();
    }
  }

  /** Ends a server that was started here, and returns once it has ended; another one is left alone. */
  stop(): Promise<void> {
    if (this.leaving) return Promise.resolve();
    const child = this.child;
    this.child = undefined;
    this.failed = "";
    if (child?.kill()) this.ended = new Promise((resolve) => child.once("exit", () => resolve()));
    return this.ended;
  }

  get started(): boolean {
    return this.child !== undefined;
  }

  private start(): void {
    const { url, command, model, log } = this.options;
    this.hasRead = false;
    const host = new URL(url).hostname;
    if (!["127.0.0.1", "localhost", "[::1]"].includes(host)) {
      throw new Error(`no server answers at ${url}: start it on ${host}`);
    }
    const args = ["serve", "--host", host.replace(/[[\]]/g, ""), "--port", new URL(url).port || "80", "--model", model];
    log(`${command} ${args.join(" ")}`);
    this.failed = "";
    const program = programFor(command, HERE);
    const env = this.key === "" ? process.env : { ...process.env, EDGESPEC_API_KEY: this.key };
    const child = spawn(program.file, [...program.args, ...args], { env, windowsHide: true, stdio: ["ignore", "pipe", "pipe"] });
    this.child = child;
    // The editor may end this process while a stop waits: nothing that waits runs then.
    const end = () => child.kill();
    process.once("exit", end);
    child.once("close", () => process.off("exit", end));
    let last = "";
    for (const stream of [child.stdout, child.stderr])
      stream.on("data", (data: Buffer) => {
        for (const line of data.toString().split(/\r?\n/)) if (line.trim() !== "") log((last = line));
      });
    child.on("error", (error: NodeJS.ErrnoException) => {
      if (this.child !== child) return;
      this.child = undefined;
      this.failed = error.code === "ENOENT" ? `no program ${command}: install edgespec, or set edgespec.command` : error.message;
    });
    child.on("exit", (code) => {
      if (this.child !== child) return;
      this.child = undefined;
      this.failed = `the server ended${code === null ? "" : ` with ${code}`}: ${last || "see the log"}`;
    });
  }
}
