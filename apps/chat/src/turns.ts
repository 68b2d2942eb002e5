/** The turns of a branch, and what can be done with each. */

import { h, iconButton } from "./dom.js";
import { icon } from "./icons.js";
import { render } from "./markdown.js";
import { number, say } from "./texts.js";
import { branch, siblings, spans, type Facts, type Turn } from "./tree.js";

export interface Doing {
  /** show another version of a turn */
  choose(turn: Turn): void;
  /** ask again with other words */
  askInstead(turn: Turn, content: string): void;
  /** put the model's words right */
  correct(turn: Turn, content: string): void;
  again(turn: Turn): void;
}

/** The element of one turn, which is updated while it is written. */
export class TurnView {
  readonly element: HTMLElement;
  private readonly body = h("div", { class: "body" });
  private readonly foot = h("div", { class: "foot" });
  private drafts = false;

  constructor(readonly turn: Turn, private readonly all: readonly Turn[], private readonly doing: Doing) {
    const name = turn.role === "user" ? say("you") : turn.facts?.model || say("model");
    const files = turn.files.map((file) => h("details", { class: "file" }, h("summary", {}, icon("file"), ` ${file.name}`), h("pre", {}, file.text)));
    this.element = h("article", { class: `turn ${turn.role}`, "aria-label": turn.role === "user" ? say("you") : say("answerOf") }, h("div", { class: "who" }, name), ...files, this.body, this.foot);
    this.update();
  }

  update(): void {
    const { turn } = this;
    if (turn.role === "user") this.body.replaceChildren(h("p", { class: "asked" }, turn.content));
    else if (this.drafts) this.body.replaceChildren(drafted(turn));
    else {
      if (this.body.querySelector(".drafted")) this.body.replaceChildren();
      render(this.body, turn.content);
    }
    if (turn.role === "user" || turn.facts !== null) this.foot.replaceChildren(...this.actions());
  }

  private actions(): Node[] {
    const { turn, doing } = this;
    const beside = siblings(this.all, turn);
    const at = beside.indexOf(turn);
    const versions = beside.length > 1 && h("span", { class: "versions" },
      iconButton("older", say("older"), () => doing.choose(beside[at - 1]!), { disabled: at === 0 }),
      h("span", {}, say("version", at + 1, beside.length)),
      iconButton("newer", say("newer"), () => doing.choose(beside[at + 1]!), { disabled: at === beside.length - 1 }));
    const copy = iconButton("copy", say("copy"), () => void navigator.clipboard.writeText(turn.content));
    const edit = iconButton("edit", say("edit"), () => this.edit());
    const own = turn.role === "assistant" ? [iconButton("again", say("again"), () => doing.again(turn))] : [];
    if (turn.facts?.drafted?.some(([, drafter]) => drafter)) {
      own.push(iconButton("drafts", say(this.drafts ? "noDrafts" : "drafts"), () => {
        this.drafts = !this.drafts;
        this.update();
      }, { "aria-pressed": String(this.drafts) }));
    }
    const found = turn.facts === null ? [] : facts(turn.facts);
    return [h("div", { class: "actions" }, versions || null, copy, edit, ...own), ...found];
  }

  private edit(): void {
    const { turn, doing } = this;
    const text = h("textarea", { rows: Math.min(16, turn.content.split("\n").length + 1), "aria-label": say("edit"), value: turn.content });
    const done = (act?: () => void) => {
      this.body.replaceChildren();
      this.update();
      act?.();
    };
    const save = () => done(() => (turn.role === "user" ? doing.askInstead(turn, text.value) : doing.correct(turn, text.value)));
    text.addEventListener("keydown", (event) => {
      if (event.key === "Escape") done();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    });
    this.body.replaceChildren(text, h("div", { class: "buttons" },
      h("button", { type: "button", onclick: save }, say(turn.role === "user" ? "saveAsk" : "save")),
      h("button", { type: "button", class: "plain", onclick: () => done() }, say("cancel"))));
    text.focus();
  }
}

/** Replaces the views in `place` by those of a branch. Returns the last one. */
export function showBranch(place: HTMLElement, turns: readonly Turn[], leaf: number | null, doing: Doing): TurnView | undefined {
  const views = branch(turns, leaf).map((turn) => new TurnView(turn, turns, doing));
  place.replaceChildren(...views.map((view) => view.element));
  return views.at(-1);
}

function drafted(turn: Turn): HTMLElement {
  const names = [...new Set((turn.facts?.drafted ?? []).map(([, drafter]) => drafter).filter((name) => name))];
  const parts = spans(turn.content, turn.facts?.drafted).map(({ text, drafter }) =>
    drafter === "" ? new Text(text) : h("mark", { class: `by${names.indexOf(drafter) % 4}`, title: say("drafter", drafter) }, text));
  const legend = names.map((name, at) => h("mark", { class: `by${at % 4}` }, name));
  return h("div", { class: "drafted" }, h("div", { class: "legend" }, ...legend), h("p", {}, ...parts));
}

function facts(found: Facts): Node[] {
  const lines: string[] = [];
  const { timings } = found;
  if (timings && timings.predicted_per_second > 0) lines.push(say("speed", number(timings.predicted_per_second, 1)));
  if (timings && timings.draft_n > 0) lines.push(say("accepted", number((100 * timings.draft_n_accepted) / timings.draft_n)));
  if (found.speedup) lines.push(say("faster", number(found.speedup, 2)));
  const notes: string[] = [];
  if (found.error !== undefined) notes.push(say("failed", found.error));
  else if (found.stopped) notes.push(say("stopped"));
  else if (found.edited) notes.push(say("edited"));
  else if (found.finish === "length") notes.push(say("lengthEnd"));
  else if (found.finish === undefined) notes.push(say("cutOff"));
  const why = found.why?.length ? h("details", { class: "why" }, h("summary", {}, say("why")), ...found.why.map((line) => h("p", {}, line))) : null;
  const badge = found.exact ? h("span", { class: "badge", title: say("exactWhy") }, say("exact")) : null;
  const meter = lines.length > 0 || badge ? h("div", { class: "facts" }, badge, h("span", {}, lines.join(" · "))) : null;
  return [...(meter ? [meter] : []), ...(why ? [why] : []), ...notes.map((note) => h("div", { class: "note" }, note))];
}
