/** The page: what is open, what is being written, and the parts that show it. */

import { api, ApiError, KeyNeeded, Unreachable, useKey, type Chat, type Model, type Part, type State } from "./api.js";
import { Composer } from "./composer.js";
import { askKey, chatOptions, settings } from "./dialogs.js";
import { h, iconButton } from "./dom.js";
import { keep, remembered, type Look } from "./look.js";
import { ModelList } from "./models.js";
import { Sidebar } from "./sidebar.js";
import { Sentences } from "./stream.js";
import { bytes, number, say, setLanguage } from "./texts.js";
import { leafOf, type File as TextFile, type Turn } from "./tree.js";
import { showBranch, TurnView, type Doing } from "./turns.js";

type OpenChat = Chat & { turns: Turn[] };

/** Milliseconds between two tries to reach a server that is gone. */
const RETRY_MS = 1500;
/** Milliseconds from one look of an answer to the next: every other frame is free for typing, and the model needs the cores. */
const PAINT_MS = 25;

export class App {
  private open: OpenChat | null = null;
  private models: readonly Model[] = [];
  private writing: AbortController | null = null;
  /** The last turn that is shown: that of the answer that is being written, unless the user looks elsewhere. */
  private last: TurnView | undefined;
  private look: Look = remembered();

  private sidebar!: Sidebar;
  private composer!: Composer;
  private readonly log = h("div", { class: "log", role: "log", "aria-live": "off", tabindex: 0 });
  private readonly spoken = h("div", { class: "hidden", role: "status", "aria-live": "polite" });
  private readonly toast = h("div", { class: "toast", role: "status" });
  private readonly live = h("div", { class: "live" });
  private readonly gauge = h("meter", { min: 0, max: 1, value: 0 });
  private readonly gaugeText = h("span", { class: "gauge" });
  private readonly title = h("h1", {});
  private readonly picker = h("select", {});

  private readonly modelList = new ModelList({
    list: api.models,
    download: api.download,
    pause: api.pause,
    problem: (message) => this.tell(message),
    arrived: (name) => void this.guard(async () => {
      this.models = (await api.state()).models;
      this.showModels();
      this.tell(say("arrived", name));
    }),
  });

  async start(): Promise<void> {
    this.dress();
    this.build();
    document.addEventListener("keydown", (event) => this.key(event));
    this.picker.addEventListener("change", () => void this.guard(() => this.changeModel()));
    await this.guard(async () => {
      const state = await this.ready();
      this.models = state.models;
      if (state.mended) this.tell(state.mended);
      await this.list();
      const last = sessionStorage.getItem("chat");
      await this.show(last);
    });
  }

  private build(): void {
    this.sidebar = new Sidebar({
      open: (chat) => void this.guard(() => this.show(chat.id)),
      create: () => void this.guard(() => this.show(null)),
      search: () => void this.guard(() => this.list()),
      settings: () => this.settings(),
    });
    const text = this.composer?.text.value ?? localStorage.getItem("draft") ?? "";
    const files = this.composer?.attached;
    this.composer = new Composer(
      (question, files) => void this.ask(question, files),
      () => this.writing?.abort(),
      (message) => this.tell(message),
      (now) => localStorage.setItem("draft", now),
    );
    this.composer.fill(text, files);
    this.composer.setBusy(this.writing !== null);
    this.log.setAttribute("aria-label", say("chats"));
    this.picker.setAttribute("aria-label", say("model"));
    this.gauge.setAttribute("aria-label", say("context"));
    const head = h("header", {},
      iconButton("menu", say("menu"), () => document.body.classList.toggle("nav"), { class: "icon burger" }),
      this.title, this.picker, h("span", { class: "context" }, this.gauge, this.gaugeText), this.menu());
    document.body.replaceChildren(
      h("a", { class: "skip", href: "#question" }, say("skip")), this.sidebar.element,
      h("main", {}, head, this.log, this.live, this.composer.element), this.spoken, this.toast);
  }

  /** What can be done with the open chat. */
  private menu(): HTMLElement {
    const act = (name: string, run: (chat: OpenChat) => void | Promise<void>) =>
      h("button", { type: "button", onclick: () => {
        list.hidePopover();
        if (this.open !== null) void this.guard(async () => run(this.open!));
      } }, name);
    const list = h("div", { class: "menu", popover: "auto", id: "menu" },
      act(say("options"), (chat) => chatOptions(chat, (fields) => void this.guard(() => this.change(fields)))),
      act(`${say("pin")} / ${say("unpin")}`, (chat) => this.change({ pinned: !chat.pinned })),
      act(say("exportMarkdown"), async (chat) => download(await api.exported(chat.id, "markdown"), "chat.md")),
      act(say("exportChat"), async (chat) => download(await api.exported(chat.id, "jsonl"), "chat.jsonl")),
      act(say("delete"), (chat) => this.delete(chat)));
    return h("span", {}, iconButton("more", say("more"), () => {}, { popovertarget: "menu" }), list);
  }

