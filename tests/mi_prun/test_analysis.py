"""The analysis: written once, the same for the same input, read back strictly, refused before anything is written."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mi_prun.analysis import Analysis, read_analysis
from mi_prun.analyze import analyze
from mi_prun.errors import UserError
from mi_prun.model import identity_of, open_model
from mi_prun.settings import AnalyzeSettings


def test_it_holds_what_the_pass_saw(reference_analysis: Analysis, reference: Path) -> None:
    record = reference_analysis.record
    assert record.dense == identity_of(open_model(reference))
    assert reference_analysis.num_blocks == 12
    assert reference_analysis.scoring.shape == (4, 64)
    assert reference_analysis.ranking.shape == (16, 64)  # a loss is noisier than a covariance
    assert reference_analysis.held_out.shape == (8, 64)
    assert record.seen_tokens == 4 * (64 - record.skipped_tokens_per_window)
    cost = reference_analysis.segment_cost_nats
    assert cost.shape == (13, 13)
    assert not np.tril(cost).any()
    assert np.isfinite(cost).all()
    assert cost[np.triu_indices(13, 1)].all()  # every segment changes something
    cosine = reference_analysis.block_cosine
    assert cosine.shape == (12,)
    assert (np.abs(cosine) <= 1).all()
    assert (cosine[1:] > 0.9).all()  # block 0 leaves the embedding behind; the others add to a stream


def test_the_same_input_gives_the_same_analysis(
    reference: Path, analyze_settings: AnalyzeSettings, reference_analysis: Analysis, tmp_path: Path
) -> None:
    again = analyze(open_model(reference), tmp_path / "again", analyze_settings)
    assert again == reference_analysis.record
    other = analyze(open_model(reference), tmp_path / "other", dataclasses.replace(analyze_settings, seed=1))
    assert other.fingerprint != again.fingerprint


def test_a_changed_analysis_is_refused(reference_analysis_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(reference_analysis_folder, copy)
    data = bytearray((copy / "analysis.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "analysis.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="its digest differs"):
        read_analysis(copy)
    (copy / "analysis.safetensors").unlink()
    with pytest.raises(UserError, match="cannot read"):
        read_analysis(copy)
    (copy / "analysis.json").unlink()
    with pytest.raises(UserError, match="is not an analysis folder"):
        read_analysis(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scoring_tokens": 0}, "--tokens must be at least 1"),
        ({"window_tokens": 5}, "--window must be over 5"),
        ({"projection": 0}, "--projection must be at least 1"),
        ({"estimator": "magic"}, "--estimator must be one of"),
        ({"noise": 0.0}, "--noise must be in"),
        ({"noise": float("nan")}, "--noise must be in"),
        ({"device": "abacus"}, "--device 'abacus'"),
        ({"dtype": "int3"}, "--dtype must be one of"),
        ({"calibration": "gone.txt"}, "no such file"),
    ],
)
def test_settings_that_will_not_do_leave_nothing(
    reference: Path,
    analyze_settings: AnalyzeSettings,
    tmp_path: Path,
    change: dict[str, object],
    said: str,
) -> None:
    with pytest.raises(UserError, match=said):
        analyze(open_model(reference), tmp_path / "out", dataclasses.replace(analyze_settings, **change))  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())


def test_an_output_that_is_not_empty_is_kept(
    reference: Path, analyze_settings: AnalyzeSettings, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(UserError, match="is not empty"):
        analyze(open_model(reference), tmp_path, analyze_settings)
    assert (tmp_path / "mine").read_text() == "keep"


def test_a_model_that_gives_nan_is_refused(
    tiny: Callable[..., Path], analyze_settings: AnalyzeSettings, reference: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    dense = tiny("llama", vocab_size=4096)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reference / name, dense / name)
    weights = load_file(dense / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(weights, dense / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="block 2"):
        analyze(open_model(dense), tmp_path / "out", analyze_settings)
    assert not (tmp_path / "out").exists()
