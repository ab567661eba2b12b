"""What the tests of more than one package share: tiny random models, saved as real model folders, and pruned ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mi_prun.checkpoint import write_checkpoint
from mi_prun.model import identity_of, open_model
from mi_prun.plan import Plan, kept_blocks

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def randomise(model: nn.Module) -> None:
    """Weights large enough that every block matters, and norms and biases that are not all alike."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else parameter + 0.1 * noise)


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """`tiny(model_type, **config fields)` saves a random model of that type into a folder of its own."""

    def make(
        model_type: str,
        *,
        folder: str = "dense",
        max_shard_size: str = "5GB",
        dtype: torch.dtype = torch.float32,
        base: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Path:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(model_type, **((SMALL if base is None else base) | fields))
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        randomise(model)
        path = tmp_path / folder
        model.save_pretrained(path, max_shard_size=max_shard_size)
        return path

    return make


@pytest.fixture
def small() -> dict[str, Any]:
    """Config fields of a small text model."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def prune() -> Callable[..., Path]:
    """`prune(dense, out, dropped)` writes the checkpoint that lacks those blocks."""

    def make(source: Path, out: Path, dropped: Sequence[int], *, virtual: bool = False) -> Path:
        folder = open_model(source)
        identity = identity_of(folder)
        kept = kept_blocks(identity.num_blocks, dropped)
        plan = Plan(dense=identity, dropped=tuple(dropped), kept=kept, method="by hand")
        write_checkpoint(folder, plan, out, virtual=virtual)
        return out

    return make


@pytest.fixture(scope="session")
def reference() -> Path:
    """The bundled 12-block model: trained, so that its quality means something."""
    return Path(__file__).parents[1] / "bench" / "reference"
