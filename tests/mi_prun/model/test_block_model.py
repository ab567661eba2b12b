"""A model taken apart at its blocks says what the whole one says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mi_prun.model.block_model import BlockModel
from mi_prun.model.loading import load_block_model
from mi_prun.model.model_folder import open_model

TOKENS = torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(1))


def load(path: Path) -> BlockModel:
    return load_block_model(open_model(path), device=torch.device("cpu"), dtype=torch.float32)


@torch.inference_mode()
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gpt_neox"])
def test_embed_run_and_logits_are_the_model(tiny: Callable[..., Path], model_type: str) -> None:
    model = load(tiny(model_type))
    for tokens in (TOKENS, TOKENS[:1, :7]):  # another shape is another mask
        wanted = model.model(input_ids=tokens, use_cache=False).logits
        hidden = model.embed(tokens)
        for block in range(model.num_blocks):
            hidden = model.run(block, hidden)
        assert torch.allclose(model.logits(hidden), wanted, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_embed_makes_no_logits(tiny: Callable[..., Path], model_type: str) -> None:
    model = load(tiny(model_type))
    head = model.model.get_output_embeddings()  # type: ignore[operator]
    widths: list[int] = []
    head.register_forward_hook(lambda module, args, output: widths.append(output.shape[-1]))
    hidden = model.embed(TOKENS)
    assert widths == [model.hidden_size]
    model.logits(hidden)
    assert widths[1:] == [model.vocab_size]  # the head is back


@torch.inference_mode()
def test_blocks_left_out_come_back(
    tiny: Callable[..., Path], logits_without: Callable[..., tuple[torch.Tensor, torch.Tensor]]
) -> None:
    path = tiny("llama")
    model = load(path)
    tokens, wanted = logits_without(path, [1, 4], "model.layers")
    _, dense = logits_without(path, [], "model.layers")
    with model.without([1, 4]) as pruned:
        assert torch.allclose(pruned(input_ids=tokens, use_cache=False).logits, wanted, atol=1e-5)
    assert torch.allclose(model.model(input_ids=tokens, use_cache=False).logits, dense, atol=1e-5)

    def fail() -> None:
        with model.without([0]):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - our own
        fail()
    assert torch.allclose(model.model(input_ids=tokens, use_cache=False).logits, dense, atol=1e-5)


def test_sizes_are_the_configs(tiny: Callable[..., Path]) -> None:
    path = tiny("llama")
    model = load(path)
    assert (model.num_blocks, model.hidden_size, model.vocab_size) == (6, 32, 97)
    assert open_model(path).context_tokens() == 64
    assert open_model(path).context_tokens(cap=16) == 16


def test_the_cap_of_attention_scores_is_kept(tiny: Callable[..., Path]) -> None:
    """Of large scores: the fused attention of transformers does without the cap."""
    model = load(tiny("gemma2", head_dim=8, attn_logit_softcapping=0.01))
    tokens = torch.randint(0, 97, (1, 16), generator=torch.Generator().manual_seed(0))
    state = model.embed(tokens)
    capped = model.run(0, state)
    model.model.config.get_text_config().attn_logit_softcapping = None  # type: ignore[operator, union-attr]
    for block in model.blocks:
        block.self_attn.attn_logit_softcapping = None
    assert not torch.allclose(model.run(0, state), capped)
