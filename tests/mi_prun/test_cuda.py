"""On a GPU: the pass, streamed blocks, measuring and the choice say what they say on CPU. Skipped where none is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_prun.analysis.analysis import Analysis, read_analysis
from mi_prun.analysis.analyze import analyze
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_block_model
from mi_prun.model.model_folder import open_model
from mi_prun.planning.planning import make_context, make_plan
from mi_prun.quality.evaluator import Evaluator
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


def test_measured_losses_of_a_model_that_caps_its_scores(
    tiny: Callable[..., Path], load: Callable[[Path], BlockModel]
) -> None:
    model = tiny("gemma2", head_dim=8, attn_logit_softcapping=0.5)
    windows = torch.randint(0, 97, (3, 48), generator=torch.Generator().manual_seed(5))
    on_gpu = load_block_model(open_model(model), device=torch.device("cuda"), dtype=torch.float32)
    found, wanted = (Evaluator(model, windows).by_window([(), (2,), (1, 4)]) for model in (on_gpu, load(model)))
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spare_bytes", [0, 24_000_000])
def test_a_full_accelerator_is_said_in_one_line(
    reference: Path, harbour: Path, tmp_path: Path, spare_bytes: int
) -> None:
    """Where the weights do not fit, and where the states do not."""
    room = spare_bytes and spare_bytes + (reference / "model.safetensors").stat().st_size / 2
    limit = room / torch.cuda.get_device_properties(0).total_memory
    program = f"import torch; torch.cuda.set_per_process_memory_fraction({limit}); from mi_prun.cli import main; main()"
    command = ["analyze", str(reference), "--calibration", str(harbour), "--window", "512", "--tokens", "4096"]
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "-o", str(tmp_path / "analysis")], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "out of memory" in done.stderr
    assert not (tmp_path / "analysis").exists()


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
