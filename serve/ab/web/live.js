// The live figures: one small chart for each, both arms in it, their values of the last minute above.

import { armName } from "./arms.js";
import { chart } from "./chart.js";
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

export function showLive(figures) {
  latest = figures;
  const arms = Object.keys(figures.series);
  if (!shown.length) build(arms);
  const minutes = Math.round((figures.bucket_s * figures.time_s.length) / 60);
  CHARTS.forEach((spec, index) => {
    const { values, plot } = shown[index];
    const said = arms.map((arm, at) => {
      const now = figures.now[arm];
      const text = digits(spec.value(now));
      const upper = spec.upper ? digits(spec.upper(now)) : null;
      say(values[at].main, text);
      if (upper !== null) say(values[at].upper, `p99 ${upper}`);
      return `${arm} ${text === NONE ? "none" : text}${upper === null || upper === NONE ? "" : `, p99 ${upper}`}`;
    });
    const lines = arms.map((arm, at) => ({
      arm: at,
      values: figures.series[arm].map(spec.value),
      upper: spec.upper && figures.series[arm].map(spec.upper),
    }));
    const label = `${spec.title}, ${spec.unit}, last ${minutes} minutes. Now: ${said.join("; ")}.`;
    plot.replaceChildren(chart(Math.max(200, plot.clientWidth), lines, { label, format: axis, minutes }));
  });
  showShadow(figures.shadow, minutes);
}

function build(arms) {
  shown = CHARTS.map(({ title, unit, upper }) => {
    const figure = instance("chart-template");
    figure.querySelector("h3").textContent = title;
    figure.querySelector(".unit").textContent = unit;
    const values = arms.map((arm, index) => {
      const cells = { main: element("span", { class: "value", text: NONE }), upper: element("span", { class: "upper" }) };
      const told = element("dd", {}, cells.main, ...(upper ? [" ", cells.upper] : []));
      figure.querySelector(".values").append(element("div", {}, element("dt", {}, armName(arm, index)), told));
      return cells;
    });
    find("charts").append(figure);
    return { values, plot: figure.querySelector(".plot") };
  });
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
