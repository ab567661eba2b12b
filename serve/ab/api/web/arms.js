// How an arm looks everywhere: a colour, and a mark and a dash for those who do not see colours apart.

import { drawn, element } from "./dom.js";

const MARKS = ["M4 1a3 3 0 1 1 0 6a3 3 0 1 1 0-6z", "M4 0.4L7.6 4L4 7.6L0.4 4z", "M1 1h6v6h-6z", "M4 0.6L7.6 7.2H0.4z"];
const DASHES = ["none", "6 3", "2 2", "8 2 2 2"];
const KINDS = MARKS.length;

const known = []; // in the order they were first seen: an arm looks the same everywhere

// Whoever gets to know all arms says so first, in the server's order.
export const knowArms = (names) => names.forEach(look);

function look(name) {
  if (!known.includes(name)) known.push(name);
  return known.indexOf(name) % KINDS;
}

export const armClass = (name) => `arm-${look(name)}`;
export const dash = (name) => DASHES[look(name)];
export const markPath = (name) => MARKS[look(name)];

export function armName(name) {
  const mark = drawn(
    "svg",
    { class: "mark", viewBox: "0 0 8 8", width: "10", height: "10", "aria-hidden": "true" },
    drawn("path", { d: markPath(name) }),
  );
  return element("span", { class: `arm-name ${armClass(name)}` }, mark, element("span", { text: name }));
}
