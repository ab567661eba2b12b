// The live figures: one small chart for each, both arms in it, their values of the last minute above.

import { armName, knowArms } from "./arms.js";
import { chart, placeOf } from "./chart.js";
import { element, find, instance, say } from "./dom.js";
import { axis, count, digits, NONE, percent } from "./format.js";

const errorShare = (figures) => (figures.requests ? figures.errors / figures.requests : null);
const inMs = (seconds) => (seconds === null ? null : seconds * 1000);

const CHARTS = [
  { title: "Time to first token", unit: "ms, p50 and p99", value: (f) => inMs(f.ttft_s_p50), upper: (f) => inMs(f.ttft_s_p99) },
  { title: "Inter-token latency", unit: "ms, p50 and p99", value: (f) => inMs(f.itl_s_p50), upper: (f) => inMs(f.itl_s_p99) },
  { title: "Speed of one answer", unit: "tokens/s, p50", value: (f) => f.answer_tokens_per_s_p50 },
  { title: "Requests", unit: "per second", value: (f) => f.requests_per_s },
  { title: "Output of the arm", unit: "tokens/s", value: (f) => f.output_tokens_per_s },
  { title: "Errors", unit: "% of requests", value: (f) => (errorShare(f) === null ? null : errorShare(f) * 100) },
];

let shown = [];
let latest = null;
let lookedAt = null; // the start of the bucket that is read off, Unix time; null is now

export function showLive(figures) {
  latest = figures;
  const arms = Object.keys(figures.series);
  knowArms(arms);
  if (!shown.length) build(arms);
  const place = lookedAt === null ? -1 : figures.time_s.indexOf(lookedAt);
  if (place < 0) lookedAt = null;
  const series = Object.fromEntries(arms.map((arm) => [arm, rows(figures.series[arm])]));
  const of = (arm) => (place < 0 ? figures.now[arm] : series[arm][place]);
  const minutes = Math.round((figures.bucket_s * figures.time_s.length) / 60);
  CHARTS.forEach((spec, index) => {
    const { values, plot } = shown[index];
    const said = arms.map((arm, at) => {
      const text = digits(spec.value(of(arm)));
      const upper = spec.upper ? digits(spec.upper(of(arm))) : NONE;
      say(values[at].main, text);
      say(values[at].upper, upper === NONE ? "" : `p99 ${upper}`);
      return `${arm} ${text === NONE ? "none" : text}${upper === NONE ? "" : `, p99 ${upper}`}`;
    });
    const lines = arms.map((arm) => ({
      arm,
      values: series[arm].map(spec.value),
      upper: spec.upper && series[arm].map(spec.upper),
    }));
    const label = `${spec.title}, ${spec.unit}, last ${minutes} minutes. ${whenWords(place)}: ${said.join("; ")}.`;
    const width = Math.max(200, plot.clientWidth);
    plot.replaceChildren(chart(width, lines, { label, format: axis, minutes, cursor: place }));
  });
  showLookBack(place);
  showShadow(figures.shadow, minutes);
}

// Columns come; one object for each bucket is easier to work with.
const rows = (columns) =>
  columns.requests.map((_, index) => Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[index]])));

function whenWords(place) {
  if (place < 0) return "Now";
  const [from, to] = [latest.time_s[place], latest.time_s[place] + latest.bucket_s].map((s) => new Date(s * 1000));
  return `${from.toLocaleTimeString()} to ${to.toLocaleTimeString()}`;
}

// A slider for the keyboard, the pointer over a chart for the hand: both read off the same moment in all charts.
function showLookBack(place) {
  const slider = find("look-back");
  slider.max = latest.time_s.length;
  slider.value = place < 0 ? latest.time_s.length : place;
  slider.setAttribute("aria-valuetext", whenWords(place));
  say(find("look-back-time"), place < 0 ? "last minute" : whenWords(place));
}

function lookAt(place) {
  lookedAt = latest?.time_s[place] ?? null;
  if (latest) showLive(latest);
}

function build(arms) {
  shown = CHARTS.map(({ title, unit, upper }) => {
    const figure = instance("chart-template");
    figure.querySelector("h3").textContent = title;
    figure.querySelector(".unit").textContent = unit;
    const values = arms.map((arm) => {
      const cells = { main: element("span", { class: "value", text: NONE }), upper: element("span", { class: "upper" }) };
      const told = element("dd", {}, cells.main, ...(upper ? [" ", cells.upper] : []));
      figure.querySelector(".values").append(element("div", {}, element("dt", {}, armName(arm)), told));
      return cells;
    });
    find("charts").append(figure);
    const plot = figure.querySelector(".plot");
    plot.addEventListener("pointermove", (event) => lookAt(placeOf(event.clientX - plot.getBoundingClientRect().left, plot.clientWidth, latest.time_s.length)));
    plot.addEventListener("pointerleave", () => lookAt(Infinity));
    return { values, plot };
  });
  find("look-back").addEventListener("input", () => lookAt(find("look-back").valueAsNumber));
  new ResizeObserver(() => latest && requestAnimationFrame(() => showLive(latest))).observe(find("charts"));
}

function showShadow({ compared, failed, agreement }, minutes) {
  const words = compared
    ? `Shadow, last ${minutes} minutes: ${count(compared, "answer")} compared, ${percent(agreement)} of their leading tokens agree` +
      `${failed ? `; ${failed} could not be compared` : ""}.`
    : failed
      ? `Shadow, last ${minutes} minutes: none of ${count(failed, "mirrored request")} could be compared.`
      : "";
  say(find("live-shadow"), words);
}
