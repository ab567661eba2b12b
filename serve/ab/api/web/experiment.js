// The experiment as a whole: its name, whether it runs, how its arms are, and what was changed last.

import { armName, knowArms } from "./arms.js";
import { element, find, say } from "./dom.js";
import { knowPlaygroundArms } from "./playground.js";
import { showSplit, stateWords } from "./split.js";

const SHOWN_CHANGES = 8;

let seen = null; // versions and arm states that were shown

export function showExperiment({ name, control, state, arms, changes }, polite) {
  const names = arms.map((arm) => arm.name);
  knowArms(names);
  knowPlaygroundArms(names);
  showSplit(state, control);
  say(find("experiment-name"), name === "default" ? "" : name);
  find("experiment-state").hidden = false;
  say(find("experiment-state"), state.paused ? "paused" : "running");
  find("experiment-state").classList.toggle("paused", state.paused);
  say(find("control-name"), control);
  showArms(arms, polite);
  if (seen?.version !== state.version) showChanges(changes);
  seen = { version: state.version, arms: Object.fromEntries(arms.map((arm) => [arm.name, health(arm)])) };
}

export function forgetExperiment() {
  seen = null;
  find("experiment-state").hidden = true;
  say(find("experiment-name"), "");
  find("arms").replaceChildren();
  delete find("arms").dataset.words;
}

function health({ available, healthy, circuit, restarts }) {
  const again = restarts ? `, restarted ${restarts}×` : "";
  if (available) return (circuit === "half_open" ? "being tried again" : "up") + again;
  if (!healthy) return `down${again}`;
  return (circuit === "open" ? "set aside after errors" : "starting") + again;
}

function showArms(arms, polite) {
  for (const arm of arms) {
    const before = seen?.arms[arm.name];
    if (before && before !== health(arm)) polite(`${arm.name} is ${health(arm)}.`);
  }
  const words = arms.map((arm) => `${arm.name} ${health(arm)} ${arm.in_flight}`).join();
  if (find("arms").dataset.words === words) return;
  find("arms").dataset.words = words;
  find("arms").replaceChildren(
    ...arms.map((arm) =>
      element(
        "li",
        { class: arm.available ? "" : "bad" },
        armName(arm.name),
        element("span", { text: ` ${health(arm)}, ${arm.in_flight} in flight` }),
      ),
    ),
  );
}

function showChanges(changes) {
  find("change-list").replaceChildren(
    ...changes.slice(0, SHOWN_CHANGES).map((change) => {
      const when = new Date(change.time * 1000);
      return element(
        "li",
        {},
        element("time", { datetime: when.toISOString(), text: when.toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" }) }),
        ` ${change.who}: ${stateWords(change)}${change.why ? ` (${change.why})` : ""}`,
      );
    }),
  );
}
