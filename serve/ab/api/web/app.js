// What runs the page: the key, the polling, and who is told what.

import { admin, adminKey, ApiError, reason, setAdminKey } from "./api.js";
import { showBlocks } from "./blocks.js";
import { find, say } from "./dom.js";
import { forgetExperiment, showExperiment } from "./experiment.js";
import { showLive } from "./live.js";
import { setUpPlayground, stopPlayground } from "./playground.js";
import { setUpSplit } from "./split.js";
import { showVerdict } from "./verdict.js";

const POLLS = [
  { path: "/admin/experiment", everyMs: 4_000, show: (experiment) => showExperiment(experiment, polite) },
  { path: "/admin/live", everyMs: 2_000, show: showLive },
  { path: "/admin/verdict", everyMs: 10_000, show: (verdict) => showVerdict(verdict, polite) },
];
const SLOWEST_MS = 30_000;
const QUIET_MS = 4_000;
const BLOCKS_AGAIN_MS = 10_000;
const NOT_ANY_MORE = "The admin key is not accepted any more.";

let session = 0; // one more with each unlock and lock: an answer of an older one is dropped

setUpSplit({ changed: splitChanged });
setUpPlayground({ polite });
find("unlock").addEventListener("submit", unlock);
find("forget").addEventListener("click", () => lock(""));
if (adminKey()) open();
else lock("");

async function unlock(event) {
  event.preventDefault();
  const key = find("admin-key").value.trim();
  say(find("admin-key-error"), "");
  try {
    await admin("/admin/experiment", { key });
  } catch (error) {
    const wrong = error instanceof ApiError && error.status === 401;
    say(find("admin-key-error"), wrong ? "That admin key was not accepted." : `Not opened: ${reason(error)}.`);
    find("admin-key").setAttribute("aria-invalid", String(wrong));
    find("admin-key").select();
    return;
  }
  setAdminKey(key);
  open();
  find("main").focus();
}

function open() {
  session += 1;
  find("admin-key").value = "";
  find("admin-key").removeAttribute("aria-invalid");
  find("locked").hidden = true;
  find("unlocked").hidden = find("key-bar").hidden = false;
  for (const poll of POLLS) keepAsking(poll, session);
  askForBlocks(session);
}

function lock(message) {
  const hadFocus = find("unlocked").contains(document.activeElement) || document.activeElement === find("forget");
  session += 1;
  setAdminKey("");
  find("locked").hidden = false;
  find("unlocked").hidden = find("key-bar").hidden = find("connection").hidden = true;
  forgetExperiment();
  stopPlayground();
  say(find("admin-key-error"), message);
  if (hadFocus) find("admin-key").focus();
}

async function keepAsking({ path, everyMs, show }, mine) {
  let wait = everyMs;
  while (mine === session) {
    if (document.hidden) {
      await shownAgain();
      continue;
    }
    try {
      const answer = await admin(path);
      if (mine !== session) return;
      show(answer);
      wait = everyMs;
      connected(path, null);
    } catch (error) {
      if (mine !== session) return;
      if (error instanceof ApiError && (error.status === 401 || error.status === 403)) {
        lock(NOT_ANY_MORE);
        return;
      }
      wait = Math.min(SLOWEST_MS, wait * 2);
      connected(path, error);
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

const shownAgain = () =>
  new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));

const failing = new Map();

function connected(path, error) {
  if (error) failing.set(path, error);
  else failing.delete(path);
  const [first] = failing;
  find("connection").hidden = !first;
  say(find("connection"), first ? `What is shown is old: ${first[0]}: ${reason(first[1])}. Trying again.` : "");
}

// Once, or again until every arm has answered: an engine may still be starting.
async function askForBlocks(mine) {
  for (let known = false; !known && mine === session; ) {
    try {
      const { arms } = await admin("/admin/pruning");
      if (mine !== session) return;
      showBlocks(arms);
      known = arms.every((arm) => !arm.error);
    } catch {
      // Whether the server can be reached is said by the polls.
    }
    if (!known) await new Promise((resolve) => setTimeout(resolve, BLOCKS_AGAIN_MS));
  }
}

function splitChanged(words, experiment, error) {
  if (error) {
    lock(NOT_ANY_MORE);
    return;
  }
  if (experiment) showExperiment(experiment, polite);
  if (words) polite(words);
}

// One message at a time, so that a screen reader gets to the end of it.
const waiting = [];
let speaking = false;

function polite(words) {
  if (waiting.at(-1) !== words) waiting.push(words);
  while (waiting.length > 3) waiting.shift();
  if (!speaking) speak();
}

function speak() {
  const words = waiting.shift();
  speaking = words !== undefined;
  if (!speaking) return;
  say(find("polite"), words);
  setTimeout(speak, QUIET_MS);
}
