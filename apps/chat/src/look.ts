/** How the page looks, kept in a cookie: unlike the browser's other stores, it is the same at each port of this machine. */

import { LANGUAGES } from "./texts.js";

export interface Look {
  language: keyof typeof LANGUAGES;
  theme: "auto" | "light" | "dark" | "contrast";
}

const NAME = "edgespec-look";
/** Seconds, from the last visit on: the longest that browsers keep a cookie. */
const KEPT_S = 400 * 24 * 3600;

export function keep({ language, theme }: Look): void {
  document.cookie = `${NAME}=${language}.${theme}; max-age=${KEPT_S}; path=/; samesite=strict`;
}

export function remembered(): Look {
  const [language, theme] = new RegExp(`(?:^|; )${NAME}=(\\w+)\\.(\\w+)`).exec(document.cookie)?.slice(1) ?? [navigator.language.slice(0, 2), "auto"];
  return { language: Object.hasOwn(LANGUAGES, language!) ? (language as Look["language"]) : "en", theme: theme as Look["theme"] };
}
