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
  private child: ChildProcess | undefined;
  private failed = "";
  private leaving = false;

  constructor(private readonly options: Options) {}

  get client(): Client {
    return new Client(this.options.url);
  }

  /** Returns once a server has its model. Starts one if none answers. Raises an Error that says what to do. */
  async ready(signal: AbortSignal): Promise<void> {
    let health = await this.client.health();
    const starts = health === undefined && this.child === undefined;
    if (starts) this.start();
    while (health !== "ok") {
      if (this.failed !== "") throw new Error(this.failed);
      if (signal.aborted) throw new Error("stopped");
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
      health = await this.client.health();
    }
    if (starts) await this.client.slot("restore").catch(() => undefined); // the first time there is none
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
      this.stop();
    }
  }

  /** Ends a server that was started here; another one is left alone. */
  stop(): void {
    if (this.leaving) return;
    const child = this.child;
    this.child = undefined;
    this.failed = "";
    child?.kill();
  }

  get started(): boolean {
    return this.child !== undefined;
  }

  private start(): void {
    const { url, command, model, log } = this.options;
    const host = new URL(url).hostname;
    if (!["127.0.0.1", "localhost", "[::1]"].includes(host)) {
      throw new Error(`no server answers at ${url}: start it on ${host}`);
    }
    const args = ["serve", "--host", host.replace(/[[\]]/g, ""), "--port", new URL(url).port || "80", "--model", model];
    log(`${command} ${args.join(" ")}`);
    this.failed = "";
    const program = programFor(command, HERE);
    const child = spawn(program.file, [...program.args, ...args], { windowsHide: true, stdio: ["ignore", "pipe", "pipe"] });
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
