// The split: a slider for each arm but the control, the shadow share, pause. What is applied is compared-and-set by version.

import { admin, ApiError, reason } from "./api.js";
import { armClass, armName } from "./arms.js";
import { element, find, say } from "./dom.js";
import { percent } from "./format.js";

const PATH = "/admin/experiment";

let server = null; // its state, as it was last seen
let base = null; // the one that what is in the form was made from
let theirs = null; // the one that came between, while a conflict is shown
let control = ""; // the arm that has what the others leave
let fields = [];
let after = () => {};

export function setUpSplit({ changed }) {
  after = changed;
  find("split-form").addEventListener("submit", (event) => {
    event.preventDefault();
    apply(wanted());
  });
  find("shadow-share").addEventListener("input", changedByHand);
  find("reset").addEventListener("click", () => take(server));
  find("pause").addEventListener("click", pause);
  find("take-theirs").addEventListener("click", () => {
    take(theirs);
    find("apply").focus();
  });
  find("apply-over").addEventListener("click", () => {
    const mine = wanted();
    base = server = theirs;
    find("apply").focus();
    apply(mine);
  });
}

export function showSplit(state, controlArm) {
  control = controlArm;
  if (server && state.version < server.version) return; // an answer that was overtaken by a change of ours
  const dirty = base && isDirty();
  server = state;
  if (!dirty) take(state);
  else if (state.version > (theirs ?? base).version) conflict(state);
}

function take(experiment) {
  if (base && experiment.version === base.version && !isDirty() && !theirs) return; // nothing new: leave it as it is
  server = base = experiment;
  theirs = null;
  const names = Object.keys(experiment.weights).filter((name) => name !== control);
  find("split-form").hidden = false;
  if (fields.map((field) => field.name).join() !== names.join()) build(names);
  const shares = sharesOf(experiment.weights);
  for (const field of fields) set(field, Number((shares[field.name] * 100).toFixed(2)));
  find("shadow-share").value = Number((experiment.shadow_share * 100).toFixed(2));
  sayPause();
  say(find("split-error"), "");
  find("conflict").hidden = true;
  changedByHand();
}

function build(names) {
  find("sliders").replaceChildren();
  fields = names.map((name, at) => {
    const id = `share-${at}`;
    const slider = element("input", { id, type: "range", min: "0", max: "100", step: "1", class: armClass(name) });
    const number = element("input", {
      type: "number", min: "0", max: "100", step: "any", inputmode: "decimal", required: true,
      "aria-label": `Share of ${name} in percent`,
    });
    const field = { name, slider, number };
    slider.addEventListener("input", () => (set(field, slider.valueAsNumber), changedByHand()));
    number.addEventListener("input", () => (set(field, number.valueAsNumber, { typed: true }), changedByHand()));
    find("sliders").append(
      element("div", { class: "field slider" },
        element("label", { for: id }, "Share of ", armName(name)),
        slider,
        element("span", { class: "with-unit" }, number, element("span", { text: "%", "aria-hidden": "true" })),
      ),
    );
    return field;
  });
}

function set(field, share, { typed = false } = {}) {
  if (!typed) field.number.value = share;
  if (Number.isFinite(share)) field.slider.value = share;
}

const sharesOf = (weights) => {
  const sum = Object.values(weights).reduce((total, weight) => total + weight, 0);
  return Object.fromEntries(Object.entries(weights).map(([name, weight]) => [name, sum ? weight / sum : 0]));
};

// What the form says: the control has what the others leave. An untouched form says exactly what the server said.
function wanted() {
  const known = sharesOf(base.weights);
  const untouched = fields.every((field) => Math.abs(field.number.valueAsNumber - known[field.name] * 100) < 0.005);
  const weights = Object.fromEntries(fields.map((field) => [field.name, field.number.valueAsNumber]));
  const rest = 100 - Object.values(weights).reduce((sum, weight) => sum + weight, 0);
  return {
    weights: untouched ? base.weights : { ...weights, [control]: Number(rest.toFixed(6)) },
    shadow_share: find("shadow-share").valueAsNumber / 100,
  };
}

function isDirty() {
  const now = wanted();
  return now.weights !== base.weights || Math.abs(now.shadow_share - base.shadow_share) > 0.00005;
}

