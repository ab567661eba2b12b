"""Measure quality on a text of the user's, in a process of its own: what it took on the device is free afterwards.

    python -m bench.quality.quality DENSE TEXT --seed 0 PRUNED...

prints a Quality as JSON for each PRUNED, in a line of its own. PRUNED is a checkpoint's folder, which is run as it is
(a virtual one that was healed as a whole one that is made of it), or the blocks to bypass in the dense model, like
2,5,6.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.models.measured_model import MeasuredModel, MeasuredModels
from bench.models.whole_folder import whole_folder
from mi_prun.console import run_command, say
from mi_prun.errors import UserError
from mi_prun.plan.plan import Quality
from mi_prun.settings import SELF
from mi_prun.text.text_source import text_digest


def quality_on_text(dense: str, pruned: Sequence[MeasuredModel], text: str, seed: int) -> list[Quality]:
    """Return perplexity and KL(dense || pruned) per token on the held-out part of `text`, for each pruned model."""
    words = [  # a folder by its whole path: one called 25 would be taken for a block
        str(Path(model.arm.model).absolute()) if _own_weights(model) else ",".join(map(str, model.arm.blocks.dropped))
        for model in pruned
    ]
    command = [sys.executable, "-P", "-m", "bench.quality.quality", dense, text, "--seed", str(seed), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = said[-1].removeprefix("error: ") if said else f"status {done.returncode}"
        raise UserError(f"quality on {text}: {reason}")
    return [Quality.model_validate_json(line) for line in done.stdout.strip().splitlines()[-len(pruned) :]]


def check_not_healed_on(text: str, models: MeasuredModels) -> None:
    """Refuse a text that one of the models was healed on: it would be judged by what it was taught.

    `self` is let through, as `check_heal` of a sweep does.
    """
    judged = text_digest(text)
    for model in models.all:
        if text != SELF and model.healing is not None and judged in model.healing.text_digests:
            raise UserError(f"--quality-text {text}: {model.arm.model} was healed on it; name another text")


def with_quality_on(models: MeasuredModels, text: str, seed: int) -> MeasuredModels:
    """Return the models with their quality on a text of the user's: the written checkpoint's, where there is one."""
    pruned = [model for model in models.all if model.arm.kind == "pruned"]
    say(f"quality on {text}")
    qualities = quality_on_text(models.dense.name, pruned, text, seed)
    changed = {
        model.arm.label: replace(
            model,
            quality=quality,
            quality_measured_on="checkpoint" if _own_weights(model) else "plan",
        )
        for model, quality in zip(pruned, qualities, strict=True)
    }
    measured_on = tuple(changed.get(model.arm.label, model) for model in models.all)
    return replace(models, all=measured_on, quality_text=text_digest(text))


def _own_weights(model: MeasuredModel) -> bool:
    """Tell whether it is more than the dense model with blocks bypassed."""
    return model.arm.weights == "materialized" or model.arm.healing is not None


def measured(dense: str, text: str, pruned: Sequence[str], seed: int) -> list[Quality]:
    """Measure each of `pruned`, in order."""
    from mi_prun.model.model_folder import open_model
    from mi_prun.quality.evaluator import Evaluator
    from mi_prun.quality.quality import HELD_OUT_TOKENS, load_with_held_out, measure_quality, quality_of

    bypassed = {word: tuple(map(int, word.split(","))) for word in pruned if word.replace(",", "").isdecimal()}
    qualities = {}
    for word in pruned:
        if word not in bypassed:
            with whole_folder(word) as folder:
                qualities[word] = measure_quality(dense, folder, text, seed=seed)
    if bypassed:
        model, calibration = load_with_held_out(
            open_model(dense), text, tokens=HELD_OUT_TOKENS, window_tokens=None, seed=seed, device=None
        )
        evaluator = Evaluator(model, calibration.held_out.tokens)
        for word, dropped in bypassed.items():
            qualities[word] = quality_of(
                evaluator, dropped, text=calibration.held_out.text, bos=calibration.description.bos
            )
    return [qualities[word] for word in pruned]


def main() -> None:
    """Measure and print, as the module's docstring says."""
    parser = argparse.ArgumentParser()
    for name in ("dense", "text"):
        parser.add_argument(name)
    parser.add_argument("pruned", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    own = parser.parse_args()

    def measure() -> None:
        for quality in measured(own.dense, own.text, own.pruned, own.seed):
            print(quality.model_dump_json())

    sys.exit(run_command(measure))


if __name__ == "__main__":
    main()
