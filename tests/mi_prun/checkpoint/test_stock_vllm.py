"""The first four families on stock vLLM, no plugin: log-probabilities of the dense model without the blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mi_prun.checkpoint.checkpoint import write_checkpoint
from mi_prun.model.model_folder import open_model

# Heads of 32 are the smallest that vLLM's CPU attention has.
WIDE = {"hidden_size": 128, "head_dim": 32}


@pytest.mark.engine
@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("llama", {"tie_word_embeddings": False}),
        pytest.param("mistral", {"sliding_window": None}, marks=pytest.mark.long),
        pytest.param("qwen2", {"tie_word_embeddings": True}, marks=pytest.mark.long),
        ("qwen3", {"tie_word_embeddings": True}),
    ],
)
def test_log_probabilities_are_those_of_the_dense_model_without_the_blocks(
    tiny: Callable[..., Path],
    make_plan: Callable[..., Any],
    assert_stock_vllm_says_the_same: Callable[..., None],
    tmp_path: Path,
    model_type: str,
    fields: dict[str, Any],
) -> None:
    dense = tiny(model_type, **(WIDE | fields))
    write_checkpoint(open_model(dense), make_plan(dense, (1, 2, 4)), tmp_path / "pruned")
    assert_stock_vllm_says_the_same(dense, tmp_path / "pruned", (1, 2, 4))
