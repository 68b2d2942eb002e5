/** Elements by function. Text is only ever set as text, so nothing that a model or a file says becomes markup. */

import { icon, type Icon } from "./icons.js";

type Child = Node | string | null | undefined | false;
type Properties = Record<string, unknown>;

/** h("button", { class: "x", onclick: f, "aria-label": "y" }, "text"). A property that is undefined or false is left out. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K, properties: Properties = {}, ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value as EventListener);
    else if (name === "value" || name === "checked") (element as unknown as Properties)[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child): child is Node | string => child !== null && child !== undefined && child !== false));
  return element;
}

/** A button with an icon alone, and a name for those who do not see it. */
export function iconButton(picture: Icon, name: string, onclick: (event: MouseEvent) => void, more: Properties = {}): HTMLButtonElement {
  return h("button", { type: "button", class: "icon", "aria-label": name, title: name, onclick, ...more }, icon(picture));
}
