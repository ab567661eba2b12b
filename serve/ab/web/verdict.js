// The verdict: in words, then figure by figure with the interval of each difference. The server has worked it out.

import { armName } from "./arms.js";
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
const WORDS = { lower: "lower", higher: "higher", "no different": "no different", unknown: "not known yet" };

let parts = {}; // of each arm that is compared
let said = null;

export function showVerdict(verdict, polite) {
  const control = verdict.arms.find((arm) => arm.arm === verdict.control);
  const lines = verdict.comparisons.map((comparison) => headline(comparison));
  const words = lines.join(" ") || "There is one arm only: nothing to compare it with.";
  say(find("verdict-words"), words);
  if (said !== null && said !== words) polite(words);
  said = words;
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
  return `${what} ${digits(Math.abs(ratio - 1) * 100)} % ${words[direction]}`;
}

function showNotes({ notes, comparisons }) {
  const list = comparisons.flatMap(({ arm, guardrails, sample_size, sample_ratio, shadow }) => [
    ...guardrails.map((guardrail) => guardrailNote(arm, guardrail)),
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

function guardrailNote(arm, { text, value, standing, broken_at, drained }) {
  const now = value === null ? "" : ` (now ${text.includes("%") ? percent(value, 2) : digits(value)}${/x\s*$/.test(text) ? "×" : ""})`;
  if (standing !== "broken") return { text: `Guardrail ${text}: ${standing === "holds" ? "holds" : "undecided"} for ${arm}${now}.` };
  const when = broken_at === null ? "" : ` at ${new Date(broken_at * 1000).toLocaleString()}`;
  return { text: `Guardrail ${text} broken by ${arm}${when}${now}. ${drained ? "Its weight was set to 0." : "Its weight was left as it is."}`, bad: true };
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
  parts[arm] ??= build(arm, control.arm, alpha);
  const interval = (bounds, format) => (bounds ? `${format(bounds.low, "−∞")} to ${format(bounds.high, "∞")}` : "");
  const number = (value, none) => (value === null ? none : signed(value, digits));
  const rate = (value, none) => (value === null ? none : `${signed(value * 100, digits)} pp`);
  const rows = [
    ...FIGURES.map(({ name, title, unit, better }) => {
      const found = differences[name];
      return row(title, unit, digits(control.figures[name].mean), digits(ours.figures[name].mean), {
        main: found.ratio === null ? number(found.difference, NONE) : `${signed((found.ratio - 1) * 100, digits)} %`,
        small: found.ratio_interval
          ? interval(found.ratio_interval, (value, none) => (value === null ? none : `${signed((value - 1) * 100, digits)} %`))
          : interval(found.interval, number),
        direction: found.direction,
        better,
      });
    }),
    ...RATES.map(({ name, title, better }) =>
      row(title, "% of requests", percentDigits(control[name].mean), percentDigits(ours[name].mean), {
        main: rate(comparison[name].difference, NONE),
        small: interval(comparison[name].interval, rate),
        direction: comparison[name].direction,
        better,
      }),
    ),
  ];
  if (shadow.comparisons) rows.push(...shadowRows(shadow));
  parts[arm].differences.replaceChildren(...rows);
  parts[arm].counts.replaceChildren(...countRows(ours, control));
}

function shadowRows({ comparisons, agreement, logprob_difference_nats: logprobs }) {
  const told = (figure, format) => (figure.interval ? `${format(figure.interval.low)} to ${format(figure.interval.high)}` : "");
  const rows = [
    row("Shadow agreement", `% of leading tokens, ${count(comparisons, "answer")}`, "", percentDigits(agreement.mean), {
      main: "", small: told(agreement, percentDigits),
    }),
  ];
  if (logprobs.requests) {
    rows.push(
      row("Log-probability of the control's tokens", "nats, less the control's own", "", digits(logprobs.mean), {
        main: "", small: told(logprobs, digits),
      }),
    );
  }
  return rows;
}

function build(arm, controlArm, alpha) {
  const differences = element("tbody");
  const counts = element("tbody");
  const head = (...cells) => element("thead", {}, element("tr", {}, ...cells.map((cell) => element("th", { scope: "col" }, cell))));
  const level = `${digits((1 - alpha) * 100)} % interval`;
  find("verdict-tables").append(
    element(
      "div",
      { class: "wide", role: "region", "aria-label": `${arm} beside ${controlArm}, figure by figure`, tabindex: "0" },
      element("table", { class: "figures" }, head("Mean of", armName(controlArm), armName(arm), "Difference", level, "So it is"), differences),
    ),
    element(
      "details",
      {},
      element("summary", { text: `Requests and how they ended` }),
      element(
        "div",
        { class: "wide", role: "region", "aria-label": `Requests of ${arm} and ${controlArm}`, tabindex: "0" },
        element("table", {}, head("Requests", armName(controlArm), armName(arm)), counts),
      ),
    ),
  );
  return { differences, counts };
}

function row(title, unit, control, ours, { main, small, direction, better }) {
  const good = better && direction === (better < 0 ? "lower" : "higher");
  const bad = better && direction === (better < 0 ? "higher" : "lower");
  const told = direction ? element("span", { class: `told ${good ? "better" : bad ? "worse" : "unsure"}`, text: WORDS[direction] }) : "";
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, title, " ", element("span", { class: "unit", text: unit })),
    element("td", { text: control }),
    element("td", { text: ours }),
    element("td", { text: main }),
    element("td", { class: "interval", text: small }),
    element("td", {}, told),
  );
}

function countRows(ours, control) {
  const both = (title, of) => countRow(title, of(control), of(ours));
  const names = (field) => [...new Set([...Object.keys(control[field]), ...Object.keys(ours[field])])].sort();
  return [
    both("Counted", (arm) => arm.requests),
    ...names("outcomes").map((name) => both(`Outcome ${name.replaceAll("_", " ")}`, (arm) => arm.outcomes[name] ?? 0)),
    ...names("finish_reasons").map((name) => both(`Finish reason ${name}`, (arm) => arm.finish_reasons[name] ?? 0)),
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
