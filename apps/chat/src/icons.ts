/** The pictures on buttons, as paths on a field of 16 by 16: no font has to have them. */

const PATHS = {
  attach: "M11 4.5v6.2a3 3 0 0 1-6 0V4a2 2 0 0 1 4 0v6.2a.9.9 0 0 1-1.8 0V5",
  copy: "M6 6h7v7H6zM10 6V3H3v7h3",
  edit: "M3 13l.6-2.8L10.8 3l2.2 2.2-7.2 7.2zM9.4 4.4l2.2 2.2",
  again: "M13 8a5 5 0 1 1-1.5-3.6M13 2.5v3h-3",
  drafts: "M2.5 3.5h11v9h-11zM8 3.5v9M4.5 6h1.5M4.5 8h1.5M4.5 10h1.5",
  older: "M10 3L5 8l5 5",
  newer: "M6 3l5 5-5 5",
  close: "M4 4l8 8M12 4l-8 8",
  more: "M3.5 8h.01M8 8h.01M12.5 8h.01",
  menu: "M2.5 4h11M2.5 8h11M2.5 12h11",
  settings: "M2.5 4.5h6M11.5 4.5h2M2.5 11.5h2M7.5 11.5h6M10 3v3M6 10v3",
  pin: "M8 9.5V14M5 9.5h6L10 7V3H6v4z",
  file: "M4 2h5l3 3v9H4zM9 2v3h3",
  done: "M3 8.5l3.5 3.5L13 4.5",
} as const;

export type Icon = keyof typeof PATHS;
const SVG = "http://www.w3.org/2000/svg";

export function icon(name: Icon): SVGElement {
  const picture = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  for (const [key, value] of Object.entries({ viewBox: "0 0 16 16", class: "pic", "aria-hidden": "true" })) picture.setAttribute(key, value);
  path.setAttribute("d", PATHS[name]);
  picture.append(path);
  return picture;
}
