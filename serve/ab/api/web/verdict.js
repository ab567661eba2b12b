// The verdict: in words, then figure by figure with the interval of each difference. The server has worked it out.

import { armName, knowArms } from "./arms.js";
import { element, find, say } from "./dom.js";
import { count, digits, NONE, percent } from "./format.js";

// better: the sign of a difference that is good; 0 where neither is.
const FIGURES = [
  { name: "ttft_ms", title: "Time to first token", unit: "ms", better: -1 },
  { name: "itl_ms", title: "Inter-token latency", unit: "ms", better: -1 },
  { name: "e2e_ms", title: "End to end", unit: "ms", better: -1 },
  { name: "tokens_per_s", title: "Speed", unit: "tokens/s", better: 1 },
  { name: "output_tokens", title: "Output length", unit: "tokens", better: 0 },
];
const RATES = [
  { name: "error_rate", title: "Errors", better: -1 },
  { name: "gave_up_rate", title: "Clients that left", better: -1 },
];

let parts = {}; // of each arm that is compared
let said = null;

export function showVerdict(verdict, polite) {
  knowArms(verdict.arms.map(({ arm }) => arm));
  const control = verdict.arms.find((arm) => arm.arm === verdict.control);
  const lines = verdict.comparisons.map((comparison) => headline(comparison));
  const words = lines.join(" ") || "There is one arm only: nothing to compare it with.";
  say(find("verdict-words"), words);
  const gist = words.replace(/[\d.,]+/g, ""); // that a figure has moved a little is not worth an announcement
  if (said !== null && said !== gist) polite(words);
  said = gist;
  showNotes(verdict);
  for (const comparison of verdict.comparisons) {
    const ours = verdict.arms.find((arm) => arm.arm === comparison.arm);
    showTables(comparison, ours, control, verdict.alpha);
  }
  const since = new Date(verdict.since * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  say(
    find("verdict-about"),
    `Since ${since}. Each interval holds however often it is looked at. ` +
      `${count(verdict.not_counted, "request")} not counted (failovers, the playground, other explicit arms, pauses).`,
  );
}

function headline({ arm, differences, error_rate, sample_ratio, sample_size, guardrails }) {
  const broken = guardrails.find((guardrail) => guardrail.standing === "broken");
  if (broken) return `${arm} broke ${broken.text}${broken.drained ? " and gets no more traffic" : ""}.`;
  if (sample_ratio.mismatch) return `${arm} and the control do not get the clients that the split gives them: do not believe the differences.`;
  const told = [
    relative("first token", differences.ttft_ms, { lower: "sooner", higher: "later" }),
    relative("tokens", differences.tokens_per_s, { lower: "slower", higher: "faster" }),
  ].filter((words) => words);
  if (!told.length) return `Too early to tell ${arm} from the control${sample_size.needed ? "" : ": too few requests"}.`;
  const errors = { lower: "fewer errors", higher: "more errors", "no different": "errors no different" }[error_rate.direction];
  return `${arm}: ${[...told, ...(errors ? [errors] : [])].join(", ")}.`;
}

function relative(what, { ratio, direction }, words) {
  if (direction === "unknown" || ratio === null) return "";
  if (direction === "no different") return `${what} no different`;
  return `${what} ${digits(Math.abs(ratio - 1) * 100)}\u00a0% ${words[direction]}`;
}

function showNotes({ notes, comparisons }) {
  const list = comparisons.flatMap(({ arm, guardrails, sample_size, sample_ratio, shadow }) => [
    ...guardrailNotes(arm, guardrails),
    { text: sampleNote(arm, sample_size) },
    ...(sample_ratio.clients && !sample_ratio.mismatch
      ? [{ text: `Clients are split as they should be (${percent(sample_ratio.share)} of ${count(sample_ratio.clients, "client")} at ${arm}, ${percent(sample_ratio.expected_share)} expected).` }]
      : []),
    ...(shadow.errors ? [{ text: `${count(shadow.errors, "mirrored request")} could not be compared.` }] : []),
  ]);
  // The server's own notes come last, but one that says what to disbelieve comes first.
  const own = notes.map((text) => ({ text: capital(text), bad: /do not believe/.test(text) }));
  const all = [...own.filter((note) => note.bad), ...list, ...own.filter((note) => !note.bad)];
  const key = JSON.stringify(all);
  if (find("verdict-notes").dataset.key === key) return;
  find("verdict-notes").dataset.key = key;
  find("verdict-notes").replaceChildren(...all.map(({ text, bad }) => element("li", { class: bad ? "bad" : "", text })));
}

function guardrailNotes(arm, guardrails) {
  const broken = guardrails.filter(({ standing }) => standing === "broken");
  const others = guardrails.filter(({ standing }) => standing !== "broken");
  return [
    ...broken.map(({ text, broken_at, drained }) => ({
      text:
        `${arm} broke ${text} at ${new Date(broken_at * 1000).toLocaleString()}. ` +
        `Its weight ${drained ? "was set to 0" : "was 0 already"}.`,
      bad: true,
    })),
    ...(others.length
      ? [{ text: `Guardrails of ${arm}: ${others.map(({ text, standing, value }) => `${text} ${standing}${valueWords(text, value)}`).join(", ")}.` }]
      : []),
  ];
}

function valueWords(text, value) {
  if (value === null) return "";
  if (text.endsWith("%")) return ` (now ${percent(value, 2)})`;
  return ` (now ${digits(value)}${text.endsWith("x") ? "×" : ""})`;
}

function sampleNote(arm, { figure, minimal_effect, power, have, needed, reached }) {
  const title = FIGURES.find(({ name }) => name === figure)?.title.toLowerCase() ?? figure;
  const goal = `to see ${percent(minimal_effect, 0)} of ${title} with power ${digits(power)}`;
  if (needed === null) return `Sample size: ${count(have, "request")} of ${arm}; too few to say how many are needed ${goal}.`;
  return `Sample size ${reached ? "reached" : "not reached"}: ${have.toLocaleString("en")} of ${count(needed, "request")} of ${arm} ${goal}.`;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!]$/.test(text) ? "" : ".");

