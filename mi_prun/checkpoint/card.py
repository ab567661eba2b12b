"""The model card (README.md) of a pruned checkpoint: what it was made of, how, what it cost, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from mi_prun.checkpoint.healing import Healing
from mi_prun.checkpoint.manifest import Manifest
from mi_prun.plan.block_map import text_map
from mi_prun.plan.plan import Plan, Quality

CARD_NAME = "README.md"
MAP_NAME = "block_map.svg"
LICENSE_FIELDS = ("license", "license_name", "license_link", "language")


def model_card(manifest: Manifest, *, source: Path, name: str, base: str) -> str:
    """Return the card as Markdown with YAML front matter.

    name: the dense model's hub id or folder name. base: its exact place.
    source: its folder, whose licence is kept.
    """
    plan = manifest.plan
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if "/" in name:
        front.append(f"base_model: {json.dumps(name)}")
    front += _license(source)
    front += ["tags:", "- mi-prun", "- depth-pruning", "---"]
    count = plan.dense.num_blocks
    dropped = ", ".join(map(str, plan.dropped)) or "none"
    parts = [
        "\n".join(front),
        f"# {name}, {len(plan.kept)} of {count} blocks",
        f"A layer-dropped copy of `{name}` made with mi-prun {manifest.tool_version}: {len(plan.dropped)} of {count} "
        f"transformer blocks ({plan.block_ratio:.1%}) and {plan.parameters_dropped:,} of {plan.dense.num_parameters:,} "
        f"parameters ({plan.parameter_ratio:.1%}) are left out. {_weights(manifest.healing)}",
        "## Block map",
        f"Block indices are 0-based, those of the dense model. Dropped: {dropped}.",
        f"![block map]({MAP_NAME})",
        f"```\n{text_map(count, plan.dropped, manifest.block_kinds)}\n```",
        "## How the blocks were chosen",
        _method(plan),
        "## Quality",
        _quality(plan.quality),
        *(["## Proof", f"Blocks of this model can be dropped: {manifest.proof}."] if manifest.proof else []),
        *(["## Healing", _healing(manifest.healing)] if manifest.healing else []),
        "## How to load it",
        _loading(manifest, base),
    ]
    return "\n\n".join(parts) + "\n"


def _license(source: Path) -> list[str]:
    """Return the licence lines of the dense model's own card, if it has one: plain `key: value` lines only."""
    try:
        text = (source / CARD_NAME).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    front = re.match(r"---\s*\n(.*?)\n---\s*\n", text, re.DOTALL)
    lines = front[1].splitlines() if front else []
    kept_lines = []
    for field in LICENSE_FIELDS:
        for line in lines:
            if value := re.fullmatch(rf"{field}:\s*([^\s:#\[\]{{}}&*!|>'\"%@`][\w./:\- ]*)", line):
                kept_lines.append(f"{field}: {json.dumps(value[1].strip())}")
                break
    return kept_lines


def _method(plan: Plan) -> str:
    rows = [("method", plan.method), *sorted(plan.settings.items())]
    if plan.objective:
        rows += [
            ("objective J (nats)", f"{plan.objective.chosen_nats:.6g}"),
            ("least J of as many blocks (nats)", f"{plan.objective.optimum_nats:.6g}"),
        ]
        if plan.objective.fbs_nats is not None:
            rows.append(("J of Fast-Block-Select's set (nats)", f"{plan.objective.fbs_nats:.6g}"))
    rows.append(("forward passes beyond the analysis", f"{plan.forward_passes:g}"))
    rows.append(("dense config sha256", plan.dense.config_sha256))
    rows.append(("dense weights digest", plan.dense.weights_sha256))
    return table(("", ""), [(key, _cell(value)) for key, value in rows])


def _quality(quality: Quality | None) -> str:
    if quality is None:
        return "Not measured."
    rows = [
        ("perplexity", f"{quality.dense_perplexity:.4g}", f"{quality.pruned_perplexity:.4g}"),
        ("KL(dense \\|\\| pruned), nats per token", "0", f"{quality.kl_nats_per_token:.4g}"),
    ]
    return (
        table(("held-out text", "dense", "pruned"), rows)
        + f"\n\nText: {_cell(quality.text)}. Protocol: {quality.protocol}; "
        f"{quality.predicted_tokens:,} predicted tokens."
        " It was not used to choose the blocks. Perplexity says little of generation: measure your own task."
    )


def _weights(healing: Healing | None) -> str:
    if healing is None:
        return "The other weights are those of the dense model, byte for byte; nothing was retrained."
    if healing.method == "fit":
        how = "the matrix in front of each run of them was refitted to what the dense model has behind the run"
    else:
        how = "the blocks behind them were taught by the dense model"
    return f"What they did is made up for: {how} (see Healing)."


def _healing(healing: Healing) -> str:
    rows = [
        (
            _cell(kind.text),
            f"{kind.dense_perplexity:.4g}",
            f"{kind.pruned_perplexity:.4g}",
            f"{kind.healed_perplexity:.4g}",
            f"{kind.gap_closed:.0%}",
            f"{kind.pruned_kl_nats:.4g} to {kind.healed_kl_nats:.4g}",
        )
        for kind in healing.quality
    ]
    header = (
        "held-out text: perplexity",
        "dense",
        "pruned",
        "healed",
        "gap closed",
        "KL(dense \\|\\| .), nats a token",
    )
    asked = [
        (asked.task, *map(str, (asked.items, asked.dense_right, asked.pruned_right, asked.healed_right, asked.flips)))
        for asked in healing.tasks
    ]
    header_asked = ("choice task: right answers", "of", "dense", "pruned", "healed", "flips, pruned to healed")
    how = [
        ("method", healing.method),
        ("text", _cell(healing.text)),
        ("tokens trained on", f"{healing.tokens:,}"),
        ("tokens of the closed form", f"{healing.fit_tokens:,}"),
        ("seed", str(healing.seed)),
        ("seconds", f"{healing.seconds:.0f}"),
        *((name, _cell(value)) for name, value in sorted(healing.settings.items())),
    ]
    answers = f"{table(header_asked, asked)}\n\n" if asked else ""
    return (
        f"{table(header, rows)}\n\nThe gap is that in log-perplexity between dense and pruned. The texts were not "
        f"healed on.\n\n{answers}{table(('', ''), how)}"
    )


def _loading(manifest: Manifest, base: str) -> str:
    if manifest.weights == "virtual":
        return (
            "This folder holds no weights: they are read from the dense model, the kept blocks only. It needs mi-prun "
            f"and `{base}`:\n\n```bash\nmi-prun-serve --model THIS_FOLDER\n```"
        )
    return (
        "It is an ordinary checkpoint and needs no mi-prun:\n\n"
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")\n```\n\n'
        "```bash\nvllm serve THIS_FOLDER\nmi-prun-serve --model THIS_FOLDER   # adds GET /v1/pruning\n```\n\n"
        f"Made by `{_made_by(manifest)}` (the plan is in `mi_prun.json`); checked by "
        "`mi-prun inspect THIS_FOLDER --verify`."
    )


def _made_by(manifest: Manifest) -> str:
    return f"mi-prun {'heal PRUNED' if manifest.healing else 'apply DENSE plan.json'} -o THIS_FOLDER"


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows)]
    return "\n".join(lines)
