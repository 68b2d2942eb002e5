/** The models with a name: what each asks of the machine, and how far its download is. */

import type { Known } from "./api.js";
import { dialog } from "./dialogs.js";
import { h } from "./dom.js";
import { bytes, number, say } from "./texts.js";

export interface ModelDoing {
  list(): Promise<readonly Known[]>;
  download(name: string, from: "hub" | "mirror"): Promise<unknown>;
  pause(name: string): Promise<unknown>;
  /** a download has come to its end */
  arrived(name: string): void;
  problem(message: string): void;
}

/** Milliseconds between two looks at a download. */
const LOOK_MS = 500;

export class ModelList {
  private readonly rows = new Map<string, Row>();
  private looking = false;

  constructor(private readonly doing: ModelDoing) {}

  async show(): Promise<void> {
    const known = await this.doing.list();
    this.rows.clear();
    const head = ["model", "size", "memory", "speedHere", "licence", "here"] as const;
    const body = h("tbody", {}, ...known.map((model) => {
      const row = new Row(model, (act) => void this.act(act), this.doing);
      this.rows.set(model.name, row);
      return row.element;
    }));
    const table = h("table", {}, h("thead", {}, h("tr", {}, ...head.map((name) => h("th", { scope: "col" }, say(name))))), body);
    const shown = dialog(say("models"), h("div", { class: "table", tabindex: 0, role: "region", "aria-label": say("models") }, table),
      h("p", { class: "note" }, say("estimates")), h("div", { class: "buttons" }, h("button", { value: "" }, say("close"))));
    shown.scrollTop = 0;  // the table has the focus, and is longer than the dialog
    void this.look();
  }

  private async act(act: () => Promise<unknown>): Promise<void> {
    try {
      await act();
    } catch (error) {
      this.doing.problem(error instanceof Error ? error.message : String(error));
    }
    await this.look();
  }

  /** Follows downloads to their end, also when nobody looks at the list any more. */
  private async look(): Promise<void> {
    if (this.looking) return;
    this.looking = true;
    try {
      for (;;) {
        const known = await this.doing.list();
        for (const model of known) {
          const row = this.rows.get(model.name);
          if (row?.update(model)) this.doing.arrived(model.name);
        }
        if (!known.some((model) => model.download?.state === "running")) return;
        await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
      }
    } catch (error) {
      this.doing.problem(error instanceof Error ? error.message : String(error));
    } finally {
      this.looking = false;
    }
  }
}

class Row {
  readonly element: HTMLTableRowElement;
  private readonly memory = h("td", { class: "right" });
  private readonly speed = h("td", { class: "right" });
  private readonly state = h("td", { class: "download" });
  private readonly bar = h("progress", {});
  private readonly count = h("span", {});
  private readonly button: HTMLButtonElement;
  private readonly mirror: HTMLButtonElement;
  private shown = "";

  constructor(private model: Known, act: (act: () => Promise<unknown>) => void, doing: ModelDoing) {
    const { name } = model;
    this.button = h("button", { type: "button", onclick: () =>
      act(() => (this.model.download?.state === "running" ? doing.pause(name) : doing.download(name, "hub"))) });
    this.mirror = h("button", { type: "button", class: "plain", onclick: () => act(() => doing.download(name, "mirror")) }, say("fromMirror"));
    this.bar.setAttribute("aria-label", say("downloadOf", name));
    const link = h("a", { href: model.url, target: "_blank", rel: "noopener noreferrer" }, model.licence);
    this.element = h("tr", {}, h("th", { scope: "row" }, name, model.drafts ? h("small", {}, ` ${say("ownDraft")}`) : null),
      h("td", { class: "right" }, model.bytes === null ? "" : bytes(model.bytes)), this.memory, this.speed,
      h("td", {}, link, model.use === "conditions" ? ` (${say("onConditions")})` : ""), this.state);
    this.update(model);
  }

  /** Returns whether the model has just come. */
  update(model: Known): boolean {
    const came = model.here && !this.model.here;
    this.model = model;
    const { memory, speed, download } = model;
    this.memory.textContent = memory === null ? "" : memory.is_measured ? bytes(memory.bytes) : say("atLeast", bytes(memory.bytes));
    this.speed.textContent = speed === null ? "" : say(speed.is_measured ? "speed" : "speedAbout", number(speed.tok_per_s, speed.tok_per_s < 10 ? 1 : 0));
    if (download?.total) {
      this.bar.max = download.total;
      this.bar.value = download.bytes;
      this.count.textContent = say("downloaded", number(Math.floor((100 * download.bytes) / download.total)), bytes(download.bytes), bytes(download.total));
    } else {
      this.bar.removeAttribute("value");
      this.count.textContent = "";
    }
    const state = model.here ? "here" : model.use === "research" ? "research" : (download?.state ?? "none");
    if (state !== this.shown) this.change(state);
    return came;
  }

  /** Other elements for another state; the keyboard stays where it was. */
  private change(state: string): void {
    const focused = this.state.contains(document.activeElement);
    this.shown = state;
    const words = state === "running" ? say("pause") : say(state === "none" ? "download" : "resume");
    this.button.textContent = words;
    this.button.setAttribute("aria-label", `${words} ${this.model.name}`);
    const failure = h("div", { class: "note" }, this.model.download?.failure ?? "");
    const parts: Record<string, Node[]> = {
      here: [new Text(say("here"))],
      research: [new Text(say("research"))],
      none: [this.button],
      failed: [failure, this.count, this.button, ...(this.model.mirror ? [this.mirror] : [])],
    };
    this.state.replaceChildren(...(parts[state] ?? [this.bar, this.count, this.button]));
    if (focused && this.button.isConnected) this.button.focus();
  }
}
