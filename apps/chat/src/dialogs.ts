/** The dialogs: options of a chat, and settings of the page. */

import type { Chat, Options } from "./api.js";
import { h } from "./dom.js";
import type { Look } from "./look.js";
import { LANGUAGES, say } from "./texts.js";

export function dialog(title: string, ...content: Node[]): HTMLDialogElement {
  const form = h("form", { method: "dialog" }, h("h2", {}, title), ...content);
  const shown = h("dialog", { "aria-label": title }, form);
  document.body.append(shown);
  shown.addEventListener("close", () => shown.remove());
  shown.showModal();
  return shown;
}

function field(name: string, input: HTMLElement): HTMLLabelElement {
  return h("label", {}, h("span", {}, name), input);
}

function buttons(): HTMLElement {
  return h("div", { class: "buttons" }, h("button", { value: "save" }, say("save")), h("button", { value: "", class: "plain", formnovalidate: true }, say("cancel")));
}

/** The API key that the server asks for; "" if the user gives none. */
export function askKey(): Promise<string> {
  const key = h("input", { type: "password", autocomplete: "off", required: true });
  const shown = dialog(say("key"), field(say("key"), key), buttons());
  return new Promise((resolve) => shown.addEventListener("close", () => resolve(shown.returnValue === "save" ? key.value : "")));
}

/** Calls `save` with what has to be changed. */
export function chatOptions(chat: Chat, save: (fields: { title: string; system: string; options: Options }) => void): void {
  const { options } = chat;
  const number = (value: number | undefined, more: Record<string, unknown>) => h("input", { type: "number", value: value ?? "", ...more });
  const title = h("input", { value: chat.title, maxlength: 200 });
  const system = h("textarea", { rows: 4, value: chat.system });
  const temperature = number(options.temperature ?? 0, { min: 0, max: 5, step: 0.1, required: true });
  const topP = number(options.top_p ?? 1, { min: 0.01, max: 1, step: 0.01, required: true });
  const most = number(options.max_tokens, { min: 1, step: 1 });
  const seed = number(options.seed, { min: 0, step: 1 });
  const shown = dialog(say("options"), field(say("title"), title), field(say("system"), system), field(say("temperature"), temperature),
    field(say("topP"), topP), field(say("maxTokens"), most), field(say("seed"), seed), buttons());
  shown.addEventListener("close", () => {
    if (shown.returnValue !== "save") return;
    const next: Options = { ...options, temperature: Number(temperature.value), top_p: Number(topP.value) };
    delete next.max_tokens;
    delete next.seed;
    if (most.value !== "") next.max_tokens = Number(most.value);
    if (seed.value !== "") next.seed = Number(seed.value);
    save({ title: title.value, system: system.value, options: next });
  });
}

export function settings(look: Look, save: (look: Look) => void, more: { exportAll(): void; importFile(file: File): void; models(): void }): void {
  const choice = (values: Record<string, string>, chosen: string) =>
    h("select", {}, ...Object.entries(values).map(([value, name]) => h("option", { value, selected: value === chosen }, name)));
  const language = choice(LANGUAGES, look.language);
  const theme = choice({ auto: say("auto"), light: say("light"), dark: say("dark"), contrast: say("contrast") }, look.theme);
  const picker = h("input", { type: "file", accept: ".jsonl,.json" });
  picker.addEventListener("change", () => picker.files?.[0] && more.importFile(picker.files[0]));
  const shown = dialog(say("settings"), field(say("language"), language), field(say("theme"), theme),
    h("p", {}, h("button", { type: "button", class: "plain", onclick: () => {
      shown.close();
      more.models();
    } }, say("models"))),
    h("p", {}, h("button", { type: "button", class: "plain", onclick: () => more.exportAll() }, say("exportAll"))), field(say("import"), picker), buttons());
  shown.addEventListener("close", () => {
    if (shown.returnValue === "save") save({ language: language.value as Look["language"], theme: theme.value as Look["theme"] });
  });
}
