/** Markdown as elements. The parser only says what the parts are; markup in a text stays text, and pictures are not fetched. */

import { type Token, type Tokens } from "marked";

import { h, iconButton } from "./dom.js";
import { icon } from "./icons.js";
import { lexed } from "./lexed.js";
import { say } from "./texts.js";

/** Shows `text` in `element`, and leaves the blocks alone that have not changed since the last call. */
export function render(element: HTMLElement, text: string): void {
  const blocks = lexed(text).filter((block) => block.type !== "space" && block.type !== "def");
  const shown = [...element.children] as HTMLElement[];
  blocks.forEach((block, at) => {
    const old = shown[at];
    if (old?.dataset["raw"] === block.raw) return;
    const fresh = oneBlock(block);
    fresh.dataset["raw"] = block.raw;
    if (old === undefined) element.append(fresh);
    else old.replaceWith(fresh);
  });
  shown.slice(blocks.length).forEach((old) => old.remove());
}

function oneBlock(token: Token): HTMLElement {
  switch (token.type) {
    case "heading":
      // The page's own heading is the first: those of an answer stand below it.
      return h(`h${Math.min(6, (token as Tokens.Heading).depth + 1)}` as "h2", {}, ...inline(token));
    case "code":
      return code(token as Tokens.Code);
    case "blockquote":
      return h("blockquote", {}, ...blocks((token as Tokens.Blockquote).tokens));
    case "list": {
      const list = token as Tokens.List;
      const items = list.items.map((item) => h("li", {}, item.task ? (item.checked ? "☑ " : "☐ ") : null, ...blocks(item.tokens)));
      return list.ordered ? h("ol", { start: list.start === 1 ? undefined : list.start }, ...items) : h("ul", {}, ...items);
    }
    case "table": {
      const table = token as Tokens.Table;
      const row = (cells: Tokens.TableCell[], tag: "th" | "td") =>
        h("tr", {}, ...cells.map((cell) => h(tag, { class: cell.align ?? undefined, scope: tag === "th" && "col" }, ...inline(cell))));
      const body = h("tbody", {}, ...table.rows.map((cells) => row(cells, "td")));
      return h("div", { class: "table", tabindex: 0, role: "region", "aria-label": say("table") }, h("table", {}, h("thead", {}, row(table.header, "th")), body));
    }
    case "hr":
      return h("hr");
    case "html":
      return h("p", {}, token.raw);
    case "maths":
      return h("p", { class: "maths" }, token.raw.trim());
    case "text":
      return h("p", {}, ...inline(token));
    default:
      return h("p", {}, ...inline(token));
  }
}

function blocks(tokens: Token[]): Node[] {
  return tokens
    .filter((token) => token.type !== "space" && token.type !== "checkbox")
    .flatMap((token): Node[] => (token.type === "text" ? inline(token) : [oneBlock(token)]));
}

function inline(token: { tokens?: Token[] | undefined; text?: string; raw?: string }): Node[] {
  if (token.tokens === undefined) return [new Text(decoded(token.text ?? token.raw ?? ""))];
  return token.tokens.flatMap((part): Node[] => {
    switch (part.type) {
      case "strong":
        return [h("strong", {}, ...inline(part))];
      case "em":
        return [h("em", {}, ...inline(part))];
      case "del":
        return [h("del", {}, ...inline(part))];
      case "codespan":
        return [h("code", {}, decoded(part.text))];
      case "br":
        return [h("br")];
      case "maths":
        return [h("span", { class: "maths" }, part.raw)];
      case "link":
        return [link(part as Tokens.Link)];
      case "image":
        return [new Text(`[${say("picture")}: ${part.text}]`)];
      case "checkbox":
        return [];
      case "text":
      case "escape":
        return inline({ tokens: (part as Tokens.Text).tokens, text: part.text });
      default:
        return [new Text(part.raw)];
    }
  });
}

/** Only addresses that a click may follow; all others are text. */
function link(token: Tokens.Link): Node {
  const inside = inline(token);
  if (!/^(https?:\/\/|mailto:)/i.test(token.href)) return h("span", {}, ...inside);
  return h("a", { href: token.href, target: "_blank", rel: "noopener noreferrer", title: token.href }, ...inside);
}

function code(token: Tokens.Code): HTMLElement {
  const copy = iconButton("copy", say("copyCode"), async () => {
    await navigator.clipboard.writeText(token.text);
    copy.replaceChildren(icon("done"));
    setTimeout(() => copy.replaceChildren(icon("copy")), 1200);
  });
  const name = (token.lang ?? "").split(/\s/, 1)[0] ?? "";
  const text = h("pre", { tabindex: 0, role: "region", "aria-label": name || say("code") }, h("code", {}, token.text));
  return h("div", { class: "code" }, h("div", { class: "codehead" }, h("span", {}, name), copy), text);
}

/** The lexer writes some characters of plain text as entities. */
function decoded(text: string): string {
  return text.replace(/&(amp|lt|gt|quot|#39);/g, (_, name: string) => ({ amp: "&", lt: "<", gt: ">", quot: '"', "#39": "'" })[name] ?? "");
}
