/** The list of chats, with search. */

import type { Chat } from "./api.js";
import { h, iconButton } from "./dom.js";
import { icon } from "./icons.js";
import { say } from "./texts.js";

export interface ListDoing {
  open(chat: Chat): void;
  create(): void;
  search(text: string): void;
  settings(): void;
}

export class Sidebar {
  readonly element: HTMLElement;
  private readonly list = h("ul", { class: "chats" });
  private readonly field: HTMLInputElement;

  constructor(private readonly doing: ListDoing) {
    let waiting: ReturnType<typeof setTimeout> | undefined;
    this.field = h("input", { type: "search", placeholder: say("search"), "aria-label": say("search"), autocomplete: "off" });
    this.field.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => doing.search(this.field.value), 120);
    });
    this.element = h("nav", { class: "side", "aria-label": say("chats") },
      h("button", { type: "button", class: "new", onclick: () => doing.create() }, `+ ${say("newChat")}`),
      this.field,
      this.list,
      h("div", { class: "local" }, h("span", {}, say("local")), iconButton("settings", say("settings"), () => doing.settings())));
  }

  get searched(): string {
    return this.field.value;
  }

  focusSearch(): void {
    this.field.focus();
  }

  show(chats: readonly Chat[], open: string | null): void {
    const items = chats.map((chat) =>
      h("li", {},
        h("button", { type: "button", "aria-current": chat.id === open && "page", onclick: () => this.doing.open(chat) },
          chat.pinned ? h("span", { "aria-label": say("pinned"), role: "img" }, icon("pin")) : null,
          h("span", { class: "title" }, chat.title || say("newChat")),
          chat.place ? h("span", { class: "place" }, chat.place) : null)));
    const none = h("li", { class: "none" }, say(this.searched ? "nothingFound" : "noChats"));
    this.list.replaceChildren(...(items.length > 0 ? items : [none]));
  }
}
