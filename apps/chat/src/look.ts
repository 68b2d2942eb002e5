/** How the page looks, kept in a cookie: unlike the browser's other stores, it is the same at each port of this machine. */

import { LANGUAGES } from "./texts.js";

const THEMES = ["auto", "light", "dark", "contrast"] as const;

export interface Look {
  language: keyof typeof LANGUAGES;
  theme: (typeof THEMES)[number];
}

const NAME = "edgespec-look";
/** Seconds, from the last visit on: the longest that browsers keep a cookie. */
const KEPT_S = 400 * 24 * 3600;

export function keep({ language, theme }: Look): void {
  document.cookie = `${NAME}=${language}.${theme}; max-age=${KEPT_S}; path=/; samesite=strict`;
}

export function remembered(): Look {
  return lookOf(document.cookie, stored(), navigator.language.slice(0, 2));
}

/** stored: of a version that kept no cookie yet. spoken: the browser's language. */
export function lookOf(cookies: string, stored: string | null, spoken: string): Look {
  const [language, theme] = new RegExp(`(?:^|; )${NAME}=(\\w+)\\.(\\w+)`).exec(cookies)?.slice(1) ?? parsed(stored);
  const known = [language, spoken].find((each) => typeof each === "string" && Object.hasOwn(LANGUAGES, each));
  return { language: (known as Look["language"] | undefined) ?? "en", theme: THEMES.find((each) => each === theme) ?? "auto" };
}

function parsed(stored: string | null): unknown[] {
  try {
    const found = JSON.parse(stored ?? "null") as Partial<Record<keyof Look, unknown>> | null;
    return [found?.language, found?.theme];
  } catch {
    return [];
  }
}

function stored(): string | null {
  try {
    return localStorage.getItem("look");
  } catch {
    return null; // the browser keeps nothing for this page
  }
}
