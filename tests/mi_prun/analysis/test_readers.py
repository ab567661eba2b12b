"""The norms that read boundary states are found where they are, whatever the family calls them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mi_prun.analysis.readers import Readers, readers_of
from mi_prun.model.block_model import BlockModel

# Where a family has its norms: in front of a block, in front of the head; what is added to a weight; whether LayerNorm.
FOUND: dict[str, tuple[str, str, float, bool]] = {
    "llama": ("input_layernorm", "model.norm", 0.0, False),
    "gemma2": ("input_layernorm", "model.norm", 1.0, False),
    "opt": ("self_attn_layer_norm", "model.decoder.final_layer_norm", 0.0, True),
}
FIELDS: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}


@pytest.mark.parametrize("model_type", FOUND)
def test_they_are_the_weights_of_the_norm_in_front(
    tiny: Callable[..., Path], load: Callable[[Path], BlockModel], model_type: str
) -> None:
    model = load(tiny(model_type, **FIELDS.get(model_type, {})))
    in_front, of_head, more, centred = FOUND[model_type]
    weights = [block.get_submodule(in_front).weight for block in model.blocks]
    weights.append(model.model.get_submodule(of_head).weight)
    readers = readers_of(model)
    wanted = torch.stack([(weight.detach() + more).abs() for weight in weights])  # type: ignore[operator, union-attr]
    assert torch.allclose(readers.scale, wanted, atol=1e-4)
    assert readers.centred.tolist() == [centred] * 7


def test_a_block_that_normalises_only_what_it_gives_reads_every_dimension_alike(
    tiny: Callable[..., Path], load: Callable[[Path], BlockModel]
) -> None:
    model = load(tiny("olmo2"))
    readers = readers_of(model)
    assert torch.equal(readers.scale[:-1], torch.ones(6, 32))
    assert not torch.allclose(readers.scale[-1], torch.ones(32))  # the head's norm does read the last state


def test_readings_are_directions_under_the_weights() -> None:
    readers = Readers(torch.tensor([[1.0, 2.0], [1.0, 1.0]]), torch.tensor([False, True]))
    assert torch.allclose(readers.readings(0, torch.tensor([3.0, 2.0])), torch.tensor([0.6, 0.8]))
    assert torch.allclose(readers.readings(1, torch.tensor([5.0, 1.0])), torch.tensor([0.5, -0.5]) * 2**0.5)
    assert torch.equal(Readers.joined([readers, Readers.plain(1, 2)]).centred, torch.tensor([False, True, False]))
