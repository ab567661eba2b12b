"""One block in memory at a time: the same boundary states, bit for bit, as the whole model's."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mi_prun.analysis.analysis import read_analysis
from mi_prun.analysis.analyze import analyze
from mi_prun.analysis.boundaries import Collector, collect, sample_tokens
from mi_prun.analysis.streamed_model import StreamedModel, collect_streamed
from mi_prun.errors import UserError
from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_block_model
from mi_prun.model.model_folder import open_model
from mi_prun.settings import AnalyzeSettings

WINDOWS = torch.randint(0, 97, (5, 24), generator=torch.Generator().manual_seed(2))
CPU = torch.device("cpu")

# Blocks of different kinds, fused experts, learned positions, scaled embeddings, sharded files, untied heads.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False, "max_shard_size": "20KB"},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "mlp_only_layers": [1, 3],
    },
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}


@pytest.mark.parametrize("model_type", MODELS)
def test_the_pass_is_that_of_the_whole_model(
    tiny: Callable[..., Path], load: Callable[[Path], BlockModel], model_type: str
) -> None:
    path = tiny(model_type, **MODELS[model_type])
    options = {"sample": sample_tokens(WINDOWS, 60, 3), "projection": 8, "seed": 3, "batch_tokens": 48}
    whole = collect(load(path), WINDOWS, **options)  # type: ignore[arg-type]
    streamed = StreamedModel(open_model(path), device=CPU, dtype=torch.float32)
    found = collect_streamed(streamed, WINDOWS, **options)  # type: ignore[arg-type]
    assert torch.equal(found.projections, whole.projections)
    assert torch.equal(found.cosine, whole.cosine)
    assert found.tokens == whole.tokens


def test_a_block_is_loaded_without_the_others_and_without_the_embedding(tiny: Callable[..., Path]) -> None:
    streamed = StreamedModel(open_model(tiny("llama")), device=CPU, dtype=torch.float32)
    first, later = (sum(p.numel() for p in streamed.load(block).model.parameters()) for block in (0, 4))
    block = sum(p.numel() for p in streamed.load(4).blocks.parameters())
    assert first == block + 97 * 32 + 32  # embedding and final norm
    assert later == block + 8 * 32 + 32  # a stub of an embedding


def test_the_analysis_says_the_same(
    tmp_path: Path, reference: Path, analyze_settings: AnalyzeSettings, reference_analysis_folder: Path
) -> None:
    from dataclasses import replace

    analyze(open_model(reference), tmp_path / "streamed", replace(analyze_settings, stream_blocks=True))
    streamed, whole = read_analysis(tmp_path / "streamed"), read_analysis(reference_analysis_folder)
    assert streamed.record.fingerprint == whole.record.fingerprint
    assert streamed.record.streamed
    assert not whole.record.streamed


def test_one_block_is_in_memory_at_a_time_beside_one_boundary_state_of_each_window(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without help from the garbage collector, which may run late."""
    blocks: list[weakref.ref[torch.Tensor]] = []
    states: list[weakref.ref[torch.Tensor]] = []
    load, see = StreamedModel.load, Collector.see

    def alive(refs: list[weakref.ref[torch.Tensor]]) -> int:
        return sum(ref() is not None for ref in refs)

    def load_one(self: StreamedModel, block: int) -> BlockModel:
        assert alive(blocks) == 0
        model = load(self, block)
        blocks.extend(weakref.ref(parameter) for parameter in model.model.parameters())
        return model

    def see_one(self: Collector, boundary: int, state: torch.Tensor, first_window: int) -> None:
        states.append(weakref.ref(state))
        assert alive(states) <= 3 + 1  # of each batch one, and of the batch at work the one before
        see(self, boundary, state, first_window)

    monkeypatch.setattr(StreamedModel, "load", load_one)
    monkeypatch.setattr(Collector, "see", see_one)
    streamed = StreamedModel(open_model(tiny("llama")), device=CPU, dtype=torch.float32)
    gc.collect()
    gc.disable()
    try:
        collect_streamed(streamed, WINDOWS, sample=sample_tokens(WINDOWS, 60, 3), projection=8, seed=3, batch_tokens=48)
    finally:
        gc.enable()
    assert len(states) == 3 * (6 + 1)
    assert len(blocks) > 6


def test_the_whole_model_s_pass_keeps_no_boundary_state(
    tiny: Callable[..., Path], load: Callable[[Path], BlockModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[weakref.ref[torch.Tensor]] = []
    see = Collector.see

    def see_one(self: Collector, boundary: int, state: torch.Tensor, first_window: int) -> None:
        states.append(weakref.ref(state))
        assert sum(ref() is not None for ref in states) <= 3  # a block's input and output, and the embedding
        see(self, boundary, state, first_window)

    monkeypatch.setattr(Collector, "see", see_one)
    sample = sample_tokens(WINDOWS, 60, 3)
    collect(load(tiny("llama")), WINDOWS, sample=sample, projection=8, seed=3, batch_tokens=48)
    assert len(states) == 3 * (6 + 1)
    assert not any(ref() is not None for ref in states)


def test_text_sampled_from_the_model_is_refused(tmp_path: Path, reference: Path) -> None:
    with pytest.raises(UserError, match="--stream-blocks needs --calibration with a text"):
        analyze(open_model(reference), tmp_path / "a", AnalyzeSettings(stream_blocks=True, device="cpu"))
    assert not (tmp_path / "a").exists()


def test_a_plain_pass_asks_nothing_of_a_model_that_cannot_be_streamed(
    tmp_path: Path, reference: Path, analyze_settings: AnalyzeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Families whose blocks cannot stand alone are refused with --stream-blocks, and only then."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise UserError("cannot be streamed")

    monkeypatch.setattr("mi_prun.analysis.streamed_model.reduce_config", refuse)
    assert analyze(open_model(reference), tmp_path / "whole", analyze_settings) is not None
    from dataclasses import replace

    with pytest.raises(UserError, match="cannot be streamed"):
        analyze(open_model(reference), tmp_path / "streamed", replace(analyze_settings, stream_blocks=True))
    assert not (tmp_path / "streamed").exists()


@pytest.mark.parametrize("model_type", ["gpt_oss", "exaone4"])
def test_kinds_that_only_vllm_takes_from_the_index_do_not_matter_here(
    tiny: Callable[..., Path], model_type: str
) -> None:
    """The pass is of transformers, which reads them from their field."""
    folder = open_model(tiny(model_type))
    streamed = StreamedModel(folder, device=torch.device("cpu"), dtype=torch.float32)
    whole = load_block_model(folder, device=torch.device("cpu"), dtype=torch.float32)
    windows = torch.randint(0, 97, (2, 16), generator=torch.Generator().manual_seed(0))
    sample = sample_tokens(windows, 16, seed=0)
    found = collect_streamed(streamed, windows, sample=sample, projection=4, seed=0)
    wanted = collect(whole, windows, sample=sample, projection=4, seed=0)
    assert torch.allclose(found.projections, wanted.projections, atol=1e-5)