function showTables(comparison, ours, control, alpha) {
  const { arm, differences, shadow } = comparison;
  const names = { control: control.arm, ours: arm };
  parts[arm] ??= build(arm, control.arm, alpha);
  const interval = (bounds, format) => (bounds ? `${format(bounds.low, "−∞")} to ${format(bounds.high, "∞")}` : "");
  const number = (value, none) => (value === null ? none : signed(value, digits));
  const rate = (value, none) => (value === null ? none : `${signed(value * 100, digits)} pp`);
  const rows = [
    ...FIGURES.map(({ name, title, unit, better }) => {
      const found = differences[name];
      return row(names, [title, unit], digits(control.figures[name].mean), digits(ours.figures[name].mean), {
        main: found.ratio === null ? number(found.difference, NONE) : `${signed((found.ratio - 1) * 100, digits)} %`,
        small: found.ratio_interval
          ? interval(found.ratio_interval, (value, none) => (value === null ? none : `${signed((value - 1) * 100, digits)} %`))
          : interval(found.interval, number),
        direction: found.direction,
        better,
      });
    }),
    ...RATES.map(({ name, title, better }) =>
      row(names, [title, "% of requests"], percentDigits(control[name].mean), percentDigits(ours[name].mean), {
        main: rate(comparison[name].difference, NONE),
        small: interval(comparison[name].interval, rate),
        direction: comparison[name].direction,
        better,
      }),
    ),
  ];
  if (shadow.comparisons) rows.push(...shadowRows(names, shadow));
  parts[arm].differences.replaceChildren(...rows);
  parts[arm].counts.replaceChildren(...countRows(ours, control));
}

function shadowRows(names, { comparisons, agreement, logprob_difference_nats: logprobs }) {
  const told = (figure, format) => (figure.interval ? `${format(figure.interval.low)} to ${format(figure.interval.high)}` : "");
  const rows = [
    row(names, ["Shadow agreement", `% of leading tokens, ${count(comparisons, "answer")}`], "", percentDigits(agreement.mean), {
      main: "", small: told(agreement, percentDigits),
    }),
  ];
  if (logprobs.requests) {
    rows.push(
      row(names, ["Log-probability", "of the control's tokens, nats, less its own"], "", digits(logprobs.mean), {
        main: "", small: told(logprobs, digits),
      }),
    );
  }
  return rows;
}

function build(arm, controlArm, alpha) {
  const differences = element("tbody", { role: "rowgroup" });
  const counts = element("tbody");
  const head = (...cells) => element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...cells.map((text) => element("th", { scope: "col", role: "columnheader" }, text))));
  const level = `${percent(1 - alpha)} interval`;
  find("verdict-tables").append(
    element(
      "div",
      { class: "wide", role: "region", "aria-label": `${arm} beside ${controlArm}, figure by figure`, tabindex: "0" },
      element("table", { class: "figures", role: "table" }, head("Mean of", armName(controlArm), armName(arm), "Difference", level, "Result"), differences),
    ),
    element(
      "details",
      {},
      element("summary", { text: "Requests, and how they ended" }),
      element(
        "div",
        { class: "wide", role: "region", "aria-label": `Requests of ${arm} and ${controlArm}`, tabindex: "0" },
        element("table", {}, head("Requests", armName(controlArm), armName(arm)), counts),
      ),
    ),
  );
  return { differences, counts };
}

function row(names, [title, unit], control, ours, { main, small, direction, better }) {
  const good = better && direction === (better < 0 ? "lower" : "higher");
  const bad = better && direction === (better < 0 ? "higher" : "lower");
  const words = good ? "better" : bad ? "worse" : direction === "unknown" ? "not known yet" : direction;
  const told = direction ? element("span", { class: `told ${good ? "better" : bad ? "worse" : "unsure"}`, text: words }) : "";
  return element(
    "tr",
    { role: "row" },
    element("th", { scope: "row", role: "rowheader" }, title, " ", element("span", { class: "unit", text: unit })),
    cell(control, { "data-label": names.control }),
    cell(ours, { "data-label": names.ours }),
    cell(main, {}),
    cell(small, { class: "interval" }),
    cell(told, { class: "result" }),
  );
}

// The roles are there for browsers that forget them when a phone's style takes the table apart.
const cell = (content, attributes) => element("td", { role: "cell", ...attributes }, content);


function countRows(ours, control) {
  const both = (title, of) => countRow(title, of(control), of(ours));
  const keys = (field) => [...new Set([...Object.keys(control[field]), ...Object.keys(ours[field])])].sort();
  return [
    both("Counted", (arm) => arm.requests),
    ...keys("outcomes").map((name) => both(`Outcome ${name.replaceAll("_", " ")}`, (arm) => arm.outcomes[name] ?? 0)),
    ...keys("finish_reasons").map((name) => both(`Finish reason ${name}`, (arm) => arm.finish_reasons[name] ?? 0)),
    both("Failed over to another arm", (arm) => arm.failed_over),
  ];
}

const countRow = (title, control, ours) =>
  element(
    "tr",
    {},
    element("th", { scope: "row", text: title }),
    element("td", { text: control.toLocaleString("en") }),
    element("td", { text: ours.toLocaleString("en") }),
  );

const percentDigits = (share) => (share === null ? NONE : digits(share * 100));
const signed = (value, format) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${format(Math.abs(value))}`;
