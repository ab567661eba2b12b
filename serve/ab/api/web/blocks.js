// The block map: which blocks of the dense model an arm has. 0-based, as everywhere.

import { armName } from "./arms.js";
import { element, find } from "./dom.js";
import { bytes, count, digits, percent } from "./format.js";

// pruning: the answer of an arm's `GET /v1/pruning`, or null where it has none. One entry an arm, in the experiment's order.
export function showBlocks(arms) {
  const maps = arms
    .filter(({ pruning, error }) => pruning?.pruned || error)
    .map(({ name, pruning, error }) =>
      error ? element("p", { class: "help" }, armName(name), `: ${error}`) : map(name, pruning),
    );
  find("block-maps").replaceChildren(
    ...(maps.length ? maps : [element("p", { class: "help", text: "No arm says that it was pruned." })]),
  );
}

function map(name, pruning) {
  const dropped = new Set(pruning.dropped_blocks);
  const total = dropped.size + pruning.kept_blocks.length;
  const words =
    `${total - dropped.size} of ${count(total, "block")} kept; dropped: ` +
    `${[...dropped].join(", ") || "none"} (0-based).`;
  const cells = Array.from({ length: total }, (_, block) =>
    element("span", { class: dropped.has(block) ? "block dropped" : "block", title: `block ${block}: ${dropped.has(block) ? "dropped" : "kept"}`, text: String(block) }),
  );
  return element(
    "article",
    { class: "block-map" },
    element("h3", {}, armName(name)),
    element("div", { class: "cells", role: "img", "aria-label": words }, ...cells),
    element("p", { class: "help", text: words }),
    facts(pruning, dropped.size, total),
  );
}

function facts(pruning, dropped, total) {
  const rows = [
    ["Blocks dropped", `${dropped} of ${total} (${percent(dropped / total)})`],
    ["Parameters dropped", percent(pruning.parameter_ratio)],
    ["Weights", `${bytes(pruning.weight_bytes)} of ${bytes(pruning.dense_weight_bytes)}`],
    ["Chosen by", pruning.method],
  ];
  const quality = pruning.quality;
  if (quality) {
    rows.push(["Perplexity", `${digits(quality.dense_perplexity)} → ${digits(quality.pruned_perplexity)}`]);
    rows.push(["KL to dense", `${digits(quality.kl_nats_per_token)} nats/token`]);
  }
  const healing = pruning.healing;
  if (healing) {
    const tokens = [
      healing.tokens ? `${healing.tokens.toLocaleString("en")} tokens trained on` : "",
      healing.fit_tokens ? `${healing.fit_tokens.toLocaleString("en")} tokens of the closed form` : "",
    ].filter(Boolean);
    rows.push(["Healed by", [healing.method, ...tokens].join(", ")]);
    rows.push(["Healed on", healing.text]);
    for (const kind of healing.quality ?? []) {
      const steps = [kind.dense_perplexity, kind.pruned_perplexity, kind.healed_perplexity].map(digits);
      rows.push([`Perplexity, ${kind.text}`, `${steps[0]} dense, ${steps[1]} pruned, ${steps[2]} healed`]);
    }
  } else if (pruning.pruned) rows.push(["Healed", "no"]);
  if (pruning.dense?.name) rows.push(["Dense model", pruning.dense.name]);
  return element(
    "dl",
    { class: "facts" },
    ...rows.map(([term, text]) => element("div", {}, element("dt", { text: term }), element("dd", { text: String(text) }))),
  );
}
