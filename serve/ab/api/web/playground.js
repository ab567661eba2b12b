// One prompt, all arms: their answers stream side by side, and where they differ is marked.

import { admin, ApiError, authorization, errorOf, reason, saidIn } from "./api.js";
import { armName } from "./arms.js";
import { diff } from "./diff.js";
import { element, find, instance, say } from "./dom.js";
import { count, digits, NONE, percent } from "./format.js";
import { events } from "./sse.js";

const MOST_CHARACTERS = 400_000; // of one answer: past that it is stopped, so that the tab lives

let running = null; // AbortController
let arms = [];
let announce = () => {};

export function setUpPlayground({ polite }) {
  announce = polite;
  find("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) run();
  });
  find("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      find("ask").requestSubmit();
    }
  });
  find("stop").addEventListener("click", () => {
    find("run").focus(); // before the button under the focus is disabled
    running?.abort(new DOMException("stopped", "AbortError"));
  });
}

export function knowPlaygroundArms(names) {
  arms = names;
  find("run").disabled = false;
}

export function stopPlayground() {
  running?.abort(new DOMException("stopped", "AbortError"));
  find("answers").replaceChildren();
  say(find("difference"), "");
}

async function run() {
  running = new AbortController();
  const { signal } = running;
  say(find("ask-error"), "");
  say(find("difference"), "");
  find("stop").disabled = false;
  find("run").setAttribute("aria-disabled", "true");
  try {
    const [{ id }] = (await admin("/v1/models")).data;
    const name = id.split("@")[0];
    const panes = arms.map((arm, index) => pane(`${name}@${arm}`, arm, index));
    find("answers").replaceChildren(...panes.map((one) => one.node));
    announce("Running.");
    const marking = markDifferences(panes);
    if (find("in-turn").checked) for (const one of panes) await answerIn(one, signal);
    else await Promise.all(panes.map((one) => answerIn(one, signal)));
    if (panes[0].node.isConnected) marking.finish();
  } catch (error) {
    if (!signal.aborted) say(find("ask-error"), `Not run: ${reason(error)}.`);
  } finally {
    running = null;
    if (document.activeElement === find("stop")) find("run").focus();
    find("stop").disabled = true;
    find("run").removeAttribute("aria-disabled");
  }
}

function pane(model, arm, index) {
  const node = instance("answer-template");
  const heading = node.querySelector("h3");
  heading.id = `answer-${index}`;
  heading.append(armName(arm));
  node.setAttribute("aria-labelledby", heading.id);
  const box = node.querySelector(".text");
  box.setAttribute("aria-label", `Answer of ${arm}`);
  const cells = Object.fromEntries(
    ["TTFT", "Speed", "Length"].map((term) => {
      const cell = element("dd", { text: NONE });
      node.querySelector(".values").append(element("div", {}, element("dt", { text: term }), cell));
      return [term, cell];
    }),
  );
  return { model, arm, node, box, cells, error: node.querySelector(".error"), text: "", done: false };
}

function request(model) {
  const path = find("endpoint").value;
  const prompt = find("prompt").value;
  const chat = path.endsWith("/chat/completions");
  return {
    path,
    body: {
      model,
      ...(chat ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
      max_tokens: find("max-tokens").valueAsNumber,
      temperature: find("temperature").valueAsNumber,
      stream: true,
      stream_options: { include_usage: true },
    },
  };
}

async function answerIn(one, signal) {
  const { path, body } = request(one.model);
  const figures = { start: performance.now(), first: null, last: null, chunks: 0, tokens: null, finish: null };
  one.node.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...authorization() },
      body: JSON.stringify(body),
      signal,
      credentials: "omit",
      redirect: "error",
    });
    if (!answer.ok) throw await errorOf(answer);
    for await (const data of events(answer.body)) {
      if (data === "[DONE]") break;
      take(one, JSON.parse(data), figures);
      if (one.text.length > MOST_CHARACTERS) throw new Error("the answer is longer than this page shows");
    }
    if (figures.finish === null) throw new Error("the answer ended before it was whole");
  } catch (error) {
    if (signal.aborted) figures.finish ??= "stopped";
    else say(one.error, failure(error));
  }
  one.done = true;
  showFigures(one, figures);
  one.node.setAttribute("aria-busy", "false");
  announce(
    one.error.textContent
      ? `${one.arm} failed.`
      : `${one.arm}: ${one.cells.Length.textContent}, first token after ${one.cells.TTFT.textContent}, ${one.cells.Speed.textContent}.`,
  );
}

function failure(error) {
  if (error instanceof ApiError) return `${error.message} (status ${error.status})`;
  if (error instanceof SyntaxError) return "The server sent an event that is not JSON.";
  if (error instanceof TypeError) return "The connection was lost.";
  return `${error.message}.`;
}

function take(one, event, figures) {
  if (event.error) throw new Error(saidIn(event) ?? "the engine failed");
  figures.tokens = event.usage?.completion_tokens ?? figures.tokens;
  const choice = event.choices?.[0];
  if (!choice) return;
  figures.finish = choice.finish_reason ?? figures.finish;
  const piece = choice.delta ? (choice.delta.reasoning ?? choice.delta.reasoning_content ?? "") + (choice.delta.content ?? "") : choice.text;
  if (!piece) return;
  figures.last = performance.now();
  figures.first ??= figures.last;
  figures.chunks += 1;
  one.text += piece;
  one.box.append(piece); // a text node: what a model says is never markup
  one.changed?.();
  showFigures(one, figures);
}

function showFigures(one, { start, first, last, chunks, tokens, finish }) {
  const count_ = tokens ?? chunks;
  if (first !== null) say(one.cells.TTFT, `${digits(first - start)} ms`);
  if (count_ > 1 && last > first) say(one.cells.Speed, `${digits((count_ - 1) / ((last - first) / 1000))} tokens/s`);
  say(one.cells.Length, `${count(count_, "token")}${finish ? `, ${finish}` : ""}`);
}

// Marks while the answers grow, at most a few times a second; the last time over the whole of both.
function markDifferences(panes) {
  const [left, right] = panes;
  if (!right) return { finish() {} };
  let waiting = false;
  const mark = (whole) => {
    // While one is behind, what it has not said yet is no difference.
    const shortest = whole ? Infinity : Math.min(left.text.length, right.text.length);
    const cut = (one) => (one.done || one.text.length <= shortest ? one.text : one.text.slice(0, lastBreak(one.text, shortest)));
    const found = diff(cut(left), cut(right));
    paint(left, found.left, left.text.slice(cut(left).length));
    paint(right, found.right, right.text.slice(cut(right).length));
    return found;
  };
  const soon = () => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => {
      waiting = false;
      if (!(left.done && right.done)) mark(false);
    }, 300);
  };
  left.changed = right.changed = soon;
  return {
    finish() {
      if (!left.text || !right.text) return;
      const { same, total } = mark(true);
      const words =
        same === total
          ? `Both answers are the same, word for word (${count(total, "word")}).`
          : `${same} of ${count(total, "word")} are the same (${percent(same / total, 0)}). What differs is marked.`;
      say(find("difference"), words);
      announce(words);
    },
  };
}

const lastBreak = (text, end) => Math.max(0, text.lastIndexOf(" ", end));

function paint(one, spans, rest) {
  const nodes = spans.map(({ text, same }) => (same ? document.createTextNode(text) : element("mark", { text })));
  one.box.replaceChildren(...nodes, document.createTextNode(rest));
}