  private readonly doing: Doing = {
    choose: (turn) => void this.guard(async () => {
      await this.change({ leaf: leafOf(this.open!.turns, turn.id) });
      this.render();
    }),
    askInstead: (turn, content) => void this.ask(content, turn.files, turn.parent),
    correct: (turn, content) => void this.guard(async () => {
      await api.edit(this.open!.id, turn.id, content);
      await this.show(this.open!.id);
    }),
    again: (turn) => void this.guard(() => this.write(turn.parent!)),
  };

  /** Opens a chat, or an empty page, which becomes a chat with its first question. */
  private async show(id: string | null): Promise<void> {
    this.writing?.abort();
    document.body.classList.remove("nav");
    let open: OpenChat | null = null;
    if (id !== null) {
      try {
        open = await api.chat(id);
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
      }
    }
    this.open = open;
    if (open) sessionStorage.setItem("chat", open.id);
    else sessionStorage.removeItem("chat");
    this.render();
    await this.list();
    this.composer.text.focus();
  }

  private render(): void {
    const open = this.open;
    this.title.textContent = open?.title || say("newChat");
    document.title = open?.title ? `${open.title} – edgespec` : "edgespec";
    const chosen = this.showModels();
    if (open === null || open.turns.length === 0) {
      this.log.replaceChildren(h("p", { class: "empty" }, say("first")));
      this.showContext(0, this.models.find((model) => model.name === chosen)?.context_length ?? null);
      return;
    }
    this.last = showBranch(this.log, open.turns, open.leaf, this.doing);
    const facts = this.last?.turn.facts;
    this.showContext(facts?.context ?? 0, facts?.context_length ?? null);
    this.toEnd();
  }

  /** Again for some frames: a turn has a guessed height until it is seen. */
  private toEnd(frames = 8): void {
    this.log.scrollTop = this.log.scrollHeight;
    if (frames > 0) requestAnimationFrame(() => this.toEnd(frames - 1));
  }

  /** Fills the list to choose from. Returns the name of the model that is chosen. */
  private showModels(): string | undefined {
    const chosen = this.open?.options.model ?? this.models[0]?.name;
    this.picker.replaceChildren(...this.models.map((model) =>
      h("option", { value: model.name, selected: model.name === chosen },
        model.size_bytes ? `${model.name} (${bytes(model.size_bytes)})` : model.name)));
    return chosen;
  }

  private showContext(used: number, length: number | null): void {
    this.gauge.hidden = length === null;
    this.gauge.value = length ? used / length : 0;
    const words = length === null ? "" : say("contextUse", number(used), number(length));
    this.gaugeText.textContent = words;
    this.gauge.title = words;
  }

  private async ask(question: string, files: readonly TextFile[], parent?: number | null): Promise<void> {
    await this.guard(async () => {
      try {
        this.open ??= { ...(await api.create({ model: this.picker.value, temperature: 0 })), turns: [] };
        const chat = this.open;
        const turn = await api.ask(chat.id, parent === undefined ? chat.leaf : parent, question, files);
        sessionStorage.setItem("chat", chat.id);
        this.open = await api.chat(chat.id);
        this.render();
        void this.list();
        await this.write(turn.id);
      } catch (error) {
        // What was written is not lost: it stands where it stood.
        if (!this.open?.turns.some((turn) => turn.content === question) && this.composer.text.value === "")
          this.composer.fill(question, files);
        throw error;
      }
    });
  }

  /** Lets the model answer a turn, and shows it as it comes. */
  private async write(parent: number): Promise<void> {
    const chat = this.open!;
    this.writing?.abort();
    const stop = (this.writing = new AbortController());
    const sentences = new Sentences();
    const meter = new Meter();
    let turn: Turn | undefined;
    let waiting = 0;
    let frame = 0;
    let painted = -Infinity;
    const paint = () => {
      waiting = frame = 0;
      painted = performance.now();
      const atEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 80;
      if (this.last?.turn === turn) this.last?.update();
      this.live.textContent = meter.text;
      if (atEnd) this.log.scrollTop = this.log.scrollHeight;
    };
    this.composer.setBusy(true);
    this.live.textContent = say("writing");
    try {
      for await (const part of api.answer(chat.id, parent, stop.signal)) {
        if (part.turn !== undefined) turn = this.begin(chat, parent, part.turn);
        if (turn === undefined) continue;
        turn.content += part.text ?? "";
        if (part.facts !== undefined) turn.facts = part.facts;
        meter.add(part);
        const sentence = sentences.next(turn.content, part.facts !== undefined);
        if (sentence !== "") this.spoken.textContent = sentence;
        waiting ||= window.setTimeout(() => (frame = requestAnimationFrame(paint)), Math.max(0, painted + PAINT_MS - performance.now()));
      }
    } catch (error) {
      if (!stop.signal.aborted) throw error;
    } finally {
      clearTimeout(waiting);
      cancelAnimationFrame(frame);
      if (turn !== undefined) {
        turn.facts ??= stop.signal.aborted ? { stopped: true } : {};
        paint();
        if (this.open?.id === chat.id) this.showContext(turn.facts.context ?? 0, turn.facts.context_length ?? null);
      }
      if (this.writing === stop) {
        this.writing = null;
        this.composer.setBusy(false);
        this.live.textContent = "";
      }
    }
  }

