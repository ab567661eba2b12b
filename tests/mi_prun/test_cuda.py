"""On a GPU: the pass, streamed blocks, measuring and the choice say what they say on CPU. Skipped where none is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_prun.analysis import Analysis, read_analysis
from mi_prun.analyze import analyze
from mi_prun.block_model import BlockModel, load_block_model
from mi_prun.evaluator import Evaluator
from mi_prun.model import open_model
from mi_prun.planning import make_context, make_plan
from mi_prun.settings import AnalyzeSettings, PlanSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def analysed(model: Path, out: Path, settings: AnalyzeSettings) -> Analysis:
    analyze(open_model(model), out, settings)
    return read_analysis(out)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_pass(
    reference: Path,
    reference_analysis: Analysis,
    analyze_settings: AnalyzeSettings,
    tmp_path: Path,
    streamed: bool,
) -> None:
    settings = replace(analyze_settings, device="cuda", dtype="float32", stream_blocks=streamed)
    found = analysed(reference, tmp_path / "analysis", settings)
    assert found.record.device == "cuda"
    assert np.allclose(found.segment_cost_nats, reference_analysis.segment_cost_nats, atol=1e-3)
    assert np.allclose(found.block_cosine, reference_analysis.block_cosine, atol=1e-4)
    assert np.array_equal(found.ranking, reference_analysis.ranking)


def test_measured_losses(reference: Path, load: Callable[[Path], BlockModel], reference_analysis: Analysis) -> None:
    windows = torch.from_numpy(reference_analysis.ranking[:8]).long()
    sets = [(), (2,), (3, 7), (1, 5, 8)]
    on_gpu = load_block_model(open_model(reference), device=torch.device("cuda"), dtype=torch.float32)
    found, wanted = (Evaluator(model, windows).by_window(sets) for model in (on_gpu, load(reference)))
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_choice(
    reference: Path, reference_analysis: Analysis, analyze_settings: AnalyzeSettings, tmp_path: Path, dtype: str
) -> None:
    """In bfloat16 too: within .005 nats of the loss of what is chosen on CPU."""
    on_gpu = analysed(reference, tmp_path / "analysis", replace(analyze_settings, device="cuda", dtype=dtype))
    settings = PlanSettings(model=str(reference), quality=False)
    wanted = make_plan(make_context(reference_analysis, replace(settings, device="cpu")), 3, settings)
    found = make_plan(make_context(on_gpu, replace(settings, device="cuda")), 3, settings)
    windows = torch.from_numpy(reference_analysis.ranking).long()
    model = load_block_model(open_model(reference), device=torch.device("cuda"), dtype=torch.float32)
    ours, theirs = Evaluator(model, windows).measure([found.dropped, wanted.dropped])
    assert ours.ce_nats < theirs.ce_nats + 0.005
