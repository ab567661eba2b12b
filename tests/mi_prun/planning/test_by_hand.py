"""Blocks that the user named: quality on held-out text, and nothing else is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.model.model_folder import open_model
from mi_prun.planning import by_hand
from mi_prun.planning.by_hand import plan_dropping
from mi_prun.quality.evaluator import Evaluator
from mi_prun.settings import AnalyzeSettings
from mi_prun.text import calibration

SETTINGS = AnalyzeSettings(scoring_tokens=256, window_tokens=64, device="cpu")


def test_only_held_out_text_is_sampled(
    reference: Path, load: Callable[[Path], BlockModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    sample = calibration.sample_windows

    def counted(*args: Any, windows: int, window_tokens: int, **kwargs: Any) -> torch.Tensor:
        asked.append(windows * window_tokens)
        return sample(*args, windows=windows, window_tokens=window_tokens, **kwargs)

    monkeypatch.setattr(calibration, "sample_windows", counted)
    model = load(reference)
    plan = plan_dropping(open_model(reference), (2, 3), SETTINGS, load=lambda: model)
    assert asked == [2 * 256 + 2 * 64]  # held out, and one window in each of the other parts
    assert (plan.dropped, plan.method, plan.objective, plan.forward_passes) == ((2, 3), "by-hand", None, 0.0)
    assert plan.quality is not None
    assert plan.quality.predicted_tokens == 8 * 63
    assert plan.quality.pruned_perplexity > plan.quality.dense_perplexity
    assert plan.quality.text == "self, held-out part"


def test_the_figure_is_that_of_the_held_out_windows(
    reference: Path, load: Callable[[Path], BlockModel], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The old man opened the door and said that it was late. " * 200)
    windows: list[torch.Tensor] = []

    def kept(model: BlockModel, tokens: torch.Tensor) -> Evaluator:
        windows.append(tokens)
        return Evaluator(model, tokens)

    monkeypatch.setattr(by_hand, "Evaluator", kept)
    model = load(reference)
    settings = AnalyzeSettings(sources=(str(text),), scoring_tokens=64, window_tokens=64, device="cpu")
    plan = plan_dropping(open_model(reference), (5,), settings, load=lambda: model)
    again = Evaluator(model, windows[0]).measure([(), (5,)])
    assert plan.quality is not None
    assert plan.quality.kl_nats_per_token == pytest.approx(again[1].kl_nats)


def test_without_quality_no_model_is_loaded(reference: Path) -> None:
    def load() -> BlockModel:
        raise AssertionError("loaded")

    plan = plan_dropping(open_model(reference), (0, 11), SETTINGS, quality=False, load=load)
    assert plan.quality is None
    assert plan.kept == tuple(range(1, 11))


def test_wrong_settings_are_one_line(reference: Path) -> None:
    with pytest.raises(UserError, match="--seed"):
        plan_dropping(open_model(reference), (1,), AnalyzeSettings(seed=-1))
