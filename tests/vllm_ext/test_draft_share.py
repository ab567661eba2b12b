"""Sharing, and its refusals, on toy modules: no engine."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from mi_prun.errors import UserError
from vllm_ext.draft import share


class Attention(nn.Module, AttentionLayerBase):
    """Owns a KV cache, a parameter and a buffer."""

    def __init__(self, *, extra: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(1))
        self.register_buffer("steps", torch.randn(2))
        self.kv_cache = torch.ones(3)
        self.k_scale_float = random.random()
        if extra:
            self.register_buffer("extra", torch.randn(2))

    def get_attn_backend(self) -> Any:
        raise NotImplementedError

    def get_kv_cache_spec(self, vllm_config: Any) -> Any:
        raise NotImplementedError


class Block(nn.Module):
    def __init__(self, **attention: Any) -> None:
        super().__init__()
        self.attention = Attention(**attention)
        self.mlp = nn.Linear(2, 2)


class Model(nn.Module):
    def __init__(self, blocks: int, **attention: Any) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(3, 2)
        self.layers = nn.ModuleList(Block(**attention) for _ in range(blocks))


class OtherBlock(Block):
    pass


def draft(blocks: int, **attention: Any) -> Model:
    with torch.device("meta"):
        return Model(blocks, **attention)


def test_a_draft_has_the_targets_modules_and_caches_of_its_own() -> None:
    target, model = Model(4), draft(2)
    share(model, target, [1, 3])
    assert model.embeddings is target.embeddings
    for mine, theirs in zip(model.layers, (target.layers[1], target.layers[3]), strict=True):
        assert mine is not theirs
        assert mine.mlp is theirs.mlp
        assert mine.attention is not theirs.attention
        assert mine.attention.scale is theirs.attention.scale
        assert mine.attention.k_scale_float == theirs.attention.k_scale_float
        assert torch.equal(mine.attention.steps, theirs.attention.steps)
        assert mine.attention.steps is not theirs.attention.steps
        assert mine.attention.kv_cache.numel() == 0
        assert theirs.attention.kv_cache.numel() == 3


@pytest.mark.parametrize("kept", [[0, 4], [0, 1, 2]])
def test_no_list_of_so_many_blocks(kept: list[int]) -> None:
    """The target has too few of them, or the draft has not as many as it keeps."""
    with pytest.raises(UserError, match=rf"cannot share the weights .*: no list of {len(kept)} blocks found"):
        share(draft(2), Model(4), kept)


def test_modules_of_another_kind() -> None:
    target = Model(4)
    target.layers[3] = OtherBlock()
    with pytest.raises(UserError, match=r"layers\.1 is a Block there and a OtherBlock here"):
        share(draft(2), target, [1, 3])


def test_a_tensor_that_the_target_lacks() -> None:
    with pytest.raises(UserError, match=r"layers\.0\.attention\.extra has no counterpart there"):
        share(draft(2, extra=True), Model(4), [1, 3])
