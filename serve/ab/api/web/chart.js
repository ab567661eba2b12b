// A small line chart: for each arm the median as a line, and the band up to its 99th percentile.

import { armClass, dash, markPath } from "./arms.js";
import { drawn } from "./dom.js";

const HEIGHT = 112;
const TOP = 8;
const BOTTOM = 18;
const LEFT = 38;
const RIGHT = 10;

// lines: [{ arm: its name, values: [number | null], upper: [number | null] | undefined }], oldest first.
export function chart(width, lines, { label, format, minutes, cursor }) {
  const points = lines[0]?.values.length ?? 0;
  const highest = Math.max(0, ...lines.flatMap((line) => [...line.values, ...(line.upper ?? [])]).filter((v) => v));
  const top = roundUp(highest);
  const x = (index) => LEFT + (index / Math.max(1, points - 1)) * (width - LEFT - RIGHT);
  const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const svg = drawn("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label });
  for (const value of [0, top / 2, top]) {
    svg.append(drawn("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
    if (value === 0 || highest > 0) {
      svg.append(drawn("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end", text: format(value) }));
    }
  }
  svg.append(drawn("text", { x: LEFT, y: HEIGHT - 4, text: `${minutes} min ago` }));
  svg.append(drawn("text", { x: width - RIGHT, y: HEIGHT - 4, "text-anchor": "end", text: "now" }));
  if (cursor >= 0) svg.append(drawn("line", { class: "cursor", x1: x(cursor), x2: x(cursor), y1: TOP, y2: HEIGHT - BOTTOM }));
  for (const { arm, values, upper } of lines) {
    if (upper) svg.append(drawn("path", { class: `band ${armClass(arm)}`, d: band(values, upper, x, y) }));
  }
  for (const { arm, values } of lines) {
    svg.append(drawn("path", { class: `line ${armClass(arm)}`, d: line(values, x, y), "stroke-dasharray": dash(arm) }));
    for (const index of alone(values)) {
      svg.append(drawn("circle", { class: `dot ${armClass(arm)}`, cx: x(index), cy: y(values[index]), r: 1.6 }));
    }
    const last = values.findLastIndex((value) => value !== null);
    if (last >= 0) {
      const place = `translate(${x(last) - 4} ${y(values[last]) - 4})`;
      svg.append(drawn("path", { class: `end ${armClass(arm)}`, d: markPath(arm), transform: place }));
    }
  }
  return svg;
}

// The index of the point nearest to a pointer at `offset` pixels of a chart that is `width` wide.
export function placeOf(offset, width, points) {
  const share = (offset - LEFT) / (width - LEFT - RIGHT);
  return Math.round(Math.min(1, Math.max(0, share)) * (points - 1));
}

// 1, 2, 2.5 or 5 times a power of ten: labels that can be read at a glance.
function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

function line(values, x, y) {
  return runs(values).map((run) => run.map((i, at) => `${at ? "L" : "M"}${x(i).toFixed(1)} ${y(values[i]).toFixed(1)}`).join("")).join("");
}

function band(low, high, x, y) {
  const both = low.map((value, index) => (value === null || high[index] === null ? null : value));
  return runs(both)
    .filter((run) => run.length > 1)
    .map((run) => {
      const along = run.map((i) => `${x(i).toFixed(1)} ${y(high[i]).toFixed(1)}`);
      const back = run.toReversed().map((i) => `${x(i).toFixed(1)} ${y(low[i]).toFixed(1)}`);
      return `M${[...along, ...back].join("L")}Z`;
    })
    .join("");
}

// Indices of values that follow each other without a gap.
function runs(values) {
  const found = [];
  let run = null;
  values.forEach((value, index) => {
    if (value === null) run = null;
    else if (run) run.push(index);
    else found.push((run = [index]));
  });
  return found;
}

const alone = (values) => runs(values).filter((run) => run.length === 1).map(([index]) => index);
