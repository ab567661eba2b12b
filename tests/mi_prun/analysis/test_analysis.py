"""The analysis: written once, the same for the same input, read back strictly, refused before anything is written."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mi_prun.analysis.analysis import Analysis, AnalysisRecord, read_analysis
from mi_prun.analysis.analyze import analyze
from mi_prun.analysis.estimators import make_estimator
from mi_prun.analysis.mutual_information import DPI_TOLERANCE_NATS
from mi_prun.errors import UserError
from mi_prun.files import sha256_of
from mi_prun.model.model_folder import open_model
from mi_prun.planning.planning import make_context
from mi_prun.settings import SELF, AnalyzeSettings, PlanSettings


def test_it_holds_what_the_pass_saw(reference_analysis: Analysis, reference: Path) -> None:
    record = reference_analysis.record
    assert record.dense == open_model(reference).identity
    assert reference_analysis.num_blocks == 12
    assert reference_analysis.scoring.shape == (4, 64)
    assert reference_analysis.ranking.shape == (16, 64)
    assert reference_analysis.held_out.shape == (8, 64)
    assert record.seen_tokens == 4 * (64 - record.skipped_tokens_per_window)
    cost = reference_analysis.segment_cost_nats
    assert cost.shape == (13, 13)
    assert not np.tril(cost).any()
    assert np.isfinite(cost).all()
    assert cost[np.triu_indices(13, 1)].all()  # every segment changes something
    mi = reference_analysis.segment_mi_nats
    excess = [mi[i, k] - mi[j, k] for i, j, k in combinations(range(13), 3)]  # h_i -> h_j -> h_k + e
    assert record.dpi_triples == len(excess) == 286
    assert record.dpi_violations == sum(e > DPI_TOLERANCE_NATS for e in excess)
    assert record.dpi_worst_nats == pytest.approx(max(max(excess), 0.0) if record.dpi_violations else 0.0)
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
    ("name", "change", "said"),
    [
        ("block_cosine", lambda cosine: cosine[:-1], r"block_cosine has shape \(11,\), expected \(12,\)"),
        ("ranking", lambda windows: windows.ravel(), r"ranking has shape \(1024,\), expected \(16, 64\)"),
        ("scoring", lambda windows: windows.astype(np.int64), r"scoring \(int64\) is to be .* of int32, none below 0"),
        ("held_out", lambda windows: -windows - 1, r"held_out \(int32\) is to be .* of int32, none below 0"),
        ("pair_angle", lambda angle: angle * np.nan, r"pair_angle \(float64\) is to be finite numbers of float64"),
        ("held_out", lambda windows: windows + 10**6, r"token 1\d{6} of its tokenizer .* has 4096 rows"),
        (
            None,
            {"calibration": {"window_tokens": 0}},
            "field calibration.window_tokens: Input should be greater than 0",
        ),
        (
            None,
            {"dense": {"num_parameters": 0, "block_parameters": [0] * 12}},
            "block_parameters must be 1 or more each",
        ),
    ],
)
def test_one_made_by_hand_is_refused_in_one_line(
    reference_analysis_folder: Path, tmp_path: Path, name: str | None, change: Any, said: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(reference_analysis_folder, copy)
    record = json.loads((copy / "analysis.json").read_text())
    if name is None:
        for part, fields in change.items():
            record[part] |= fields
    else:
        arrays = load_file(copy / "analysis.safetensors")
        save_file(arrays | {name: np.ascontiguousarray(change(arrays[name]))}, copy / "analysis.safetensors")
        record["fingerprint"] = sha256_of(copy / "analysis.safetensors")
    (copy / "analysis.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=said):
        make_context(read_analysis(copy), PlanSettings()).model  # noqa: B018


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scoring_tokens": 0}, "--tokens must be at least 1"),
        ({"window_tokens": 5}, "--window must be over 5"),
        ({"projection": 0}, "projection must be at least 1"),
        ({"estimator": "magic"}, "estimator must be one of"),
        ({"noise": 0.0}, "noise must be in"),
        ({"noise": float("nan")}, "noise must be in"),
        ({"device": "abacus"}, "--device 'abacus'"),
        ({"dtype": "int3"}, "--dtype must be one of"),
        ({"sources": ("gone.txt",)}, "no such file"),
        ({"seed": -1}, r"--seed must be in 0\.\.2147483647, got -1"),
        ({"seed": 2**31}, r"--seed must be in 0\.\.2147483647"),
        ({"projection": 16}, "projection 16: the estimator reading takes states whole"),
        (
            {"projection": 121, "estimator": "gaussian"},
            "gaussian MI of 121 dimensions needs at least 242 tokens, got 240",
        ),
        ({"projection": 241, "estimator": "ksg"}, "ksg MI of 241 dimensions needs at least 241 tokens, got 240"),
        ({"projection": 241, "estimator": "renyi"}, "renyi MI of 241 dimensions needs at least 241 tokens, got 240"),
    ],
)
def test_settings_that_will_not_do_leave_nothing(
    reference: Path,
    analyze_settings: AnalyzeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    said: str,
) -> None:
    monkeypatch.setattr("mi_prun.analysis.analyze.collect_whole", lambda *a, **k: pytest.fail("the pass was made"))
    with pytest.raises(UserError, match=said):
        analyze(open_model(reference), tmp_path / "out", dataclasses.replace(analyze_settings, **change))  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())


def test_a_model_or_a_text_that_is_read_is_never_replaced(
    tiny: Callable[..., Path], analyze_settings: AnalyzeSettings, tmp_path: Path
) -> None:
    dense, text = tiny("llama"), tmp_path / "runs" / "text.txt"
    text.parent.mkdir()
    text.write_text("Three ships.")
    settings = dataclasses.replace(analyze_settings, sources=(str(text),))
    for out, said in ((dense, "the dense model's folder"), (text.parent, "which is read"), (text, "which is read")):
        with pytest.raises(UserError, match=said):
            analyze(open_model(dense), out, settings, force=True)
    assert (dense / "config.json").is_file()
    assert text.is_file()


def test_too_few_tokens_are_known_before_a_model_is_loaded(
    reference: Path, analyze_settings: AnalyzeSettings, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="gaussian MI of 121 dimensions needs at least 242 tokens, got 240"):
        analyze(
            open_model(reference),
            tmp_path / "out",
            dataclasses.replace(analyze_settings, estimator="gaussian", projection=121, sources=(SELF,)),
            load=lambda: pytest.fail("loaded"),
        )


def test_covariances_that_no_memory_holds_are_refused(
    reference: Path, analyze_settings: AnalyzeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mi_prun.analysis.analyze.MOST_PROJECTED", 13 * 16)
    settings = dataclasses.replace(analyze_settings, estimator="gaussian", projection=17)
    said = r"projection 17: 13 boundary states of 17 dimensions are 221.* take projection 16 or less"
    with pytest.raises(UserError, match=said):
        analyze(open_model(reference), tmp_path / "out", settings, load=lambda: pytest.fail("loaded"))


def test_a_model_of_one_block_is_refused(
    tiny: Callable[..., Path], analyze_settings: AnalyzeSettings, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="has one block; there is none to drop"):
        analyze(open_model(tiny("llama", num_hidden_layers=1)), tmp_path / "out", analyze_settings)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_not_empty_is_kept(
    reference: Path, analyze_settings: AnalyzeSettings, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(UserError, match="is not empty"):
        analyze(open_model(reference), tmp_path, analyze_settings)
    assert (tmp_path / "mine").read_text() == "keep"


def test_a_model_that_gives_nan_is_refused(
    random_model: Callable[..., Path], analyze_settings: AnalyzeSettings, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    dense = random_model("llama")
    weights = load_file(dense / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(weights, dense / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="block 2"):
        analyze(open_model(dense), tmp_path / "out", analyze_settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stream_blocks", [False, True])
def test_text_of_one_token_is_refused(
    reference: Path, analyze_settings: AnalyzeSettings, tmp_path: Path, stream_blocks: bool
) -> None:
    """Boundary states then differ by rounding alone."""
    (tmp_path / "same.txt").write_text(" the" * 2_000)
    settings = dataclasses.replace(analyze_settings, sources=(str(tmp_path / "same.txt"),), stream_blocks=stream_blocks)
    with pytest.raises(UserError, match="boundary state 0 is the same for every token; nothing to estimate"):
        analyze(open_model(reference), tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}), ("gpt2", {"n_layer": 6, "n_embd": 32, "n_head": 4})],
)
def test_windows_beyond_the_learned_positions_are_refused(
    random_model: Callable[..., Path],
    analyze_settings: AnalyzeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    fields: dict[str, int],
) -> None:
    dense = open_model(random_model(model_type, **fields))
    analyze(dense, tmp_path / "fits", analyze_settings)  # 64 of 64
    monkeypatch.setattr(
        "mi_prun.analysis.analyze.load_block_model", lambda *a, **k: pytest.fail("the model was loaded")
    )
    with pytest.raises(UserError, match=r"--window must be at most 64, the positions that .* has, got 65"):
        analyze(dense, tmp_path / "out", dataclasses.replace(analyze_settings, window_tokens=65))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "settings"), [("ksg", {"neighbours": 3.0}), ("renyi", {"bandwidth": 1.0, "alpha": 2.0})]
)
def test_the_settings_of_the_estimator_are_kept(
    reference: Path,
    analyze_settings: AnalyzeSettings,
    reference_analysis: Analysis,
    tmp_path: Path,
    name: str,
    settings: dict[str, float],
) -> None:
    analyze(open_model(reference), tmp_path / "a", dataclasses.replace(analyze_settings, estimator=name))
    record = read_analysis(tmp_path / "a").record
    assert (record.estimator, record.estimator_settings) == (name, settings)
    assert record.estimated_tokens == min(make_estimator(name).max_tokens, 240)
    assert math.isfinite(record.dpi_worst_nats)
    assert (record.projection, record.noise, record.seed) == (16, 1e-2, 0)
    default = reference_analysis.record
    assert (default.estimator, default.estimator_settings) == ("reading", {})
    assert (default.projection, default.noise) == (256, 1.0)


def test_an_analysis_of_an_older_release_is_read(reference_analysis_folder: Path) -> None:
    fields = json.loads((reference_analysis_folder / "analysis.json").read_text())
    del fields["dpi_triples"], fields["dpi_worst_nats"]
    assert AnalysisRecord.parse(json.dumps(fields), origin="old").dpi_triples == 0


def test_how_many_tokens_are_ranked_and_held_out() -> None:
    assert AnalyzeSettings().part_tokens == (4_096, 65_536, 8_192)
    assert AnalyzeSettings(scoring_tokens=100, ranking_tokens=7, held_out_tokens=9).part_tokens == (100, 7, 9)