function changedByHand() {
  const now = wanted();
  const shares = sharesOf(now.weights);
  const names = Object.keys(base.weights);
  const words = names.map((name) => `${name} ${percent(shares[name])}`).join(", ");
  for (const { slider } of fields) slider.setAttribute("aria-valuetext", words);
  const fault = faultOf(now);
  find("split-bar").replaceChildren(...(fault ? [] : names.map((name) => bar(name, shares[name]))));
  const dirty = isDirty();
  find("apply").disabled = !dirty || Boolean(fault);
  find("reset").disabled = !dirty;
  say(find("split-change"), fault || (dirty ? changeWords(now, shares) : `Now: ${words}.`));
  find("split-change").classList.toggle("pending", dirty);
}

function faultOf({ weights, shadow_share }) {
  if (Object.values(weights).some((weight) => !Number.isFinite(weight))) return "A share must be a number from 0 to 100.";
  if (Object.values(weights).some((weight) => weight < 0 || weight > 100)) return "The shares must be 0 to 100, and 100 at most together.";
  if (!(shadow_share >= 0 && shadow_share <= 1)) return "The shadow share must be a number from 0 to 100.";
  return "";
}

function changeWords(now, shares) {
  const before = sharesOf(base.weights);
  const moves = Object.keys(base.weights)
    .filter((name) => Math.abs(before[name] - shares[name]) > 0.00005)
    .map((name) => `${name} ${percent(before[name])} → ${percent(shares[name])}${shares[name] === 0 ? " (drained, still there for failover)" : ""}`);
  if (Math.abs(now.shadow_share - base.shadow_share) > 0.00005) {
    moves.push(`shadow ${percent(base.shadow_share)} → ${percent(now.shadow_share)}`);
  }
  return `Not applied yet: ${moves.join(", ")}.`;
}

function bar(name, share) {
  const part = element("span", { class: armClass(name), text: `${share >= 0.3 ? `${name} ` : ""}${share >= 0.14 ? percent(share, 0) : ""}` });
  part.style.flexGrow = share;
  return part;
}

async function apply(change) {
  say(find("split-error"), "");
  find("conflict").hidden = true;
  theirs = null;
  try {
    const experiment = await put(change);
    base = null; // the form is what was applied
    take(experiment.state);
    after(`Applied: ${stateWords(experiment.state)}.`, experiment);
  } catch (error) {
    if (error instanceof ApiError && error.status === 409) await conflict();
    else failed(error);
  }
}

async function put(change) {
  const why = find("why").value.trim();
  const experiment = await admin(PATH, { method: "PUT", body: { version: base.version, why, ...change } });
  find("why").value = "";
  return experiment;
}

function failed(error) {
  if (error instanceof ApiError && error.status === 401) after(null, null, error);
  else say(find("split-error"), `Not applied: ${reason(error)}.`);
}

// What is in the form, and not applied yet, stays there.
async function pause() {
  say(find("split-error"), "");
  try {
    const experiment = await put({ paused: !base.paused });
    if (isDirty()) base = server = experiment.state;
    else take(experiment.state);
    sayPause();
    changedByHand();
    after(base.paused ? "Paused." : "Resumed.", experiment);
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 409)) return failed(error);
    after(null, await admin(PATH).catch(() => null));
    say(find("split-error"), "The experiment was changed meanwhile. Look at it, and press again.");
  }
}

const sayPause = () => say(find("pause"), base.paused ? "Resume" : "Pause");

async function conflict(state) {
  try {
    theirs = state ?? (await admin(PATH)).state;
  } catch (error) {
    say(find("split-error"), `Not applied: the experiment has changed, and it cannot be read: ${reason(error)}.`);
    return;
  }
  server = theirs;
  const why = theirs.why ? ` (${theirs.why})` : "";
  say(
    find("conflict-words"),
    `Changed meanwhile by ${theirs.who}${why}: ${stateWords(theirs)}. Yours is not applied.`,
  );
  find("conflict").hidden = false;
}

export const stateWords = ({ weights, shadow_share, paused }) =>
  [
    ...Object.entries(sharesOf(weights)).map(([name, share]) => `${name} ${percent(share)}`),
    `shadow ${percent(shadow_share)}`,
    ...(paused ? ["paused"] : []),
  ].join(", ");