  private begin(chat: OpenChat, parent: number, id: number): Turn {
    const turn: Turn = { id, parent, role: "assistant", content: "", files: [], facts: null };
    chat.turns.push(turn);
    if (this.open?.id === chat.id) {
      this.open = { ...this.open, leaf: id };
      this.last = showBranch(this.log, chat.turns, id, this.doing);
    }
    return turn;
  }

  private async change(fields: Parameters<typeof api.change>[1]): Promise<void> {
    const open = this.open!;
    const turns = open.turns;
    this.open = { ...(await api.change(open.id, fields)), turns };
    this.title.textContent = this.open.title || say("newChat");
    await this.list();
  }

  private async changeModel(): Promise<void> {
    if (this.open !== null) await this.change({ options: { ...this.open.options, model: this.picker.value } });
  }

  private async delete(chat: OpenChat): Promise<void> {
    await api.change(chat.id, { deleted: true });
    await this.show(null);
    this.tell(say("deleted", chat.title || say("newChat")), say("undo"), () => void this.guard(async () => {
      await api.change(chat.id, { deleted: false });
      await this.show(chat.id);
    }));
  }

  private async list(): Promise<void> {
    this.sidebar.show(await api.chats(this.sidebar.searched), this.open?.id ?? null);
  }

  private settings(): void {
    settings(this.look, (look) => {
      this.look = look;
      this.dress();
      this.build();
      this.render();
      void this.guard(() => this.list());
    }, {
      exportAll: () => void this.guard(async () => download(await api.exported(null, "jsonl"), "chats.jsonl")),
      models: () => void this.guard(() => this.modelList.show()),
      importFile: (file) => void this.guard(async () => {
        const { chats } = await api.importChats(await file.text());
        this.tell(say("imported", chats));
        await this.list();
      }),
    });
  }

  private dress(): void {
    keep(this.look);
    setLanguage(this.look.language);
    document.documentElement.lang = this.look.language;
    document.documentElement.dataset["theme"] = this.look.theme;
  }

  private key(event: KeyboardEvent): void {
    const control = event.ctrlKey || event.metaKey;
    if (event.key === "Escape" && this.writing !== null) this.writing.abort();
    else if (control && event.key === "k") this.sidebar.focusSearch();
    else if (control && event.shiftKey && event.key.toLowerCase() === "o") void this.guard(() => this.show(null));
    else return;
    event.preventDefault();
  }

  /** Does something with the server. What goes wrong is said; a server that is gone is waited for. */
  private async guard(run: () => Promise<void>): Promise<void> {
    try {
      await run();
    } catch (error) {
      const key = error instanceof KeyNeeded ? await askKey() : "";
      if (key !== "") {
        useKey(key);
        await this.guard(run);
      } else if (error instanceof Unreachable) {
        this.tell(say("gone"));
        await this.ready();
        this.tell(say("back"));
        if (this.open !== null) {
          this.open = await api.chat(this.open.id);
          this.render();
        }
      } else this.tell(say("failed", error instanceof Error ? error.message : String(error)));
    }
  }

  /** The server's state, once it answers and has its model. */
  private async ready(): Promise<State> {
    for (;;) {
      try {
        const state = await api.state();
        this.live.textContent = state.ready ? "" : say("loading");
        if (state.ready) return state;
      } catch (error) {
        if (error instanceof ApiError) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  private tell(message: string, action?: string, act?: () => void): void {
    const close = () => this.toast.replaceChildren();
    this.toast.replaceChildren(h("span", {}, message),
      action ? h("button", { type: "button", onclick: () => { close(); act?.(); } }, action) : "",
      iconButton("close", say("close"), close));
  }
}

/** Tokens a second and accepted drafts of an answer while it comes. */
class Meter {
  private seconds = 0;
  private tokens = 0;
  private proposed = 0;
  private accepted = 0;
  private read: readonly [number, number] | undefined;

  add(part: Part): void {
    this.read = part.text ? undefined : (part.read ?? this.read);
    for (const round of part.rounds ?? []) {
      this.seconds += round.seconds;
      this.tokens += round.committed;
      this.proposed += round.proposed;
      this.accepted += round.accepted;
    }
  }

  get text(): string {
    if (this.tokens === 0) return this.read ? say("reading", number(this.read[0]), number(this.read[1])) : say("writing");
    const speed = this.seconds > 0 ? say("speed", number(this.tokens / this.seconds, 1)) : "";
    return this.proposed > 0 ? `${speed} · ${say("accepted", number((100 * this.accepted) / this.proposed))}` : speed;
  }
}

function download(file: Blob, name: string): void {
  const link = h("a", { href: URL.createObjectURL(file), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
